"""ATen calls in programs: through libtorch's C shim, and from Python between native segments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graphc.codegen.aten_shim import NotNative, exported, shim_call
from graphc.errors import LoweringError
from graphc.ir.graph import Named
from graphc.ir.types import DType, f32, f64, i64
from graphc.program.plan import AtenStep, View
from graphc.program.record import NATIVE, PYTHON
from graphc.runtime.aten_calls import run_aten
from tests.runtime.plans import PlanBuilder, dtype_of, load

NEGATE = "static void negate(const float *x, float *y) { for (int i = 0; i < SIZE; i++) y[i] = -x[i]; }\n"


def f(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


class Case:
    """One call: `T(i)` in the arguments stands for tensor i."""

    def __init__(self, op: str, tensors: list[torch.Tensor], args: tuple[Any, ...], **kwargs: Any) -> None:
        self.op, self.tensors, self.args, self.kwargs = op, tensors, args, kwargs

    def __repr__(self) -> str:
        return self.op


class T:
    def __init__(self, index: int) -> None:
        self.index = index


def fill(value: Any, with_: Callable[[int], Any]) -> Any:
    if isinstance(value, T):
        return with_(value.index)
    return tuple(fill(item, with_) for item in value) if isinstance(value, (tuple, list)) else value


def eager(case: Case) -> list[torch.Tensor]:
    namespace, name, overload = case.op.split(".")
    function = getattr(getattr(getattr(torch.ops, namespace), name), overload)

    def plain(value: Any) -> Any:
        if isinstance(value, DType):
            return getattr(torch, value.torch_name)
        if isinstance(value, Named):
            return getattr(torch, value.name)
        return value

    args = [plain(fill(value, case.tensors.__getitem__)) for value in case.args]
    result = function(*args, **{name: plain(fill(v, case.tensors.__getitem__)) for name, v in case.kwargs.items()})
    return list(result) if isinstance(result, (tuple, list)) else [result]


X = torch.randn(2, 4, 9, 9)
Q = torch.randn(2, 2, 8, 16)
NATIVE_CASES = [
    Case("aten.convolution.default", [X, f(6, 4, 3, 3), f(6)],
         (T(0), T(1), T(2), (1, 1), (1, 1), (1, 1), False, (0, 0), 1)),
    Case("aten.convolution.default", [X, f(6, 2, 3, 3)],
         (T(0), T(1), None, (2, 1), (0, 1), (1, 1), False, (0, 0), 2)),
    Case("aten.convolution.default", [X.to(memory_format=torch.channels_last), f(6, 4, 3, 3), f(6)],
         (T(0), T(1), T(2), (1, 1), (1, 1), (1, 1), False, (0, 0), 1)),
    Case("aten.convolution.default", [X, f(4, 5, 3, 3)],
         (T(0), T(1), None, (2, 2), (0, 0), (1, 1), True, (1, 1), 1)),
    Case("aten.convolution_backward.default", [f(2, 6, 9, 9), X, f(6, 4, 3, 3)],
         (T(0), T(1), T(2), (6,), (1, 1), (1, 1), (1, 1), False, (0, 0), 1, (True, True, True))),
    # of few rows, which are always libtorch's
    Case("aten._scaled_dot_product_flash_attention_for_cpu.default",
         [f(2, 2, 5, 16), f(2, 2, 8, 16), f(2, 2, 8, 16)], (T(0), T(1), T(2), 0.0, True), scale=0.3),
    Case("aten._scaled_dot_product_flash_attention_for_cpu.default",
         [f(2, 8, 2, 16).transpose(1, 2), Q, Q, f(2, 1, 8, 8)], (T(0), T(1), T(2)), attn_mask=T(3)),
    Case("aten.max_pool2d_with_indices.default", [X], (T(0), (3, 3), (2, 2), (1, 1))),
    Case("aten.max_pool2d_with_indices.default", [X], (T(0), 3)),
    Case("aten.avg_pool2d.default", [X], (T(0), (2, 2)), ceil_mode=True, divisor_override=3),
    Case("aten.cat.default", [f(2, 3), f(4, 3)], ((T(0), T(1)), 0)),
    Case("aten.index.Tensor", [f(5, 4), torch.tensor([3, 0, 1])], (T(0), (None, T(1)))),
    Case("aten.sort.stable", [f(3, 7)], (T(0),), stable=True, dim=1, descending=True),
    Case("aten.topk.default", [f(3, 7)], (T(0), 2)),
    Case("aten.cumsum.default", [f(3, 7)], (T(0), -1), dtype=f64),
    Case("aten.add.Scalar", [f(3)], (T(0), 2)),
    Case("aten.pow.Tensor_Scalar", [f(3).abs()], (T(0), 1.5)),
    Case("aten.grid_sampler_2d_backward.default", [f(1, 1, 4, 4), f(1, 1, 5, 5), f(1, 4, 4, 2)],
         (T(0), T(1), T(2), 0, 0, False, (True, True))),
    Case("aten._adaptive_avg_pool2d.default", [f(1, 2, 0, 5).new_zeros(0, 2, 4, 4)], (T(0), (2, 2))),
    Case("aten.full.default", [], ((2, 3), 1.5), dtype=f64),
    # by name
    Case("aten.tril.default", [f(4, 4)], (T(0),)),
    Case("aten.native_batch_norm.default", [f(4, 3, 2), f(3), f(3)],
         (T(0), T(1), T(2), None, None, True, 0.1, 1e-5)),
    Case("aten.clone.default", [X], (T(0),), memory_format=Named("memory_format", "channels_last")),
    Case("aten.expand.default", [f(3, 1)], (T(0), (3, 1))),
    Case("aten.embedding_dense_backward.default", [f(3, 2), torch.tensor([0, 4, 0])], (T(0), T(1), 6, -1, False)),
    Case("aten.roll.default", [f(5, 2)], (T(0), (2,), (0,))),
    Case("aten.eye.m", [], (3, 4), dtype=f64),
    Case("aten._weight_norm_interface.default", [f(4, 3), f(4, 1)], (T(0), T(1), 0)),
]  # fmt: skip

PYTHON_CASES = [
    Case("aten.add.Scalar", [torch.arange(4)], (T(0), 2)),
    Case("aten.unbind.int", [f(3, 4)], (T(0), 1)),
    Case("aten.linspace.default", [], (0.0, 1.0, 5), dtype=f64),
    Case("aten.hardshrink.default", [f(3, 4)], (T(0), 0.4)),
    Case("aten.view_as_real.default", [torch.randn(3, dtype=torch.complex64)], (T(0),)),
]  # fmt: skip


def plan_of(case: Case, builder: PlanBuilder, kind: str) -> list[torch.Tensor]:
    expected = eager(case)
    buffers = [builder.input(tensor) for tensor in case.tensors]
    outs = []
    for result in expected:
        if kind == "external":
            out = builder.external(dtype_of(result.dtype), result.shape, result.stride())
            builder.returns(out)
        else:
            out = builder.output(dtype_of(result.dtype), result.shape, result.stride())
        outs.append(out)
    args = tuple(fill(value, lambda i: builder.view(buffers[i])) for value in case.args)
    kwargs = {name: fill(value, lambda i: builder.view(buffers[i])) for name, value in case.kwargs.items()}
    builder.aten(case.op, args, tuple(outs), **kwargs)
    return expected


@pytest.mark.parametrize("kind", ["external", "output"])
@pytest.mark.parametrize("cases", [NATIVE_CASES, PYTHON_CASES], ids=["native", "python"])
def test_calls_agree_with_eager(cases: list[Case], kind: str, tmp_path: Path) -> None:
    builder = PlanBuilder()
    expected: list[tuple[str, torch.Tensor]] = []
    inputs: list[torch.Tensor] = []
    for case in cases:
        expected += [(case.op, result) for result in plan_of(case, builder, kind)]
        inputs += case.tensors
    program = builder.program()
    wanted = NATIVE if cases is NATIVE_CASES else PYTHON
    mixed = [i for segment in program.segments if segment.kind != wanted for i in range(segment.first, segment.stop)]
    allowed = {"aten.view_as_real.default"}  # native, but a view: its result must be copied all the same
    if not exported("torch_new_stable_ivalue"):  # before torch 2.13 C cannot make an optional that is there
        allowed |= {"aten.native_batch_norm.default", "aten.clone.default", "aten.eye.m"}
    assert {program.steps[i].op for i in mixed} <= allowed, program.stats  # type: ignore[union-attr]
    function = load(program, tmp_path)
    for _ in range(2):
        for found, (op, result) in zip(function(inputs), expected, strict=True):
            assert found.stride() == result.stride(), op
            torch.testing.assert_close(found, result, msg=op, rtol=0, atol=0)
            assert not found.requires_grad


def test_results_in_another_layout_are_copied(tmp_path: Path) -> None:
    """The plan's layout is a promise to later kernels, whatever strides the call comes back with."""
    x = f(2, 3, 4, 4).to(memory_format=torch.channels_last)
    builder = PlanBuilder()
    source = builder.view(builder.input(x))
    for op, args, outs in (("aten.sort.default", (1,), 2), ("aten.roll.default", ((1,), (0,)), 1)):  # native, Python
        out = builder.external(f32, x.shape)
        builder.returns(out)
        builder.aten(op, (source, *args), (out, -1)[:outs])
    found = load(builder.program(), tmp_path)([x])
    eagers = (torch.sort(x, 1).values, torch.roll(x, 1, 0))
    assert not any(expected.is_contiguous() for expected in eagers)
    for result, expected in zip(found, eagers, strict=True):
        assert result.is_contiguous() and torch.equal(result, expected)


def test_results_that_are_views_own_their_memory(tmp_path: Path) -> None:
    """A view of an operand is copied: the operand's buffer may be overwritten later in the program."""
    x = f(4, 3)
    builder = PlanBuilder()
    source, middle = builder.input(x), builder.arena(f32, (4, 3))
    builder.kernel("negate", NEGATE.replace("SIZE", "12"), source, middle)
    calls = {"slice.Tensor": ((0, 1, 3), (2, 3)), "narrow.default": ((0, 1, 2), (2, 3)), "select.int": ((0, 1), (3,))}
    for op, (args, shape) in calls.items():
        out = builder.external(f32, shape)
        builder.returns(out)
        builder.aten(f"aten.{op}", (builder.view(middle), *args), (out,))
    builder.kernel("wipe", "static void wipe(float *y) { for (int i = 0; i < 12; i++) y[i] = 7; }\n", middle)
    program = builder.program()
    assert program.stats["python_steps"] == {}
    function = load(program, tmp_path)
    first = function([x])
    function([f(4, 3)])
    for found, expected in zip(first, (-x[1:3], -x[1:3], -x[1]), strict=True):
        assert torch.equal(found, expected)


def test_python_between_native_segments(tmp_path: Path) -> None:
    """Tensors made natively are read from Python and the other way round."""
    x = f(4, 4)
    builder = PlanBuilder()
    source = builder.input(x)
    native, python, native_again = (builder.external(f32, (4, 4)) for _ in range(3))
    out = builder.output(f32, (4, 4))
    builder.aten("aten.cumsum.default", (builder.view(source), 0), (native,))
    builder.aten("aten.hardshrink.default", (builder.view(native), 0.5), (python,))
    builder.aten("aten.cumsum.default", (builder.view(python), 1), (native_again,))
    builder.kernel("negate", NEGATE.replace("SIZE", "16"), native_again, out)
    program = builder.program()
    assert [segment.kind for segment in program.segments] == [NATIVE, PYTHON, NATIVE]
    reason = "aten.hardshrink.default is not in libtorch's C shim; by name: the dispatcher takes no number from C"
    assert program.stats["python_steps"] == {"1": reason}
    function = load(program, tmp_path)
    for _ in range(3):
        assert torch.equal(function([x])[0], -torch.cumsum(torch.hardshrink(torch.cumsum(x, 0), 0.5), 1))


def test_numbers_come_from_host_cells(tmp_path: Path) -> None:
    x = f(5)
    builder = PlanBuilder()
    source, power, shift, item = builder.input(x.abs()), builder.number(f64), builder.number(i64), builder.cell(f64)
    powered, rolled, scaled = (builder.external(f32, (5,)) for _ in range(3))
    builder.aten("aten.pow.Tensor_Scalar", (builder.view(source), builder.view(power)), (powered,))
    builder.aten("aten.roll.default", (builder.view(powered), (builder.view(shift),)), (rolled,))
    builder.aten("aten._local_scalar_dense.default", (View(rolled, f32, (), (), 2),), (item,))
    builder.aten("aten.mul.Scalar", (builder.view(rolled), builder.view(item)), (scaled,))
    for index in (scaled, item, shift):
        builder.returns(index)
    function = load(builder.program(), tmp_path)
    for power_value, shift_value in ((2.0, 1), (0.5, 3)):
        rolled_now = x.abs().pow(power_value).roll(shift_value)
        found, number, same = function([x.abs(), power_value, shift_value])
        assert (number, same) == (float(rolled_now[2]), shift_value)
        torch.testing.assert_close(found, rolled_now * rolled_now[2])


def test_item(tmp_path: Path) -> None:
    builder = PlanBuilder()
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    inputs = [torch.tensor([0, 1, 1]).to(dtype) for dtype in dtypes]
    for x in inputs:
        source, dtype = builder.input(x), dtype_of(x.dtype)
        cell = builder.cell(f64 if dtype.is_float else dtype)
        builder.aten("aten._local_scalar_dense.default", (View(source, dtype, (), (), 1),), (cell,))
        builder.returns(cell)
    program = builder.program()
    assert list(program.stats["python_steps"]) == ["2"]  # bfloat16
    found = load(program, tmp_path)(inputs)
    assert found == [x[1].item() for x in inputs]
    assert [type(value) for value in found] == [type(x[1].item()) for x in inputs]


def test_unused_results_and_mutated_operands(tmp_path: Path) -> None:
    x = f(3, 7)
    builder = PlanBuilder()
    copy = builder.output(f32, (3, 7))
    builder.kernel("negate", NEGATE.replace("SIZE", "21"), builder.input(x), copy)
    indices = builder.external(i64, (3, 7))
    builder.returns(indices)
    builder.aten("aten.sort.default", (builder.view(copy), 1), (-1, indices))
    builder.aten("aten.mul_.Scalar", (builder.view(copy), 2.0), ())
    builder.aten("aten.fill_.Scalar", (View(copy, f32, (3,), (7,)), 0.5), (-1,))
    found, order = load(builder.program(), tmp_path)([x])
    expected = -2 * x
    expected[:, 0] = 0.5
    assert torch.equal(found, expected)
    assert torch.equal(order, torch.sort(-x, 1).indices)


def test_random_calls_draw_what_eager_draws(tmp_path: Path) -> None:
    x = f(64)
    builder = PlanBuilder()
    source = builder.view(builder.input(x))
    first, second = builder.external(f32, (64,)), builder.external(f32, (64,))
    for out in (first, second):
        builder.returns(out)
    builder.aten("aten.rand_like.default", (source,), (first,))
    builder.aten("aten.bernoulli.p", (source, 0.5), (second,))
    function = load(builder.program(), tmp_path)
    torch.manual_seed(3)
    found = function([x])
    torch.manual_seed(3)
    assert torch.equal(found[0], torch.rand_like(x))
    assert torch.equal(found[1], torch.bernoulli(x, 0.5))


@pytest.mark.parametrize(
    ("op", "args", "error", "message"),
    [
        ("aten.cumsum.default", (9,), IndexError, "Dimension out of range"),  # native
        ("aten.max_pool2d_with_indices.default", ((2, 2),), RuntimeError, "non-empty 3D or 4D"),  # native
        ("aten.tril.default", (0, 1), (RuntimeError, TypeError), "tril"),  # Python
        ("aten.roll.default", ((1,), (5,)), IndexError, "Dimension out of range"),  # Python
    ],
)
def test_errors_are_eagers_own_and_name_the_users_line(
    op: str, args: tuple[Any, ...], error: Any, message: str, tmp_path: Path
) -> None:
    x = f(2, 3)
    builder = PlanBuilder()
    kept = builder.external(f32, (2, 3))
    out = builder.external(f32, (2, 3))
    builder.returns(out)
    source = builder.view(builder.input(x))
    builder.aten("aten.cumsum.default", (source, 0), (kept,))
    outs = (out, -1) if "pool" in op else (out,)
    builder.aten(op, (source, *args), outs)
    builder.aten("aten.cumsum.default", (builder.view(kept), 0), (out,))
    function = load(builder.program(), tmp_path)
    for _ in range(2):
        with pytest.raises(error, match=message) as caught:
            function([x])
        assert "model.py:14" in str(caught.value)


def test_a_result_of_another_shape_is_refused(tmp_path: Path) -> None:
    for op in ("aten.cumsum.default", "aten.tril.default"):
        builder = PlanBuilder()
        out = builder.external(f32, (3, 2))
        builder.returns(out)
        builder.aten(op, (builder.view(builder.input(f(2, 3))), 0), (out,))
        with pytest.raises((LoweringError, RuntimeError)):
            load(builder.program(), tmp_path)([f(2, 3)])


def test_unknown_operator() -> None:
    with pytest.raises(LoweringError, match=r"no operator aten\.nonsense\.default"):
        run_aten(AtenStep("aten.nonsense.default", (), (), ()), lambda view: None)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (AtenStep("mylib.op.default", (), (), ()), "not an ATen operator"),
        (AtenStep("aten.add.Scalar", (View(0, i64, (2,), (1,)), 2), (), (0,)), "make a float of an integer"),
        (AtenStep("aten.cumsum.default", (View(0, f32, (2,), (1,)),), (), (0,)), "lacks its argument dim"),
        (AtenStep("aten.cumsum.default", (View(0, f32, (2,), (1,)), 0, 1, 2), (), (0,)), "its schema does not"),
        (AtenStep("aten.cumsum.default", (View(0, f32, (2,), (1,)), 0), (), (0, 0)), "returns fewer tensors"),
    ],
)
def test_what_c_cannot_do_is_left_to_python(step: AtenStep, reason: str) -> None:
    builder = PlanBuilder()
    builder.input(f(2))
    with pytest.raises(NotNative, match=reason):
        shim_call(step, builder.plan.buffers)
