"""These tests need TRITON_INTERPRET=1 and a process of their own: `tests/triton/test_made_up_backend.py`."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphc.settings import override
from tests.triton.backend.register import OwnMemoryDevice, build, register
from tests.triton.watch import install

IS_ALONE = os.environ.get("GRAPHC_MADE_UP_BACKEND") == "1"
WRONG = install() if IS_ALONE else []

collect_ignore_glob = [] if IS_ALONE else ["test_*.py"]


@pytest.fixture(scope="session")
def registered() -> OwnMemoryDevice:
    with tempfile.TemporaryDirectory() as folder:
        return register(build(Path(folder)))


@pytest.fixture
def device(registered: OwnMemoryDevice) -> Iterator[OwnMemoryDevice]:
    """The device, with nothing in its log; every launch is watched for what no GPU could run."""
    registered.log.clear()
    WRONG.clear()
    with override(cache=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield registered
    assert not WRONG, "\n".join(sorted(set(WRONG)))
