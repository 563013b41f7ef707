"""Reads PTX and AMD assembly: how wide global accesses are, and through which pointer, and what tensor cores do.

PTX and LLVM IR hardly use a register twice, so a pointer is followed from the parameter through the lines that compute
with it. AMD assembly is no such form: there the widths come from the assembly, and whose they are from the LLVM IR that
it was made from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# st.global.v4.b32, ld.global.L1::evict_first.v4.b32; group 2: vector length, group 3: bits of an element
_PTX_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[a-zA-Z_]\w*(?:::\w+)*)*?(?:\.v(\d+))?\.[bfsu](\d+)\b")
# cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
_PTX_COPY = re.compile(
    r"\bcp\.async\.c[ag]\.shared\.global(?:\.[\w:]+)*\s+\[[^]]*\], *\[ *(?P<from>%\w+)[^]]*\], *(?P<bytes>\w+)"
)
_PTX_MATRIX = re.compile(r"^\s*(?:@!?%p\d+ )?(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b", re.MULTILINE)
_PTX_PARAMETER = re.compile(r"ld\.param\S*\s+(%\w+), \[\w+_param_(\d+)\]")
_PTX_ADDRESS = re.compile(r"\[\s*(%\w+)")
_AMD_ACCESS = re.compile(
    r"\b(?:global|buffer)_(load|store)_(dwordx?\d?|ushort|short|ubyte|sbyte|byte|b\d+|u\d+|i\d+|d16\w*|short_d16\w*)"
)
_AMD_BYTES = {
    "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16, "ushort": 2, "short": 2, "ubyte": 1, "sbyte": 1, "byte": 1,
}  # fmt: skip
_AMD_MATRIX = re.compile(r"\bv_mfma_\w+")
_LLVM_ACCESS = re.compile(
    r"(?:load|store) (?P<plain><\d+ x \w+>|\w+)(?: %\w+| \S+)?, ptr addrspace\(1\) (?P<pointer>%[\w.]+)"
    r"|@llvm\.amdgcn\.raw\.ptr\.buffer\.(?:load|store)\.(?P<buffer>\w+)\(.*?ptr addrspace\(8\) (?P<resource>%[\w.]+)"
)
_LLVM_BITS = {"half": 16, "bfloat": 16, "float": 32, "double": 64}
_REGISTER = re.compile(r"%[\w.]+")
_PTX_STACK = re.compile(r"\.local\s+(?:\.align \d+\s+)?\.b8\s+__local_depot\d+\[(\d+)\]")

Widths = dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class MachineCode:
    """What the text of one function shows.

    Args:
        loads, stores: number of global accesses by width in bytes; loads to shared memory, too.
        tensor_core: number of matrix instructions.
        widths: per position of a pointer parameter the widths of the accesses through it; -1: through no parameter.
    """

    loads: dict[int, int]
    stores: dict[int, int]
    tensor_core: int
    widths: Widths


def read_ptx(ptx: str) -> MachineCode:
    """What a function in PTX does."""
    counts: dict[str, Counter[int]] = {"ld": Counter(), "st": Counter()}
    for kind, lanes, bits in _PTX_ACCESS.findall(ptx):
        counts[kind][int(lanes or 1) * int(bits) // 8] += 1
    copies = [(found["from"], int(found["bytes"], 0)) for found in _PTX_COPY.finditer(ptx)]
    counts["ld"].update(width for _, width in copies)
    body = ptx[ptx.index("{") :].splitlines()
    roots = {name: int(at) for name, at in _PTX_PARAMETER.findall(ptx)}
    moves = (
        registers
        for line in body
        if not any(name in line for name in ("ld.", "st.", "cp.async"))
        and len(registers := _REGISTER.findall(line.partition("//")[0])) > 1
    )
    accesses = [
        (address[1], int(access[2] or 1) * int(access[3]) // 8)
        for line in body
        if (access := _PTX_ACCESS.search(line)) and (address := _PTX_ADDRESS.search(line))
    ]
    matrix = len(_PTX_MATRIX.findall(ptx))
    return MachineCode(dict(counts["ld"]), dict(counts["st"]), matrix, _widths(roots, moves, [*accesses, *copies]))


def stack_of_ptx(ptx: str) -> int:
    """Bytes of stack per thread that the code asks for, for arrays of its own; what the assembler adds are spills."""
    return sum(-(-int(size) // 8) * 8 for size in _PTX_STACK.findall(ptx))  # by words of 8 bytes


def read_amd(assembly: str, llvm: str) -> MachineCode:
    """What a function in AMD assembly does; `llvm` is the LLVM IR that it was made from."""
    counts: dict[str, Counter[int]] = {"load": Counter(), "store": Counter()}
    for kind, width in _AMD_ACCESS.findall(assembly):
        counts[kind][_AMD_BYTES.get(width, 2 if "d16" in width else 4)] += 1
    lines = llvm[llvm.index("define amdgpu_kernel") :].splitlines()
    header = lines[0][lines[0].index("(") :]
    roots = {name: at for at, name in enumerate(_REGISTER.findall(header))}
    accesses = []
    moves = []
    for line in lines[1:]:
        found = _LLVM_ACCESS.search(line)
        if found is not None:
            accesses.append((found["pointer"] or found["resource"], _llvm_bytes(found["plain"] or found["buffer"])))
        elif line.lstrip().startswith("%") and " load " not in line:
            moves.append(_REGISTER.findall(line))
    # the last passes make one access of several neighbours
    made = sorted({*counts["load"], *counts["store"]})
    merged = [(pointer, next((wide for wide in made if wide >= width), width)) for pointer, width in accesses]
    matrix = len(_AMD_MATRIX.findall(assembly))
    return MachineCode(dict(counts["load"]), dict(counts["store"]), matrix, _widths(roots, moves, merged))


def _llvm_bytes(type: str) -> int:
    """Bytes of `<4 x float>`, `i32`, or `v4i32` as in names of intrinsics."""
    found = re.fullmatch(r"<(\d+) x (\w+)>|v(\d+)([a-z]+\d+)|(\w+)", type)
    assert found is not None, type
    lanes, element = int(found[1] or found[3] or 1), found[2] or found[4] or found[5]
    return lanes * (_LLVM_BITS.get(element) or int(element.lstrip("bfi"))) // 8


def _widths(roots: Mapping[str, int], moves: Iterable[list[str]], accesses: Iterable[tuple[str, int]]) -> Widths:
    """Widths of accesses by parameter.

    Args:
        roots: registers that hold parameters.
        moves: per line that computes, the register that it sets, and those that it reads.
        accesses: register of the address, and width.
    """
    known = {name: frozenset((at,)) for name, at in roots.items()}
    lines = list(moves)
    changed = True
    while changed:  # what a loop computes may be read above the line that sets it
        changed = False
        for target, *sources in lines:
            old = known.get(target, frozenset())
            new = old.union(*(known.get(name, frozenset()) for name in sources))
            if len(new) > len(old):
                known[target] = new
                changed = True
    found: dict[int, set[int]] = {}
    for address, width in accesses:
        for position in known.get(address) or (-1,):
            found.setdefault(position, set()).add(width)
    return {position: tuple(sorted(widths)) for position, widths in sorted(found.items())}


def amd_field(assembly: str, name: str) -> int:
    """A number from the metadata of AMD assembly."""
    found = re.search(rf"\.{name}:\s+(\d+)", assembly)
    return int(found[1]) if found else 0
