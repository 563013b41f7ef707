"""Text of both IRs, mutated: what is read back is the same again, all else a ParseError with its place."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.errors import InvalidGraphError, ParseError
from graphc.ir import parse, verify
from graphc.loopir import parse_kernel, print_kernel
from graphc.loopir.verifier import verify as verify_kernel
from tests.kernel_strategies import draw_kernel
from tests.strategies import graphs
from tests.suites.verdicts import limited

SECONDS = 10
PIECES = (
    "9" * 40,
    "-1",
    "0",
    "nan",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "%",
    "%0",
    "v0",
    "#",
    '"',
    "\\",
    "\n",
    "é",
    "f32",
    "s0 // 0",
)


def _mutated(text: str, random: Random) -> str:
    """A text with a few pieces left out, doubled, moved, exchanged, or put in."""
    for _ in range(random.choice((1, 1, 2, 4))):
        start = random.randrange(len(text) + 1)
        stop = min(len(text), start + random.choice((1, 1, 2, 5, 20)))
        target = random.randrange(len(text) + 1)
        piece, kind = text[start:stop], random.randrange(5)
        if kind == 0:
            text = text[:start] + text[stop:]
        elif kind == 1:
            text = text[:target] + piece + text[target:]
        elif kind == 2:
            text = text[:start] + random.choice(PIECES) + text[stop:]
        elif kind == 3:
            text = text[:start] + random.choice(text or " ") + text[stop:]
        else:
            text = text[:target]
    return text


def _check(text: str, read: Callable[[str], Any], shown: Callable[[Any], str], check: Callable[[Any], None]) -> None:
    with limited(SECONDS):
        try:
            made = read(text)
        except ParseError as error:
            assert 1 <= error.line <= text.count("\n") + 1 and error.column >= 1 and error.reason
            return
        again = shown(made)
        assert shown(read(again)) == again
        try:
            check(made)
        except InvalidGraphError as error:
            assert str(error)


def _graph(text: str) -> None:
    _check(text, parse, str, verify)


def _kernel(text: str) -> None:
    _check(text, parse_kernel, print_kernel, verify_kernel)


@pytest.mark.parametrize("examples", [200, pytest.param(20_000, marks=pytest.mark.suite)])
def test_graphs(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(graphs(max_ops=5), st.integers(0))
    def mutated(graph: Any, seed: int) -> None:
        _graph(_mutated(str(graph), Random(seed)))

    mutated()


@pytest.mark.parametrize("examples", [200, pytest.param(20_000, marks=pytest.mark.suite)])
def test_kernels(examples: int) -> None:
    for seed in range(examples):
        random = Random(seed)
        _kernel(_mutated(print_kernel(draw_kernel(random)), random))


@settings(max_examples=100)
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    _graph(text)
    _kernel(text)
