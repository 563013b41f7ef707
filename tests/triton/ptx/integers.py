"""Integer arithmetic, logic, shifts and bit fields, and what carries.

Source: PTX ISA 8.7, 9.7.1 Integer Arithmetic, 9.7.2 Extended-Precision Integer Arithmetic, 9.7.8 Logic and Shift.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.triton.ptx.parse import Instruction
from tests.triton.ptx.registers import KINDS, UNSIGNED, Array, Builder, Frame, Step, reader, types, width_of, writer

Function = Callable[..., Array]
ANYTHING = 0x5A
"""Byte of results that the ISA leaves open."""


def elementwise(function: Callable[[str, set[str]], Function], arity: int, allowed: str = "") -> Builder:
    """An instruction whose operands and result have its type; `function` is given the type and the flags."""

    def build(instruction: Instruction) -> Step:
        kind, flags = types(instruction, allowed)
        if len(instruction.operands) != arity + 1:
            raise instruction.unknown()
        return stepping(instruction, function(kind, flags), [kind] * arity, kind)

    return build


def stepping(instruction: Instruction, function: Function, sources: list[str], result: str) -> Step:
    """The step that applies a function to operands of some types."""
    write = writer(instruction.operands[0], result, instruction)
    reads = [reader(item, kind, instruction) for item, kind in zip(instruction.operands[1:], sources, strict=True)]
    if len(reads) == 1:
        (one,) = reads
        return lambda frame: write(frame, function(one(frame)))
    if len(reads) == 2:
        left, right = reads
        return lambda frame: write(frame, function(left(frame), right(frame)))
    return lambda frame: write(frame, function(*(read(frame) for read in reads)))


def is_signed(kind: str) -> bool:
    return kind[0] == "s"


def plain(function: Function) -> Callable[[str, set[str]], Function]:
    """A function that is the same for all types."""
    return lambda kind, flags: function


# ------------------------------------------------------------------------------------------------ multiply, divide


def high_half(a: Array, b: Array) -> Array:
    """The upper half of the product of two integers of one type."""
    width = 8 * a.dtype.itemsize
    if width < 64:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return (a.astype(wide) * b.astype(wide) >> wide(width)).astype(a.dtype)
    x, y, low, half = a.view(np.uint64), b.view(np.uint64), np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = (x0 * y0 >> half) + (x1 * y0 & low) + (x0 * y1 & low)
    high = x1 * y1 + (x1 * y0 >> half) + (x0 * y1 >> half) + (middle >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, 0).astype(np.uint64) - np.where(b < 0, x, 0).astype(np.uint64)
    return high.view(a.dtype)


def wide_product(a: Array, b: Array) -> Array:
    """The whole product, in the type of twice the width."""
    wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    return a.astype(wide) * b.astype(wide)


def in_pairs(function: Function) -> Builder:
    """Add, subtract, minimum or maximum, where a type of 16 bits may come in pairs."""
    plainly = elementwise(plain(function), 2)

    def build(instruction: Instruction) -> Step:
        kind = instruction.modifiers[-1]
        if kind not in ("u16x2", "s16x2"):
            return plainly(instruction)
        half = np.int16 if is_signed(kind) else np.uint16

        def both(a: Array, b: Array) -> Array:
            x, y = (np.ascontiguousarray(part)[..., None].view(half) for part in np.broadcast_arrays(a, b))
            return function(x, y).view(np.uint32)[..., 0]

        types(instruction, "")
        return stepping(instruction, both, [kind] * 2, kind)

    return build


def _product(flags: set[str]) -> Function:
    return high_half if "hi" in flags else np.multiply


def multiply(instruction: Instruction) -> Step:
    kind, flags = types(instruction, "lo hi wide")
    if "wide" in flags:
        return stepping(instruction, wide_product, [kind] * 2, f"{kind[0]}{2 * width_of(kind)}")
    return stepping(instruction, _product(flags), [kind] * 2, kind)


def multiply_add(instruction: Instruction) -> Step:
    kind, flags = types(instruction, "lo hi wide cc")
    carries = "cc" in flags or instruction.opcode == "madc"
    if carries:
        product = _product(flags)
        return _carrying(instruction, kind, lambda a, b, c: (product(a, b), c), 3, subtract=False)
    if "wide" in flags:
        result = f"{kind[0]}{2 * width_of(kind)}"
        return stepping(instruction, lambda a, b, c: wide_product(a, b) + c, [kind, kind, result], result)
    product = _product(flags)
    return stepping(instruction, lambda a, b, c: product(a, b) + c, [kind] * 3, kind)


def _open(like: Array) -> Array:
    return np.full(like.shape, ANYTHING, like.dtype)


def _divisible(a: Array, b: Array) -> tuple[Array, Array, Array]:
    a, b = np.broadcast_arrays(a, b)
    zero = b == 0
    return a, np.where(zero, b.dtype.type(1), b), zero


def _divide(a: Array, b: Array) -> Array:
    a, b, zero = _divisible(a, b)
    quotient = np.where(b == -1, np.negative(a), (a - np.fmod(a, b)) // b) if a.dtype.kind == "i" else a // b
    return np.where(zero, _open(a), quotient)


def _remainder(a: Array, b: Array) -> Array:
    a, b, zero = _divisible(a, b)
    return np.where(zero, _open(a), np.fmod(a, b))


# ------------------------------------------------------------------------------------------------------------ carry


def _carrying(
    instruction: Instruction, kind: str, terms: Callable[..., tuple[Array, Array]], arity: int, subtract: bool
) -> Step:
    """A sum or difference of two terms and, if it says so, of the carry, which it may set."""
    takes, sets = instruction.opcode.endswith("c"), "cc" in instruction.modifiers
    width = width_of(kind)
    held = UNSIGNED[width]
    write = writer(instruction.operands[0], f"u{width}", instruction)
    reads = [reader(item, kind, instruction) for item in instruction.operands[1:]]
    if len(reads) != arity:
        raise instruction.unknown()

    def step(frame: Frame) -> None:
        left, right = (np.broadcast_to(x.view(held), frame.carry.shape) for x in terms(*(r(frame) for r in reads)))
        if subtract:
            right = ~right  # a - b - borrow is a + ~b + 1 - borrow
        extra = frame.carry.astype(held) if takes else np.zeros_like(left)
        extra = held(1) - extra if subtract else extra
        first = left + right
        total = first + extra
        over = (first < left) | (total < first)
        write(frame, total)
        if sets:
            carry = (~over if subtract else over).astype(np.uint8)
            frame.carry = carry if frame.whole else np.where(frame.active, carry, frame.carry)

    return step


def with_carry(subtract: bool) -> Builder:
    def build(instruction: Instruction) -> Step:
        kind, _ = types(instruction, "cc")
        return _carrying(instruction, kind, lambda a, b: (a, b), 2, subtract)

    return build


# ----------------------------------------------------------------------------------------------------- bits, shifts


def _shift(left: bool) -> Builder:
    """Amounts beyond the width shift everything out."""

    def build(instruction: Instruction) -> Step:
        kind, _ = types(instruction, "")
        width, dtype = width_of(kind), KINDS[kind]

        def shift(value: Array, amount: Array) -> Array:
            inside = np.minimum(amount, np.uint32(width - 1)).astype(dtype)
            beyond = amount >= width
            if left:
                return np.where(beyond, dtype(0), np.left_shift(value, inside))
            shifted = np.right_shift(value, inside)
            return shifted if is_signed(kind) else np.where(beyond, dtype(0), shifted)

        return stepping(instruction, shift, [kind, "u32"], kind)

    return build


def _funnel(instruction: Instruction) -> Step:
    direction, mode, kind = instruction.modifiers
    if direction not in ("l", "r") or mode not in ("wrap", "clamp") or kind != "b32":
        raise instruction.unknown()

    def shift(low: Array, high: Array, amount: Array) -> Array:
        count = (amount & np.uint32(31) if mode == "wrap" else np.minimum(amount, np.uint32(32))).astype(np.uint64)
        both = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
        shifted = both >> count if direction == "r" else both << count >> np.uint64(32)
        return shifted.astype(np.uint32)

    return stepping(instruction, shift, ["b32"] * 3, "b32")


def _extract(instruction: Instruction) -> Step:
    kind, _ = types(instruction, "")
    width, dtype = width_of(kind), KINDS[kind]
    held = UNSIGNED[width]

    def extract(value: Array, start: Array, length: Array) -> Array:
        start, length = start & np.uint32(255), length & np.uint32(255)
        beyond = start >= width
        bits = value.view(held) >> np.minimum(start, np.uint32(width - 1)).astype(held)
        bits = np.where(beyond, held(0), bits)
        full = length >= width
        count = np.where(full, np.uint32(0), length).astype(held)
        mask = np.where(full, ~held(0), (held(1) << count) - held(1))
        found = bits & mask
        if is_signed(kind):
            last = np.minimum(start + length - np.uint32(1), np.uint32(width - 1)).astype(held)
            sign = (value.view(held) >> last & held(1)).astype(bool) & (length > 0)
            found = np.where(sign, found | ~mask, found)
        return found.view(dtype)

    return stepping(instruction, extract, [kind, "u32", "u32"], kind)


def _insert(instruction: Instruction) -> Step:
    kind, _ = types(instruction, "")
    held = UNSIGNED[width_of(kind)]
    width = width_of(kind)

    def insert(part: Array, into: Array, start: Array, length: Array) -> Array:
        start, length = start & np.uint32(255), length & np.uint32(255)
        full = length >= width
        mask = np.where(full, ~held(0), (held(1) << np.where(full, np.uint32(0), length).astype(held)) - held(1))
        at = np.minimum(start, np.uint32(width - 1)).astype(held)
        mask = np.where(start >= width, held(0), mask << at)
        return into & ~mask | part << at & mask

    return stepping(instruction, insert, [kind, kind, "u32", "u32"], kind)


def _permute(instruction: Instruction) -> Step:
    if instruction.modifiers != ("b32",):
        raise instruction.unknown()

    def permute(a: Array, b: Array, selector: Array) -> Array:
        both = b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64)
        total: Array = np.zeros((), np.uint32)
        for number in range(4):
            chosen = selector >> np.uint32(4 * number) & np.uint32(15)
            byte = both >> (chosen & np.uint32(7)).astype(np.uint64) * np.uint64(8) & np.uint64(255)
            sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            byte = np.where(chosen & np.uint32(8), sign, byte).astype(np.uint32)
            total = total | byte << np.uint32(8 * number)
        return total

    return stepping(instruction, permute, ["b32"] * 3, "b32")


def _lookup(instruction: Instruction) -> Step:
    *operands, table = instruction.operands
    if instruction.modifiers != ("b32",) or len(operands) != 4 or not hasattr(table, "value"):
        raise instruction.unknown()
    value = table.value

    def lookup(a: Array, b: Array, c: Array) -> Array:
        total: Array = np.zeros((), np.uint32)
        for number in range(8):
            if value >> number & 1:
                x, y, z = (part if number >> at & 1 else ~part for part, at in ((a, 2), (b, 1), (c, 0)))
                total = total | x & y & z
        return total

    short = Instruction("lop3", ("b32",), tuple(operands), None, False, instruction.text)
    return stepping(short, lookup, ["b32"] * 3, "b32")


def _counting(function: Callable[[Array, int], Array]) -> Builder:
    """Instructions that count bits, into 32 of them."""

    def build(instruction: Instruction) -> Step:
        kind, _ = types(instruction, "")
        width = width_of(kind)
        return stepping(instruction, lambda a: function(a, width).astype(np.uint32), [kind], "u32")

    return build


def _leading_zeros(value: Array, width: int) -> Array:
    count = np.zeros(value.shape, np.uint32)
    for at in range(width):
        count = np.where(value >> value.dtype.type(at) != 0, np.uint32(at + 1), count)
    return np.uint32(width) - count


def _ones(value: Array, width: int) -> Array:
    total = np.zeros(value.shape, np.uint32)
    for at in range(width):
        total = total + (value >> value.dtype.type(at) & value.dtype.type(1)).astype(np.uint32)
    return total


def _reversed(kind: str, flags: set[str]) -> Function:
    width = width_of(kind)

    def reverse(value: Array) -> Array:
        one, total = value.dtype.type(1), np.zeros_like(value)
        for at in range(width):
            total = total | (value >> value.dtype.type(at) & one) << value.dtype.type(width - 1 - at)
        return total

    return reverse


def _logical(function: Function) -> Builder:
    return elementwise(plain(function), 2)


BUILDERS: dict[str, Builder] = {
    "mad": multiply_add,
    "madc": multiply_add,
    "addc": with_carry(subtract=False),
    "subc": with_carry(subtract=True),
    "div": elementwise(plain(_divide), 2),
    "rem": elementwise(plain(_remainder), 2),
    "and": _logical(np.bitwise_and),
    "or": _logical(np.bitwise_or),
    "xor": _logical(np.bitwise_xor),
    "not": elementwise(plain(np.invert), 1),
    "shl": _shift(left=True),
    "shr": _shift(left=False),
    "shf": _funnel,
    "bfe": _extract,
    "bfi": _insert,
    "prmt": _permute,
    "lop3": _lookup,
    "clz": _counting(_leading_zeros),
    "popc": _counting(_ones),
    "brev": elementwise(_reversed, 1),
}
"""Instructions that are about integers alone, or in the form that is."""
ARITHMETIC: dict[str, Builder] = {
    "add": in_pairs(np.add),
    "sub": in_pairs(np.subtract),
    "mul": multiply,
    "neg": elementwise(plain(np.negative), 1),
    "abs": elementwise(plain(np.abs), 1),
    "min": in_pairs(np.minimum),
    "max": in_pairs(np.maximum),
    "div": BUILDERS["div"],
}
"""The same where floats have them too."""
