"""Whether a kernel may store into memory that it reads: one buffer in the place of two arguments."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

from graphc.ir.dims import Dim, symbols
from graphc.loopir.kernel import Contract, Kernel, Load, Reduce, Scan, Store, operands

_StorePlaces: TypeAlias = "dict[str, tuple[Dim, int] | None]"
_LoadPlaces: TypeAlias = "dict[str, list[tuple[Dim | None, int, bool]]]"


class Sharing:
    """Answers for the kernels of one program, by name.

    Args:
        side_by_side: elements are computed by threads and programs that run side by side, as on a GPU. An element may
            be loaded by one thread and stored by another one, and programs may share a row, stage by stage.
    """

    def __init__(self, side_by_side: bool = False) -> None:
        self._side_by_side = side_by_side
        self._known: dict[str, tuple[_StorePlaces, _LoadPlaces]] = {}

    def allows(self, kernel: Kernel, loaded: Collection[str], stored: str) -> bool:
        """Whether buffer `stored` may lie exactly where the `loaded` ones do.

        Legal when every load reads the very element that is stored at the same point, and nothing that comes of it
        (short of a reduction, which is complete by then) is needed in a later stage than the store's, where it might be
        loaded again. Side by side, a store waits for the loads that its value is made of, and for no others. Where
        programs share a row, what there is once per row is stored by one of them, when the row's reductions are known
        and others may still be about to begin: these must not load it for elements of the row.

        Args:
            kernel: any kernel.
            loaded: buffers that it loads from.
            stored: a buffer that it stores to.
        """
        known = self._known.get(kernel.name)
        if known is None:
            known = self._known[kernel.name] = (_stores(kernel), _loads(kernel))
        stores, loads = known
        target = stores.get(stored)
        if target is None:
            return False
        index, stage = target
        once = self._side_by_side and symbols(index).isdisjoint(axis.name for axis in kernel.row_axes)
        in_order = all(
            at == index and last <= stage and not (once and for_elements)
            for name in loaded
            for at, last, for_elements in loads.get(name, ())
        )
        return in_order and (not self._side_by_side or _waits_for(kernel, stored, loaded))


def _stores(kernel: Kernel) -> _StorePlaces:
    """Per buffer the index and stage of its only plain store; None when there is another kind of store."""
    found: _StorePlaces = {}
    for s in kernel.stores:
        plain = s.buffer not in found and s.mask is None and s.mode == "set"
        stage = max((kernel.stages[name] for name in operands(s)), default=0)
        found[s.buffer] = (s.index, stage) if plain else None
    return found


def _waits_for(kernel: Kernel, stored: str, loaded: Collection[str]) -> bool:
    """Whether what is stored to a buffer is made of all loads from others."""
    names = {name for s in kernel.stores if s.buffer == stored for name in operands(s)}
    for s in reversed(kernel.body):
        if isinstance(s, Store):
            continue
        if s.id in names:
            names.update(operands(s))
        elif isinstance(s, Load) and s.buffer in loaded:
            return False
    return True


def _loads(kernel: Kernel) -> _LoadPlaces:
    """Per buffer the index of each load (None when masked), the last stage in which it may be carried out, and whether
    elements of a row are stored that come of it, short of a reduction."""
    last: dict[str, int] = {}
    stored: set[str] = set()
    rows = frozenset(axis.name for axis in kernel.row_axes)
    found: _LoadPlaces = {}
    for s in reversed(kernel.body):
        if isinstance(s, Store):
            here = max((kernel.stages[name] for name in operands(s)), default=0)
            own = symbols(s.index).union(*(kernel.domains[name] for name in operands(s)))
            is_stored = not rows.isdisjoint(own)
        else:
            is_barrier = isinstance(s, (Reduce, Scan))
            here = kernel.stages[s.arg] if is_barrier else max(last.get(s.id, 0), kernel.stages[s.id])  # type: ignore[union-attr]
            is_stored = s.id in stored and not isinstance(s, (Reduce, Contract))
        for name in operands(s):
            last[name] = max(last.get(name, 0), here)
        if is_stored:
            stored.update(operands(s))
        if isinstance(s, Load):
            place = s.index if s.mask is None else None
            latest = max(last.get(s.id, 0), kernel.stages[s.id])
            found.setdefault(s.buffer, []).append((place, latest, s.id in stored))
    return found
