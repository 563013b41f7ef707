"""Whole programs on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.codegen.triton import program as codegen_program
from graphc.ir.types import f32, f64
from graphc.program.plan import OutputSpec, View
from graphc.runtime import triton_program
from graphc.runtime.triton_program import TritonProgram
from graphc.settings import override
from tests.runtime.plans import LINE
from tests.support import assert_contract
from tests.triton.cases import chain, reduce_all, scalars, softmax
from tests.triton.programs import TritonPlan, scale_by_host

torch.set_num_threads(1)


def test_kernel_gemm_and_aten_steps_share_an_arena() -> None:
    x, w = torch.randn(6, 8), torch.randn(8, 5)
    b = TritonPlan()
    a, c = b.input(x), b.input(w)
    product, soft = b.arena(f32, (6, 5)), b.arena(f32, (6, 5))
    sorted_, order = b.external(f32, (6, 5)), b.output(f32, (6, 5))
    b.gemm(a, c, product)
    b.launch(softmax(6, 5), product, soft)
    b.aten("aten.sort.default", (b.view(soft), 1), (sorted_, -1))
    b.launch(softmax(6, 5), sorted_, order)
    (found,) = b.run([x, w])
    wanted = (x @ w).softmax(1).sort(1).values.softmax(1)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_outputs_are_fresh_and_strided_as_planned() -> None:
    x = torch.randn(4, 6)
    b = TritonPlan()
    b.launch(softmax(4, 6), b.input(x), b.output(f32, (4, 6)))
    program = TritonProgram(b.record())
    first, second = program([x])[0], program([x * 2])[0]
    torch.testing.assert_close(first, x.softmax(1))
    torch.testing.assert_close(second, (x * 2).softmax(1))


def test_inputs_may_be_views_at_an_offset() -> None:
    base = torch.randn(50)
    x = base[7:31].view(4, 6)
    b = TritonPlan()
    b.launch(softmax(4, 6), b.input(x), b.output(f32, (4, 6)))
    torch.testing.assert_close(b.run([x])[0], x.softmax(1))


def test_kernel_arguments_at_an_element_offset() -> None:
    x = torch.randn(10, 6)
    b = TritonPlan()
    b.launch(softmax(4, 6), b.input(x), b.output(f32, (4, 6)), offsets=(12, 0))
    torch.testing.assert_close(b.run([x])[0], x[2:6].softmax(1))


def test_host_numbers_reach_kernels_and_come_back() -> None:
    x = torch.randn(9)
    b = TritonPlan()
    number, cell, source = b.number(f64), b.cell(f64), b.input(x)
    b.launch(scale_by_host(9), source, number, b.output(f32, (9,)))
    b.aten("aten._local_scalar_dense.default", (View(source, f32, (), (), 3),), (cell,))
    b.launch(scale_by_host(9), source, cell, b.output(f32, (9,)))
    b.returns(cell)
    scaled, by_item, item = b.run([0.5, x])
    torch.testing.assert_close(scaled, x * 0.5)
    torch.testing.assert_close(by_item, x * x[3])
    assert item == x[3].item()


def test_written_inputs_keep_their_identity_and_count_versions() -> None:
    x = torch.randn(4, 6)
    wanted, version = x.softmax(1), x._version
    b = TritonPlan()
    index = b.input(x)
    b.launch(softmax(4, 6), index, index)
    b.returns(index)
    b.plan.outputs.append(OutputSpec(index, (6,), (1,), 6, whole=False))
    b.plan.written = (0,)
    found, row = b.run([x])
    assert found is x and x._version > version
    torch.testing.assert_close(x, wanted)
    torch.testing.assert_close(row, wanted[1])
    assert row.data_ptr() == x[1].data_ptr()


def test_an_empty_grid_runs_nothing() -> None:
    b = TritonPlan()
    x, w = torch.empty(0, 5), torch.randn(5)
    b.launch(chain(0, 5), b.input(x), b.input(w), b.output(f32, (0, 5)))
    assert b.run([x, w])[0].shape == (0, 5)


def test_a_reduction_to_a_scalar_output() -> None:
    x = torch.randn(70)
    b = TritonPlan()
    b.launch(reduce_all(70, "sum"), b.input(x), b.output(f32, ()))
    torch.testing.assert_close(b.run([x])[0], x.sum())


def test_an_aten_error_keeps_its_class_and_names_the_line() -> None:
    x = torch.randn(4)
    b = TritonPlan()
    b.aten("aten.view.default", (b.view(b.input(x)), (3, 3)), (b.external(f32, (3, 3)),))
    with pytest.raises(RuntimeError, match=f"model.py:{LINE.line}"):
        b.run([x])


def test_autograd_does_not_see_the_run() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    b = TritonPlan()
    b.launch(softmax(3, 4), b.input(x), b.output(f32, (3, 4)))
    assert not b.run([x])[0].requires_grad
    assert torch.is_grad_enabled()


def test_kernels_on_numbers_of_the_cpu_are_interpreted_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program for a GPU, where the tensors of these kernels lie with the CPU."""
    for module in (codegen_program, triton_program):
        monkeypatch.setattr(module, "runs_on_host", lambda used, buffers: True)
    x = torch.randn(6, 8)
    b = TritonPlan()
    number, cell, source = b.number(f64), b.cell(f64), b.input(x)
    soft = b.arena(f32, (6, 8))
    b.launch(softmax(6, 8), source, soft)
    b.launch(scalars(), number, cell)
    b.launch(scale_by_host(48), soft, cell, b.output(f32, (48,)))
    b.returns(cell)
    record = b.record()
    assert set(record.sources) == {"softmax.loop", "scalar.loop", "scale.loop"} and not record.kernels
    found, scaled = TritonProgram(record)([0.5, x])
    assert scaled == 0.5 * 0.1
    torch.testing.assert_close(found, x.softmax(1).flatten() * scaled)


def test_rows_that_programs_share_are_scaled_by_what_was_there_before_the_update() -> None:
    """One program stores the new weight when the sums are known, and others scale their parts of the column later."""

    def step(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        total = x.sum(0)
        y = (x - total) * w
        w.add_(total)
        return y

    x, w = torch.randn(8192, 32), torch.randn(32)
    theirs, exact = w.clone(), w.double()
    wanted, true = step(x, theirs), step(x.double(), exact)
    with override(cache=False):
        compiled = graphc.compile(step, backend="triton")
        found = compiled(x, w)
        (source, *_) = compiled.source(x, w).values()
    assert_contract(found, wanted, true)
    assert_contract(w, theirs, exact)
    assert "_pass2(" in source


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_zeros_written_as_numbers_keep_their_sign(dtype: torch.dtype) -> None:
    def zeros(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        padded = F.pad(x, (1, 1), value=-0.0)
        return x / -0.0, x + -0.0, x * -0.0, padded, torch.where(x > 1, x, -0.0), torch.full((3,), -0.0, dtype=dtype)

    x = torch.tensor([-0.0, 0.0, 1.5, -2.0], dtype=dtype)
    with override(cache=False):
        found = graphc.compile(zeros, backend="triton")(x)
    for mine, theirs in zip(found, zeros(x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(mine.signbit() & ~mine.isnan(), theirs.signbit() & ~theirs.isnan())


def test_numbers_in_comparisons_and_behind_masks_have_all_bits() -> None:
    def compared(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x < 0.1, x <= -0.4, x > 0.7, x >= 0.8, x == 0.3, x != 0.3, F.pad(x, (1, 1), value=0.1), x.clamp(0.3, 0.7)

    x = torch.tensor([0.1, -0.1, 0.3, 0.4, -0.4, 0.7, 0.8, -0.8], dtype=torch.float64)
    x = torch.cat([x, x.nextafter(torch.ones(8).double()), x.nextafter(-torch.ones(8).double())])
    with override(cache=False):
        found = graphc.compile(compared, backend="triton")(x)
    for mine, theirs in zip(found, compared(x), strict=True):
        assert torch.equal(mine, theirs)
