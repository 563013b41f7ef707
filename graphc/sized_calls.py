"""The side of a compiled callable that deals with calls of many sizes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from graphc import driver
from graphc.entries import Entry, Stats
from graphc.frontend.aten.sized_trials import OneSizeOnly
from graphc.frontend.draws import Drawn
from graphc.frontend.list_arguments import Lists
from graphc.frontend.sized import SizedInputs, sized_inputs
from graphc.many import Many
from graphc.options import Options
from graphc.settings import settings

if TYPE_CHECKING:
    from graphc.families import Families

_MOST_REFUSALS = 3
"""Captures for many sizes that came to nothing, after which there are no more of them."""


class SizedCalls:
    """Mixed into the compiled callable, which has these attributes."""

    target: Callable[..., Any]
    options: Options
    families: Families
    _entries: tuple[Entry, ...]
    _has_many: bool
    _stats: Stats
    _lock: threading.RLock
    _assumes: bool
    _drawn: Drawn
    _draws: bool
    _lists: Lists
    _dynamic_scalars: set[int]
    _dynamic_numbers: set[Hashable]

    def _built_entry(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry | None:
        """What runs a call that has been captured for, when what it needs has been built; else None."""
        for entry in self._entries:
            inputs = None if entry.many is None else entry.captured.match(args, kwargs)
            if inputs is not None and entry.many is not None and entry.many.build(inputs):
                return entry
        return None

    def _sized_entry(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry | None:
        """Capture a call for sizes of many, where calls before had other ones; None where that cannot be."""
        options = self.options
        if not options.dynamic or options.measures or len(self._stats.one_size) >= _MOST_REFUSALS:
            return None
        sized = self._sized_inputs(args, kwargs)
        if sized is None:
            return None
        captured = None
        try:
            captured = driver.capture(
                self.target, args, kwargs, options, frozenset(self._dynamic_scalars),
                () if settings().max_paths > 0 else None, frozenset(), frozenset(self._dynamic_numbers), self._assumes,
                drawn=self._drawn, lists=self._lists, sized=sized,
            )  # fmt: skip
            many = Many(captured, options, self.families, self._stats)
            inputs = captured.match(args, kwargs)
            if inputs is None or not many.build(inputs):
                raise OneSizeOnly("it does not hold for the call that it was made of")
        except (Exception, OneSizeOnly) as error:  # what is wrong with the call itself shows when it is captured alone
            self._stats.one_size.append(f"{type(error).__name__}: {error}")
            if captured is not None:
                captured.withdraw()
            return None
        self._draws |= captured.draws > 0
        entry = Entry(captured, None, None, many=many)
        self._entries = (*self._entries, entry)  # programs for one size each are better for that
        self._has_many = True
        return entry

    def _sized_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SizedInputs | None:
        """What inputs of a call are taken for, by what the newest captures for single sizes have in common."""
        for entry in self._entries:
            if entry.compilation is not None:
                inputs = self.families.inputs_of(entry.captured.graph)
                return None if inputs is None else sized_inputs(inputs, entry.captured.tensors(args, kwargs))
        return None
