"""What `graphc.compile` returns: counting, recompiling, falling back, modules, threads, and errors users meet."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.earnings import Earnings
from graphc.errors import (
    CaptureError,
    DataDependentError,
    FallbackWarning,
    GraphcError,
    GraphcWarning,
    UnsupportedError,
)
from graphc.frontend.captured import Captured
from graphc.settings import override


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.scale = 2.0

    def forward(self, x):
        return F.relu(self.fc(x)) * self.scale


def test_decorator_keeps_name_and_docstring() -> None:
    @graphc.compile(name="renamed")
    def f(x):
        """Doubles."""
        return x * 2

    assert f.__name__ == "f"
    assert f.__doc__ == "Doubles."
    assert f.graph(torch.ones(2)).name == "renamed"


def test_recompiles_are_counted_and_explained() -> None:
    @graphc.compile
    def f(x, flag=True):
        return x * 2 if flag else x + 1

    f(torch.ones(3))
    f(torch.ones(4))
    f(torch.ones(4), flag=False)
    f(torch.ones(4, dtype=torch.float64), flag=False)
    stats = f.stats()
    assert stats.compiles == 4
    dtype, flag, shape = stats.recompiles
    assert "(3" in shape and "(4" in shape and "x" in shape
    assert "flag" in flag
    assert "float64" in dtype
    f(torch.ones(3))
    assert (stats.compiles, stats.hits) == (4, 1)


def test_changing_float_compiles_once_more_and_then_never() -> None:
    @graphc.compile
    def f(x, a):
        return x * a

    results = [f(torch.ones(2), value) for value in (0.5, 0.25, 0.125, 3.0)]
    assert [float(r[0]) for r in results] == [0.5, 0.25, 0.125, 3.0]
    assert f.stats().compiles == 2


def test_many_recompiles_warn_and_name_the_reason() -> None:
    f = graphc.compile(lambda x: x + 1, name="f", backend="interpret")
    with override(max_recompiles=2), pytest.warns(GraphcWarning, match="compiled 3 times.*shape"):
        for size in (1, 2, 3):
            f(torch.ones(size + 1))


def test_another_program_has_to_be_earned(monkeypatch: pytest.MonkeyPatch) -> None:
    f = graphc.compile(lambda x: x * 2, name="f", backend="interpret")
    with override(max_recompiles=2), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        monkeypatch.setattr(Earnings, "suffice", lambda self, kind: False)
        for size in (*range(1, 7), 1, 4):
            assert torch.equal(f(torch.ones(size)), torch.full((size,), 2.0))
        assert (f.stats().compiles, f.stats().eager_calls, f.stats().hits) == (3, 4, 1)
        assert sum("f runs eager, since none of its programs fits" in str(item.message) for item in said) == 1
        monkeypatch.setattr(Earnings, "suffice", lambda self, kind: "(6,)" in str(kind))
        for size in (5, 6, 6):
            f(torch.ones(size))
        assert (f.stats().compiles, f.stats().eager_calls, f.stats().hits) == (4, 5, 2)


def test_a_number_that_changes_needs_no_earning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Earnings, "suffice", lambda self, kind: False)
    f = graphc.compile(lambda x, a: x * a, name="f", backend="interpret")
    with override(max_recompiles=1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for size in (1, 2, 3):
            f(torch.ones(size), 0.5)
        for factor in (0.25, 0.125):
            f(torch.ones(2), factor)
    assert (f.stats().compiles, f.stats().eager_calls) == (3, 1)


def test_earnings() -> None:
    earnings = Earnings()
    assert earnings.suffice("a")  # nothing has been compiled yet
    earnings.compiled(2.0, shared=False)
    earnings.compiled(4.0, shared=False)
    for seconds, suffices in ((1.0, False), (1.5, False), (1.0, True)):
        earnings.ran("a", seconds)
        assert earnings.suffice("a") is suffices and not earnings.suffice("b")
    earnings.compiled(0.5, shared=True)  # what a kind costs from now on
    earnings.ran("b", 0.6)
    assert earnings.suffice("b") and not earnings.suffice("c")


def test_globals_and_closures_are_guarded() -> None:
    factor = 2.0

    @graphc.compile
    def f(x):
        return x * factor

    assert float(f(torch.ones(1))) == 2.0
    factor = 5.0
    assert float(f(torch.ones(1))) == 5.0
    assert "factor" in f.stats().recompiles[0]


def test_module_shares_everything_with_the_original() -> None:
    net = Net()
    compiled = graphc.compile(net)
    assert isinstance(compiled, Net)
    assert list(compiled.state_dict()) == list(net.state_dict())
    x = torch.randn(2, 4)
    torch.testing.assert_close(compiled(x), net(x))
    net.fc.weight.mul_(2)
    torch.testing.assert_close(compiled(x), net(x))
    compiled.scale = 3.0
    assert net.scale == 3.0
    torch.testing.assert_close(compiled(x), net(x))
    assert "scale" in compiled.stats().recompiles[0]
    compiled.load_state_dict({key: torch.zeros_like(value) for key, value in net.state_dict().items()})
    assert float(compiled(x).abs().max()) == 0.0
    assert compiled.eval().training is net.training is False


def test_replaced_parameter_is_seen() -> None:
    net = Net()
    compiled = graphc.compile(net)
    x = torch.randn(2, 4)
    compiled(x)
    net.fc.weight = nn.Parameter(torch.zeros(3, 4))
    torch.testing.assert_close(compiled(x), net(x))


def test_moved_parameter_storage_is_seen() -> None:
    net = Net()
    compiled = graphc.compile(net)
    x = torch.randn(2, 4)
    compiled(x)
    net.fc.weight.data = torch.zeros(3, 4)
    torch.testing.assert_close(compiled(x), net(x))
    net.fc.weight.data = torch.ones(4, 3).t()
    torch.testing.assert_close(compiled(x), net(x))


def test_deepcopy_and_pickle_of_a_compiled_module() -> None:
    net = Net()
    compiled = graphc.compile(net)
    x = torch.randn(2, 4)
    expected = compiled(x)
    for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        torch.testing.assert_close(other(x), expected)
        other.fc.weight.zero_()
        other.fc.bias.zero_()
        assert float(other(x).abs().max()) == 0.0
        torch.testing.assert_close(compiled(x), expected)
        assert other.stats().compiles == 1


def test_methods_can_be_decorated() -> None:
    class Model(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.weight = nn.Parameter(torch.full((2,), value))

        @graphc.compile
        def forward(self, x):
            return x * self.weight

    one, two = Model(1.0), Model(2.0)
    assert one(torch.ones(2)).tolist() == [1.0, 1.0]
    assert two(torch.ones(2)).tolist() == [2.0, 2.0]
    assert one(torch.ones(2)).tolist() == [1.0, 1.0]


def test_gradients_and_evaluation_are_two_programs() -> None:
    net = Net()
    compiled = graphc.compile(net)
    with torch.enable_grad():
        compiled(torch.randn(2, 4)).sum().backward()
    assert net.fc.weight.grad is not None
    assert not compiled(torch.randn(2, 4)).requires_grad
    assert compiled.stats().compiles == 2 and compiled.stats().eager_calls == 0


def test_eager_switch() -> None:
    f = graphc.compile(lambda x: x + 1)
    with graphc.eager():
        f(torch.ones(2))
    assert f.stats().compiles == 0
    g = graphc.compile(lambda x: x.tolist(), backend="eager")
    assert g(torch.ones(2)) == [1.0, 1.0]


def test_nested_compiled_functions_are_inlined() -> None:
    inner = graphc.compile(lambda x: x * 2, name="inner")
    outer = graphc.compile(lambda x: inner(x) + 1, name="outer")
    assert outer(torch.ones(2)).tolist() == [3.0, 3.0]
    assert inner.stats().compiles == 0


def test_threads_compile_once_and_agree() -> None:
    f = graphc.compile(lambda x: torch.softmax(x, -1) * 2, name="threads")
    x = torch.randn(64, 64)
    expected = torch.softmax(x, -1) * 2
    failures = []

    def work() -> None:
        with torch.no_grad():
            failures.extend(1 for _ in range(20) if not torch.allclose(f(x), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert f.stats().compiles == 1


def test_outputs_are_never_overwritten_while_held() -> None:
    f = graphc.compile(lambda x: x * 2 + 1, name="held")
    first = f(torch.zeros(1000))
    kept = first.clone()
    f(torch.ones(1000))
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"backend": "cuda"}, ValueError, "backend='cuda'; there are auto"),
        ({"numerics": "fast"}, ValueError, "numerics='fast'"),
        ({"mode": "max-autotune"}, ValueError, "mode="),
    ],
)
def test_bad_options(options: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        graphc.compile(lambda x: x, **options)


def test_bad_targets() -> None:
    def generator(x):
        yield x

    with pytest.raises(TypeError, match="generator function"):
        graphc.compile(generator)
    with pytest.raises(TypeError, match="takes a callable, not int"):
        graphc.compile(3)


def _line_of(error: BaseException, text: str) -> None:
    """The message names this file and the line holding `text`."""
    lines = Path(__file__).read_text().splitlines()
    number = next(i for i, line in enumerate(lines, 1) if line.strip() == text)
    assert f"{__file__}:{number}" in str(error), str(error)


def test_branch_on_data_names_the_line() -> None:
    def f(x):
        if x.sum() > 0:  # branch
            return x
        return -x

    with pytest.raises(DataDependentError) as caught:
        graphc.trace(f, torch.ones(2))
    _line_of(caught.value, "if x.sum() > 0:  # branch")
    assert "torch.where" in str(caught.value)


def test_wrong_shapes_give_eager_error_type_and_the_line() -> None:
    @graphc.compile
    def f(x, y):
        return x @ y  # mismatch

    with pytest.raises(RuntimeError) as caught:
        f(torch.ones(2, 3), torch.ones(2, 3))
    _line_of(caught.value, "return x @ y  # mismatch")
    with pytest.raises(IndexError):
        graphc.compile(lambda x: x.sum(5))(torch.ones(2))
    with pytest.raises(RuntimeError, match="must match the size"):
        graphc.compile(lambda x, y: x + y)(torch.ones(2), torch.ones(3))


def test_tensor_subclass_is_refused() -> None:
    class Mine(torch.Tensor):
        pass

    f = graphc.compile(lambda x: x + 1)
    with pytest.raises(CaptureError, match="Mine"):
        f(torch.ones(2).as_subclass(Mine))


def test_other_tensor_kinds_are_refused() -> None:
    with pytest.raises(UnsupportedError):
        graphc.trace(lambda x: x + x, torch.eye(3).to_sparse())


def test_generator_results_are_refused() -> None:
    with pytest.raises(GraphcError, match="generator"):
        graphc.compile(lambda x: (row for row in x))(torch.ones(2))


def test_numpy_on_traced_tensor_runs_eager_and_names_the_line() -> None:
    def f(x):
        return torch.from_numpy((x + 1).numpy())  # numpy

    with pytest.raises(UnsupportedError) as caught:
        graphc.trace(f, torch.ones(2))
    _line_of(caught.value, "return torch.from_numpy((x + 1).numpy())  # numpy")
    compiled = graphc.compile(f)
    with pytest.warns(FallbackWarning, match=rf"Tensor.numpy needs the data[\s\S]*{caught.value.location.line}"):
        assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(torch.zeros(2))
    assert compiled.stats().eager_calls == 2


@pytest.mark.parametrize("branches", [False, True])
def test_facts_that_do_not_hold_when_captured_run_eager(monkeypatch: pytest.MonkeyPatch, branches: bool) -> None:
    """Something has changed them meanwhile, such as another thread."""
    match = Captured.match

    def changed(captured: Captured, args: Any, kwargs: Any) -> Any:
        is_prefix = captured.segment is not None and captured.segment.question is not None
        return match(captured, args, kwargs) if is_prefix else None

    monkeypatch.setattr(Captured, "match", changed)
    f = graphc.compile(lambda x: x + 1 if branches and x.sum() > 0 else x - 1, backend="interpret")
    with pytest.warns(FallbackWarning, match="changes, while it runs, what its own compilation depends on"):
        found = f(torch.ones(2))
    assert torch.equal(found, torch.full((2,), 2.0 if branches else 0.0))
    assert f.stats().eager_calls == 1


def test_exception_in_user_code_comes_through_and_leaves_no_trace() -> None:
    state = torch.zeros(2)

    @graphc.compile
    def f(x):
        state.add_(x)
        torch.default_generator.manual_seed(3)
        raise KeyError("mine")

    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    with pytest.raises(KeyError, match="mine"):
        f(torch.ones(2))
    assert state.tolist() == [0.0, 0.0]
    assert f.stats().compiles == 0
    assert torch.equal(torch.rand(1), expected)


def test_no_compiler_falls_back_with_a_warning() -> None:
    with override(cc="no-such-compiler"), pytest.warns(FallbackWarning, match="no C compiler"):
        assert graphc.compile(lambda x: x * 3)(torch.ones(2)).tolist() == [3.0, 3.0]


def test_failing_compiler_falls_back_with_its_output(tmp_path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'internal compiler error: tea time' >&2\nexit 1\n")
    broken.chmod(0o755)
    with override(cc=str(broken), cache_dir=tmp_path / "cache"), pytest.warns(FallbackWarning, match="tea time"):
        assert graphc.compile(lambda x: x * 3)(torch.ones(2)).tolist() == [3.0, 3.0]


def test_read_only_and_damaged_cache(tmp_path) -> None:
    f = lambda x: torch.softmax(x, -1) * 3
    x = torch.randn(3, 5)
    with override(cache_dir=tmp_path):
        expected = graphc.compile(f, name="f")(x)
        again = graphc.compile(f, name="f")
        torch.testing.assert_close(again(x), expected)
        assert again.explain(x).cached
        for path in tmp_path.rglob("*"):
            if path.is_file():
                path.unlink()  # a new file: the running program has the old one mapped
                path.write_bytes(b"damaged")
        with pytest.warns(GraphcWarning):
            damaged = graphc.compile(f, name="f")
            torch.testing.assert_close(damaged(x), expected)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with override(cache_dir=blocked / "cache"), pytest.warns(GraphcWarning, match="cache"):
        torch.testing.assert_close(graphc.compile(f, name="f")(x), expected)


def test_run_checks_its_inputs() -> None:
    graph = graphc.trace(lambda x: x * 2, torch.ones(3))
    (result,) = graphc.run(graph, torch.ones(3))
    assert result.tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="takes 1 inputs, got 2"):
        graphc.run(graph, torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match="float64"):
        graphc.run(graph, torch.ones(3, dtype=torch.float64))


def test_debug_levels_and_dump(tmp_path, capsys) -> None:
    f = lambda x: torch.softmax(x, -1) + 1
    with override(debug=4, dump=tmp_path / "dump"):
        graphc.compile(f, name="watched", backend="c")(torch.ones(2, 3))
    printed = capsys.readouterr().err
    assert "graphc: watched: backend c" in printed
    assert "kernel_calls: 1" in printed
    assert "graph watched(" in printed
    assert "static" in printed
    names = {path.name for path in (tmp_path / "dump" / "watched").iterdir()}
    assert {"captured.graph", "optimized.graph", "scheduled.plan", "program.c"} <= names


def test_print_after_and_verify_passes(capsys) -> None:
    with override(print_after=("cse",), verify_passes=True, cache=False):
        assert graphc.compile(lambda x: (x + 1) * (x + 1), name="f")(torch.ones(2)).tolist() == [4.0, 4.0]
    assert "cse" in capsys.readouterr().err
