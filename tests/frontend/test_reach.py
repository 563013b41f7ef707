"""Changes to what a function can reach are found and put back; data are left alone."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphc.frontend.reach import Reach

CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "set": (lambda: {1, 2}, lambda item: item.add(3)),
    "list": (lambda: [1, [2]], lambda item: item[1].append(3)),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda item: item.append(3)),
    "dict": (lambda: {"a": {"b": 1}}, lambda item: item["a"].pop("b")),
    "bytes": (lambda: bytearray(b"ab"), lambda item: item.extend(b"c")),
    "array": (lambda: np.array([0.0, np.nan]), lambda item: item.fill(3)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_put_back(name: str) -> None:
    make, change = CHANGES[name]
    item = make()
    reach = Reach([[item]])
    assert reach.changed() == ""
    change(item)
    assert "that it finds outside of itself" in reach.changed()
    reach.restore()
    assert reach.changed() == "" and str(item) == str(make())


def test_data_are_left_alone() -> None:
    """Large arrays, those that cannot be written, and what is in very long lists are not gone through."""
    large, fixed, inner = np.zeros(1 << 22), np.zeros(4), [0]
    fixed.flags.writeable = False
    reach = Reach([large, fixed, [inner] * 100_000])
    large[0] = 1
    inner.append(1)
    assert reach.changed() == ""


class _Monitor(threading.Thread):
    """As the one of tqdm's, which notes down when it woke."""

    woken = 0.0


MONITOR = _Monitor(daemon=True)


def test_what_a_thread_does_meanwhile_is_not_the_functions_doing() -> None:
    MONITOR.woken = 1.0
    reach = Reach([lambda x: x * 2 if MONITOR.is_alive() else x])
    MONITOR.woken = 2.0
    assert reach.changed() == ""
