"""Text made of tensors for messages: `check(n == m, f"{n} tokens, {m} features")`.

What is in a tensor is not known while a function is captured, and a decision on it would make every number a program of
its own. So an f-string that is only handed to a function whose result is thrown away gets a stand-in, as the message of
a check that, in nearly all calls, nobody sees. Where it is seen, eager has made it: see `graphc.frontend.assumptions`.
That the string is no more than a message is read from the byte code; should the function fail in the capture, or the
stand-in turn up in what it leaves behind, it is captured anew with the tensor's true numbers, as a decision.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

from graphc.frontend.locations import is_user_code

_STAND_IN = "<a tensor that is being traced>"
_PRINTS = "print"
"""The function whose text somebody reads in every call; see `graphc.frontend.prints`."""


class NeedsText(BaseException):
    """Capture again: text of tensors is more than a message.

    Not an Exception, so that the user's own handlers let it pass.

    Args:
        error: what tells so.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error


class Messages:
    """The stand-ins of one capture.

    Args:
        allowed: otherwise text of tensors is always a decision.

    Attributes:
        made: there are some.
    """

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed
        self.made = False

    @property
    def allowed(self) -> bool:
        """Text of tensors need not be known while the function is captured."""
        return self._allowed

    def text(self, mark: Callable[[], str]) -> str | None:
        """What to format a tensor as, if that is only printed (a mark) or goes into a message (a stand-in)."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and not is_user_code(frame.f_code):
            frame = frame.f_back
        taker = _taker(frame.f_code, frame.f_lasti) if self._allowed and frame is not None else None
        if taker is None:
            return None
        if taker == _PRINTS:
            return mark()
        self.made = True
        return _STAND_IN

    def is_in(self, leaves: list[Any], nodes: list[Any]) -> bool:
        """Whether a stand-in is in some text among what a function leaves behind, or in a key there."""
        if not self.made:
            return False
        return any(isinstance(leaf, str) and _STAND_IN in leaf for leaf in leaves) or _STAND_IN in repr(nodes)


@lru_cache(maxsize=4096)
def _taker(code: CodeType, offset: int) -> str | None:
    """The global function for which alone the text formatted at `offset` is made, in a call that is a statement."""
    instructions = [item for item in dis.get_instructions(code) if item.opname != "CACHE"]
    at = next((n for n, item in enumerate(instructions) if item.offset == offset), None)
    if at is None or not instructions[at].opname.startswith("FORMAT_"):
        return None
    start = at
    while start and not _ends_statement(instructions[start - 1]):
        start -= 1
    depth, text = 0, -1  # places on the stack, counted from the start of the statement
    called: dict[int, str] = {}  # global functions by their place
    for number in range(start, len(instructions)):
        item = instructions[number]
        if _ends_statement(item):
            return None
        before, depth = depth, depth + dis.stack_effect(item.opcode, item.arg, jump=False)
        if item.opname == "LOAD_GLOBAL" and depth == before + 2:
            called[before] = item.argval
        elif item.opname == "BUILD_STRING" and depth - 1 <= text:
            text = depth - 1
        elif item.opname.startswith("CALL") and number > at and depth - 1 <= text:
            following = instructions[number + 1].opname if number + 1 < len(instructions) else ""
            return called.get(depth - 1) if following == "POP_TOP" else None
        elif number > at and depth <= text and item.opname != "PRECALL":
            return None  # consumed by something else
        if number == at:
            text = depth - 1
    return None


def _ends_statement(item: dis.Instruction) -> bool:
    return (
        item.opname in ("POP_TOP", "RESUME")
        or item.opname.startswith(("STORE_", "RETURN_", "RAISE_"))
        or ("JUMP" in item.opname or item.opname == "FOR_ITER")
    )
