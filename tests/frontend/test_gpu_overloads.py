"""What torch calls on GPUs alone, captured on CPU tensors: these calls have no kernels there, and none is needed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphc.frontend import function_mode
from graphc.frontend.aten import encoder_layer, extern
from graphc.frontend.aten.importer import Importer
from graphc.frontend.capture import capture
from graphc.ir.graph import Builder, Graph, Op, Role
from graphc.ir.types import TensorType, f32
from graphc.ops import infer
from graphc.program.plan import AtenStep
from graphc.runtime.aten_calls import AtenCall
from tests.frontend.harness import call

aten = torch.ops.aten


def _gradients(fn: Callable[..., Any], state: list[nn.Parameter]) -> Callable[..., Any]:
    """The results of `fn`, their gradients by arguments and parameters; results are weighed, so that all count."""

    def run(*args: torch.Tensor) -> list[torch.Tensor]:
        inputs = [x.detach().requires_grad_() for x in args]
        results = fn(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        loss = sum((result * result.detach().cos()).sum() for result in results)
        return [*(r.detach() for r in results), *torch.autograd.grad(loss, [*inputs, *state])]

    return run


def _lstm(cell: nn.LSTMCell) -> Callable[..., Any]:
    def run(x: torch.Tensor, hidden: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gates = x @ cell.weight_ih.t(), hidden @ cell.weight_hh.t()
        return aten._thnn_fused_lstm_cell(*gates, state, cell.bias_ih, cell.bias_hh)[:2]

    return run


def _gru(cell: nn.GRUCell) -> Callable[..., Any]:
    def run(x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        gates = x @ cell.weight_ih.t(), hidden @ cell.weight_hh.t()
        return aten._thnn_fused_gru_cell(*gates, hidden, cell.bias_ih, cell.bias_hh)[0]

    return run


def _externs(graph: Graph) -> list[Op]:
    return [op for op in graph.ops if op.name == "extern"]


def _agrees(ours: Callable[..., Any], eager: Callable[..., Any], *args: torch.Tensor) -> None:
    """The formulas are eager's, in float64."""
    captured = capture(ours, args)
    assert not _externs(captured.graph)
    with torch.enable_grad():
        torch.testing.assert_close(call(captured, *args), eager(*args))


def _double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("last", [False, True], ids=["both", "state"])
def test_lstm_cell(last: bool) -> None:
    cell = nn.LSTMCell(5, 7).double()

    def eager(x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return cell(x, (h, c))[1:] if last else cell(x, (h, c))

    def ours(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _lstm(cell)(*args)[1:] if last else _lstm(cell)(*args)

    functions = [_gradients(fn, list(cell.parameters())) for fn in (ours, eager)]
    _agrees(*functions, _double(3, 5), _double(3, 7), _double(3, 7))


def test_gru_cell() -> None:
    cell = nn.GRUCell(5, 7).double()
    functions = [_gradients(fn, list(cell.parameters())) for fn in (_gru(cell), cell)]
    _agrees(*functions, _double(3, 5), _double(3, 7))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(training: bool) -> None:
    norm = nn.BatchNorm2d(4).double().train(training)
    with torch.no_grad():
        norm.weight.uniform_()
    theirs = copy.deepcopy(norm)

    def ours(x: torch.Tensor) -> torch.Tensor:
        given = (norm.weight, norm.bias, norm.running_mean, norm.running_var, training, 0.1, norm.eps)
        return aten.cudnn_batch_norm(x, *given)[0]

    functions = [_gradients(fn, list(net.parameters())) for fn, net in ((ours, norm), (theirs, theirs))]
    _agrees(*functions, _double(3, 4, 5, 6))
    torch.testing.assert_close(norm.running_mean, theirs.running_mean)
    torch.testing.assert_close(norm.running_var, theirs.running_var)


def test_rms_norm() -> None:
    norm = nn.RMSNorm(6).double()
    with torch.no_grad():
        norm.weight.uniform_()

    def ours(x: torch.Tensor) -> torch.Tensor:
        return aten._fused_rms_norm(x, [6], norm.weight, None)[0]

    functions = [_gradients(fn, list(norm.parameters())) for fn in (ours, norm)]
    _agrees(*functions, _double(3, 4, 6))


def _attention(kind: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    if kind == "flash":
        return aten._scaled_dot_product_flash_attention(q, k, v, 0.1, True, False, scale=0.25)[0]
    call_ = getattr(aten, f"_scaled_dot_product_{kind}_attention")
    return call_(q, k, v, None, torch.is_grad_enabled(), 0.1, True)[0]


@pytest.mark.parametrize("kind", ["flash", "cudnn", "efficient"])
@pytest.mark.parametrize("grad", [True, False])
def test_attention(kind: str, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout they are calls as they are. The lengths that these return are known, so nothing depends on data."""
    monkeypatch.setattr(extern, "call_on_zeros", extern.call_on_fakes)
    args = [torch.randn(2, 3, 8, 16, dtype=torch.bfloat16, requires_grad=grad) for _ in range(3)]

    def run(*args: torch.Tensor) -> Any:
        found = _attention(kind, *args)
        return torch.autograd.grad(found.sum(), args) if grad else found.detach()

    graph = capture(run, args).graph
    calls = _externs(graph)
    assert len(calls) == 1 + grad
    assert all(not value.type.is_host for op in calls for value in op.results)
    if grad and kind != "efficient":
        assert [x for x in calls[1].attrs["args"] if type(x) is int] == [8, 8]  # type: ignore[union-attr]


def test_seeds_are_taken_to_lie_beside_the_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie with the CPU when the call is made, and nothing of what torch says of it is asked for then."""

    def on_zeros(imp: Any, func: Any, args: Any, kwargs: Any) -> Any:
        like = [torch.empty(shape, device="meta") for shape in ((2, 3, 8, 16), (2, 3, 8))]
        return (*like, torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64))

    graph = Graph("attention")
    builder = Builder(graph, infer)
    values = [builder.input(name, TensorType(f32, (2, 3, 8, 16), "meta"), Role.ARG, name) for name in "qkv"]
    monkeypatch.setattr(extern, "call_on_zeros", on_zeros)
    monkeypatch.setattr(extern, "call_on_fakes", None)
    name = "aten._scaled_dot_product_efficient_attention.default"
    found = extern.import_extern(Importer(builder), name, (*values, None, True), {}).returned
    assert [value.device for value in found] == ["meta"] * 4


def test_results_that_are_lengths_or_missing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the calls of GPUs answer: tensors, None, lengths; what nobody takes may be missing at the end."""
    made = [torch.ones(2), torch.ones(3), None, None, 8, 8, torch.zeros(()), torch.zeros(()), None]
    name = "aten._scaled_dot_product_flash_attention.default"
    step = AtenCall(AtenStep(name, (), (), (0, 1, 2, -1, -1)))
    monkeypatch.setattr(step, "function", lambda: tuple(made))
    assert [x if x is None else x.shape for x in step(lambda view: view)] == [(2,), (3,), (), None, None]


def test_an_encoder_layer_asks_for_no_call_of_cpus_elsewhere() -> None:
    for device, wanted in (("cpu", True), ("cuda:0", False)):
        graph = Graph("layer")
        builder = Builder(graph, infer)
        qkv = builder.input("qkv", TensorType(f32, (2, 5, 24), device), Role.ARG, "qkv")
        encoder_layer._attention(Importer(builder), qkv, 2, None, None)
        assert ("attention" in {op.name for op in graph.ops}) is wanted


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_recurrent_layers_ask_for_no_library_that_keeps_a_state(name: str) -> None:
    seen: list[bool] = []
    function_mode._SPECIAL[getattr(torch, name)](None, lambda: seen.append(torch._C._get_cudnn_enabled()), (), {})  # type: ignore[arg-type]
    assert seen == [False] and torch._C._get_cudnn_enabled()


def test_pivots_are_no_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """They count from 1 on; LAPACK takes what it is given."""
    monkeypatch.setattr(extern, "call_on_zeros", lambda imp, func, *rest: pytest.fail(str(func)))
    matrix = torch.eye(3) * 2
    factor, pivots = torch.linalg.ldl_factor(matrix)
    graph = capture(torch.linalg.ldl_solve, [factor, pivots, torch.ones(3, 1)]).graph
    assert [op.attrs["op"] for op in _externs(graph)] == ["aten.linalg_ldl_solve.default"]
    factor, pivots = torch.linalg.lu_factor(matrix)
    graph = capture(torch.linalg.lu_solve, [factor, pivots, torch.ones(3, 1)]).graph
    assert [op.attrs["op"] for op in _externs(graph)] == ["aten.linalg_lu_solve.default"]


def test_ctc_loss_is_torchs_own() -> None:
    """Eager asks whether cuDNN computes it; on a CPU it does not ask."""
    lengths = torch.tensor([4, 4]), torch.tensor([2, 2])
    targets = torch.tensor([[1, 2], [2, 1]])

    def run(probabilities: torch.Tensor) -> torch.Tensor:
        is_theirs = torch.ops.aten._use_cudnn_ctc_loss.Tensor(probabilities, targets, *lengths, 0)
        assert is_theirs is False
        return F.ctc_loss(probabilities, targets, *lengths)

    capture(run, [torch.randn(4, 2, 3).log_softmax(-1)])


def test_backward_passes_run_in_the_capturing_thread() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        assert not torch._C._is_multithreading_enabled()
        return x + 1

    capture(run, [torch.ones(2)])
    assert torch._C._is_multithreading_enabled()


def test_ones_are_tried_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a one is no valid index: a GPU would be unusable afterwards."""
    tried: list[tuple[int, str]] = []
    plain = extern._filled

    def filled(imp: Any, value: Any, number: int, device: str = "") -> Any:
        tried.append((number, device))
        return plain(imp, value, number, device)

    monkeypatch.setattr(extern, "_filled", filled)
    capture(lambda x, i: torch.ops.aten.take.default(x, i).sort().indices, [torch.randn(4), torch.tensor([0, 1])])
    capture(lambda x, i: F.embedding_bag(i, x, torch.tensor([0])), [torch.randn(1, 2), torch.tensor([0, 0])])
    assert any(number == 1 for number, _ in tried)
    assert all(device == "cpu" for number, device in tried if number)
