"""Where the Triton backend cannot run, it says so."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from graphc.codegen.triton.emit import emit_kernel
from graphc.errors import BackendUnavailableError, CodegenError, CompilerError
from graphc.frontend.capture import capture
from graphc.ir.dims import symbol
from graphc.ir.types import bf16, c64, f32, i16
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import Axis, Buffer, Kernel
from graphc.options import Options, for_part
from graphc.program.triton_kernel import Launch, TritonKernel
from graphc.runtime.triton_cross import compile_for
from graphc.runtime.triton_launcher import InterpretedKernel
from graphc.runtime.triton_program import TritonProgram
from graphc.settings import override
from tests.triton.cases import chain, scatter_add, softmax
from tests.triton.programs import TritonPlan

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="about processes without it")


def test_cpu_tensors_need_the_interpreter() -> None:
    b = TritonPlan()
    b.launch(softmax(2, 3), b.input(torch.zeros(2, 3)), b.output(f32, (2, 3)))
    with pytest.raises(BackendUnavailableError, match="TRITON_INTERPRET=1 must be set before Python starts"):
        TritonProgram(b.record())


@pytest.mark.parametrize(
    ("place", "is_there", "backend"), [("cpu", True, "auto"), ("cpu", False, "triton"), ("cuda:0", True, "triton")]
)
def test_beside_a_gpu_parts_of_a_path_that_lie_with_the_cpu_are_not_tritons(
    place: str, is_there: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphc.runtime.device.present_device", lambda: object() if is_there else None)
    x = torch.randn(3)
    graph = capture(lambda x: x.sin(), (x,)).graph
    for value in graph.values():
        value.type = dataclasses.replace(value.type, device=place)
    assert for_part(graph, Options("run", backend="triton")).backend == backend


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_a_program_for_a_gpu_that_is_not_there() -> None:
    b = TritonPlan()
    b.launch(softmax(2, 3), b.input(torch.zeros(2, 3)), b.output(f32, (2, 3)))
    with pytest.raises(BackendUnavailableError, match=r"test: torch .* sees no GPU on this machine"):
        TritonProgram(b.record("cuda:0"))


def test_the_devices_of_torch_say_what_they_are() -> None:
    """What can be asked of them without one."""
    from graphc.runtime.device import current_target, find_device, index_of, present_device

    device = find_device("cuda:1")
    assert device is not None and device is find_device("cuda") and device.kind == "cuda"
    assert index_of("cuda:1", device) == 1 and device.place(1) == torch.device("cuda:1")
    assert find_device("cpu") is find_device("host") is find_device("no such kind") is None
    if not torch.cuda.is_available():
        assert present_device() is None and current_target() == ""


@pytest.mark.parametrize("capability, refused", [((7, 5), True), ((8, 0), False), ((10, 3), False)])
def test_old_gpus_are_refused(capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphc.runtime.device_cuda import DEVICE

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    wanted = "generated kernels need compute capability 8.0, Some GPU has 7.5" if refused else ""
    assert DEVICE.refusal(1) == wanted
    assert DEVICE.refusal(2) == "there is no device cuda:2, the last one is cuda:1"


def test_what_torch_allows_is_asked_by_either_flag() -> None:
    """Torch raises where the older one is asked after the newer one has been set."""
    from graphc.runtime.device_cuda import DEVICE

    flags = torch.backends.cuda.matmul
    before = flags.fp32_precision
    try:
        torch.set_float32_matmul_precision("high")
        assert DEVICE.allows_tf32()
        torch.set_float32_matmul_precision("highest")
        assert not DEVICE.allows_tf32()
        flags.fp32_precision = "tf32"
        assert DEVICE.allows_tf32()
    finally:
        torch.set_float32_matmul_precision("highest")
        flags.fp32_precision = before


def test_a_thread_that_the_driver_does_not_know_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may be recording, and would have to stop if this one waited for the device."""
    from graphc.runtime import device_cuda

    def retain(context: Any, index: int) -> int:
        context._obj.value = 17
        return 0 if index == 1 else 101

    made: list[int] = []
    driver = SimpleNamespace(
        cuDevicePrimaryCtxRetain=retain, cuCtxSetCurrent=lambda context: made.append(context.value) or 0,
        cuGetErrorName=lambda code, text: 1,
    )  # fmt: skip
    monkeypatch.setattr(device_cuda, "_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda index: pytest.fail("it waits"))
    device_cuda.DEVICE.attach(1)
    assert made == [17]
    with pytest.raises(RuntimeError, match="the driver has no context for device 5: error 101"):
        device_cuda.DEVICE.attach(5)


def test_a_kind_of_device_without_code_runs_op_by_op() -> None:
    import graphc
    from graphc.driver import compile_graph
    from graphc.errors import FallbackWarning
    from graphc.options import Options

    graph = graphc.trace(lambda x: x.exp() * 2, torch.ones(3))
    for value in graph.values():
        value.type = dataclasses.replace(value.type, device="xpu:0")
    with pytest.warns(FallbackWarning, match="runs op by op, as fast as eager, since graphc has no code for xpu:0"):
        assert compile_graph(graph, Options("fn")).backend == "interpret"
    with pytest.raises(BackendUnavailableError, match="backend='c' has no code for xpu:0"):
        compile_graph(graph, Options("fn", backend="c"))


def test_the_variable_set_too_late_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    assert triton.language is not None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendUnavailableError, match="changed after triton had been imported"):
        InterpretedKernel(emit_kernel(softmax(2, 3)))


def test_a_kernel_that_does_not_compile_names_itself_and_keeps_its_source(tmp_path: Path) -> None:
    text = "import triton\nimport triton.language as tl\n\n\n@triton.jit\n"
    text += "def broken(x_ptr):\n    tl.store(x_ptr, nothing)\n"
    kernel = TritonKernel("broken", text, (("x_ptr", "*fp32"),), (Launch("broken", (1, 1, 1), (), 1),))
    with override(dump=tmp_path), pytest.raises(CompilerError, match=rf"(?s)kernel broken: .*its source is {tmp_path}"):
        compile_for(kernel, "cuda:90")
    assert (tmp_path / "broken.triton.py").read_text() == text


def test_complex_numbers_are_refused() -> None:
    b = KernelBuilder((Axis("i", 4),))
    b.store("y", symbol("i"), b.load("x", c64, symbol("i")))
    buffers = (Buffer("x", c64, 4, "in"), Buffer("y", c64, 4, "out"))
    with pytest.raises(CodegenError, match="no element type c64"):
        emit_kernel(b.finish("copy", buffers))


def test_symbolic_extents_are_refused() -> None:
    b = KernelBuilder((Axis("i", symbol("n")),))
    b.store("y", symbol("i"), b.load("x", f32, symbol("i")))
    with pytest.raises(CodegenError, match="axis i has the symbolic extent n"):
        emit_kernel(b.finish("copy", chain(2, 2).buffers))


def test_atomics_on_narrow_integers_are_refused() -> None:
    with pytest.raises(CodegenError, match="no atomic addition on i16"):
        emit_kernel(scatter_add(4, 2, 5, i16))


def test_arithmetic_on_bf16_is_refused() -> None:
    b = KernelBuilder((Axis("i", 4),))
    x = b.load("x", bf16, symbol("i"))
    b.store("y", symbol("i"), b.compute("add", x, x))
    with pytest.raises(CodegenError, match="add on bf16"):
        emit_kernel(Kernel("double", b.axes, chain(2, 2, bf16).buffers[::2], tuple(b.body)))
