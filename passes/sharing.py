"""Whether a kernel may store into memory that it reads: one buffer in the place of two arguments."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

from graphc.ir.dims import Dim
from graphc.loopir.kernel import Kernel, Load, Reduce, Scan, Store, operands

_StorePlaces: TypeAlias = "dict[str, tuple[Dim, int] | None]"
_LoadPlaces: TypeAlias = "dict[str, list[tuple[Dim | None, int]]]"


class Sharing:
    """Answers for the kernels of one program, by name."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[_StorePlaces, _LoadPlaces]] = {}

    def allows(self, kernel: Kernel, loaded: Collection[str], stored: str) -> bool:
        """Whether buffer `stored` may lie exactly where the `loaded` ones do.

        Legal when every load reads the very element that is stored at the same point, and nothing that comes of it
        (short of a reduction, which is complete by then) is needed in a later stage than the store's, where it might be
        loaded again.

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
        return all(at == index and last <= stage for name in loaded for at, last in loads.get(name, ()))


def _stores(kernel: Kernel) -> _StorePlaces:
    """Per buffer the index and stage of its only plain store; None when there is another kind of store."""
    found: _StorePlaces = {}
    for s in kernel.stores:
        plain = s.buffer not in found and s.mask is None and s.mode == "set"
        stage = max((kernel.stages[name] for name in operands(s)), default=0)
        found[s.buffer] = (s.index, stage) if plain else None
    return found


def _loads(kernel: Kernel) -> _LoadPlaces:
    """Per buffer the index of each load (None when masked) and the last stage in which it may be carried out."""
    last: dict[str, int] = {}
    found: _LoadPlaces = {}
    for s in reversed(kernel.body):
        is_barrier = isinstance(s, (Reduce, Scan))
        if isinstance(s, Store):
            here = max((kernel.stages[name] for name in operands(s)), default=0)
        elif is_barrier:
            here = kernel.stages[s.arg]  # type: ignore[union-attr]
        else:
            here = max(last.get(s.id, 0), kernel.stages[s.id])
        for name in operands(s):
            last[name] = max(last.get(name, 0), here)
        if isinstance(s, Load):
            place = s.index if s.mask is None else None
            found.setdefault(s.buffer, []).append((place, max(last.get(s.id, 0), kernel.stages[s.id])))
    return found
