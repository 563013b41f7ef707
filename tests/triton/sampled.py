"""Which cases of a test `make check` leaves to the suites: Triton's interpreter is slow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

_MANY = 3
"""Cases of a test from which on only some are for `make check`."""


def leave_to_suites(items: Iterable[pytest.Item], folder: Path, keep: int) -> None:
    """Mark cases of tests with many of them as for the suites.

    Args:
        folder: where the tests lie.
        keep: one in so many stays.
    """
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if folder in item.path.parents:
            cases[item.nodeid.partition("[")[0]].append(item)
    for found in cases.values():
        for number, item in enumerate(found if len(found) >= _MANY else []):
            if number % keep:
                item.add_marker(pytest.mark.suite)
