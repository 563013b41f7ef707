"""Runs the tests of attention that need Triton's interpreter in a process of its own, beside `test_interpreted.py`."""

from __future__ import annotations

import pytest

from tests.triton.test_interpreted import ATTENTION, elsewhere, run_interpreted


@pytest.mark.long
@elsewhere
def test_attention_in_the_interpreter() -> None:
    run_interpreted(*ATTENTION)


@pytest.mark.suite
@elsewhere
def test_attention_of_many_blocks_in_the_interpreter() -> None:
    run_interpreted(*ATTENTION, marked="suite")
