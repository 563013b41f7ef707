"""Compiles generated Triton kernels for a GPU that need not be there, and reads what came out.

Registers, spills and shared memory come from the binary (`cuobjdump` inside the triton package) or the assembly text
(AMD); the rest from the text of machine code, see `graphc.runtime.machine_code`.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphc.errors import BackendUnavailableError, CompilerError
from graphc.program.triton_kernel import Launch, TritonKernel
from graphc.runtime.machine_code import amd_field, read_amd, read_ptx, stack_of_ptx
from graphc.runtime.triton_launcher import compile_launch
from graphc.runtime.triton_module import import_triton, is_interpreting

TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")

_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class CompiledKernel:
    """One launch compiled for one target.

    Args:
        function: name of the function.
        target: as in `TARGETS`.
        asm: text or bytes per stage: ttir, ttgir, llir, ptx and cubin, or amdgcn and hsaco.
        registers: per thread (vector registers on AMD).
        spills: bytes per thread that do not fit the registers on NVIDIA, spilled vector registers on AMD; 0 is what one
            wants.
        stack: bytes of stack per thread: spills, and what precise sin, cos and the like keep there.
        shared: bytes of shared memory per program.
        loads, stores: number of global accesses by width in bytes.
        tensor_core: number of matrix instructions.
        memory: bytes of global memory per program that Triton takes for itself, for descriptors.
        widths: per position of a pointer parameter the widths in bytes of the accesses through it; position -1 is for
            pointers that the kernel itself loads.
    """

    function: str
    target: str
    asm: dict[str, Any] = field(repr=False)
    registers: int
    spills: int
    stack: int
    shared: int
    loads: dict[int, int]
    stores: dict[int, int]
    tensor_core: int
    memory: int
    widths: dict[int, tuple[int, ...]]


def gpu_target(target: str) -> Any:
    """Triton's `GPUTarget` for `cuda:90` or `hip:gfx942`.

    Raises:
        BackendUnavailableError: not of that form.
    """
    import_triton()
    from triton.backends.compiler import GPUTarget

    kind, _, arch = target.partition(":")
    if kind == "cuda" and arch.isdigit():
        return GPUTarget("cuda", int(arch), 32)
    if kind == "hip" and arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    raise BackendUnavailableError(f"no such target: {target!r}; known are {', '.join(TARGETS)}")


def compile_for(kernel: TritonKernel, target: str) -> tuple[CompiledKernel, ...]:
    """Compile every launch of a kernel for a target; no GPU is needed.

    Raises:
        BackendUnavailableError: unknown target, or a process under TRITON_INTERPRET=1, which cannot compile.
        CompilerError: Triton or its assembler failed.
    """
    where = gpu_target(target)
    if is_interpreting():
        raise BackendUnavailableError("cross-compilation needs a process without TRITON_INTERPRET")
    return tuple(_inspect(compile_launch(kernel, launch, where), launch, target) for launch in kernel.launches)


def _inspect(compiled: Any, launch: Launch, target: str) -> CompiledKernel:
    asm = dict(compiled.asm)
    if "cubin" in asm:
        registers, stack, _, local = _cuda_usage(asm["cubin"])
        # the assembler spills to the stack, where arrays of the code's own may lie as well
        spills = local + max(0, stack - stack_of_ptx(asm["ptx"]))
        code = read_ptx(asm["ptx"])
    else:
        text = asm["amdgcn"]
        registers, spills = amd_field(text, "vgpr_count"), amd_field(text, "vgpr_spill_count")
        stack, code = amd_field(text, "private_segment_fixed_size"), read_amd(text, asm["llir"])
    memory = int(getattr(compiled.metadata, "global_scratch_size", 0) or 0)
    return CompiledKernel(
        launch.function, target, asm, registers, spills, stack, int(compiled.metadata.shared),
        code.loads, code.stores, code.tensor_core, memory, code.widths,
    )  # fmt: skip


def _cuda_usage(cubin: bytes) -> tuple[int, int, int, int]:
    """Registers, stack, shared and local bytes of the one function in a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, timeout=60, check=False)
    found = _USAGE.search(done.stdout + done.stderr)
    if found is None:
        raise CompilerError(f"cuobjdump said nothing about registers: {done.stdout}{done.stderr}")
    registers, stack, shared, local = map(int, found.groups())
    return registers, stack, shared, local
