"""What a compiled callable has: its programs, and counters of its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphc.compilation import Compilation
    from graphc.frontend.captured import Captured
    from graphc.frontend.reclaim import Reclaimer
    from graphc.many import Many
    from graphc.paths import PathTree


@dataclass
class Stats:
    """Counters of one compiled callable.

    Attributes:
        compiles: captures compiled so far.
        hits: calls answered by a program compiled before.
        eager_calls: calls run as plain PyTorch, whatever the reason.
        paths: paths compiled through functions that branch on data; each may take several compiles.
        recompiles: for every compile after the first, the facts that had changed, newest capture first.
        builds: compiles of which the result is for several sizes of the inputs.
        reuses: compiles for which there was such a build already, so that only numbers were filled in.
        alone: why programs are for one size each.
        known: compiles that took no capture, since the function had been captured for any sizes.
        one_size: why captures are for one size each.
    """

    compiles: int = 0
    hits: int = 0
    eager_calls: int = 0
    paths: int = 0
    recompiles: list[str] = field(default_factory=list)
    builds: int = 0
    reuses: int = 0
    alone: list[str] = field(default_factory=list)
    known: int = 0
    one_size: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """One capture with what runs it. `execute` is None where a path tree does, or where calls must stay eager.

    `reclaimer` is there when the program can store new gradients where old ones lay. `many` has those of a capture that
    is for many sizes, one for each.
    """

    captured: Captured
    compilation: Compilation | None
    execute: Callable[..., list[Any]] | None
    tree: PathTree | None = None
    reclaimer: Reclaimer | None = None
    many: Many | None = None

    def fit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Entry, list[Any]] | None:
        """What runs a call, and the inputs of the program; None where this does not fit the call."""
        inputs = self.captured.match(args, kwargs)
        found = self if inputs is None or self.many is None else self.many.find(inputs)
        return None if inputs is None or found is None else (found, inputs)


def leave_to_native(captured: Captured, compilation: Compilation | None) -> None:
    """Have the native code of a program check the facts of a capture that it can check."""
    checker = getattr(compilation and compilation.execute, "fact_check", None)
    if checker is not None:
        captured.guards.use(checker)


def entry_of(captured: Captured, compilation: Compilation, execute: Callable[..., list[Any]] | None = None) -> Entry:
    """What runs a compiled capture.

    Args:
        execute: where that is not the program alone.
    """
    from graphc.frontend.reclaim import Reclaimer

    reclaimer = None
    lend = getattr(compilation.execute, "lend", None)
    if execute is None and (lend is not None or hasattr(compilation.execute, "spare_outputs")):
        reclaimer = Reclaimer(captured.effects, captured.effect_leaves, lent=lend is not None)
        if lend is not None:
            lend(reclaimer.numbers())
    return Entry(captured, compilation, execute or compilation.execute, reclaimer=reclaimer or None)


FEW = 6
"""Programs up to which a call is matched with one after the other."""
_MOST = 4096


class Likely:
    """Which of many programs fit calls of some shapes: those that did before."""

    def __init__(self) -> None:
        self._of: dict[Any, tuple[tuple[Entry, ...], Entry]] = {}

    def first(self, entries: tuple[Entry, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Entry]:
        """The programs, the likely one first. Whoever stops at one says that it fits."""
        key = tuple([getattr(item, "shape", None) for item in (*args, *kwargs.values())])
        try:
            known, entry = self._of.get(key, (None, None))
        except TypeError:  # a shape of the user's own
            yield from entries
            return
        if known is entries and entry is not None:
            yield entry
        if len(self._of) >= _MOST:
            self._of.clear()
        for other in entries:
            self._of[key] = entries, other
            yield other
        self._of.pop(key, None)
