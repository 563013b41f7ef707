"""The launcher's host side: variants, addresses and order, with stand-ins for compiled kernels and the driver."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiling import Limits, choose_tiling
from graphc.errors import BackendUnavailableError, CompilerError
from graphc.ir.types import bf16, f32, f64
from graphc.program.plan import View
from graphc.program.triton_kernel import TritonKernel
from graphc.runtime import triton_launcher, triton_program
from graphc.runtime.device import register
from graphc.runtime.frame import Frame
from graphc.runtime.launches import Launches
from graphc.runtime.triton_cross import gpu_target
from graphc.runtime.triton_launcher import DeviceKernel
from graphc.runtime.triton_program import TritonProgram
from graphc.settings import override
from tests.runtime.plans import LINE
from tests.triton.cases import chain, softmax
from tests.triton.persistent import LAYOUTS, product_kernel
from tests.triton.programs import TritonPlan, scale_by_host

pytest.importorskip("triton")
from triton.runtime.errors import OutOfResources

NAMES = ["function", "x", "y", "z", "threads", "two", "three", "shared", "stream"]
DRIVER = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint32] * 7, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)  # fmt: skip


class Device:
    """Has the CPU's memory, and a driver that writes down what it is to launch.

    Attributes:
        compiled: (function, pointers that are not aligned) of each variant.
        launched: (function, grid, threads, shared bytes, stream, pointers) of each launch.
        codes: what the driver answers to the next launches.
        stages: of a pipeline that there is shared memory for; None = any.
        lent: the address of memory for Triton's own use, of each launch; 0 = none.
    """

    kind = "listed"
    interpreted = False

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, refusal: str = "", driver: bool = True, **metadata: Any
    ) -> None:
        self.compiled: list[tuple[str, list[int]]] = []
        self.launched: list[tuple[Any, ...]] = []
        self.by_triton: list[tuple[Any, ...]] = []
        self.codes: list[int] = []
        self.lent: list[int] = []
        self.stages: int | None = None
        self.attached = 0
        self._functions: list[tuple[str, int]] = []
        self._lock = threading.Lock()
        self._refusal, self._metadata = refusal, metadata
        self._driver = DRIVER(self.launch)
        self._has_driver = driver
        monkeypatch.setattr(triton_launcher, "compile_launch", self.compile)
        monkeypatch.setattr(triton_launcher, "load_binary", self.load)
        monkeypatch.setattr(triton_launcher, "launcher_of", lambda compiled: lambda *args: self.run(*args))
        monkeypatch.setattr(triton_program, "is_interpreting", lambda: False)
        register(self)

    def compile(self, kernel: TritonKernel, launch: Any, target: Any, unaligned: list[int]) -> Any:
        self.compiled.append((launch.function, list(unaligned)))
        with self._lock:
            self._functions.append((launch.function, len(kernel.signature)))
            number = len(self._functions)
        stages = launch.num_stages or triton_launcher.DEFAULT_STAGES
        plain = {"num_ctas": 1, "num_warps": 4, "shared": 96, "target": SimpleNamespace(warp_size=32)}
        return SimpleNamespace(
            stages=stages,
            function=number,
            packed_metadata="packed",
            metadata=SimpleNamespace(**{**plain, **self._metadata}),
        )

    def load(self, compiled: Any) -> None:
        if self.stages is not None and compiled.stages > self.stages:
            raise OutOfResources(compiled.stages, self.stages, "shared memory")

    def run(self, *args: Any) -> None:
        """Triton's own launcher."""
        self.by_triton.append(args)

    def launch(self, function: int, *rest: Any) -> int:
        grid, block, (shared, stream, pointers, extra) = rest[:3], rest[3:6], rest[6:]
        code = self.codes.pop(0) if self.codes else 0
        if code == 0:
            name, count = self._functions[function - 1]
            words = [ctypes.cast(pointers[i], ctypes.POINTER(ctypes.c_uint64))[0] for i in range(count + 2)]
            memory, profile = words[count:]
            assert profile == 0 and block[1:] == (1, 1) and not extra
            self.lent.append(memory)
            self.launched.append((name, grid, block[0], shared, stream, words[:count]))
        return code

    def current(self) -> int:
        return 0

    def guard(self, index: int) -> Any:
        return contextlib.nullcontext()

    def place(self, index: int) -> torch.device:
        return torch.device("cpu")

    def refusal(self, index: int) -> str:
        return self._refusal

    def memory(self, index: int) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    def stream(self, index: int) -> int:
        return 7

    def launch_function(self) -> int:
        return ctypes.cast(self._driver, ctypes.c_void_p).value if self._has_driver else 0

    def attach(self, index: int) -> None:
        self.attached += 1

    def describe(self, code: int) -> str:
        return f"CUDA_ERROR ({code})"

    def cannot_record(self) -> str:
        return "it cannot"


class Recording(Device):
    """Records launches, too."""

    def cannot_record(self) -> str:
        return ""

    def is_recording(self, index: int) -> bool:
        return False

    def pool(self) -> None:
        return None

    def record(self, index: int, pool: Any, run: Callable[[], None]) -> Any:
        before = len(self.launched)
        run()
        taken = self.launched[before:]
        del self.launched[before:]
        return SimpleNamespace(replay=lambda: self.launched.extend(taken))

    def note_used(self, index: int, tensor: torch.Tensor) -> None:
        pass

    def mark(self, index: int, old: Any = None) -> None:
        return None

    def wait(self, index: int, mark: Any) -> None:
        pass


def launch(device: Device, made: TritonKernel, *calls: list[int]) -> Launches:
    """Launch one kernel, call by call with other addresses."""
    launches = Launches(device, 0, len(calls[0]), 0)
    launches.add(DeviceKernel(made, 0, device, LINE), [(at, 0) for at in range(len(calls[0]))], LINE)
    for addresses in calls:
        launches.run((ctypes.c_uint64 * (len(addresses) + 1))(*addresses, 1 << 20), 7)
    return launches


def test_a_launch_passes_grid_threads_stream_and_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    launch(device, emit_kernel(softmax(6, 128)), [16, 32])
    assert device.launched == [("softmax", (6, 1, 1), 128, 96, 7, [16, 32])] and device.lent == [0]


def test_a_pipeline_has_as_many_stages_as_the_device_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = emit_kernel(product_kernel(4096, 4096, 1024, bf16, LAYOUTS["rows"]), target="cuda:90")
    (wanted,) = {launch.num_stages for launch in made.launches}
    device = Device(monkeypatch)
    device.stages = wanted - 2
    launches = Launches(device, 0, 3, 0)
    kernel = DeviceKernel(made, 0, device, LINE)
    launches.add(kernel, [(at, 0) for at in range(3)], LINE)
    launches.run((ctypes.c_uint64 * 4)(16, 32, 48, 1 << 20), 7)
    assert [item[0] for item in device.launched] == ["product_relu"] and len(device.compiled) == 3
    assert kernel.notes == [f"product_relu: {wanted - 2} of {wanted} stages fit the device's shared memory"]


def test_a_kernel_that_fits_with_no_number_of_stages_says_what_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    device.stages = 0
    with pytest.raises(CompilerError, match=r"softmax cannot be loaded: OutOfResources: .* shared memory, Required: 1"):
        launch(device, emit_kernel(softmax(6, 128)), [16, 32])


def test_one_variant_per_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    calls = [[16, 32], [48, 64], [20, 32], [24, 32], [20, 36], [16, 32]]
    launch(device, emit_kernel(softmax(6, 128)), *calls)
    assert device.compiled == [("softmax", []), ("softmax", [0]), ("softmax", [0, 1])]
    assert [item[5] for item in device.launched] == calls


def test_alignment_of_single_numbers_makes_no_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    made = emit_kernel(scale_by_host(9))
    assert made.numbers == (1,)
    assert triton_launcher.ast_source(made, made.launches[0]).attrs.keys() == {(0,), (2,)}
    calls = [[16, 24, 32], [16, 32, 32], [24, 8, 32]]
    launch(device, made, *calls)
    assert device.compiled == [("scale", []), ("scale", [0])]
    assert [item[5] for item in device.launched] == calls


def test_kernels_in_front_of_and_behind_a_misaligned_one_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    launches = Launches(device, 0, 3, 0)
    for first in (0, 1, 0):
        launches.add(DeviceKernel(emit_kernel(softmax(6, 128)), 0, device, LINE), [(first, 0), (2, 16)], LINE)
    launches.run((ctypes.c_uint64 * 4)(16, 20, 32, 0), 7)
    assert [item[5] for item in device.launched] == [[16, 48], [20, 48], [16, 48]]


def test_split_kernels_share_scratch_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    kernel = softmax(3, 40000)
    made = emit_kernel(kernel, tiling=choose_tiling(kernel, Limits(persistent=512, fill=64, split=8)))
    launches = launch(device, made, [16, 32])
    assert len(device.launched) > 1 and [item[0] for item in device.launched] == [
        item.function for item in made.launches
    ]
    ((first, *others),) = {tuple(item[5][2:]) for item in device.launched}
    assert first == 1 << 20 and len(others) == len(made.scratch) - 1
    assert all(other - first >= made.scratch[0].size * 4 for other in others)
    assert launches.scratch_bytes >= 4 * sum(part.size for part in made.scratch)


def _described() -> TritonKernel:
    """A product whose programs write descriptors."""
    return emit_kernel(product_kernel(4096, 4096, 64, bf16, LAYOUTS["rows"]), target="cuda:90")


def test_memory_for_descriptors_follows_the_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    device, made = Device(monkeypatch, global_scratch_size=256), _described()
    launches = launch(device, made, [16, 32, 48])
    assert device.launched == [(made.name, (132, 1, 1), 128, 96, 7, [16, 32, 48])]
    assert device.lent == [1 << 20] and launches.scratch_bytes >= 132 * 256 and not launches.one_by_one


def test_a_misaligned_pointer_gets_the_function_without_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    device, made = Device(monkeypatch), _described()
    launch(device, made, [16, 32, 48], [18, 32, 48], [16, 32, 48])
    other = f"{made.name}_unaligned"
    assert [item[0] for item in device.launched] == [made.name, other, made.name]
    assert device.compiled == [(made.name, []), (other, [0])]


def test_triton_is_lent_memory_where_it_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    device, made = Device(monkeypatch, driver=False, global_scratch_size=256), _described()
    found: list[int] = []

    def run(*args: Any) -> None:
        from triton.runtime import _allocation

        found.append(_allocation._allocator.get()(132 * 256, 128, 7).numel())
        device.by_triton.append(args)

    monkeypatch.setattr(device, "run", run)
    launch(device, made, [16, 32, 48])
    assert found == [132 * 256]
    ((*_, x, y, z, m, n, k, half),) = device.by_triton
    assert (x, y, z) == (16, 32, 48)
    assert (m, n, k, half) == tuple(value for _, value in made.launches[0].constexprs)


def test_an_empty_grid_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    launch(device, emit_kernel(chain(0, 5)), [0, 16, 0])
    assert device.launched == [] and device.compiled == []


def test_old_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, refusal="generated kernels need more than this")
    with pytest.raises(BackendUnavailableError, match="need more than this"):
        launch(device, emit_kernel(chain(2, 2)), [16, 16, 16])


def test_a_thread_that_the_driver_does_not_know_is_made_known(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    device.codes = [201]
    launch(device, emit_kernel(softmax(6, 128)), [16, 32])
    assert device.attached == 1 and len(device.launched) == 1


def test_a_refused_launch_names_kernel_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    device.codes = [700, 700]
    with pytest.raises(
        RuntimeError, match=r"kernel softmax: .* refused to launch it: CUDA_ERROR \(700\)\n.*model.py:14"
    ):
        launch(device, emit_kernel(softmax(6, 128)), [16, 32])


@pytest.mark.parametrize("how", ["no driver", "clusters", "scratch of triton", "no compiler"])
def test_triton_launches_what_the_driver_is_not_asked_to(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = {"clusters": {"num_ctas": 2}, "scratch of triton": {"global_scratch_size": 128}}.get(how, {})
    device = Device(monkeypatch, driver=how != "no driver", **metadata)
    if how == "no compiler":
        from graphc.runtime import launches as module

        def none(*args: Any) -> Any:
            raise CompilerError("no C compiler")

        monkeypatch.setattr(module, "LaunchList", none)
    launches = launch(device, emit_kernel(softmax(6, 128)), [16, 32], [20, 32])
    assert device.launched == [] and launches.one_by_one
    assert [args[:9] for args in device.by_triton] == [(6, 1, 1, 7, n, "packed", None, None, None) for n in (1, 2)]
    assert [args[9:] for args in device.by_triton] == [(16, 32, 128), (20, 32, 128)]


def test_a_binary_that_does_not_load_names_the_line_and_keeps_its_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = Device(monkeypatch)

    def load(compiled: Any) -> None:
        raise RuntimeError("out of resource: shared memory, Required: 300000")

    monkeypatch.setattr(triton_launcher, "load_binary", load)
    with (
        override(dump=tmp_path),
        pytest.raises(CompilerError, match=r"(?s)kernel softmax .*shared memory.*model.py:14"),
    ):
        launch(device, emit_kernel(softmax(6, 128)), [16, 32])
    assert "def softmax(" in (tmp_path / "softmax.triton.py").read_text()


class _Driver:
    """Triton's driver of a device with little memory and few threads; it has no launcher."""

    def __init__(self, shared: int, threads: int) -> None:
        self.loaded: list[tuple[Any, ...]] = []
        self.utils, self._shared, self._threads = self, shared, threads

    def get_current_device(self) -> int:
        return 77 + self._shared  # what Triton remembers of it is of no other device

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._shared}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, ...]:
        self.loaded.append((name, kernel, shared, device))
        return "module", 4711, 32, 0, self._threads


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter cannot compile")
@pytest.mark.parametrize(
    "shared, threads, lacks", [(4096, 1024, ""), (8, 1024, "shared memory"), (4096, 64, "threads")]
)
def test_binaries_are_loaded_without_tritons_launcher(
    shared: int, threads: int, lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.driver import driver

    made = emit_kernel(softmax(6, 1024))
    compiled = triton_launcher.compile_launch(made, made.launches[0], gpu_target("cuda:80"))
    there = _Driver(shared, threads)
    monkeypatch.setattr(type(driver), "active", there)
    if lacks:
        with pytest.raises(OutOfResources, match=lacks):
            triton_launcher.load_binary(compiled)
        return
    for _ in range(2):
        triton_launcher.load_binary(compiled)
    expected = (compiled.name, compiled.asm["cubin"], compiled.metadata.shared, 77 + shared)
    assert compiled.function == 4711 and there.loaded == [expected]


def record(b: TritonPlan) -> Any:
    return b.record("listed:0")


def test_a_program_hands_over_the_addresses_of_its_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    x = torch.randn(10, 6)
    b = TritonPlan()
    source, middle = b.input(x), b.arena(f32, (4, 6))
    b.arena(f32, (1,))  # so that the next one does not lie at 0
    other = b.arena(f32, (4, 6))
    b.launch(softmax(4, 6), source, middle, offsets=(12, 0))
    b.launch(softmax(4, 6), middle, other)
    b.launch(softmax(4, 6), other, b.output(f32, (4, 6)))
    program = TritonProgram(record(b))
    frames: list[Frame] = []
    begin = program.memory.begin
    monkeypatch.setattr(program.memory, "begin", lambda inputs: frames.append(begin(inputs)) or frames[-1])
    (found,) = program([x])
    arena = frames[0].arenas["listed:0"].data_ptr()
    places = [program.program.buffers[i].arena_offset + arena for i in (middle, other)]
    pointers = [x[2:].data_ptr(), places[0], *places, places[1], found.data_ptr()]
    assert [p for item in device.launched for p in item[5]] == pointers
    assert program.report()["kernels"] == "3 launches in 1 foreign calls"


def test_launches_of_one_kernel_are_compiled_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    both = threading.Barrier(2)

    def compile_launch(*args: Any) -> Any:
        both.wait(60)
        return device.compile(*args)

    monkeypatch.setattr(triton_launcher, "compile_launch", compile_launch)
    b = TritonPlan()
    b.launch(softmax(3, 40000), b.input(torch.randn(3, 40000)), b.output(f32, (3, 40000)))
    program = TritonProgram(record(b))
    assert sorted(device.compiled) == [("softmax_pass1", []), ("softmax_pass2", [])]
    program([torch.randn(3, 40000)])
    assert len(device.compiled) == 2 and [item[0] for item in device.launched] == ["softmax_pass1", "softmax_pass2"]


def test_a_slice_takes_the_variant_without_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    base = torch.randn(25)
    b = TritonPlan()
    b.launch(softmax(4, 6), b.input(base[1:].view(4, 6)), b.output(f32, (4, 6)))
    program = TritonProgram(record(b))
    program([base[1:].view(4, 6)])
    program([base[:24].view(4, 6)])
    assert device.compiled == [("softmax", []), ("softmax", [0])]
    assert [item[5][0] for item in device.launched] == [base[1:].data_ptr(), base.data_ptr()]


def test_a_place_that_is_not_aligned_is_compiled_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    x = torch.randn(25)
    assert x.data_ptr() % 16 == 0
    b = TritonPlan()
    source = b.input(x)
    b.launch(softmax(4, 6), source, b.output(f32, (4, 6)), offsets=(1, 0))
    program = TritonProgram(record(b))
    assert device.compiled == [("softmax", [0])]
    monkeypatch.setattr(Launches, "_launch_otherwise", None)  # it is in the list of the foreign call
    program([x])
    assert [item[5][0] for item in device.launched] == [x[1:].data_ptr()] and len(device.compiled) == 1


def test_python_numbers_are_brought_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    x = torch.randn(9)
    b = TritonPlan()
    number, source = b.number(f64), b.input(x)
    b.launch(scale_by_host(9), source, number, b.output(f32, (9,)))
    seen: list[float] = []
    inner = device.launch

    def spy(function: int, *rest: Any) -> int:
        pointers = rest[8]
        address = ctypes.cast(pointers[1], ctypes.POINTER(ctypes.c_uint64))[0]
        seen.append(ctypes.c_double.from_address(address).value)
        return inner(function, *rest)

    device._driver = DRIVER(spy)
    program = TritonProgram(record(b))
    program([0.5, x]), program([-2.0, x])
    assert seen == [0.5, -2.0]


def test_launches_between_recordings_get_the_addresses_of_inputs_and_of_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Recording(monkeypatch)
    x, y = torch.randn(9), torch.randn(4, 6)
    b = TritonPlan()
    number, source, other = b.number(f64), b.input(x), b.input(y)
    scaled, item = b.output(f32, (9,)), b.cell(f32)
    b.launch(scale_by_host(9), source, number, scaled)
    b.aten("aten._local_scalar_dense.default", (View(source, f32, (), (), 1),), (item,))
    middle = b.arena(f32, (4, 6))
    for from_, to in ((other, middle), (middle, middle), (middle, middle), (middle, b.output(f32, (4, 6)))):
        b.launch(softmax(4, 6), from_, to)
    program = TritonProgram(record(b))
    for _ in range(4):
        device.launched.clear()
        program([0.5, x, y])
        (_, *_, first), (_, *_, second), *rest = device.launched
        assert first[0] == x.data_ptr() and second[0] == y.data_ptr() and len(rest) == 3
        assert all(address for *_, pointers in device.launched for address in pointers)
    assert re.search("3 replays.*1 launches, which a replay would not make quicker", program.report()["replay"])


def test_storage_that_has_been_emptied_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch)
    x = torch.randn(4, 6)
    b = TritonPlan()
    b.launch(softmax(4, 6), b.input(x), b.output(f32, (4, 6)))
    program = TritonProgram(record(b))
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"shape \[4, 6\] that the program reads is out of bounds"):
        program([x])


def test_the_launcher_is_built_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphc.runtime import launch_list, small_library

    with override(cache_dir=tmp_path):
        launch_list._entry.__wrapped__()
        assert len(list(tmp_path.rglob("launch.so"))) == 1
        monkeypatch.setattr(small_library, "build_library", lambda program: pytest.fail("built again"))
        launch_list._entry.__wrapped__()
    with override(cc="no-such-compiler"), pytest.raises(CompilerError, match="no C compiler"):
        launch_list._entry.__wrapped__()
