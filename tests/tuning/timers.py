"""Timers that say what a test wants to be the fastest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graphc.runtime.timing import Clock


class Says:
    """A timer that runs everything once and then says what it was told.

    Args:
        seconds: of a form of what has this label.

    Attributes:
        asked: labels that were measured, in order.
    """

    def __init__(self, seconds: Callable[[str, str], float]) -> None:
        self.seconds = seconds
        self.asked: list[str] = []

    def __call__(self, label: str, runs: Mapping[str, Callable[[], Any]], clock: Clock) -> dict[str, float]:
        self.asked.append(label)
        for run in runs.values():
            clock(run, 1)
        return {form: self.seconds(label, form) for form in runs}


def prefers(*forms: str) -> Says:
    """A timer for which these forms are fast."""
    return Says(lambda label, form: 1.0 if form in forms else 2.0)
