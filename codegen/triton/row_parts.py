"""What of a row varies along which of its axes, and what a program keeps of a row: facts by which row tiles are chosen.

    v0 = load x[i0*32768 + r0*4096 + r1]     an element: read before the reductions, wanted again behind them
    v1 = reduce sum v0
    v2 = load w[r0]                          a number per channel: one for 4096 elements side by side

A tile of two row dimensions, r0 and r1, loads v2 once per channel, and a loop along r1 has it as a scalar. In one
dimension it would be a load and a register per element.
"""

from __future__ import annotations

from collections import Counter

from graphc.loopir.kernel import Kernel, Load, Reduce, Scan, Store, operands

_REGISTER = 4


def is_per_element(kernel: Kernel, s: Load) -> bool:
    """Whether a load varies along all axes of a row."""
    return kernel.domains[s.id] >= {axis.name for axis in kernel.row_axes}


def outer_axes(kernel: Kernel) -> int:
    """Where a row falls into two dimensions: the number of outer row axes, 0 where one dimension is as good.

    Taken is the place at which most loads vary along one side alone.
    """
    rows = [axis.name for axis in kernel.row_axes]
    if any(isinstance(s, Scan) or (isinstance(s, Reduce) and s.op in ("argmax", "argmin")) for s in kernel.body):
        return 0  # these go by the position in the whole row
    found: Counter[int] = Counter()
    for s in kernel.body:
        own = kernel.domains[s.id] & set(rows) if isinstance(s, Load) else frozenset[str]()
        if own:
            found.update(at for at in range(1, len(rows)) if own <= set(rows[:at]) or own <= set(rows[at:]))
    return max(found, key=lambda at: found[at], default=0)


def held_bytes(kernel: Kernel) -> int:
    """Bytes per element of a row that are read before a reduction and wanted again behind it, as registers hold them.

    Narrow numbers are widened where they are read, and held so.
    """
    rows = frozenset(axis.name for axis in kernel.row_axes)
    by_id = {s.id: s for s in kernel.defines}
    last = max((at for at, s in enumerate(kernel.body) if isinstance(s, Reduce)), default=0)
    late = [
        name
        for s in kernel.body
        if isinstance(s, (Reduce, Store))
        for name in operands(s)
        if kernel.domains[name] & rows and kernel.stages[name] > 0
    ]
    seen: set[str] = set()
    while late:
        name = late.pop()
        if name not in seen and kernel.domains[name] & rows:
            seen.add(name)
            late += operands(by_id[name])
    size = {buffer.name: buffer.dtype.itemsize for buffer in kernel.buffers}
    return sum(
        max(_REGISTER, size[s.buffer])
        for s in kernel.body[:last]
        if isinstance(s, Load) and s.id in seen and is_per_element(kernel, s)
    )
