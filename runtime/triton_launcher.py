"""Launches one generated Triton kernel on a device.

On CUDA each launch is bound once per device and pointer alignment: compiled binary, grid and constants are at hand, and
what remains per call is Triton's C launcher with plain addresses. Elsewhere the interpreter runs the same text.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from graphc.errors import BackendUnavailableError, CompilerError
from graphc.program.triton_kernel import ALIGNMENT, ITEMSIZE, Launch, TritonKernel
from graphc.runtime.triton_module import import_triton, is_interpreting, load_module

_SCRATCH_ALIGNMENT = 256
OLDEST_CAPABILITY = (8, 0)

OPTIONS: dict[str, Any] = {"enable_fp_fusion": False, "enable_reflect_ftz": False}
"""Exact arithmetic: no contraction to fused multiply-add, and libdevice keeps subnormal numbers."""

_TORCH = {"*fp64": torch.float64, "*fp32": torch.float32, "*fp16": torch.float16, "*bf16": torch.bfloat16,
          "*i64": torch.int64, "*i32": torch.int32, "*i16": torch.int16, "*i8": torch.int8, "*i1": torch.bool,
          "*u64": torch.uint64, "*u32": torch.uint32, "*u16": torch.uint16, "*u8": torch.uint8}  # fmt: skip


def current_target() -> str:
    """The current GPU as `cuda:90` or `hip:gfx942`, "" when there is none."""
    if not torch.cuda.is_available():
        return ""
    if torch.version.hip is not None:
        return "hip:" + torch.cuda.get_device_properties().gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"cuda:{major}{minor}"


def signature_of(kernel: TritonKernel, launch: Launch) -> dict[str, str]:
    """Parameter types of a launch as Triton names them."""
    return {**dict(kernel.signature), **{name: "constexpr" for name, _ in launch.constexprs}}


def ast_source(kernel: TritonKernel, launch: Launch, unaligned: Sequence[int] = ()) -> Any:
    """What `triton.compile` takes for one launch.

    Args:
        unaligned: positions of pointers that are not known to be aligned to 16 bytes.
    """
    from triton.compiler import ASTSource

    function = getattr(load_module(kernel), launch.function)
    aligned = [number for number in range(len(kernel.signature)) if number not in unaligned]
    attributes = {(number,): [["tt.divisibility", ALIGNMENT]] for number in aligned}
    return ASTSource(function, signature_of(kernel, launch), dict(launch.constexprs), attributes)


def torch_type(pointer: str) -> torch.dtype:
    """The torch dtype behind a Triton pointer type."""
    return _TORCH[pointer]


@dataclass(frozen=True)
class _Bound:
    """A compiled launch with everything but the pointers."""

    run: Any
    grid: tuple[int, int, int]
    function: Any
    metadata: Any
    constants: tuple[int, ...]


class CudaKernel:
    """A kernel ready to be launched on one CUDA device.

    Args:
        kernel: the generated kernel.
        device: index of the CUDA device.

    Raises:
        BackendUnavailableError: the device is older than compute capability 8.0.
    """

    def __init__(self, kernel: TritonKernel, device: int) -> None:
        capability = torch.cuda.get_device_capability(device)
        if torch.version.hip is None and capability < OLDEST_CAPABILITY:
            raise BackendUnavailableError(
                f"generated kernels need compute capability 8.0, {torch.cuda.get_device_name(device)} has "
                f"{capability[0]}.{capability[1]}"
            )
        self.kernel, self.device = kernel, device
        self._variants: dict[int, tuple[_Bound, ...]] = {}
        self._lock = threading.Lock()
        self._active = [launch for launch in kernel.launches if prod(launch.grid)]
        self._scratch = sum(_padded(item.size * ITEMSIZE[item.dtype]) for item in kernel.scratch)

    def __call__(self, pointers: list[int], stream: int) -> None:
        """Launch on a stream of the device, which must be the current one.

        Args:
            pointers: addresses of the kernel's buffers, in order.
            stream: a raw CUDA stream.

        Raises:
            CompilerError: Triton or ptxas failed; only in the first call for an alignment of pointers.
        """
        scratch = None
        if self._scratch:
            scratch = torch.empty(self._scratch, dtype=torch.uint8, device=f"cuda:{self.device}")
            pointers = [*pointers, *self._scratch_pointers(scratch.data_ptr())]
        mixed = 0
        for pointer in pointers:
            mixed |= pointer
        key = 0 if mixed % ALIGNMENT == 0 else _unaligned(pointers)
        variant = self._variants.get(key)
        if variant is None:
            variant = self.prepare(key)
        for bound in variant:
            x, y, z = bound.grid
            bound.run(x, y, z, stream, bound.function, bound.metadata, None, None, None, *pointers, *bound.constants)

    def prepare(self, unaligned: int = 0) -> tuple[_Bound, ...]:
        """Compile, or take from Triton's cache, the variant whose pointers `unaligned` (a bit set) lack alignment."""
        with self._lock:
            found = self._variants.get(unaligned)
            if found is None:
                with torch.cuda.device(self.device):
                    found = tuple(self._bind(launch, unaligned) for launch in self._active)
                self._variants[unaligned] = found
            return found

    def _bind(self, launch: Launch, unaligned: int) -> _Bound:
        positions = [number for number in range(len(self.kernel.signature)) if unaligned >> number & 1]
        compiled = compile_launch(self.kernel, launch, None, positions)
        constants = tuple(value for _, value in launch.constexprs)
        return _Bound(compiled.run, launch.grid, compiled.function, compiled.packed_metadata, constants)

    def _scratch_pointers(self, base: int) -> list[int]:
        found = []
        for item in self.kernel.scratch:
            found.append(base)
            base += _padded(item.size * ITEMSIZE[item.dtype])
        return found


def compile_launch(kernel: TritonKernel, launch: Launch, target: Any, unaligned: Sequence[int] = ()) -> Any:
    """Triton's compiled kernel of one launch.

    Args:
        target: a `GPUTarget`, or None for the current device.

    Raises:
        CompilerError: Triton or the assembler below it failed; carries its message.
    """
    triton = import_triton()
    from triton.runtime.driver import driver

    target = driver.active.get_current_target() if target is None else target
    # launches count warps of 32 threads
    options = {"num_warps": max(1, launch.num_warps * 32 // target.warp_size), **OPTIONS}
    if launch.num_stages:
        options["num_stages"] = launch.num_stages
    try:
        return triton.compile(ast_source(kernel, launch, unaligned), target=target, options=options)
    except Exception as error:  # every layer of triton raises classes of its own
        raise CompilerError(
            f"triton could not compile kernel {launch.function}: {type(error).__name__}: {error}"
        ) from error


def _padded(nbytes: int) -> int:
    return -(-nbytes // _SCRATCH_ALIGNMENT) * _SCRATCH_ALIGNMENT


def _unaligned(pointers: Sequence[int]) -> int:
    return sum(1 << number for number, pointer in enumerate(pointers) if pointer % ALIGNMENT)


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
        with np.errstate(all="ignore"):
            for launch in self.kernel.launches:
                if prod(launch.grid):
                    function = getattr(self._module, launch.function)
                    function[launch.grid](*tensors, *scratch, **dict(launch.constexprs))


def require_interpreter() -> None:
    """Raise unless Triton's interpreter is on.

    Raises:
        BackendUnavailableError: it is off.
    """
    if not is_interpreting():
        raise BackendUnavailableError(
            "backend 'triton' runs on CUDA tensors; on CPU tensors only in Triton's interpreter, for which "
            "TRITON_INTERPRET=1 must be set before Python starts (backend 'c' compiles for the CPU)"
        )
