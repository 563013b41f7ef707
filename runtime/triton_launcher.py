"""Compiles one generated Triton kernel for a device and launches it.

Each launch is bound once per device and pointer alignment: compiled binary, grid and constants are at hand. What
remains per call is done by `graphc.runtime.launches`, or by Triton's C launcher with plain addresses. Elsewhere the
interpreter runs the same text.
"""

from __future__ import annotations

import contextvars
import functools
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphc.errors import BackendUnavailableError, CompilerError
from graphc.ir.types import Location
from graphc.program.triton_kernel import ALIGNMENT, DESCRIPTOR, ITEMSIZE, Launch, TritonKernel, triton_source
from graphc.runtime.device import Device
from graphc.runtime.launch_list import Binary
from graphc.runtime.triton_libdevice import libdevice_for
from graphc.runtime.triton_module import fingerprint, import_triton, is_interpreting, load_module
from graphc.settings import settings

DEFAULT_STAGES = 3
"""Of the software pipeline where a launch says nothing: Triton's own."""
TENSOR_COLUMNS = 512
"""Of the memory beside the matrix units of compute capability 10.0, as Triton has it."""
SCRATCH_ALIGNMENT = 256
"""Bytes to which the parts of scratch memory are aligned."""
_UNKNOWN = Location()
Place = tuple[int, int]
"""An address, or a number, as a sum: of what is in some place of the table of a call, and bytes."""

OPTIONS: dict[str, Any] = {"enable_fp_fusion": False, "enable_reflect_ftz": False}
"""Exact arithmetic: no contraction to fused multiply-add, and libdevice keeps subnormal numbers, unless a launch says
that it need not."""

_TORCH = {"*fp64": torch.float64, "*fp32": torch.float32, "*fp16": torch.float16, "*bf16": torch.bfloat16,
          "*i64": torch.int64, "*i32": torch.int32, "*i16": torch.int16, "*i8": torch.int8, "*i1": torch.bool,
          "*u64": torch.uint64, "*u32": torch.uint32, "*u16": torch.uint16, "*u8": torch.uint8,
          "*fp8e4nv": torch.float8_e4m3fn, "*fp8e5": torch.float8_e5m2}  # fmt: skip


def signature_of(kernel: TritonKernel, launch: Launch) -> dict[str, str]:
    """Parameter types of a launch as Triton names them."""
    sizes = {item.name: item.kind for item in kernel.sizes}
    return {**dict(kernel.signature), **sizes, **{name: "constexpr" for name, _ in launch.constexprs}}


def ast_source(kernel: TritonKernel, launch: Launch, unaligned: Sequence[int] = ()) -> Any:
    """What `triton.compile` takes for one launch.

    Args:
        unaligned: positions of pointers that are not known to be aligned to 16 bytes.
    """
    from triton.compiler import ASTSource

    function = getattr(load_module(kernel), launch.function)
    unknown = {*unaligned, *kernel.numbers}
    aligned = [number for number in range(len(kernel.signature)) if number not in unknown]
    aligned += [number for number, item in enumerate(kernel.sizes, len(kernel.signature)) if item.is_multiple]
    attributes = {(number,): [["tt.divisibility", ALIGNMENT]] for number in aligned}
    return ASTSource(function, signature_of(kernel, launch), dict(launch.constexprs), attributes)


def torch_type(pointer: str) -> torch.dtype:
    """The torch dtype behind a Triton pointer type."""
    return _TORCH[pointer]


@dataclass(frozen=True)
class Bound:
    """A compiled launch with everything but the pointers.

    Args:
        launch: what it is of.
        launcher: gives Triton's launcher, which some versions of Triton compile then.
        function: handle of the binary's function.
        metadata: as Triton's launcher takes it.
        constants: compile-time arguments, which Triton's launcher takes and ignores.
        binary: for the driver; None when only Triton's launcher knows how to launch it.
        taken: pointers that it takes; memory for descriptors, which comes behind them, Triton's launcher finds itself.
        place: the device.
    """

    launch: Launch
    launcher: Callable[[], Any]
    function: Any
    metadata: Any
    constants: tuple[int, ...]
    binary: Binary | None
    taken: int
    place: torch.device

    def __call__(self, pointers: Sequence[int], stream: int) -> None:
        """Launch by Triton's launcher."""
        x, y, z = self.launch.grid
        arguments = (*pointers[: self.taken], *self.constants)
        run = self.launcher()
        call = functools.partial(run, x, y, z, stream, self.function, self.metadata, None, None, None, *arguments)
        contextvars.copy_context().run(self._with_memory, call) if len(pointers) > self.taken else call()

    def _with_memory(self, call: Callable[[], None]) -> None:
        """Launch with memory for Triton's own use, which the stream's order keeps from others while it is needed."""
        import_triton().set_allocator(lambda size, *_: torch.empty(size, dtype=torch.uint8, device=self.place))
        call()


class DeviceKernel:
    """A kernel ready to be launched on one device.

    Args:
        kernel: the generated kernel.
        index: number of the device.
        device: its kind.
        location: the user's line that asked for the kernel first.

    Attributes:
        notes: what was compiled in another way than it was generated for.
        wanted: the pointers whose alignment means something, as a bit set.

    Raises:
        BackendUnavailableError: the device is too old.
    """

    def __init__(self, kernel: TritonKernel, index: int, device: Device, location: Location = _UNKNOWN) -> None:
        refusal = device.refusal(index)
        if refusal:
            raise BackendUnavailableError(refusal)
        self.kernel, self.index, self.device, self.location = kernel, index, device, location
        self.notes: list[str] = []
        self.active = [launch for launch in kernel.launches if prod(launch.grid)]
        self._variants: dict[tuple[int, int], Bound] = {}
        self._locks = [threading.Lock() for _ in self.active]  # launches are compiled at the same time
        self._scratch_offsets, self.scratch_bytes = scratch_places(kernel)
        sizes = range(len(kernel.signature), len(kernel.signature) + len(kernel.sizes))
        self.wanted = ~sum(1 << number for number in (*kernel.numbers, *sizes))

    def __call__(self, pointers: list[int], stream: int) -> None:
        """Launch by Triton's launcher on a stream of the device, which must be the current one.

        Args:
            pointers: addresses of the kernel's buffers, in order.
            stream: handle.

        Raises:
            CompilerError: Triton or the assembler failed; only in the first call for an alignment of pointers.
        """
        start = 0
        if self.scratch_bytes:
            scratch = torch.empty(self.scratch_bytes, dtype=torch.uint8, device=self.device.place(self.index))
            start = scratch.data_ptr()
        pointers = [place + offset for place, offset in self.arguments([(place, 0) for place in pointers], start, 0)]
        unaligned = self.unaligned(pointers)
        for number in range(len(self.active)):
            self.bound(number, unaligned)(pointers, stream)

    def unaligned(self, pointers: Sequence[int]) -> int:
        """Which pointers lack the alignment that variants differ by, as a bit set."""
        return unaligned_of(pointers) & self.wanted

    def arguments(self, buffers: Sequence[Place], scratch: int, nowhere: int) -> tuple[Place, ...]:
        """All that a launch takes: buffers, scratch memory, sizes, and memory for descriptors, each as a sum.

        Args:
            buffers: of the kernel, in order.
            scratch, nowhere: what stands for the beginning of scratch memory, and for 0.
        """
        parts = [(scratch, offset) for offset in self._scratch_offsets]
        own = len(self.kernel.scratch)
        return (*buffers, *parts[:own], *((nowhere, item.value) for item in self.kernel.sizes), *parts[own:])

    def effort(self) -> tuple[bool, int]:
        """What says which of two kernels takes longer to compile: products of matrices do, and long functions."""
        pipelined = any(launch.num_stages for launch in self.active)
        return pipelined, len(self.kernel.text) // max(len(self.active), 1)

    def bound(self, number: int, unaligned: int = 0) -> Bound:
        """Compile, or take from Triton's cache, a launch whose pointers `unaligned` (a bit set) lack alignment."""
        found = self._variants.get((number, unaligned))
        if found is None:
            with self._locks[number]:
                found = self._variants.get((number, unaligned))
                if found is None:
                    with self.device.guard(self.index):
                        found = self._bind(self.active[number], unaligned)
                    self._variants[number, unaligned] = found
        return found

    def _bind(self, launch: Launch, unaligned: int) -> Bound:
        positions = [number for number in range(len(self.kernel.signature)) if unaligned >> number & 1]
        launch = launch.variant(not unaligned)
        try:
            compiled = self._loaded(launch, positions)
        except CompilerError as error:
            raise CompilerError(error.message, self.location) from error
        except Exception as error:  # the binary asks for more than the device has
            where = keep_source(self.kernel)
            raise CompilerError(
                f"kernel {launch.function} cannot be loaded: {type(error).__name__}: {error}\nits source is {where}",
                self.location,
            ) from error
        constants = tuple(value for _, value in launch.constexprs)
        taken, place = len(self.kernel.signature) + len(self.kernel.sizes), self.device.place(self.index)
        binary = _binary(compiled, self.kernel)
        launcher = functools.cache(functools.partial(launcher_of, compiled))
        return Bound(launch, launcher, compiled.function, compiled.packed_metadata, constants, binary, taken, place)

    def _loaded(self, launch: Launch, positions: Sequence[int]) -> Any:
        """The binary on the device; with fewer stages where that has less shared memory than those take."""
        from triton.runtime.errors import OutOfResources

        for fewer in with_fewer_stages(launch):
            compiled = compile_launch(self.kernel, fewer, None, positions)
            try:
                load_binary(compiled)
            except OutOfResources as error:
                if error.name != "shared memory" or fewer.num_stages == 1:
                    raise
                continue
            if fewer != launch:
                wanted = launch.num_stages or DEFAULT_STAGES
                self.notes.append(
                    f"{launch.function}: {fewer.num_stages} of {wanted} stages fit the device's shared memory"
                )
            return compiled
        raise AssertionError("the last one raises")


def with_fewer_stages(launch: Launch) -> Iterator[Launch]:
    """The launch, and what takes less and less shared memory in its place."""
    yield launch
    for stages in range((launch.num_stages or DEFAULT_STAGES) - 1, 0, -1):
        yield replace(launch, num_stages=stages)


def load_binary(compiled: Any) -> None:
    """Bring a compiled kernel to the current device, as Triton does before a launch of its own, without its launcher.

    That is C code, which some versions of Triton compile once per signature.

    Raises:
        OutOfResources: it asks for more than the device has.
    """
    from triton import knobs
    from triton.compiler.compiler import max_shared_mem
    from triton.runtime.driver import driver
    from triton.runtime.errors import OutOfResources

    if compiled.module is not None:
        return
    metadata, device = compiled.metadata, driver.active.get_current_device()
    threads = metadata.num_warps * metadata.target.warp_size
    asked = [("shared memory", metadata.shared, max_shared_mem(device))]
    asked.append(("tensor memory", getattr(metadata, "tmem_size", None) or 0, TENSOR_COLUMNS))
    for what, wanted, limit in asked:
        if wanted > limit:
            raise OutOfResources(wanted, limit, what)
    facts = compiled.name, compiled.metadata_group, compiled.hash
    if knobs.runtime.kernel_load_start_hook is not None:
        knobs.runtime.kernel_load_start_hook(None, None, *facts)
    module, function, _, _, most = driver.active.utils.load_binary(
        compiled.name, compiled.kernel, metadata.shared, device
    )
    if threads > most:
        raise OutOfResources(threads, most, "threads")
    compiled.module, compiled.function = module, function
    if knobs.runtime.kernel_load_end_hook is not None:
        knobs.runtime.kernel_load_end_hook(module, function, *facts)


def launcher_of(compiled: Any) -> Any:
    """Triton's launcher of a compiled kernel."""
    from triton.runtime.driver import driver

    return driver.active.launcher_cls(compiled.src, compiled.metadata)


def _binary(compiled: Any, kernel: TritonKernel) -> Binary | None:
    """What the driver needs, where a launch takes a grid, threads, shared memory, and what `fits_memory` says."""
    metadata = compiled.metadata
    plain = metadata.num_ctas == 1 and not any(
        getattr(metadata, name, 0) for name in ("launch_cooperative_grid", "launch_pdl", "profile_scratch_size")
    )
    if not plain or not fits_memory(compiled, kernel) or not isinstance(compiled.function, int):
        return None
    return Binary(compiled.function, metadata.num_warps * metadata.target.warp_size, metadata.shared)


def fits_memory(compiled: Any, kernel: TritonKernel) -> bool:
    """Whether Triton takes no more memory for its own use than a kernel has for the descriptors of a program."""
    wanted = getattr(compiled.metadata, "global_scratch_size", 0) or 0
    return bool(wanted <= kernel.descriptors * DESCRIPTOR)


def unaligned_of(pointers: Sequence[int]) -> int:
    """Which pointers lack the widest alignment, as a bit set."""
    mixed = 0
    for pointer in pointers:
        mixed |= pointer
    if mixed % ALIGNMENT == 0:
        return 0
    return sum(1 << number for number, pointer in enumerate(pointers) if pointer % ALIGNMENT)


def keep_source(kernel: TritonKernel) -> Path:
    """Write a kernel's text to a file that stays, and say where."""
    folder = settings().dump or Path(tempfile.mkdtemp(prefix="graphc-failed-"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / triton_source(kernel.name)
    path.write_text(kernel.text)
    return path


def compile_launch(kernel: TritonKernel, launch: Launch, target: Any, unaligned: Sequence[int] = ()) -> Any:
    """Triton's compiled kernel of one launch.

    Args:
        target: a `GPUTarget`, or None for the current device.

    Raises:
        CompilerError: Triton or the assembler below it failed; carries its message.
    """
    triton = import_triton()
    from triton.runtime.driver import driver

    fingerprint().result()
    target = driver.active.get_current_target() if target is None else target
    # launches count warps of 32 threads
    options = {"num_warps": max(1, launch.num_warps * 32 // target.warp_size), **OPTIONS}
    if launch.flushes:
        options["enable_reflect_ftz"] = True
    if launch.num_stages:
        options["num_stages"] = launch.num_stages
    library = libdevice_for(kernel, target.backend)
    if library is not None:
        options["extern_libs"] = {"libdevice": str(library)}
    try:
        return triton.compile(ast_source(kernel, launch, unaligned), target=target, options=options)
    except Exception as error:  # every layer of triton raises classes of its own
        raise CompilerError(
            f"triton could not compile kernel {launch.function}: {type(error).__name__}: {error}\n"
            f"its source is {keep_source(kernel)}"
        ) from error


def scratch_places(kernel: TritonKernel) -> tuple[list[int], int]:
    """Where in a kernel's scratch memory its parts begin, that of descriptors last, and the bytes of all of them."""
    sizes = [item.size * ITEMSIZE[item.dtype] for item in kernel.scratch]
    sizes += [kernel.descriptor_bytes] if kernel.descriptors else []
    found, offset = [], 0
    for size in sizes:
        found.append(offset)
        offset += -(-size // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT
    return found, offset


class InterpretedKernel:
    """A kernel run by Triton's interpreter on tensors of any device.

    Raises:
        BackendUnavailableError: the interpreter is not switched on.
    """

    def __init__(self, kernel: TritonKernel) -> None:
        require_interpreter()
        self.kernel = kernel
        self._module = load_module(kernel)

    def __call__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Run on tensors whose first element is the buffer's first element, of the signature's dtypes."""
        scratch = [
            torch.empty(item.size, dtype=_TORCH[item.dtype], device=tensors[0].device if tensors else "cpu")
            for item in self.kernel.scratch
        ]
        sizes = [item.value for item in self.kernel.sizes]
        is_aligned = not unaligned_of([tensor.data_ptr() for tensor in tensors])
        with np.errstate(all="ignore"):
            for launch in self.kernel.launches:
                if prod(launch.grid):
                    function = getattr(self._module, launch.variant(is_aligned).function)
                    function[launch.grid](*tensors, *scratch, *sizes, **dict(launch.constexprs))


def require_interpreter() -> None:
    """Raise unless Triton's interpreter is on.

    Raises:
        BackendUnavailableError: it is off.
    """
    if not is_interpreting():
        raise BackendUnavailableError(
            "backend 'triton' runs on tensors of a GPU; on CPU tensors only in Triton's interpreter, for which "
            "TRITON_INTERPRET=1 must be set before Python starts (backend 'c' compiles for the CPU)"
        )
