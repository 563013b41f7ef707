"""These tests need TRITON_INTERPRET=1 before triton is imported; `tests/triton/test_interpreted.py` runs them so.

Every launch that they make is watched for what no GPU could run: see `tests.triton.watch`. With GRAPHC_TEST_PTX=1
instead, kernels run from their machine code for `cuda:80`, or what GRAPHC_PTX_TARGET says: see `tests.triton.ptx`,
which watches them by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.triton.sampled import leave_to_suites
from tests.triton.watch import install

FOLDER = Path(__file__).parent
IS_INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
IS_PTX = os.environ.get("GRAPHC_TEST_PTX") == "1" and not IS_INTERPRETING
WRONG = install() if IS_INTERPRETING else []
NOT_IN_PTX = {
    "test_watch.py": "tests of the interpreter's own watch",
    "test_integers_wrap_as_in_eager": "its tile is too small for the chip's units",
}
"""Parts of tests' names, and why machine code does not run them."""

if IS_PTX:
    from tests.triton.ptx.kernels import TARGET
    from tests.triton.ptx.kernels import install as run_machine_code

    run_machine_code()
    NOT_IN_PTX |= {"float8_e4m3fn": "cuda:80 has no such numbers"} if TARGET == "cuda:80" else {}

collect_ignore_glob = [] if IS_INTERPRETING or IS_PTX else ["test_*.py"]


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_to_suites(items, FOLDER, keep=4)
    for item in items if IS_PTX else []:
        reason = next((why for part, why in NOT_IN_PTX.items() if part in item.nodeid), None)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def programs_run_side_by_side() -> Iterator[None]:
    """No program of a launch depends on another one, and none leaves its memory."""
    WRONG.clear()
    yield
    assert not WRONG, "\n".join(sorted(set(WRONG)))
