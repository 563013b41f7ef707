"""These tests need TRITON_INTERPRET=1 and a process of their own: `tests/triton/test_made_up_backend.py`.

With GRAPHC_TEST_PTX=1 instead of the former, kernels run from their machine code: see `tests.triton.ptx`, which watches
them by itself.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphc.runtime.device import Device, find_device
from graphc.settings import override
from tests.triton.backend.register import IS_CUDA, OwnMemoryDevice, build, register
from tests.triton.sampled import leave_to_suites
from tests.triton.watch import install

IS_ALONE = os.environ.get("GRAPHC_MADE_UP_BACKEND") in ("1", "cuda")
IS_PTX = os.environ.get("GRAPHC_TEST_PTX") == "1" and os.environ.get("TRITON_INTERPRET") != "1"
WRONG = install() if IS_ALONE and not IS_PTX and not IS_CUDA else []
if IS_ALONE and IS_PTX and not IS_CUDA:
    from tests.triton.ptx.kernels import install as run_machine_code

    run_machine_code()

collect_ignore_glob = [] if IS_ALONE else ["test_*.py"]


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_to_suites(items, Path(__file__).parent, keep=4)


@pytest.fixture(scope="session")
def registered() -> Device:
    if IS_CUDA:
        found = find_device("cuda")
        assert found is not None
        return found
    with tempfile.TemporaryDirectory() as folder:
        return register(build(Path(folder)))


@pytest.fixture
def device(registered: Device) -> Iterator[Device]:
    """The device, with nothing in its log; every launch is watched for what no GPU could run."""
    if isinstance(registered, OwnMemoryDevice):
        registered.log.clear()
    WRONG.clear()
    with override(cache=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield registered
    assert not WRONG, "\n".join(sorted(set(WRONG)))
