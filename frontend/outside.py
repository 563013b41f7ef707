"""Clocks, `os.urandom`, `uuid` and `input` while a function is captured: what they tell is for one call.

To the capture it would be a constant, and the same in every call. So a function that asks them runs eager. What torch
and the standard library ask them for by themselves does not go into a program.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from graphc.errors import EagerOnlyError
from graphc.frontend.inputs import Access, bind, bound
from graphc.frontend.locations import is_user_code
from graphc.frontend.recorder import Recorder

_CLOCKS = ("time", "perf_counter", "monotonic", "process_time", "thread_time")


@contextlib.contextmanager
def refused(recorder: Recorder, read: Iterable[tuple[str, Access, Any]]) -> Iterator[None]:
    """For the block, this thread's user code cannot ask for what differs from call to call.

    Args:
        read: (path, access, object) of objects that the function is found to read, under names of its own too.

    Raises:
        EagerOnlyError: it asks.
    """
    places: list[tuple[Any, Any]] = [(time, name + unit) for name in _CLOCKS for unit in ("", "_ns")]
    places += [(os, "urandom"), (builtins, "input")]
    if "uuid" in sys.modules:
        places += [(sys.modules["uuid"], "uuid1"), (sys.modules["uuid"], "uuid4")]
    names = {id(bound(module, name)): f"{module.__name__}.{name}" for module, name in places if hasattr(module, name)}
    places += [place for _, access, item in read if id(item) in names and (place := access.place()) is not None]
    replaced: list[tuple[Any, Any, Any]] = []
    for home, name in places:
        original = bound(home, name)
        if id(original) in names:  # else it has been replaced, or this system has no such clock
            replaced.append((home, name, original))
            bind(home, name, _refusing(original, names[id(original)], recorder, threading.get_ident()))
    try:
        yield
    finally:
        for home, name, original in replaced:
            bind(home, name, original)


def _refusing(original: Callable[..., Any], name: str, recorder: Recorder, thread: int) -> Callable[..., Any]:
    def ask(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread and is_user_code(sys._getframe(1).f_code):
            raise EagerOnlyError(
                f"the function calls {name}(), whose answer a compiled program would not ask for again; "
                "ask outside and pass the answer",
                recorder.locator.here(),
            )
        return original(*args, **kwargs)

    return ask
