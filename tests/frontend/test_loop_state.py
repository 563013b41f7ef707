"""What Python holds, told from frames: the stack of values from bytecode, and objects by what is in them."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from graphc.frontend.hidden_stack import ITERATOR, WITH, hidden
from graphc.frontend.python_state import PythonState, UnclearError


def _below() -> tuple[str, ...] | None:
    frame = sys._getframe(1)
    return hidden(frame.f_code, frame.f_lasti)


class _Asking:
    """Tells what lies below the operand when it is asked for its truth."""

    def __bool__(self) -> bool:
        _Asking.seen = _below_caller()
        return True

    seen: Any = None


def _below_caller() -> tuple[str, ...] | None:
    frame = sys._getframe(2)
    return hidden(frame.f_code, frame.f_lasti)


def test_nothing_is_hidden_in_plain_statements() -> None:
    found = _below()
    assert found == ()
    if _Asking():
        assert _Asking.seen == ()
    while _Asking():
        break
    assert _Asking.seen == ()


def test_iterators_contexts_and_half_done_expressions() -> None:
    for _ in range(1):
        found = _below()
        for _ in range(1):
            inner = _below()
        with torch.no_grad():
            both = _below()
    assert found == (ITERATOR,) and inner == (ITERATOR, ITERATOR) and both == (ITERATOR, WITH)
    with torch.no_grad():
        if _Asking():
            assert _Asking.seen == (WITH,)
    total = 1
    found = total + len(_below() or ())
    assert found == 1 + 3, "below the call lie 1, the function len, and the place for its self"


def test_a_handler_of_exceptions_is_unclear() -> None:
    try:
        raise ValueError
    except ValueError:
        assert _below() is None


def _described(*items: Any) -> list[Any]:
    state = PythonState(lambda item: None)
    for item in items:
        state.visit(item)
    return state.tokens


class _Plain:
    def __init__(self, **given: Any) -> None:
        vars(self).update(given)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ([1, 2.0], [1, 2.0], True),
        ([1], [1.0], False),
        ([1], (1,), False),
        ({"a": 0.0}, {"a": -0.0}, False),
        (_Plain(a=[1]), _Plain(a=[1]), True),
        (_Plain(a=[1]), _Plain(a=[2]), False),
        (range(3), range(3), True),
        (iter([1, 2]), iter([1, 2, 3]), False),
        (enumerate([1]), enumerate([1], 1), False),
        (torch.nn.ReLU(), torch.nn.ReLU(), True),
        (torch.nn.ReLU(), torch.nn.ReLU().eval(), False),
        (torch.float32, torch.float64, False),
    ],
)
def test_objects_are_what_is_in_them(one: Any, other: Any, equal: bool) -> None:
    assert (_described(one) == _described(other)) is equal


def test_an_iterator_that_moves_on_is_another_state() -> None:
    items = iter([0, 0, 0])
    before = _described(items)
    next(items)
    assert _described(items) != before


def test_sharing_is_part_of_the_state() -> None:
    part: list[int] = []
    assert _described([part, part]) != _described([[], []])


def test_what_cannot_be_looked_into_is_unclear() -> None:
    with pytest.raises(UnclearError, match="generator cannot be looked into"):
        _described(item for item in ())
