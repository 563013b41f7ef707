"""These tests need TRITON_INTERPRET=1 before triton is imported; `tests/triton/test_interpreted.py` runs them so.

Every launch that they make is watched for what no GPU could run: see `tests.triton.watch`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.triton.watch import install

IS_INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
WRONG = install() if IS_INTERPRETING else []

collect_ignore_glob = [] if IS_INTERPRETING else ["test_*.py"]


@pytest.fixture(autouse=True)
def programs_run_side_by_side() -> Iterator[None]:
    """No program of a launch depends on another one, and none leaves its memory."""
    WRONG.clear()
    yield
    assert not WRONG, "\n".join(sorted(set(WRONG)))
