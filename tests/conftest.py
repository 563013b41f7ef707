"""Settings of all tests: hypothesis draws the same examples in every run; a cache folder of their own."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings as hypothesis_settings

from graphc.settings import override

hypothesis_settings.register_profile("check", derandomize=True, deadline=None)
hypothesis_settings.register_profile("suite", deadline=None, print_blob=True)
hypothesis_settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "check"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first, so that no worker is left with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """No test reads or fills the user's cache."""
    with override(cache_dir=tmp_path_factory.mktemp("cache")):
        yield
