"""Tests marked gpu are deselected where there is no CUDA device, or where Triton interprets instead of compiling.

`benchmarks/gpu.py` runs them where time is short: it names a file, in which each test is noted when it begins and what
it says when it fails, and a time at which the rest is skipped. What is noted there as begun is not run again. Where a
test leaves the device unusable, no other one is run in this process.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from graphc.errors import FallbackWarning

_NOTES = os.environ.get("GRAPHC_GPU_TESTS", "")
_UNTIL = float(os.environ.get("GRAPHC_GPU_TESTS_UNTIL", "inf"))


@pytest.fixture(autouse=True)
def _nothing_falls_back() -> Iterator[None]:
    """What runs eager, or op by op, agrees with eager, and shows nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        yield


def _note(**item: str) -> None:
    if _NOTES:
        with open(_NOTES, "a") as file:
            file.write(json.dumps(item) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    is_there = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
    text = Path(_NOTES).read_text() if _NOTES and Path(_NOTES).exists() else ""
    begun = {json.loads(line)["test"] for line in text.splitlines()}
    dropped = [item for item in items if item.get_closest_marker("gpu") and (not is_there or item.nodeid in begun)]
    if dropped:
        items[:] = [item for item in items if item not in dropped]
        config.hook.pytest_deselected(items=dropped)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > _UNTIL:
        pytest.skip("no time")
    _note(test=item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.failed:
        _note(test=item.nodeid, why=report.longreprtext[-3000:])
        if item.get_closest_marker("gpu") and torch.cuda.is_available():
            try:
                torch.cuda.synchronize()
            except RuntimeError as error:
                item.session.shouldstop = f"the device cannot be used after {item.nodeid}: {error}"
    return report
