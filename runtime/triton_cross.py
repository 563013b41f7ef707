"""Compiles generated Triton kernels for a GPU that need not be there, and reads what came out.

Registers, spills and shared memory come from the binary (`cuobjdump` inside the triton package) or the assembly text
(AMD); widths of global accesses from PTX or AMD assembly.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphc.errors import BackendUnavailableError, CompilerError
from graphc.program.triton_kernel import Launch, TritonKernel
from graphc.runtime.triton_launcher import compile_launch
from graphc.runtime.triton_module import import_triton, is_interpreting

TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")

# st.global.v4.b32, ld.global.L1::evict_first.v4.b32; group 2: vector length, group 3: bits of an element
_PTX_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[a-zA-Z_]\w*(?:::\w+)*)*?(?:\.v(\d+))?\.[bfsu](\d+)\b")
_AMD_ACCESS = re.compile(
    r"\b(?:global|buffer)_(load|store)_(dwordx?\d?|ushort|short|ubyte|sbyte|byte|b\d+|u\d+|i\d+|d16\w*|short_d16\w*)"
)
_AMD_BYTES = {
    "dword": 4,
    "dwordx2": 8,
    "dwordx3": 12,
    "dwordx4": 16,
    "ushort": 2,
    "short": 2,
    "ubyte": 1,
    "sbyte": 1,
    "byte": 1,
}
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class CompiledKernel:
    """One launch compiled for one target.

    Args:
        function: name of the function.
        target: as in `TARGETS`.
        asm: text or bytes per stage: ttir, ttgir, llir, ptx and cubin, or amdgcn and hsaco.
        registers: per thread (vector registers on AMD).
        spills: bytes of local memory per thread on NVIDIA, spilled vector registers on AMD; 0 is what one wants.
        stack: bytes of stack per thread, which precise sin, cos and the like use too.
        shared: bytes of shared memory per program.
        loads, stores: number of global accesses by width in bytes.
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
        registers, stack, _, spills = _cuda_usage(asm["cubin"])
        accesses = _ptx_accesses(asm["ptx"])
    else:
        text = asm["amdgcn"]
        registers, spills = _amd_field(text, "vgpr_count"), _amd_field(text, "vgpr_spill_count")
        stack, accesses = _amd_field(text, "private_segment_fixed_size"), _amd_accesses(text)
    return CompiledKernel(
        launch.function, target, asm, registers, spills, stack, int(compiled.metadata.shared), *accesses
    )


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


def _ptx_accesses(ptx: str) -> tuple[dict[int, int], dict[int, int]]:
    counts: dict[str, Counter[int]] = {"ld": Counter(), "st": Counter()}
    for kind, lanes, bits in _PTX_ACCESS.findall(ptx):
        counts[kind][int(lanes or 1) * int(bits) // 8] += 1
    return dict(counts["ld"]), dict(counts["st"])


def _amd_field(text: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s+(\d+)", text)
    return int(found[1]) if found else 0


def _amd_accesses(text: str) -> tuple[dict[int, int], dict[int, int]]:
    counts: dict[str, Counter[int]] = {"load": Counter(), "store": Counter()}
    for kind, width in _AMD_ACCESS.findall(text):
        counts[kind][_AMD_BYTES.get(width, 2 if "d16" in width else 4)] += 1
    return dict(counts["load"]), dict(counts["store"])
