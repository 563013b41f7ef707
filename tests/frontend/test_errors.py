"""What cannot be captured is refused with the class, the words and the user's line; nothing is left changed."""

from __future__ import annotations

import linecache
from contextvars import ContextVar

import pytest
import torch
from torch import nn

from graphc.errors import (
    CaptureError,
    DataDependentError,
    EagerOnlyError,
    GraphcError,
    InternalError,
    UnsupportedError,
)
from graphc.frontend import dispatch
from graphc.frontend.aten import registry
from graphc.frontend.capture import capture
from tests.frontend.harness import call, check


def expect(kind, words, fn, *args) -> BaseException:
    """Capture must fail with this class and these words, and name a line of this file that has `# here`."""
    with pytest.raises(kind) as caught:
        capture(fn, args)
    message = str(caught.value)
    assert words in message
    place = message.rpartition("at ")[2]
    file, _, line = place.rpartition(":")
    assert file == __file__, message
    assert "# here" in linecache.getline(file, int(line)), message
    return caught.value


def test_branch_on_data() -> None:
    def fn(x):
        if x.sum() > 0:  # here
            return x
        return -x

    expect(DataDependentError, "torch.where", fn, torch.randn(3))


def test_branch_on_item() -> None:
    def fn(x):
        n = x.max().item()
        while n > 1:  # here
            n = n / 2
        return x

    expect(DataDependentError, "depends on the data of a tensor", fn, torch.randn(3))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.zeros(int(x.sum())),  # here
        lambda x: x * float(x.sum()),  # here
        lambda x: x[: x.long().sum().item()],  # here
        lambda x: [0, 1, 2][x.long().sum()],  # here
        lambda x: x.new_zeros(x.long().sum().item()),  # here
    ],
)
def test_python_numbers_from_data(fn) -> None:
    expect(DataDependentError, "depends on the data", fn, torch.randn(3))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.nonzero(),  # here
        lambda x: x[x > 0],  # here
        lambda x: torch.unique(x),  # here
        lambda x: torch.masked_select(x, x > 0),  # here
    ],
)
def test_shapes_from_data(fn) -> None:
    expect(DataDependentError, "shape depends on the data", fn, torch.randn(3))


BUFFER = torch.randn(3)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.numpy(),  # here
        lambda x: x.tolist(),  # here
        lambda x: x + BUFFER.tolist()[0],  # here
        lambda x: x.data_ptr(),  # here
        lambda x: x.untyped_storage(),  # here
    ],
)
def test_data_outside_of_torch(fn) -> None:
    expect(UnsupportedError, "needs the data of a tensor", fn, torch.randn(3))


def test_storage_changes() -> None:
    def resize(x):
        return x.resize_(5)  # here

    def swap(x):
        x.data = torch.zeros(3, dtype=torch.float64)  # here

    def storage(x):
        x.set_(torch.zeros(3), 1, (2,))  # here

    for fn, words in ((resize, "makes memory larger"), (swap, "changes the dtype"), (storage, "changes the storage")):
        expect(EagerOnlyError, words, fn, torch.randn(3))


class Custom(torch.Tensor):
    pass


def test_subclasses_and_foreign_layouts() -> None:
    with pytest.raises(CaptureError, match=r"argument|x is a .*Custom, a tensor subclass"):
        capture(lambda x: x + 1, (torch.randn(2).as_subclass(Custom),))
    for bad, words in (
        (torch.eye(2).to_sparse(), "layout torch.sparse_coo"),
        (torch.empty(2, device="meta"), "meta device"),
        (torch.quantize_per_tensor(torch.randn(2), 0.1, 0, torch.qint8), "quantized"),
        (torch.nested.nested_tensor([torch.randn(2), torch.randn(3)]), "nested"),
    ):
        with pytest.raises(GraphcError, match=words):
            capture(lambda x: x + 1, (bad,))


def test_generators() -> None:
    def fn(xs):
        yield from xs

    with pytest.raises(CaptureError, match="returns a generator"):
        capture(fn, (torch.randn(2),))
    with pytest.raises(CaptureError, match="argument xs is a generator"):
        capture(lambda xs: sum(xs), ((x for x in [torch.randn(2)]),))


KEPT: ContextVar[torch.Tensor] = ContextVar("KEPT")


def test_kept_tensors() -> None:
    """In a place that graphc cannot look into."""

    def fn(x):
        KEPT.set(x + 1)  # here
        return x

    error = expect(CaptureError, "keeps a tensor it made", fn, torch.randn(2))
    assert "return it instead" in str(error)
    with pytest.raises(CaptureError, match="has no data"):
        KEPT.get() + 1
    with pytest.raises(CaptureError, match="earlier capture"):
        capture(lambda x: x + KEPT.get(), (torch.randn(2),))
    KEPT.set(torch.ones(()))


def test_tensor_in_an_attribute() -> None:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = None

        def forward(self, x):
            self.last = {"sum": (x + 1, self.last is None)}
            return x

    net, x = Net(), torch.randn(2)
    captured = capture(net, (x,))
    assert net.last is None and [effect.key for effect in captured.effects] == ["last"]  # type: ignore[attr-defined]
    captured.rebuild([x, x + 1])
    assert torch.equal(net.last["sum"][0], x + 1) and net.last["sum"][1] is True


def test_shape_errors_are_eagers_own() -> None:
    def add(x, y):
        return x + y  # here

    def linear(x, y):
        return torch.nn.functional.linear(x, y)  # here

    def view(x, y):
        return x.view(7)  # here

    def select(x, y):
        return x[:, 5]  # here

    def write(x, y):
        x.add_(y)  # here

    def cast(x, y):
        torch.ones(2, dtype=torch.long).add_(0.5)  # here

    x, y = torch.randn(2, 3), torch.randn(4, 5)
    for fn in (add, linear, view, select, write, cast):
        with pytest.raises(Exception) as eager:
            fn(x, y)
        expect(type(eager.value), str(eager.value).splitlines()[0], fn, x, y)


@pytest.mark.parametrize("in_place", [False, True])
def test_faults_of_import_rules_do_not_hide(in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that fails for arguments which eager takes is a fault, unless it says that it does not cover them."""

    def fails(imp, self):
        return no_such_name  # noqa: F821

    def declines(imp, self):
        raise registry.Decline

    def fn(x):
        return torch.sin_(x.clone()) if in_place else torch.sin(x)  # here

    registry.load_rules()
    monkeypatch.setattr(dispatch, "_HANDLERS", {})
    monkeypatch.setitem(registry.RULES, "aten.sin.default", registry.Rule("aten.sin.default", fails))
    name = "aten.sin_.default" if in_place else "aten.sin.default"
    expect(InternalError, f"the import rule of {name} failed, which is a fault of graphc (NameError", fn, torch.ones(2))
    monkeypatch.setattr(dispatch, "_HANDLERS", {})
    monkeypatch.setitem(registry.RULES, "aten.sin.default", registry.Rule("aten.sin.default", declines))
    assert any(op.name == "extern" for op in capture(fn, (torch.randn(2),)).graph.ops)


def test_write_to_expanded() -> None:
    def fn(x):
        x.expand(2, 3).add_(1)  # here

    expect(RuntimeError, "more than one element of the written-to tensor", fn, torch.randn(1, 3))


def test_state_after_a_failed_capture() -> None:
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.count = nn.BatchNorm1d(3), 0

        def forward(self, x):
            self.count += 1
            self.norm.weight.grad = torch.ones(3)
            self.norm.bias = nn.Parameter(torch.zeros(3))
            torch.rand(2)
            self.norm(x)
            raise KeyError("mine")

    net = Net()
    x = torch.randn(4, 3)
    bias, state, mean = net.norm.bias, torch.get_rng_state(), net.norm.running_mean.clone()
    version = net.norm.running_mean._version
    with pytest.raises(KeyError, match="mine"):
        capture(net, (x,))
    assert net.count == 0
    assert net.norm.bias is bias
    assert net.norm.weight.grad is None
    assert net.norm.running_mean._version == version
    assert torch.equal(net.norm.running_mean, mean)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.compiler.is_compiling()
    assert torch.ones(2).tolist() == [1, 1]


def test_higher_order_operators() -> None:
    def fn(x):
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))  # here

    expect(UnsupportedError, "higher-order operator cond", fn, torch.randn(2))


def test_functions_under_torch_compile_run_as_they_are() -> None:
    inner = torch.compile(lambda x: x + 1)
    captured = check(lambda x: inner(x) * 2, torch.randn(2))
    assert [op.name for op in captured.graph.ops] == ["add", "mul"]


def test_a_print_inside_does_no_harm(capsys) -> None:
    def fn(x):
        print(x, f"{x.sum().item():.3f}")
        return x + 1

    check(fn, torch.randn(2, 2))
    assert "traced" not in capsys.readouterr().out.lower()


def test_unfound_tensors_are_reported() -> None:
    hidden = ContextVar("hidden", default=torch.ones(2))
    captured = capture(lambda x: x + hidden.get(), (torch.randn(2),))
    assert "found in no argument, module, closure or global" in captured.warnings[0]
    torch.testing.assert_close(call(captured, torch.zeros(2)), torch.ones(2))
