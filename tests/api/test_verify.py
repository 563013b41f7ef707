"""`graphc.verify` against faults put into each stage: it names the stage, the op and the user's line."""

from __future__ import annotations

import runpy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import graphc
from graphc.cli.main import main
from graphc.frontend import dispatch
from graphc.frontend.aten.registry import RULES, load_rules
from graphc.ops import registry
from graphc.passes import pipeline
from graphc.passes.base import PassResult
from graphc.settings import override

COMPILER = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
pytestmark = COMPILER


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """Programs that show faults go to a folder of the test; what is built with a fault is kept nowhere."""
    monkeypatch.chdir(tmp_path)
    with override(cache=False):
        yield


def wavy(x, scale):
    bent = torch.atan(x * scale)
    squeezed = torch.tanh(bent).sum(-1, keepdim=True)
    return squeezed + torch.sin(x), bent.mean()


def line_of(text: str) -> str:
    lines = Path(__file__).read_text().splitlines()
    return f"{__file__}:{next(number for number, line in enumerate(lines, 1) if text in line)}"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same data in each run: on some, eager's error is small by chance where digits cancel."""
    torch.manual_seed(0)


def test_right() -> None:
    report = graphc.verify(wavy, torch.randn(6, 5), 0.7)
    assert report.right and report.fault is None
    assert [output.name for output in report.outputs] == ["result[0]", "result[1]"]
    assert all(output.errors.ours < 1e-5 for output in report.outputs)
    assert "right" in str(report)


def test_gradients_writes_and_state() -> None:
    # a bias in front of the norm has no gradient but rounding, eager's own by chance a small one
    net = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8), torch.nn.GELU())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    report = graphc.verify(net, torch.randn(5, 4))
    assert report.right
    names = [output.name for output in report.outputs]
    assert "gradient of 0.weight" in names and "1.running_mean, written" in names
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_random_numbers() -> None:
    assert graphc.verify(torch.nn.Dropout(0.5), torch.randn(50)).right
    assert graphc.verify(graphc.compile(torch.nn.Dropout(0.5), numerics="eager"), torch.randn(50)).right


def test_half_precision_in_kernels_is_right() -> None:
    assert graphc.verify(lambda x: torch.softmax(x * 3, -1).sum(), torch.randn(6, 5).bfloat16()).right


def cancelling(x):
    """Nothing is left of both but rounding, of which eager's own may be nil."""
    return (x * 1.1).sum() - (x.flip(0) * 1.1).sum(), ((x - x.mean()) / 3).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rounding_is_no_fault(dtype: torch.dtype) -> None:
    reports = []
    for seed in range(6):
        torch.manual_seed(seed)
        reports.append(graphc.verify(cancelling, torch.randn(1000, dtype=dtype)))
    assert all(report.right for report in reports), reports
    assert any(" by chance, else up to " in str(report) for report in reports)


def test_a_gradient_of_nothing_but_rounding_is_no_fault() -> None:
    for seed in range(9, 12):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.GELU())
        report = graphc.verify(net, torch.randn(5, 4))
        assert report.right, report


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 1 + 1e-5), (torch.float64, 1 + 1e-13)], ids=str)
def test_what_is_more_than_rounding_is_a_fault(monkeypatch, dtype: torch.dtype, factor: float) -> None:
    monkeypatch.setitem(registry._REGISTRY, "tanh", off("tanh", factor))
    report = graphc.verify(wavy, torch.randn(6, 5, dtype=dtype), 0.7)
    assert not report.right and report.fault is not None and report.fault.op.startswith("tanh("), report


def off(name: str, factor: float) -> registry.OpDef:
    """An op whose kernels are wrong."""
    right = registry.get(name)

    def lower(ctx, op, index):
        value = right.lower(ctx, op, index)
        return ctx.compute("mul", value, ctx.constant(factor, op.results[0].dtype), dtype=op.results[0].dtype)

    return replace(right, lower=lower)


def one_percent_off(name: str) -> registry.OpDef:
    return off(name, 1.01)


def test_a_broken_kernel(monkeypatch) -> None:
    with monkeypatch.context() as broken:
        broken.setitem(registry._REGISTRY, "tanh", one_percent_off("tanh"))
        report = graphc.verify(wavy, torch.randn(6, 5), 0.7)
        assert not report.right and report.fault is not None
        assert [bool(output.errors.miss) for output in report.outputs] == [True, False]
        assert report.fault.stage.startswith("kernel ") and report.fault.op.startswith("tanh(")
        assert report.fault.location == line_of("squeezed = torch.tanh")
        assert report.fault.script == Path("out/verify/wavy.py")
        assert run_script(report.fault.script) == 1
    assert run_script(report.fault.script) == 0


def run_script(path: Path) -> int:
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path))
    return int(ended.value.code)


@dataclass(frozen=True)
class TurnSums:
    """A pass that gets sums of squeezed values wrong: an atan becomes a tanh."""

    name: str = "turn-sums"

    def run(self, graph, ctx):
        for op in graph.ops:
            if op.name == "atan":
                op.name = "tanh"
        return PassResult(False)


def test_a_broken_pass(monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "PREPARE", (TurnSums(), *pipeline.PREPARE))
    report = graphc.verify(wavy, torch.randn(6, 5), 0.7)
    assert report.fault is not None and report.fault.stage == "pass turn-sums"


def test_a_broken_capture(monkeypatch) -> None:
    load_rules()
    monkeypatch.setitem(RULES, "aten.sin.default", RULES["aten.cos.default"])
    monkeypatch.setattr(dispatch, "_HANDLERS", {})
    report = graphc.verify(wavy, torch.randn(6, 5), 0.7)
    assert report.fault is not None and (report.fault.stage, report.fault.op) == ("capture", "aten.sin.default")
    assert report.fault.location == line_of("return squeezed + torch.sin(x)")


def forked(x, scale):
    if (x > 1).any():
        x.mul_(2)
        chosen = x[x > 0]
        if len(chosen) > 3:
            return torch.atan(chosen * scale).exp()
    while x.abs().max() > 0.5:
        x = x / 2
    return torch.tanh(x).exp()


def test_the_path_taken_is_verified() -> None:
    for size in (0.1, 0.9, 5.0):
        report = graphc.verify(forked, torch.linspace(-1, 1, 12) * size, 0.7)
        assert report.right, report
        written = [output.name for output in report.outputs if output.name.endswith("written")]
        assert written == (["x, written"] if size > 1 else [])
    layer = torch.nn.Linear(3, 3)

    def loss(x):
        y = layer(x)
        return (y * 2).sum() if y.sum() > 0 else y.square().sum()

    for sign in (9, -9):
        report = graphc.verify(loss, torch.ones(2, 3) * sign)
        assert report.right and "gradient of layer.weight" in str(report), report


def test_a_broken_kernel_behind_a_branch(monkeypatch) -> None:
    monkeypatch.setitem(registry._REGISTRY, "atan", one_percent_off("atan"))
    report = graphc.verify(forked, torch.linspace(-1, 1, 12) * 5, 0.7)
    assert not report.right and report.fault is not None
    assert report.fault.stage.startswith("kernel") and report.fault.op.startswith("atan(")
    assert report.fault.location == line_of("return torch.atan(chosen * scale).exp()")
    assert graphc.verify(forked, torch.linspace(-1, 1, 12) * 0.9, 0.7).right, "the other path has no atan"


def test_command(tmp_path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n\n\ndef soft(x):\n    return torch.softmax(x, -1)\n\n\n"
        "def example_inputs():\n    return (torch.randn(3, 4),)\n"
    )
    done = CliRunner().invoke(main, ["verify", f"{tmp_path}/net.py:soft"])
    assert done.exit_code == 0 and "right" in done.output, done.output
