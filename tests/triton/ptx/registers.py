"""Operands of instructions: how they are read from and written to the registers of all threads at once.

A register is a numpy array of unsigned integers, or bools, with an element per thread; an instruction's type says how
its bits are read. What was never written holds rubbish.

Source: PTX ISA 8.7, 5.2 Types, 6.2 Using Addresses and Operands, 9.4.1 Operand Size Exceeding Instruction-Type Size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.triton.ptx.parse import Function, Instruction, Name, Number, Operand, PtxError, Register, Vector

Array = np.ndarray[Any, Any]
UNSIGNED: dict[int, Any] = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
"""How registers of a width are held."""
KINDS: dict[str, Any] = {
    "pred": np.bool_, "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "f16": np.float16, "bf16": np.uint16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32, "f16x2": np.uint32, "bf16x2": np.uint32,
    "u16x2": np.uint32, "s16x2": np.uint32,
    "tf32": np.uint32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64,
}  # fmt: skip
"""How the types of instructions are read; bfloat16 and packed pairs as their bits."""
RUBBISH = 0xA5
LOCAL_WINDOW, SHARED_WINDOW = 1 << 62, 1 << 61
"""Where in the generic address space local and shared memory begin."""


def width_of(kind: str) -> int:
    """Bits of a type."""
    return 1 if kind == "pred" else 8 * np.dtype(KINDS[kind]).itemsize


class InFlight:
    """A register that an asynchronous product is still to bring, for some threads; others may use it.

    Args:
        frame: whose register it is.
        name: of it.
        bits: of all threads; those of threads that wait for it are old ones.
        threads: that wait for it.
        wait: has the active threads get it after all, as the assembler does when one is used too early.
    """

    def __init__(self, frame: Frame, name: str, bits: Array, threads: Array, wait: Callable[[Frame], None]) -> None:
        self.frame, self.name, self.bits, self.threads, self.wait = frame, name, bits, threads, wait

    def known(self) -> Array:
        """The bits, of use to the active threads."""
        if (self.frame.active & self.threads).any():
            self.wait(self.frame)
        return self.bits

    def view(self, dtype: Any) -> Array:
        return self.known().view(dtype)

    def astype(self, dtype: Any) -> Array:
        return self.known().astype(dtype)


class Frame:
    """One call of a function by some threads.

    Args:
        batch: the programs that run, see `graphc`'s test `machine`.
        function: what is called.
        active: the threads that call it.
        depot: where in local memory its variables begin.

    Attributes:
        active: the threads that execute the current instruction.
        live: those that have not returned.
        whole: all that are live are active.
        parameters: what has been stored to the param space, by name.
        carry: the condition code register.
        in_flight: registers that are `InFlight`, by name.
    """

    def __init__(self, batch: Any, function: Function, active: Array, depot: int = 0) -> None:
        self.batch, self.function, self.depot = batch, function, depot
        self.active, self.live, self.whole = active, active, True
        self.registers: dict[str, Array] = {}
        self.parameters: dict[str, Array] = {}
        self.carry: Array = np.zeros(len(active), np.uint8)
        self.in_flight: dict[str, InFlight] = {}
        self.products: Any = None  # of `warpgroups`
        self.local_bytes = sum(function.local.values())

    def held(self, register: Register) -> Array:
        """The bits of a register."""
        found = self.registers.get(register.name)
        if found is None:
            found = self.registers[register.name] = _rubbish(register.width, len(self.active))
        return found

    def set(self, register: Register, bits: Array) -> None:
        """Give the active threads' registers new bits."""
        if self.in_flight and register.name in self.in_flight:
            awaited = self.in_flight[register.name]
            awaited.bits = np.where(self.active, bits, awaited.known())
            if register.name in self.in_flight:  # others wait for it
                return
        if not self.whole:
            bits = np.where(self.active, bits, self.held(register))
        elif bits.shape != self.active.shape:
            bits = np.full(self.active.shape, bits)
        self.registers[register.name] = bits


def _rubbish(width: int, count: int) -> Array:
    if width == 1:
        return np.ones(count, np.bool_)
    return np.full(count * width // 8, RUBBISH, np.uint8).view(UNSIGNED[width])


Read = Callable[[Frame], Array]
Write = Callable[[Frame, Array], None]
Step = Callable[[Frame], None]
Builder = Callable[[Instruction], Step]


def reader(operand: Operand, kind: str, instruction: Instruction) -> Read:
    """How an operand is read as a type.

    Raises:
        PtxError: it cannot be.
    """
    dtype, width = KINDS[kind], width_of(kind)
    if isinstance(operand, Register):
        return _register_reader(operand, dtype, width, instruction)
    if isinstance(operand, Number):
        return _number_reader(operand, kind, instruction)
    if isinstance(operand, Vector):
        return _packed_reader(operand, kind, instruction)
    if isinstance(operand, Name):
        name = operand.text
        if name.startswith("%"):
            return lambda frame: frame.batch.special(name, instruction).astype(UNSIGNED[width], copy=False).view(dtype)
        return lambda frame: np.asarray(frame.batch.address_of(name, frame, instruction), UNSIGNED[width]).view(dtype)
    raise instruction.unknown("an operand that is not known")


def _register_reader(register: Register, dtype: Any, width: int, instruction: Instruction) -> Read:
    name = register.name
    if register.width < width or (register.width == 1) != (width == 1):
        raise instruction.unknown("a register of another size")
    if register.width > width:
        narrow = UNSIGNED[width]
        return lambda frame: frame.held(register).astype(narrow).view(dtype)

    def read(frame: Frame) -> Array:
        found = frame.registers.get(name)
        return (frame.held(register) if found is None else found).view(dtype)

    return read


def _number_reader(number: Number, kind: str, instruction: Instruction) -> Read:
    width = width_of(kind)
    is_float = kind in ("f16", "bf16", "f32", "f64")
    if (number.width and number.width != width) or (is_float and not number.width):
        raise instruction.unknown("an immediate of another type")
    bits = np.bool_(number.value != 0) if width == 1 else UNSIGNED[width](number.value % (1 << width))
    value = np.asarray(bits).view(KINDS[kind])
    return lambda frame: value


def _packed_reader(vector: Vector, kind: str, instruction: Instruction) -> Read:
    """Several registers as one, the first lowest."""
    width = width_of(kind)
    part = width // len(vector.parts)
    reads = [reader(item, f"b{part}", instruction) for item in vector.parts]
    wide = UNSIGNED[width]

    def read(frame: Frame) -> Array:
        total = reads[0](frame).astype(wide)
        for number, one in enumerate(reads[1:], 1):
            total = total | one(frame).astype(wide) << wide(number * part)
        return total.view(KINDS[kind])

    return read


def writer(operand: Operand, kind: str, instruction: Instruction) -> Write:
    """How a result of a type is written; to wider registers with its sign, or zeros in front.

    Raises:
        PtxError: it cannot be.
    """
    width = width_of(kind)
    if isinstance(operand, Vector):
        return _unpacking_writer(operand, kind, instruction)
    if isinstance(operand, Name) and operand.text == "_":
        return lambda frame, value: None
    if not isinstance(operand, Register) or operand.width < width or (operand.width == 1) != (width == 1):
        raise instruction.unknown("a result that does not fit")
    held, register = UNSIGNED[operand.width], operand
    if operand.width == width:
        return lambda frame, value: frame.set(register, value.view(held))
    wide = np.dtype(f"i{operand.width // 8}") if kind[0] == "s" else held
    bits = UNSIGNED[width]
    if kind[0] == "s":
        return lambda frame, value: frame.set(register, value.astype(wide).view(held))
    return lambda frame, value: frame.set(register, value.view(bits).astype(held))


def _unpacking_writer(vector: Vector, kind: str, instruction: Instruction) -> Write:
    width = width_of(kind)
    part, wide = width // len(vector.parts), UNSIGNED[width]
    narrow = UNSIGNED[part]
    writes = [writer(item, f"b{part}", instruction) for item in vector.parts]

    def write(frame: Frame, value: Array) -> None:
        bits = value.view(wide)
        for number, one in enumerate(writes):
            one(frame, (bits >> wide(number * part)).astype(narrow))

    return write


def types(instruction: Instruction, allowed: str) -> tuple[str, set[str]]:
    """The type of an instruction, and what else it says, which must be among `allowed`.

    Raises:
        PtxError: it says more.
    """
    *flags, kind = instruction.modifiers
    if kind not in KINDS or set(flags) - set(allowed.split()):
        raise instruction.unknown()
    return kind, set(flags)


__all__ = ["Array", "Builder", "Frame", "PtxError", "Read", "Step", "Write", "reader", "types", "width_of", "writer"]
