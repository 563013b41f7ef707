"""Branches on data that only guard against errors: `if labels.max() >= n: raise ...`, `assert`, `torch._check`.

Such a branch is no decision worth a program of its own. The capture takes the other side, and the program checks, when
it runs, that the data do as well. Where they do not, it stops with `AssumptionError` before it has changed anything,
and the call is run by eager from its start, which raises the user's own error.

Which branches these are is read from the byte code of the frame that asks: all ways from one side of its jump end in
`raise`. Should eager raise nothing after all (somebody catches the error and goes on), the function is captured anew
with such branches as ordinary decisions.
"""

from __future__ import annotations

import dis
import sys
from functools import lru_cache
from types import CodeType, FrameType
from typing import TYPE_CHECKING

from graphc.frontend.functionalize import root_state
from graphc.frontend.locations import is_graphc_code
from graphc.ir import types
from graphc.ir.graph import Value

if TYPE_CHECKING:
    from graphc.frontend.host import HostNode
    from graphc.frontend.recorder import Recorder
    from graphc.frontend.traced import TracedTensor

_INSTRUCTIONS = 512
"""Longer code behind a jump is not looked through."""
_MESSAGE = "the compiled program stands for calls in which this check passes, and it does not"


class Assumptions:
    """What one capture takes for granted of its data.

    Args:
        recorder: the capture.
        allowed: otherwise every branch on data is a decision.

    Attributes:
        allowed: as given; a backward pass behind the function turns it off, as programs hand out checks with results.
        tensors: results of the checks, which have to be outputs of the program in order to be computed.
    """

    def __init__(self, recorder: Recorder, allowed: bool) -> None:
        self._recorder, self.allowed = recorder, allowed
        self._made: dict[tuple[Value, bool], None] = {}
        self.tensors: list[TracedTensor] = []

    def __bool__(self) -> bool:
        return bool(self._made)

    def answer(self, node: HostNode) -> bool | None:
        """The answer to the branch that the innermost frame is about to take, if the other one leads to an error."""
        return self._assume(node, expected_answer()) if self.allowed else None

    def truth(self, node: HostNode) -> bool | None:
        """True, of what `torch._check` says to be so, unless nothing is to be assumed."""
        return self._assume(node, True) if self.allowed else None

    def _assume(self, node: HostNode, answer: bool | None) -> bool | None:
        if answer is not None and (node.value, answer) not in self._made:
            self._made[(node.value, answer)] = None
            imp, number = self._recorder.imp, float(answer)
            value = imp.tensor(node.value, types.i64, "cpu")
            checked = imp.b.op("checked", value, low=number, high=number, error="AssumptionError", message=_MESSAGE)
            self.tensors.append(self._recorder.make(root_state(checked, ())))
        return answer


def expected_answer() -> bool | None:
    """What the condition has to be that the innermost frame not of graphc's jumps by, for no error to be raised."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_graphc_code(frame.f_code):
        frame = frame.f_back
    return None if frame is None else _expected(frame.f_code, frame.f_lasti)


@lru_cache(maxsize=4096)
def _expected(code: CodeType, offset: int) -> bool | None:
    flow = _Flow(code)
    at: int | None = flow.places.get(offset)
    negated = False
    while at is not None and at < len(flow.instructions):
        instruction = flow.instructions[at]
        name = instruction.opname
        if name.startswith("POP_JUMP_") and name.endswith(("_IF_TRUE", "_IF_FALSE")):
            raises = flow.raises(at + 1), flow.raises(flow.places[instruction.argval])
            if raises[0] == raises[1]:
                return None
            jumps = raises[0]  # the side behind the jump raises, so the jump has to be taken
            return (name.endswith("_IF_TRUE") == jumps) != negated
        if name not in ("UNARY_NOT", "TO_BOOL", "CACHE"):
            return None
        negated ^= name == "UNARY_NOT"
        at += 1
    return None


class _Flow:
    """Where the code of a function can go."""

    def __init__(self, code: CodeType) -> None:
        byte_code = dis.Bytecode(code)
        self.instructions = list(byte_code)
        self.places = {instruction.offset: at for at, instruction in enumerate(self.instructions)}
        self._handlers = [(entry.start, entry.end, entry.target) for entry in byte_code.exception_entries]  # type: ignore[attr-defined]

    def raises(self, start: int) -> bool:
        """Whether all ways from an instruction on end in an error that leaves the function, without a loop."""
        seen: set[int] = set()
        waiting = [start]
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            if len(seen) > _INSTRUCTIONS or at >= len(self.instructions):
                return False
            instruction = self.instructions[at]
            name = instruction.opname
            if name == "RAISE_VARARGS":
                waiting += self._catching(instruction.offset)
            elif name == "RERAISE":
                continue
            elif name.startswith(("RETURN_", "YIELD_", "SEND", "JUMP_BACKWARD", "POP_JUMP_BACKWARD")):
                return False
            elif "JUMP" in name or name == "FOR_ITER":
                waiting.append(self.places[instruction.argval])
                if name not in ("JUMP_FORWARD", "JUMP_NO_INTERRUPT"):
                    waiting.append(at + 1)
            else:
                waiting.append(at + 1)
        return True

    def _catching(self, offset: int) -> list[int]:
        """Where an error raised here is caught in the same function; `with` blocks are taken not to swallow it."""
        for start, end, target in self._handlers:
            at = self.places[target]
            ahead = [instruction.opname for instruction in self.instructions[at : at + 3]]
            if start <= offset < end and "WITH_EXCEPT_START" not in ahead:
                return [at]
        return []
