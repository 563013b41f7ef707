"""Which loops a row needs, and what each one computes, stores and keeps for later."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from graphc.loopir.analysis import KernelFacts, closure
from graphc.loopir.kernel import Load, Reduce, Scan, Store, operands

WORTH_KEEPING = 12
"""Cost, in additions, from which a value is kept in a row buffer rather than computed again."""


@dataclass
class Stage:
    """One loop over a row.

    Attributes:
        number: reductions complete before it.
        reduces: reductions it completes.
        stores: stores along the row that it does.
        scans: running values it goes through.
        keeps: values it writes to row buffers.
    """

    number: int
    reduces: list[Reduce] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)
    keeps: list[str] = field(default_factory=list)

    def targets(self) -> list[str]:
        """Values its reductions and stores read."""
        return [*(s.arg for s in self.reduces), *(name for s in self.stores for name in operands(s))]


def plan_stages(facts: KernelFacts, buffer_budget: int) -> list[Stage]:
    """The loops of a row, in order.

    Args:
        facts: of the kernel.
        buffer_budget: bytes that may be kept per element of the row.
    """
    stages: dict[int, Stage] = {}
    for s in facts.kernel.body:
        if isinstance(s, Reduce):
            number = facts.stage[s.id] - 1
            stages.setdefault(number, Stage(number)).reduces.append(s)
        elif isinstance(s, Store) and facts.domain(s) & facts.rows:
            number = max(facts.stage[name] for name in operands(s))
            stages.setdefault(number, Stage(number)).stores.append(s)
    ordered = [stages[number] for number in sorted(stages)]
    _delay_stores(facts, ordered)
    ordered = [stage for stage in ordered if stage.reduces or stage.stores]
    _choose_kept(facts, ordered, buffer_budget)
    return ordered


def _delay_stores(facts: KernelFacts, stages: list[Stage]) -> None:
    """Move stores to the last stage when a later one reads a buffer that may be the same memory.

    In-place plans let an output share the memory of an input of the same size.
    """
    for number, stage in enumerate(stages[:-1]):
        later = _loaded_bytes(facts, (name for after in stages[number + 1 :] for name in after.targets()))
        for store in list(stage.stores):
            buffer = facts.buffers[store.buffer]
            if (buffer.size, buffer.dtype.itemsize) in later:
                stage.stores.remove(store)
                stages[-1].stores.append(store)


def _loaded_bytes(facts: KernelFacts, targets: Iterable[str]) -> set[tuple[object, int]]:
    """Sizes of buffers from which the computation of `targets` loads along the row."""
    loads = (facts.by_id[name] for name in closure(targets, facts.by_id))
    found = (facts.buffers[s.buffer] for s in loads if isinstance(s, Load) and facts.is_element(s.id))
    return {(buffer.size, buffer.dtype.itemsize) for buffer in found}


def _choose_kept(facts: KernelFacts, stages: list[Stage], budget: int) -> None:
    """Fill in `keeps` and `scans`: walk each stage back from what it needs, to values an earlier one can keep."""
    first: dict[str, Stage] = {}
    kept: set[str] = set()
    for stage in stages:
        seen: set[str] = set()
        stack = stage.targets()
        while stack:
            name = stack.pop()
            if name in seen or name in kept or not facts.is_element(name):
                continue
            seen.add(name)
            earlier = first.get(name)
            size = facts.dtypes[name].itemsize
            if earlier is not None and size <= budget and facts.recompute_cost(name) >= WORTH_KEEPING:
                earlier.keeps.append(name)
                kept.add(name)
                budget -= size
                continue
            stack.extend(operands(facts.by_id[name]))
        for name in seen - kept:
            first.setdefault(name, stage)
            s = facts.by_id[name]
            if isinstance(s, Scan):
                stage.scans.append(s)
