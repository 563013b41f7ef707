"""Conversions, moves, comparisons and choices.

Source: PTX ISA 8.7, 9.7.9.21 cvt, 9.7.9.3 mov, 9.7.9.20 cvta, 9.7.7 Comparison and Selection (setp, selp).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.triton.ptx.exact import exactly
from tests.triton.ptx.float8 import PAIRS8, convert_pair
from tests.triton.ptx.floats import canonical, flush, mode_of, narrow, saturate, widen
from tests.triton.ptx.integers import Function, stepping
from tests.triton.ptx.parse import Instruction, Vector
from tests.triton.ptx.registers import KINDS, LOCAL_WINDOW, Array, Builder, Frame, Step, reader, types, width_of, writer

_TO_WHOLE: dict[str, Function] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_CVT_FLAGS = "rn rz rm rp rna rni rzi rmi rpi ftz sat satfinite relu"


def is_float(kind: str) -> bool:
    return kind.startswith(("f", "bf"))


def convert(instruction: Instruction) -> Step:
    *flags, target, source = instruction.modifiers
    if {target, source} & PAIRS8:
        return convert_pair(instruction)
    if target.endswith("x2") and len(instruction.operands) == 3:
        return _convert_pair(instruction, set(flags), target, source)
    if set(flags) - set(_CVT_FLAGS.split()) or source not in KINDS or target not in KINDS:
        raise instruction.unknown()
    return stepping(instruction, conversion(instruction, target, source, set(flags)), [source], target)


def _convert_pair(instruction: Instruction, flags: set[str], target: str, source: str) -> Step:
    """Two float32 to a pair, the first operand in the upper half."""
    if flags != {"rn"} or source != "f32":
        raise instruction.unknown()
    kind = target.removesuffix("x2")

    def pair(high: Array, low: Array) -> Array:
        upper, lower = (narrow(kind, part).astype(np.uint32) for part in (high, low))
        return upper << np.uint32(16) | lower

    return stepping(instruction, pair, ["f32", "f32"], target)


def conversion(instruction: Instruction, target: str, source: str, flags: set[str]) -> Function:
    """What a conversion does to values."""
    if not is_float(source):
        if is_float(target):
            return _from_integer(instruction, target, source, flags)
        return _saturating(target, source) if "sat" in flags else (lambda a: a.astype(KINDS[target]))
    if target == "tf32" and source == "f32" and flags == {"rna"}:
        return _to_tf32
    if is_float(target):
        return _between_floats(instruction, target, source, flags)
    if target == "tf32":
        raise instruction.unknown()
    whole = next((_TO_WHOLE[flag] for flag in flags if flag in _TO_WHOLE), None)
    if whole is None:
        raise instruction.unknown()
    return _to_integer(target, source, whole, "ftz" in flags)


def _saturating(target: str, source: str) -> Function:
    low, high = np.iinfo(KINDS[target]).min, np.iinfo(KINDS[target]).max
    least, most = np.iinfo(KINDS[source]).min, np.iinfo(KINDS[source]).max
    dtype = KINDS[source]
    return lambda a: np.clip(a, dtype(max(low, least)), dtype(min(high, most))).astype(KINDS[target])


def _from_integer(instruction: Instruction, target: str, source: str, flags: set[str]) -> Function:
    if flags != {"rn"}:
        raise instruction.unknown()
    if target == "f16":  # what float32 rounds is infinite in float16
        return lambda a: narrow(target, a.astype(np.float32)).view(np.float16)
    if target == "bf16":
        return lambda a: narrow(target, _to_odd(a))
    return lambda a: a.astype(KINDS[target])


def _to_odd(value: Array) -> Array:
    """Integers in float32, where what is cut off sets the last bit, so that rounding again is rounding once."""
    bits = np.uint64(1) << np.uint64(63)
    wide = value.astype(np.int64).view(np.uint64) if value.dtype.kind == "i" else value.astype(np.uint64)
    negative = (wide & bits != 0) if value.dtype.kind == "i" else np.zeros(value.shape, bool)
    size = np.where(negative, np.uint64(0) - wide, wide)
    exponent = np.frexp(size.astype(np.float64))[1].astype(np.int64)  # one too large at most
    cut = np.maximum(exponent - 24, 0).astype(np.uint64)
    top = size >> cut
    top = top | (top << cut != size).astype(np.uint64)
    return np.ldexp(np.where(negative, -1, 1) * top.astype(np.float64), cut.astype(np.int64)).astype(np.float32)


def _to_tf32(value: Array) -> Array:
    """To the nearest with 10 bits of mantissa, half away from zero."""
    bits = np.ascontiguousarray(value).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(value), rounded, bits)


def _between_floats(instruction: Instruction, target: str, source: str, flags: set[str]) -> Function:
    whole = next((_TO_WHOLE[flag] for flag in flags if flag in _TO_WHOLE), None)
    order = {"f16": 0, "bf16": 0, "f32": 1, "f64": 2}
    narrows = order[target] < order[source]
    mode = mode_of(flags, "")
    if narrows != bool(mode) or flags - {"rn", "rz", "rm", "rp", "ftz", "sat", *_TO_WHOLE}:
        raise instruction.unknown()
    if narrows and (target in ("f16", "bf16")) and (source != "f32" or mode != "rn"):
        raise instruction.unknown()

    def call(value: Array) -> Array:
        if source in ("f16", "bf16"):
            value = widen(source, value)
        value = flush(value) if "ftz" in flags and value.dtype == np.float32 else value
        value = whole(value) if whole is not None else value
        if target in ("f16", "bf16"):
            return narrow(target, saturate(value) if "sat" in flags else value).view(KINDS[target])
        if narrows and mode != "rn":
            value = exactly("narrow", mode, value)
        value = canonical(value.astype(KINDS[target]))
        value = flush(value) if "ftz" in flags and target == "f32" else value
        return saturate(value) if "sat" in flags else value

    return call


def _to_integer(target: str, source: str, whole: Function, flushes: bool) -> Function:
    """To the nearest that the type has; NaN is 0, or the highest bit alone where float64 or 64 bits are involved."""
    info, dtype = np.iinfo(KINDS[target]), KINDS[target]
    lost = 0 if source != "f64" and width_of(target) < 64 else 1 << width_of(target) - 1

    def call(value: Array) -> Array:
        value = widen(source, value) if source in ("f16", "bf16") else value
        value = whole(flush(value) if flushes else value).astype(np.float64)
        low, high = value <= float(info.min), value >= float(info.max)  # the latter is rounded up where it is not exact
        inside = np.where(low | high | np.isnan(value), 0.0, value).astype(dtype)
        result = np.where(high, dtype(info.max), np.where(low, dtype(info.min), inside))
        missing = np.asarray(lost % (1 << width_of(target)), f"u{width_of(target) // 8}").view(dtype)
        return np.where(np.isnan(value), missing, result)

    return call


# ------------------------------------------------------------------------------------------------------------- moves


def move(instruction: Instruction) -> Step:
    kind, _ = types(instruction, "")
    if any(isinstance(item, Vector) for item in instruction.operands):
        kind = f"b{width_of(kind)}"
    return stepping(instruction, lambda a: a, [kind], kind)


def generic_address(instruction: Instruction) -> Step:
    """Addresses of global memory are the same everywhere; those of local memory begin at a window."""
    *flags, kind = instruction.modifiers
    windows: dict[tuple[str, ...], int] = {("local",): LOCAL_WINDOW, ("to", "local"): -LOCAL_WINDOW}
    if kind != "u64" or (tuple(flags) not in windows and flags[-1] != "global"):
        raise instruction.unknown()
    shift = np.uint64(windows.get(tuple(flags), 0) % (1 << 64))
    return stepping(instruction, lambda a: a + shift, [kind], kind)


# ------------------------------------------------------------------------------------------- comparisons and choices

_ORDERED: dict[str, Callable[..., Array]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_JOINED: dict[str, Function] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _comparison(name: str, kind: str) -> Function | None:
    if not is_float(kind):
        return _ORDERED.get(_UNSIGNED.get(name, name))
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "ne":  # unlike numpy's, false for NaN
        return lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b))
    if name in _ORDERED:
        return _ORDERED[name]
    if name == "neu":
        return np.not_equal
    ordered = _ORDERED.get(name[:-1])
    return None if ordered is None or name[-1] != "u" else (lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b))


def compare(instruction: Instruction) -> Step:
    name, *flags, kind = instruction.modifiers
    joined = next((flag for flag in flags if flag in _JOINED), None)
    function = _comparison(name, kind)
    if function is None or set(flags) - {"ftz", *_JOINED}:
        raise instruction.unknown()
    if kind in ("f16x2", "bf16x2"):
        return _compare_pairs(instruction, kind, function, flags)
    count = 3 if joined else 2
    results = instruction.operands[:-count]
    reads = [reader(item, kind, instruction) for item in instruction.operands[-count:][:2]]
    third = reader(instruction.operands[-1], "pred", instruction) if joined else None
    writes = [writer(item, "pred", instruction) for item in results]
    if len(writes) not in (1, 2):
        raise instruction.unknown()
    flushes = "ftz" in flags

    def step(frame: Frame) -> None:
        a, b = (read(frame) for read in reads)
        if kind == "bf16":
            a, b = widen(kind, a), widen(kind, b)
        found = function(flush(a), flush(b)) if flushes else function(a, b)
        both = [found, ~found][: len(writes)]
        if third is not None:
            both = [_JOINED[joined or ""](one, third(frame)) for one in both]
        for write, one in zip(writes, both, strict=True):
            write(frame, one)

    return step


def _compare_pairs(instruction: Instruction, kind: str, function: Function, flags: list[str]) -> Step:
    """A predicate for the lower halves, one for the upper ones."""
    if len(instruction.operands) != 4 or flags:
        raise instruction.unknown()
    writes = [writer(item, "pred", instruction) for item in instruction.operands[:2]]
    reads = [reader(item, "b32", instruction) for item in instruction.operands[2:]]

    def step(frame: Frame) -> None:
        pairs = [read(frame) for read in reads]
        for write, shift in zip(writes, (0, 16), strict=True):
            a, b = (widen(kind[:-2], (pair >> np.uint32(shift)).astype(np.uint16)) for pair in pairs)
            write(frame, function(a, b))

    return step


def select(instruction: Instruction) -> Step:
    kind, _ = types(instruction, "")
    return stepping(instruction, lambda a, b, p: np.where(p, a, b), [kind, kind, "pred"], kind)


BUILDERS: dict[str, Builder] = {
    "cvt": convert,
    "mov": move,
    "cvta": generic_address,
    "setp": compare,
    "selp": select,
}
