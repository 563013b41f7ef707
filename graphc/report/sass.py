"""What machine code of NVIDIA's GPUs leaves of memory's bandwidth: units that are busy, and loads that are waited for.

    for each pass over a row:               per warp and turn of the loop
        LDG.E.128 R4, ...                   512 bytes
        FMUL, FADD, MUFU.EX2, ...           cycles of the busiest unit
        ISETP ...                           of a register that was loaded: here memory's latency is waited for

A kernel is bound by memory where the units need less time for a turn than memory for its bytes, and where enough bytes
are on their way at any time: bandwidth times latency (Little's law). Both are read from the code between a branch and
where it goes back to; of a kernel without such loops from all of its code. What a branch may skip and touches no memory
(large angles of a sine, and the like) is not counted.

Text is that of `nvdisasm`, which is inside the triton package.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphc.errors import CompilerError

WARP = 32
LATENCY = 500
"""Cycles until memory answers; 466 on an A100 and 479 on an H100 that have nothing else to do.

Source: W. Luo et al., Benchmarking and Dissecting the Nvidia Hopper GPU Architecture, arXiv:2402.13499, latencies.
"""
_LINE = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(?:@!?(?P<guard>U?P\w+)\s+)?(?P<name>[A-Z][\w.]*)\s*(?P<rest>[^;]*);|^\s*(?P<label>\.L\w+):"
)
_REGISTER = re.compile(r"\bR(\d+)(\.64)?")
_NAMED = re.compile(r"\b(U?R)(\d+)")
_CONSTANT = re.compile(r"c\[0x0\]\[(0x[0-9a-f]+)\]")
_DESCRIPTOR = re.compile(r"desc\[UR\d+\]")
_TARGET = re.compile(r"`\((\.L\w+)\)")
_WAIT = re.compile(r"DEPBAR\.LE SB\d, 0x(?P<groups>[0-9a-f]+)")
_LOADS = ("LDG", "LD")
_STORES = ("STG", "ST", "RED", "REDG", "ATOMG", "ATOM")
_COPIES = ("LDGSTS",)
_FETCHES = (*_LOADS, "LDS", "SHFL", "S2R", "S2UR")
_ACCESSES = (*_LOADS, *_STORES, *_COPIES)
_MATRIX = ("HMMA", "IMMA", "QMMA", "HGMMA", "IGMMA", "QGMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA", "DMMA")

_POINTER = 8

UNKNOWN = -1
ISSUE = "issue"
FMA, IMAD, ALU, SPECIAL, DOUBLE, SHARED = "fma", "imad", "alu", "special", "double", "shared"
_UNITS = {
    **dict.fromkeys(("FFMA", "FADD", "FMUL", "HFMA2", "HADD2", "HMUL2"), FMA),
    **dict.fromkeys(("IMAD", "IDP"), IMAD),
    **dict.fromkeys(("MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO", "BREV"), SPECIAL),
    **dict.fromkeys(("DADD", "DMUL", "DFMA", "DSETP", "DMNMX"), DOUBLE),
    **dict.fromkeys(("LDS", "STS", "LDSM", "STSM", "SHFL", "LDL", "STL", "ATOMS"), SHARED),
    **dict.fromkeys(
        (
            "IADD3", "IADD", "IABS", "LOP3", "PLOP3", "LEA", "SHF", "ISETP", "FSETP", "HSETP2", "FSEL", "SEL", "FMNMX",
            "HMNMX2", "VHMNMX", "FMNMX3", "IMNMX", "VIMNMX", "VIMNMX3", "VIADD", "VIADDMNMX", "PRMT", "F2FP", "I2FP",
            "FSET", "SGXT", "BMSK", "FCHK", "P2R", "R2P", "MOV", "CS2R", "VOTE",
        ),
        ALU,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One line.

    Args:
        name: `LDG.E.128`.
        rest: operands as written.
        label: of the place before it, when it is one; then there is no name.
        guarded: it is carried out where a predicate says so.
        parameter: that an access of global memory has its address from.
    """

    name: str
    rest: str = ""
    label: str = ""
    guarded: bool = False
    parameter: int = UNKNOWN

    @property
    def op(self) -> str:
        return self.name.partition(".")[0]

    @property
    def width(self) -> int:
        """Bytes per lane of an access."""
        parts = self.name.split(".")
        return next((size for part, size in _SIZES.items() if part in parts), 4)

    def unit(self) -> str:
        """What carries it out; `ISSUE` when that is no unit that could be busy."""
        return _UNITS.get(self.op, ISSUE)


_SIZES = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1, "ENL2": 32}


@dataclass(frozen=True)
class Turn:
    """One turn of a loop that accesses memory, or a kernel that has no such loop, for one warp.

    Args:
        accesses: bytes in all lanes by parameter that holds the address; -1: none that is known.
        lanes: lanes of instructions per unit, those of `ISSUE` all of them.
        flight: bytes per thread that are on their way while memory is waited for, on average over its waits.
    """

    accesses: dict[int, int]
    lanes: dict[str, int]
    flight: float

    def to_plain(self) -> dict[str, Any]:
        """For JSON, which has no numbers as keys."""
        return {"accesses": list(self.accesses.items()), "lanes": self.lanes, "flight": self.flight}

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Turn:
        return Turn(dict(plain["accesses"]), plain["lanes"], plain["flight"])


def disassemble(cubin: bytes) -> str:
    """Text of a binary.

    Raises:
        CompilerError: nvdisasm does not take it.
    """
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise CompilerError(f"nvdisasm: {done.stderr.strip()}")
    return done.stdout


def turns_of(sass: str, first: int) -> list[Turn]:
    """The innermost loops that access global memory, or all of the code; none where it does not, or multiplies
    matrices.

    Args:
        sass: text of a function, all of whose parameters are pointers.
        first: where these lie in the first bank of constants.
    """
    code = list(_traced(_parse(sass), first))
    if any(item.op in _MATRIX for item in code):
        return []
    places = {item.label: at for at, item in enumerate(code) if item.label}
    back = [(places[target], at) for at, target in _branches(code) if places.get(target, at) < at]
    loops = [span for span in back if _touches(code[span[0] : span[1]])]
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    spans = inner or [(0, len(code))]
    found = [_turn(_without_detours(code[start : end + 1]), looped=bool(inner)) for start, end in spans]
    return [turn for turn in found if turn.accesses]


def _parse(sass: str) -> Iterator[Instruction]:
    for line in sass.splitlines():
        found = _LINE.search(line)
        if found is None:
            continue
        if found["label"]:
            yield Instruction("", label=found["label"])
        elif found["name"] != "NOP":
            yield Instruction(found["name"], found["rest"], guarded=found["guard"] is not None)


def _traced(code: Iterable[Instruction], first: int) -> Iterator[Instruction]:
    """The same, where accesses say which parameter they have their address from: followed from line to line."""
    known: dict[str, int] = {}
    for item in code:
        operands = [part.strip() for part in _DESCRIPTOR.sub("", item.rest).split(",")]
        if item.op in _ACCESSES:
            address = next(part for part in operands[:: -1 if item.op in _COPIES else 1] if part.startswith("["))
            yield replace(item, parameter=_source(address, known, first))
        else:
            yield item
        target = _NAMED.match(operands[0])
        if target is not None:
            source = UNKNOWN if item.op in _FETCHES else _source(", ".join(operands[1:]), known, first)
            kind, number = target[1], int(target[2])
            for more in range(_words(item)):
                name = f"{kind}{number + more}"
                if not item.guarded or source != UNKNOWN:
                    known[name] = source


def _source(text: str, known: Mapping[str, int], first: int) -> int:
    """The parameter that operands come from."""
    for found in _CONSTANT.finditer(text):
        if (at := int(found[1], 16)) >= first:
            return (at - first) // _POINTER
    # bases are uniform where anything is
    names = sorted((found[0] for found in _NAMED.finditer(text)), key=lambda name: not name.startswith("U"))
    return next((at for name in names if (at := known.get(name, UNKNOWN)) != UNKNOWN), UNKNOWN)


def _words(item: Instruction) -> int:
    """Registers that an instruction sets."""
    parts = item.name.split(".")
    return 4 if "128" in parts else 2 if "64" in parts or "WIDE" in parts else 1


def _branches(code: Sequence[Instruction]) -> list[tuple[int, str]]:
    return [(at, found[1]) for at, item in enumerate(code) if item.op == "BRA" and (found := _TARGET.search(item.rest))]


def _touches(code: Sequence[Instruction]) -> bool:
    return any(item.op in _ACCESSES for item in code)


def _without_detours(code: Sequence[Instruction]) -> list[Instruction]:
    """What is left without code that a branch may skip and that touches no memory."""
    places = {item.label: at for at, item in enumerate(code) if item.label}
    left = [True] * len(code)
    for at, target in _branches(code):
        end = places.get(target, 0)
        if code[at].guarded and end > at and not _touches(code[at:end]):
            left[at + 1 : end] = [False] * (end - at - 1)
    return [item for item, kept in zip(code, left, strict=True) if kept and item.name]


def _turn(code: Sequence[Instruction], looped: bool) -> Turn:
    lanes: Counter[str] = Counter()
    accesses: Counter[int] = Counter()
    for item in code:
        # shared memory serves 32 lanes by 4 bytes at a time
        lanes[item.unit()] += WARP * (max(1, item.width // 4) if item.unit() == SHARED and item.op != "SHFL" else 1)
        lanes[ISSUE] += WARP if item.unit() != ISSUE else 0
        if item.op in _ACCESSES:
            accesses[item.parameter] += WARP * item.width
    return Turn(dict(accesses), dict(lanes), _flight(code, looped))


def _flight(code: Sequence[Instruction], looped: bool) -> float:
    """Bytes per thread that are loaded, by how often that is waited for, one turn after the other."""
    loaded = sum(item.width for item in code if item.op in _LOADS)
    copied = sum(item.width for item in code if item.op in _COPIES)
    waits = _waits(code, looped)
    direct = loaded / waits if waits else 0.0
    return direct + copied * _turns_ahead(code)


def _waits(code: Sequence[Instruction], looped: bool) -> float:
    """For how many latencies of memory a warp stands still, in the second turn of a loop: with one instruction per
    cycle, each of which waits for its registers, as they are scheduled in order.
    """
    there: dict[int, int] = {}
    now = stood = 0
    for _ in range(2 if looped else 1):
        stood = 0
        for item in code:
            named = [(int(number), bool(wide)) for number, wide in _REGISTER.findall(item.rest)]
            touched = {number + more for number, wide in named for more in range(2 if wide else 1)}
            ready = max((there.pop(number) for number in touched if number in there), default=now)
            stood += max(0, ready - now)
            now = max(now, ready) + 1
            if item.op in _LOADS and named:
                base = named[0][0]
                there.update(dict.fromkeys(range(base, base + max(1, item.width // 4)), now + LATENCY))
    return stood / LATENCY


def _turns_ahead(code: Sequence[Instruction]) -> float:
    """How many turns copies into shared memory are ahead of what waits for them."""
    ends = sum(item.op == "LDGDEPBAR" for item in code)
    waits = [int(found["groups"], 16) for item in code if (found := _WAIT.search(f"{item.name} {item.rest}"))]
    return (min(waits) + ends) / ends if ends and waits else 1.0
