"""Products of matrices by the threads of a warp.

Products are exact, and their sum with the accumulator is made in float64 before it is rounded once to the result. Chips
round in between, in a way that the ISA leaves open.

Source: PTX ISA 8.7, 9.7.14.5 Matrix multiply-accumulate operation using mma instruction: the fragments of
m16n8k8 (.tf32), m16n8k8 and m16n8k16 (.f16, .bf16), m16n8k16 and m16n8k32 (.s8, .u8), m8n8k4 (.f64).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.triton.ptx.float8 import KINDS8, widen8
from tests.triton.ptx.floats import canonical, narrow, widen
from tests.triton.ptx.parse import Instruction, Vector
from tests.triton.ptx.registers import Array, Builder, Frame, Step, reader, writer
from tests.triton.ptx.warps import WARP, whole_warps

_LANES = np.arange(WARP)
_GROUP, _IN_GROUP = _LANES // 4, _LANES % 4


@dataclass(frozen=True)
class Fragment:
    """Which elements of a matrix a thread holds.

    Args:
        rows, columns: of its elements, (elements, threads).
        shape: of the matrix.
    """

    rows: Array
    columns: Array
    shape: tuple[int, int]

    def gather(self, held: Array) -> Array:
        """Matrices (warps, rows, columns) from what threads hold, (elements, warps, threads)."""
        whole = np.empty((held.shape[1], *self.shape), held.dtype)
        whole[:, self.rows, self.columns] = held.swapaxes(0, 1)
        return whole

    def scatter(self, matrices: Array) -> Array:
        """What threads hold of matrices."""
        return matrices[:, self.rows, self.columns].swapaxes(0, 1)


def _fragment(shape: tuple[int, int], count: int, place: Callable[[int], tuple[Array, Array]]) -> Fragment:
    rows, columns = zip(*(place(number) for number in range(count)))
    return Fragment(np.stack(rows), np.stack(columns), shape)


def left(m: int, k: int, pack: int) -> Fragment:
    """The left operand: `pack` elements side by side to a register of 32 bits, eight rows apart, then more columns."""

    def place(number: int) -> tuple[Array, Array]:
        register, element = divmod(number, pack)
        lower = register % 2 if m == 16 else 0
        column = register // 2 if m == 16 else register
        return _GROUP + 8 * lower, _IN_GROUP * pack + element + 4 * pack * column

    return _fragment((m, k), m * k // WARP, place)


def right(k: int, n: int, pack: int) -> Fragment:
    """The right operand, column by column."""

    def place(number: int) -> tuple[Array, Array]:
        register, element = divmod(number, pack)
        return _IN_GROUP * pack + element + 4 * pack * register, _GROUP

    return _fragment((k, n), k * n // WARP, place)


def result(m: int, n: int) -> Fragment:
    """The accumulator: pairs of neighbours, eight rows apart."""
    return _fragment((m, n), m * n // WARP, lambda i: (_GROUP + 8 * (i // 2), _IN_GROUP * 2 + i % 2))


_SHAPES: dict[tuple[str, str], int] = {
    ("m16n8k8", "tf32"): 1, ("m16n8k4", "tf32"): 1,
    ("m16n8k8", "f16"): 2, ("m16n8k16", "f16"): 2, ("m16n8k8", "bf16"): 2, ("m16n8k16", "bf16"): 2,
    ("m16n8k16", "s8"): 4, ("m16n8k32", "s8"): 4, ("m16n8k16", "u8"): 4, ("m16n8k32", "u8"): 4,
    ("m8n8k4", "f64"): 1,
}  # fmt: skip
"""Elements per register, by shape and operand."""


def numbers(kind: str, held: Array) -> Array:
    """Elements as numbers to calculate with, of their bits."""
    if kind == "tf32":  # the lower bits are not looked at
        return (held & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    if kind in ("s8", "u8"):
        return held.view(np.int8 if kind == "s8" else np.uint8).astype(np.int64)
    return widen8(kind, held) if kind in KINDS8 else widen(kind, held).astype(np.float64)


def values_of(kind: str, registers: Array) -> Array:
    """The elements of registers (registers, ...) as numbers, (elements, ...)."""
    if kind == "f64":
        return registers.view(np.float64)
    size = 4 if kind == "tf32" else 1 if kind in ("s8", "u8", *KINDS8) else 2
    split = [(registers >> np.uint32(8 * size * at)).astype(f"u{size}") for at in range(4 // size)]
    return numbers(kind, np.stack(split, 1).reshape(-1, *registers.shape[1:]))


def _accumulator(kind: str, registers: Array) -> Array:
    if kind == "f16":
        return values_of("f16", registers)
    return registers.view({"f32": np.float32, "s32": np.int32, "f64": np.float64}[kind])


def _registers(kind: str, values: Array) -> Array:
    """Registers with the elements of a result."""
    if kind == "f16":
        halves = narrow("f16", values.astype(np.float32)).astype(np.uint32)
        return halves[::2] | halves[1::2] << np.uint32(16)
    return values.view(np.uint64 if kind == "f64" else np.uint32)


def _summed(total: Array, kind: str, saturates: bool) -> Array:
    if kind == "s32":
        info = np.iinfo(np.int32)
        return np.clip(total, info.min, info.max).astype(np.int32) if saturates else total.astype(np.int32)
    return canonical(total.astype(np.float32)) if kind == "f32" else total


def multiply(instruction: Instruction) -> Step:
    flags = [flag for flag in instruction.modifiers if flag != "satfinite"]
    saturates = "satfinite" in instruction.modifiers
    if len(flags) != 9 or flags[:2] != ["sync", "aligned"] or flags[3:5] != ["row", "col"]:
        raise instruction.unknown()
    shape, (d, a, b, c) = flags[2], flags[5:]
    pack = _SHAPES.get((shape, a))
    fits = {"s8": "s32", "u8": "s32", "f64": "f64", "tf32": "f32", "bf16": "f32"}.get(a, d)
    if pack is None or d != c or d != fits or d not in ("f32", "f16", "s32", "f64") or (a != b and fits != "s32"):
        raise instruction.unknown()
    m, n, k = (int(part) for part in shape.replace("m", "").replace("n", " ").replace("k", " ").split())
    fragments = left(m, k, pack), right(k, n, pack), result(m, n)
    width = "b64" if a == "f64" else "b32"
    reads = []
    for operand in instruction.operands[1:]:
        parts = operand.parts if isinstance(operand, Vector) else (operand,)
        reads.append([reader(item, width, instruction) for item in parts])
    target = instruction.operands[0]
    if not isinstance(target, Vector):
        raise instruction.unknown()
    writes = [writer(item, width, instruction) for item in target.parts]

    def step(frame: Frame) -> None:
        rows = whole_warps(frame, instruction)
        shape_of_threads = frame.active.shape
        held = [np.stack([np.broadcast_to(one(frame), shape_of_threads)[rows] for one in item]) for item in reads]
        x, y = fragments[0].gather(values_of(a, held[0])), fragments[1].gather(values_of(b, held[1]))
        old = fragments[2].gather(_accumulator(c, held[2]))
        total = np.matmul(x, y) + old.astype(x.dtype)
        made = _registers(d, fragments[2].scatter(_summed(total, d, saturates)))
        for write, registers in zip(writes, made, strict=True):
            whole = np.zeros(shape_of_threads, registers.dtype)
            whole[rows] = registers
            write(frame, whole)

    return step


BUILDERS: dict[str, Builder] = {"mma": multiply}
