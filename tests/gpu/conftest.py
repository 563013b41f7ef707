"""Tests marked gpu are deselected where there is no CUDA device, or where Triton interprets instead of compiling."""

from __future__ import annotations

import os

import pytest
import torch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return
    dropped = [item for item in items if item.get_closest_marker("gpu")]
    if dropped:
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=dropped)
