"""One form for programs that say the same: literals to the right, one view for a chain of them, nothing idle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.dims import Dim
from graphc.ir.graph import Graph, Op, Operand, Value
from graphc.ir.types import DType
from graphc.loopir.scalar import SCALAR_OPS
from graphc.passes.base import ORDERED_ZEROS, PassContext, PassResult, Rewriter, Rules, defined_by

RULES = Rules()
_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
_MANTISSA_BITS = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}
_WIDER_FLOATS = {
    "f32": ("f64",),
    "f16": ("f32", "f64"),
    "bf16": ("f32", "f64"),
    "f8e4m3fn": ("f16", "bf16", "f32", "f64"),
    "f8e5m2": ("f16", "bf16", "f32", "f64"),
}


@dataclass(frozen=True)
class Canonicalize:
    """Brings ops into the form that later passes match.

    Before:
        %0: f32[4, 2] = permute(%x) {dims=[1, 0]}
        %1: f32[2, 4] = permute(%0) {dims=[1, 0]}
        %2: f32[2, 4] = add(1.0, %1)
    After:
        %2: f32[2, 4] = add(%x, 1.0)

    Every rule is exact, NaN and -0.0 included.
    """

    name: ClassVar[str] = "canonicalize"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        return RULES.run(graph, ctx)


def _source(op: Op) -> Value:
    value = op.operands[0]
    assert isinstance(value, Value)
    return value


# literals


@RULES.add(*SCALAR_OPS)
def literal_to_the_right(rewriter: Rewriter, op: Op) -> Value | None:
    """`add(1.0, x)` is `add(x, 1.0)`, for commutative ops."""
    if len(op.operands) != 2 or isinstance(op.operands[0], Value) or not isinstance(op.operands[1], Value):
        return None
    if not rewriter.ctx.get_def(op.name).commutative or (op.name in ORDERED_ZEROS and op.operands[0] == 0):
        return None
    op.operands.reverse()
    return op.result


@RULES.add(*_MIRRORED)
def mirror_comparison(rewriter: Rewriter, op: Op) -> Value | None:
    """`lt(1.0, x)` is `gt(x, 1.0)`."""
    left, right = op.operands
    if isinstance(left, Value) or not isinstance(right, Value):
        return None
    return rewriter.op(_MIRRORED[op.name], right, left)


@RULES.add(*SCALAR_OPS)
def drop_expand_before_broadcast(rewriter: Rewriter, op: Op) -> Value | None:
    """`add(expand(x), y)` is `add(x, y)` where y alone gives the result its shape: pointwise ops broadcast.

    So it is with a reshape that only adds leading dims of size 1.
    """
    if len(op.operands) < 2:
        return None
    shape = op.results[0].shape
    changed = False
    for number, operand in enumerate(op.operands):
        narrow = _before_broadcast(operand)
        if narrow is None:
            continue
        others = [item.shape for other, item in enumerate(op.operands) if other != number and isinstance(item, Value)]
        if _broadcast([narrow.shape, *others]) == shape:
            op.operands[number] = narrow
            changed = True
    return op.result if changed else None


def _before_broadcast(operand: Operand) -> Value | None:
    """What broadcasts to `operand`: the source of an expand, or of a reshape that only adds leading dims of size 1."""
    if not isinstance(operand, Value) or operand.op is None:
        return None
    if operand.op.name == "expand":
        return _source(operand.op)
    if operand.op.name != "reshape":
        return None
    source = _source(operand.op)
    lead = len(operand.shape) - len(source.shape)
    return source if operand.shape == (1,) * lead + source.shape else None


def _broadcast(shapes: list[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """The common shape of shapes that are known to broadcast together."""
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = [1] * rank
    for shape in shapes:
        for dim, size in enumerate(shape, rank - len(shape)):
            if size != 1:
                result[dim] = size
    return tuple(result)


# views


@RULES.add("reshape")
def merge_reshapes(rewriter: Rewriter, op: Op) -> Value | None:
    """A reshape to the shape its operand has goes; a reshape of a reshape is one reshape."""
    source = _source(op)
    if source.shape == op.result.shape:
        return source
    inner = defined_by(source, "reshape")
    return None if inner is None else rewriter.op("reshape", _source(inner), shape=op.attrs["shape"])


@RULES.add("permute")
def merge_permutes(rewriter: Rewriter, op: Op) -> Value | None:
    """A permute of a permute is one; a permute that keeps the order, such as a double transpose, goes."""
    source, dims = _source(op), op.attrs["dims"]
    if dims == tuple(range(len(dims))):
        return source
    inner = defined_by(source, "permute")
    if inner is None:
        return None
    first = inner.attrs["dims"]
    return rewriter.op("permute", _source(inner), dims=tuple(first[dim] for dim in dims))


@RULES.add("permute")
def permute_of_unit_dims_is_reshape(rewriter: Rewriter, op: Op) -> Value | None:
    """A permute that moves only dims of size 1 is a reshape, which merges with others."""
    source = _source(op)
    order = [dim for dim in op.attrs["dims"] if source.shape[dim] != 1]
    if order != sorted(order):
        return None
    return rewriter.op("reshape", source, shape=op.result.shape)


@RULES.add("expand")
def merge_expands(rewriter: Rewriter, op: Op) -> Value | None:
    """An expand to the shape its operand has goes; one that adds only dims of size 1 is a reshape; two are one."""
    source, shape = _source(op), op.result.shape
    if source.shape == shape:
        return source
    lead = len(shape) - len(source.shape)
    if shape[lead:] == source.shape and all(size == 1 for size in shape[:lead]):
        return rewriter.op("reshape", source, shape=shape)
    narrow = _before_broadcast(source)
    return None if narrow is None else rewriter.op("expand", narrow, shape=shape)


@RULES.add("slice")
def merge_slices(rewriter: Rewriter, op: Op) -> Value | None:
    """A slice of everything goes; two slices of one dim are one."""
    source, attrs = _source(op), op.attrs
    dim, start, step = attrs["dim"], attrs["start"], attrs["step"]
    if source.shape == op.result.shape and start == 0:
        return source
    inner = defined_by(source, "slice")
    if inner is None or inner.attrs["dim"] != dim:
        return None
    base, length = _source(inner), op.result.shape[dim]
    if not all(isinstance(item, int) for item in (start, length, inner.attrs["start"], base.shape[dim])):
        return None
    first = min(inner.attrs["start"] + start * inner.attrs["step"], base.shape[dim])
    stride = step * inner.attrs["step"]
    stop = first + (length - 1) * stride + 1 if length else first
    return rewriter.op("slice", base, dim=dim, start=first, stop=stop, step=stride)


@RULES.add("slice")
def slice_of_concat(rewriter: Rewriter, op: Op) -> Value | None:
    """A slice that lies within one part of a concat is a slice of that part."""
    concat, dim = defined_by(op.operands[0], "concat"), op.attrs["dim"]
    if concat is None or concat.attrs["dim"] != dim or not op.result.shape[dim]:
        return None
    start, length, step = op.attrs["start"], op.result.shape[dim], op.attrs["step"]
    if not isinstance(start, int) or not isinstance(length, int):
        return None
    for part in concat.inputs:
        size = part.shape[dim]
        if not isinstance(size, int):
            return None
        if start < size:
            last = start + (length - 1) * step
            return rewriter.op("slice", part, dim=dim, start=start, stop=last + 1, step=step) if last < size else None
        start -= size
    return None


@RULES.add("flip")
def merge_flips(rewriter: Rewriter, op: Op) -> Value | None:
    """A flip of dims of size 1 or of none goes; a flip of a flip flips the dims that only one of them does."""
    source, dims = _source(op), op.attrs["dims"]
    needed = tuple(dim for dim in dims if source.shape[dim] != 1)
    if not needed:
        return source
    inner = defined_by(source, "flip")
    if inner is not None:
        both = tuple(sorted(set(needed) ^ set(inner.attrs["dims"])))
        return rewriter.op("flip", _source(inner), dims=both) if both else _source(inner)
    return None if needed == dims else rewriter.op("flip", source, dims=needed)


@RULES.add("pad")
def drop_pad_by_nothing(rewriter: Rewriter, op: Op) -> Value | None:
    """A pad by 0 on every side goes."""
    return None if any(op.attrs["low"]) or any(op.attrs["high"]) else _source(op)


@RULES.add("concat")
def drop_empty_parts(rewriter: Rewriter, op: Op) -> Value | None:
    """A concat of one part goes; parts of size 0 are left out."""
    dim = op.attrs["dim"]
    parts = [part for part in op.inputs if part.shape[dim] != 0]
    if len(op.operands) == 1:
        return _source(op)
    if not parts or len(parts) == len(op.operands):
        return None
    return parts[0] if len(parts) == 1 else rewriter.op("concat", *parts, dim=dim)


# casts


@RULES.add("cast")
def merge_casts(rewriter: Rewriter, op: Op) -> Value | None:
    """A cast to the dtype its operand has goes; a cast of a cast that lost nothing is one cast, or none."""
    source, target = _source(op), op.result.dtype
    if source.dtype == target:
        return source
    inner = defined_by(source, "cast")
    if inner is None:
        return None
    origin, middle = _source(inner), source.dtype
    if not holds_exactly(origin.dtype, middle):
        return None
    if origin.dtype == target:
        return origin
    # an integer out of the target's range wraps, a float does not
    float_between = origin.dtype.is_integral and middle.is_float and target.kind in ("int", "uint")
    if float_between and not holds_exactly(origin.dtype, target):
        return None
    return rewriter.op("cast", origin, dtype=target)


def holds_exactly(source: DType, target: DType) -> bool:
    """Whether every value of `source` is a value of `target`."""
    if source == target or source.kind == "bool":
        return target.kind != "complex"
    if source.is_float:
        return target.name in _WIDER_FLOATS.get(source.name, ())
    if source.kind == "complex" or target.kind in ("complex", "bool"):
        return False
    bits = 8 * source.itemsize - (source.kind == "int")
    if target.is_float:
        return bits <= _MANTISSA_BITS.get(target.name, 0)
    if target.kind == "uint":
        return source.kind == "uint" and source.itemsize <= target.itemsize
    return bits <= 8 * target.itemsize - 1
