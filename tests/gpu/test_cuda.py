"""Generated Triton kernels and programs on a real CUDA device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import graphc
from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiling import Limits, choose_tiling
from graphc.ir.types import DType, bf16, f32, f64
from graphc.loopir.kernel import Kernel
from graphc.runtime.device import current_target
from graphc.runtime.device_cuda import DEVICE
from graphc.runtime.triton_launcher import DeviceKernel
from graphc.runtime.triton_program import TritonProgram
from graphc.settings import override
from tests.support import assert_contract
from tests.triton.cases import CASES, chain, layer_norm, scalar_op_cases, softmax, transpose
from tests.triton.data import as_array, as_tensor, assert_same, expected, make_arrays
from tests.triton.programs import TritonPlan, scale_by_host

pytestmark = pytest.mark.gpu

FORMS = {
    "whole": Limits(),
    "looped": Limits(persistent=128, row=256, loop=128, fill=1, split=1),
    "split": Limits(persistent=128, row=256, loop=128, fill=16, split=3),
    "settled": Limits(persistent=128, row=256, loop=128, fill=16, split=3, settle=1),
}


def check(kernel: Kernel, limits: Limits, special: bool = False, slack: float = 1) -> None:
    launch = DeviceKernel(
        emit_kernel(kernel, tiling=choose_tiling(kernel, limits), target=current_target()),
        torch.cuda.current_device(),
        DEVICE,
    )
    arrays = make_arrays(kernel, special=special)
    tensors = {b.name: as_tensor(arrays[b.name], b.dtype, "cuda") for b in kernel.buffers}
    launch([tensor.data_ptr() for tensor in tensors.values()], torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert_same(kernel, {n: as_array(t) for n, t in tensors.items()}, expected(kernel, arrays), slack)


@pytest.mark.parametrize("name", CASES)
def test_kernel_agrees_with_the_oracle(name: str) -> None:
    check(CASES[name](), FORMS["whole"], slack=4)


@pytest.mark.parametrize("form", ["looped", "split", "settled"])
@pytest.mark.parametrize(
    "name", ["softmax", "argmax_all", "cumsum", "brownian", "channel_mean", "column_sum", "max_all"]
)
def test_other_forms_agree_with_the_oracle(name: str, form: str) -> None:
    check(CASES[name](), FORMS[form], slack=4)


@pytest.mark.parametrize("name", scalar_op_cases())
def test_scalar_operators(name: str) -> None:
    check(scalar_op_cases()[name](), Limits(), special=True, slack=8)


@pytest.mark.parametrize(
    "kernel",
    [chain(4096, 1024), layer_norm(4096, 1000), softmax(8, 200_000), transpose(1025, 2047)],
    ids=lambda kernel: kernel.name,
)
def test_large_kernels_agree_with_the_oracle(kernel: Kernel) -> None:
    check(kernel, Limits(), slack=4)


@pytest.mark.parametrize("dtype", [bf16, f32], ids=["bf16", "f32"])
def test_rows_whose_lanes_take_neighbours(dtype: DType) -> None:
    for length in (6144, 5128):
        check(softmax(3, length, dtype), Limits(persistent=8, loop=1024, fill=1, split=1), special=True, slack=4)


@pytest.mark.parametrize("templates", ["never", "always"])
def test_a_vocabulary_of_odd_size(templates: str) -> None:
    def step(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = F.cross_entropy(F.linear(x, w), y)
        return loss.detach(), *torch.autograd.grad(loss, (x, w))

    torch.manual_seed(0)
    x, w = (torch.randn(n, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in (12, 50257))
    y = torch.randint(0, 50257, (12,), device="cuda")
    with override(templates=templates):
        compiled = graphc.compile(step)
        plan = compiled.graph(x, w, y, stage="scheduled")
        assert {spec.strides for spec in plan.buffers if spec.shape == (12, 50257)} == {(50304, 1)}
        found = [compiled(x, w, y) for _ in range(3)]
    exact = step(x.detach().double().requires_grad_(), w.detach().double().requires_grad_(), y)
    for results in found:
        for mine, eager, true in zip(results, step(x, w, y), exact, strict=True):
            assert_contract(mine, eager, true)


def test_misaligned_pointers() -> None:
    kernel = softmax(4, 128)
    launch = DeviceKernel(emit_kernel(kernel), 0, DEVICE)
    base = torch.randn(4 * 128 + 1, device="cuda")
    x, y = base[1:], torch.empty(4, 128, device="cuda")
    launch([x.data_ptr(), y.data_ptr()], torch.cuda.current_stream().cuda_stream)
    torch.testing.assert_close(y, x.view(4, 128).softmax(1))


def test_program_on_a_side_stream() -> None:
    x, w = torch.randn(64, 128, device="cuda"), torch.randn(128, 32, device="cuda")
    b = TritonPlan()
    a, c = b.input(x), b.input(w)
    product = b.arena(f32, (64, 32))
    b.gemm(a, c, product)
    b.launch(softmax(64, 32), product, b.output(f32, (64, 32)))
    program = TritonProgram(b.record("cuda:0"))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        (found,) = program([x, w])
    stream.synchronize()
    torch.testing.assert_close(found, (x @ w).softmax(1))


def test_program_in_a_cuda_graph() -> None:
    x = torch.randn(64, 128, device="cuda")
    b = TritonPlan()
    b.launch(softmax(64, 128), b.input(x), b.output(f32, (64, 128)))
    program = TritonProgram(b.record("cuda:0"))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (found,) = program([x])
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(found, x.softmax(1))


def test_host_numbers_and_cpu_scalars_reach_the_device() -> None:
    x = torch.randn(1000, device="cuda")
    b = TritonPlan()
    number, source = b.number(f64), b.input(x)
    b.launch(scale_by_host(1000), source, number, b.output(f32, (1000,)))
    torch.testing.assert_close(b.run([0.25, x], "cuda:0")[0], x * 0.25)


def test_bad_data_is_refused_by_the_next_call() -> None:
    look_up = graphc.compile(lambda x, rows: x[rows] * 2, backend="triton")
    x, good = torch.randn(4, 8, device="cuda"), torch.tensor([3, 0], device="cuda")
    with torch.no_grad():
        assert torch.equal(look_up(x, good), x[good] * 2)
        look_up(x, good + 4)
        torch.cuda.synchronize()
        with pytest.raises(IndexError, match=r"index 7 is out of bounds for dimension 0 with size 4\n.*test_cuda\.py:"):
            look_up(x, good)
        assert torch.equal(look_up(x, good), x[good] * 2)
