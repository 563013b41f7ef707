"""What a running Python frame holds besides its local variables, told from its bytecode.

The iterator of a `for` loop, or the left half of a sum whose right half is being computed, lie on the frame's stack of
values, which Python does not show. What instruction pushed each of them follows from the code alone.
"""

from __future__ import annotations

import dis
from types import CodeType

WITH = "with"
"""The exit of a context manager."""
ITERATOR = "iterator"
"""The iterator of a `for` loop."""
_OTHER = "value"

_TABLES: dict[int, tuple[CodeType, dict[int, tuple[str, ...]]]] = {}
_GIVES_NOTHING = ("STORE_", "DELETE_", "POP_", "RAISE_", "JUMP_IF_")


def hidden(code: CodeType, instruction: int) -> tuple[str, ...] | None:
    """The values below the operands of an instruction, the lowest first: `WITH`, `ITERATOR`, or something else.

    Args:
        instruction: its offset, as in `frame.f_lasti`.

    Returns:
        None where that cannot be told, as in a handler of exceptions.
    """
    known = _TABLES.get(id(code))
    if known is None:
        known = _TABLES[id(code)] = code, _below_operands(code)  # holding the code keeps its id
    return known[1].get(instruction)


def _below_operands(code: CodeType) -> dict[int, tuple[str, ...]]:
    instructions = list(dis.get_instructions(code))
    places = {item.offset: number for number, item in enumerate(instructions)}
    before: dict[int, tuple[str, ...]] = {}
    waiting: list[tuple[int, tuple[str, ...]]] = [(0, ())]
    while waiting:
        number, stack = waiting.pop()
        if number >= len(instructions) or number in before:
            continue
        before[number] = stack
        item = instructions[number]
        argument = item.arg if item.opcode >= dis.HAVE_ARGUMENT else None
        if item.opcode in dis.hasjrel or item.opcode in dis.hasjabs:
            effect = dis.stack_effect(item.opcode, argument, jump=True)
            waiting.append((places[item.argval], _after(item.opname, stack, effect)))
        if item.opname.startswith(("RETURN", "RAISE", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_ABSOLUTE")):
            continue
        effect = dis.stack_effect(item.opcode, argument, jump=False)
        waiting.append((number + 1, _after(item.opname, stack, effect)))
    found: dict[int, tuple[str, ...]] = {}
    ends = [*(item.offset for item in instructions[1:]), len(code.co_code)]
    for number, stack in before.items():
        item = instructions[number]
        below = stack[: len(stack) - _operands(item)]
        found.update(dict.fromkeys(range(item.offset, ends[number], 2), below))  # a frame may be in its inline caches
    return found


def _after(name: str, stack: tuple[str, ...], effect: int) -> tuple[str, ...]:
    if name == "GET_ITER":
        return (*stack[:-1], ITERATOR)
    if name == "BEFORE_WITH":
        return (*stack[:-1], WITH, _OTHER)
    return (*stack, *(_OTHER,) * effect) if effect >= 0 else stack[:effect]


def _operands(item: dis.Instruction) -> int:
    """How many values an instruction takes off the stack."""
    argument = item.arg if item.opcode >= dis.HAVE_ARGUMENT else None
    effect = dis.stack_effect(item.opcode, argument, jump=False)
    given = 0 if item.opname.startswith(_GIVES_NOTHING) else 1
    return max(given - effect, 0)
