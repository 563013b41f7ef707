"""Whether a kernel that is compiled for a GPU can keep that GPU's memory busy: told from its machine code.

    busy 0.6       the busiest unit needs 60 % of the time that memory takes for the same bytes
    flight 96 KiB  loads of the programs that are on a processor at once, on their way while these wait

Source of the rates: CUDA C++ Programming Guide, throughput of native arithmetic instructions; four warps are issued per
cycle. Resident programs: the same, technical specifications per compute capability. Bytes that must be on their way are
bandwidth times latency (Little's law), for the latency of a memory that has nothing else to do: one that is busy
answers later, and more is needed then.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from math import ceil, prod

from graphc.passes.chips import Chip
from graphc.program.triton_kernel import Launch
from graphc.report import sass
from graphc.report.sass import LATENCY, UNKNOWN, WARP, Turn

_FIRST_PARAMETER = {"cuda:80": 0x160, "cuda:90": 0x210, "cuda:100": 0x380}
"""Where parameters lie in the first bank of constants."""
_HALF, _WHOLE = 64, 128
_LANES = {
    "cuda:80": {sass.FMA: _HALF, sass.DOUBLE: 32},
    "cuda:90": {sass.FMA: _WHOLE, sass.DOUBLE: _HALF},
    "cuda:100": {sass.FMA: _WHOLE, sass.DOUBLE: _HALF},
}
_COMMON = {sass.ISSUE: 4 * WARP, sass.IMAD: _HALF, sass.ALU: _HALF, sass.SPECIAL: 16, sass.SHARED: WARP}
"""Lanes that a processor's units take per cycle."""
_SHARED = {"cuda:80": 164 << 10, "cuda:90": 228 << 10, "cuda:100": 228 << 10}
_RESERVED = 1 << 10
_THREADS, _REGISTERS, _PROGRAMS = 2048, 65536, 32


@dataclass(frozen=True)
class Bound:
    """What a launch leaves of a chip's bandwidth, in the loop that is worst.

    Args:
        busy: time of the busiest unit over that of memory, for large buffers only: small ones are in a cache.
        unit: which that is.
        flight: bytes per processor that are on their way while it waits.
    """

    busy: float
    unit: str
    flight: float


def turns_of(cubin: bytes, target: str) -> list[Turn]:
    """See `graphc.report.sass.turns_of`."""
    return sass.turns_of(sass.disassemble(cubin), _FIRST_PARAMETER[target])


def bound(
    turns: list[Turn], chip: Chip, launch: Launch, registers: int, shared: int, large: Set[int], programs: int = 0
) -> Bound | None:
    """What bounds a launch; None where no loop accesses a large buffer.

    Args:
        turns: of its code.
        registers: per thread.
        shared: bytes of shared memory per program.
        large: positions of parameters.
        programs: of the launch, where its grid does not say.
    """
    lanes = {**_COMMON, **_LANES[chip.target]}
    cycles = chip.flops / (2 * lanes[sass.FMA])  # of all processors, per second
    threads = launch.num_warps * WARP
    resident = _resident(chip, threads, registers, shared, programs or prod(launch.grid))
    found = []
    for turn in turns:
        nbytes = sum(count for at, count in turn.accesses.items() if at in large or at == UNKNOWN)
        if nbytes:
            needed = {unit: count / lanes[unit] for unit, count in turn.lanes.items()}
            unit = max(needed, key=lambda name: needed[name])
            found.append(Bound(needed[unit] * chip.bandwidth / cycles / nbytes, unit, turn.flight * threads * resident))
    return max(found, key=lambda item: item.busy, default=None)


def needed_flight(chip: Chip) -> float:
    """Bytes per processor that must be on their way, for memory that has nothing else to do."""
    cycles = chip.flops / (2 * _LANES[chip.target][sass.FMA])
    return chip.bandwidth / cycles * LATENCY


def _resident(chip: Chip, threads: int, registers: int, shared: int, programs: int) -> int:
    """Programs that are on a processor at once."""
    each = -(-max(registers, 1) // 8) * 8 * threads
    rooms = (
        _THREADS // threads, _REGISTERS // each, _PROGRAMS, _SHARED[chip.target] // (shared + _RESERVED),
        ceil(programs / chip.processors),
    )  # fmt: skip
    return min(rooms)
