"""View ops: elements of operands at other places. Their lowering is index arithmetic; fusion makes them free.

Graphs hold values, not views, so each of these means a fresh tensor. Dims count from 0, bounds are already clamped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from graphc.errors import LoweringError
from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Op, Operand, Ref, Value
from graphc.ir.types import TensorType, bool_, i64
from graphc.ops import rules
from graphc.ops.registry import AtenCall, ElementContext, Kind, LoopValue, OpDef, register
from graphc.ops.rules import Shape


def _operand_shape(op: Op, position: int = 0) -> Shape:
    operand = op.operands[position]
    assert isinstance(operand, Value)
    return operand.type.shape


# reshape


def _infer_reshape(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("reshape", attrs, ("shape",))
    value = rules.only_tensor("reshape", operands)
    result = value.type.with_shape(rules.check_shape("reshape", attrs["shape"]))
    if result.numel != value.type.numel:
        rules.fail("reshape", f"{value.type} has not as many elements as {rules.text(result.shape)}")
    return (result,)


def _groups(old: Shape, new: Shape) -> list[tuple[range, range]]:
    """The finest pairing of runs of old and new dims with equal products; sizes of 1 may stand alone."""
    found: list[tuple[range, range]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        first_old, first_new = i, j
        if i < len(old) and j < len(new) and old[i] == new[j]:
            i, j = i + 1, j + 1
        elif i < len(old) and old[i] == 1:
            i += 1
        elif j < len(new) and new[j] == 1:
            j += 1
        else:
            i, j = _close_group(old, new, i, j)
        found.append((range(first_old, i), range(first_new, j)))
    return found


def _close_group(old: Shape, new: Shape, i: int, j: int) -> tuple[int, int]:
    if i == len(old) or j == len(new):
        return len(old), len(new)
    left, right = old[i], new[j]
    i, j = i + 1, j + 1
    while left != right:
        if isinstance(left, int) and isinstance(right, int):
            take_old = left < right
        else:  # symbolic sizes: no order, so the whole rest is one group unless products meet by themselves
            return len(old), len(new)
        if take_old and i < len(old):
            left, i = left * old[i], i + 1
        elif not take_old and j < len(new):
            right, j = right * new[j], j + 1
        else:
            return len(old), len(new)
    return i, j


def _lower_reshape(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    old, new = _operand_shape(op), op.results[0].type.shape
    if 0 in old:  # never run
        return ctx.element(op.operands[0], (0,) * len(old))
    source: list[Dim] = []
    for from_old, from_new in _groups(old, new):
        sizes = old[from_old.start : from_old.stop]
        if len(sizes) == len(from_new) == 1:
            source.append(0 if sizes[0] == 1 else index[from_new.start])
        elif sizes:
            run = slice(from_new.start, from_new.stop)
            source.extend(rules.unflatten_index(rules.flatten_index(index[run], new[run]), sizes))
    return ctx.element(op.operands[0], tuple(source))


# permute, expand


def _infer_permute(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("permute", attrs, ("dims",))
    value = rules.only_tensor("permute", operands)
    dims = attrs["dims"]
    if not isinstance(dims, tuple) or sorted(dims) != list(range(value.type.rank)):
        rules.fail("permute", f"dims={dims!r} is no permutation of the {value.type.rank} dims of {value.type}")
    return (value.type.with_shape(tuple(value.type.shape[dim] for dim in dims)),)


def _lower_permute(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    source: list[Dim] = [0] * len(index)
    for position, dim in zip(index, op.attrs["dims"], strict=True):
        source[dim] = position
    return ctx.element(op.operands[0], tuple(source))


def _infer_expand(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("expand", attrs, ("shape",))
    value = rules.only_tensor("expand", operands)
    shape, own = rules.check_shape("expand", attrs["shape"]), value.type.shape
    lead = len(shape) - len(own)
    if lead < 0 or any(size != shape[lead + i] and size != 1 for i, size in enumerate(own)):
        rules.fail("expand", f"{value.type} does not broadcast to {rules.text(shape)}")
    return (value.type.with_shape(shape),)


def _lower_expand(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    operand = op.operands[0]
    assert isinstance(operand, Value)
    return ctx.element(operand, rules.broadcast_index(operand, index))


# slice, flip, pad


def _infer_slice(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("slice", attrs, ("dim", "start", "stop", "step"))
    value = rules.only_tensor("slice", operands)
    dim = rules.check_dim("slice", attrs["dim"], value.type.rank)
    start, stop, step, size = attrs["start"], attrs["stop"], attrs["step"], value.type.shape[dim]
    if not isinstance(step, int) or step <= 0:
        rules.fail("slice", f"step={step!r} must be a positive int")
    if isinstance(start, int) and isinstance(stop, int) and not 0 <= start <= stop:
        rules.fail("slice", f"{start}:{stop} is no range of increasing non-negative bounds")
    if isinstance(stop, int) and isinstance(size, int) and stop > size:
        rules.fail("slice", f"{start}:{stop} is outside dim {dim} of {value.type}")
    shape = list(value.type.shape)
    shape[dim] = (stop - start + (step - 1)) // step
    return (value.type.with_shape(tuple(shape)),)


def _slice(x: torch.Tensor, dim: int, start: int, stop: int, step: int) -> torch.Tensor:
    return x[(slice(None),) * dim + (slice(start, stop, step),)].clone()


def _lower_slice(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    dim = op.attrs["dim"]
    position = index[dim] * op.attrs["step"] + op.attrs["start"]
    return ctx.element(op.operands[0], (*index[:dim], position, *index[dim + 1 :]))


def _infer_flip(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("flip", attrs, ("dims",))
    value = rules.only_tensor("flip", operands)
    rules.check_dims("flip", attrs["dims"], value.type.rank)
    return (value.type,)


def _lower_flip(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    source, shape = list(index), op.results[0].type.shape
    for dim in op.attrs["dims"]:
        source[dim] = shape[dim] - 1 - index[dim]
    return ctx.element(op.operands[0], tuple(source))


def _infer_pad(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("pad", attrs, ("low", "high", "value"))
    value = rules.only_tensor("pad", operands)
    low, high = rules.check_shape("pad", attrs["low"], "low"), rules.check_shape("pad", attrs["high"], "high")
    if not len(low) == len(high) == value.type.rank:
        rules.fail("pad", f"low={low!r}, high={high!r} need one entry per dim of {value.type}")
    fill, dtype = attrs["value"], value.type.dtype
    if not isinstance(fill, (bool, int, float)) or (isinstance(fill, float) and dtype.is_integral):
        rules.fail("pad", f"value={fill!r} does not fit {dtype.name}")
    shape = tuple(before + size + after for before, size, after in zip(low, value.type.shape, high, strict=True))
    return (value.type.with_shape(shape),)


def _pad(x: torch.Tensor, low: tuple[int, ...], high: tuple[int, ...], value: bool | int | float) -> torch.Tensor:
    shape = [before + size + after for before, size, after in zip(low, x.shape, high, strict=True)]
    result = torch.full(shape, value, dtype=x.dtype, device=x.device)
    result[tuple(slice(before, before + size) for before, size in zip(low, x.shape, strict=True))] = x
    return result


def _lower_pad(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    source: list[Dim] = []
    conditions: list[LoopValue | None] = []
    for position, low, high, size in zip(index, op.attrs["low"], op.attrs["high"], _operand_shape(op), strict=True):
        moved = position - low
        source.append(moved)
        conditions.append(rules.in_range(ctx, moved, None if low == 0 else 0, None if high == 0 else size))
    inside = rules.all_of(ctx, conditions)
    if inside is None:
        return ctx.element(op.operands[0], tuple(source))
    return ctx.masked_element(op.operands[0], tuple(source), inside, op.attrs["value"])


def _pad_call(op: Op) -> AtenCall:
    widths = [w for pair in zip(reversed(op.attrs["low"]), reversed(op.attrs["high"]), strict=True) for w in pair]
    return "aten.constant_pad_nd.default", (Ref(0), tuple(widths), op.attrs["value"]), {}


# concat


def _infer_concat(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("concat", attrs, ("dim",))
    if not operands:
        rules.fail("concat", "needs at least one operand")
    values = [rules.tensor("concat", operands, i) for i in range(len(operands))]
    first = values[0].type
    dim = rules.check_dim("concat", attrs["dim"], first.rank)
    total: Dim = 0
    for value in values:
        shape = value.type.shape
        if shape[:dim] != first.shape[:dim] or shape[dim + 1 :] != first.shape[dim + 1 :] or len(shape) != first.rank:
            rules.fail("concat", f"{value.type} and {first} differ in another dim than {dim}")
        if value.type.dtype != first.dtype or value.type.device != first.device:
            rules.fail("concat", f"{value.type} and {first} differ in dtype or device")
        total = total + shape[dim]
    return (first.with_shape((*first.shape[:dim], total, *first.shape[dim + 1 :])),)


def _lower_concat(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    dim = op.attrs["dim"]
    position, dtype = index[dim], op.results[0].type.dtype.compute
    pieces: list[tuple[Operand, Dim, Dim]] = []
    end: Dim = 0
    for number, operand in enumerate(op.operands):
        start, end = end, end + _operand_shape(op, number)[dim]
        if start != end:
            pieces.append((operand, start, end))
    if not pieces:  # empty, never run
        return ctx.element(op.operands[0], index)
    result: LoopValue | None = None
    for operand, start, end in reversed(pieces):
        moved = (*index[:dim], position - start, *index[dim + 1 :])
        inside = rules.in_range(ctx, position, None if start == 0 else start, None if result is None else end)
        value = ctx.element(operand, moved) if inside is None else ctx.masked_element(operand, moved, inside, 0)
        if result is not None:
            before_end = ctx.compute("lt", ctx.index_value(position), ctx.index_value(end), dtype=bool_)
            value = ctx.compute("where", before_end, value, result, dtype=dtype)
        result = value
    assert result is not None
    return result


# strided views of the contiguous flattening


def _infer_as_strided(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    value = rules.only_tensor("as_strided", operands)
    shape = _check_strided("as_strided", value, attrs)
    return (value.type.with_shape(shape),)


def _check_strided(op: str, base: Value, attrs: Mapping[str, Attr]) -> Shape:
    rules.check_attrs(op, attrs, ("shape", "strides", "offset"))
    shape = rules.check_shape(op, attrs["shape"])
    strides, offset = rules.check_shape(op, attrs["strides"], "strides"), attrs["offset"]
    if len(shape) != len(strides):
        rules.fail(op, f"shape={shape!r} and strides={strides!r} differ in length")
    last = offset
    for size, stride in zip(shape, strides, strict=True):
        last = last + (size - 1) * stride
    total = base.type.numel
    if 0 not in shape and isinstance(last, int) and isinstance(total, int) and not 0 <= offset <= last < total:
        rules.fail(op, f"elements {offset} to {last} are outside {base.type}")
    return shape


def _as_strided(x: torch.Tensor, shape: Shape, strides: Shape, offset: int) -> torch.Tensor:
    flat = x.contiguous().view(-1)  # maybe x itself, which need not be where its memory starts
    return flat.as_strided(shape, strides, flat.storage_offset() + offset).clone()  # type: ignore[arg-type]  # ints


def _lower_as_strided(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    flat = op.attrs["offset"]
    for position, stride, size in zip(index, op.attrs["strides"], op.attrs["shape"], strict=True):
        if size != 1:
            flat = flat + position * stride
    return ctx.element(op.operands[0], rules.unflatten_index(flat, _operand_shape(op)))


def _infer_update_strided(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    base, source = _base_and_source("update_strided", operands)
    shape = _check_strided("update_strided", base, attrs)
    if source.type.shape != shape:
        rules.fail("update_strided", f"the source is {source.type}, the view {rules.text(shape)}")
    reach: Dim = 0  # the last element of the inner dims, so that every stride must step over all of it
    for stride, size in _by_stride(attrs):
        if isinstance(reach, int) and isinstance(stride, int) and stride <= reach:
            rules.fail("update_strided", f"strides={attrs['strides']!r} of shape {rules.text(shape)} overlap")
        reach = reach + (size - 1) * stride
    return (base.type,)


def _base_and_source(op: str, operands: Sequence[Operand]) -> tuple[Value, Value]:
    rules.check_count(op, operands, 2)
    base, source = rules.tensor(op, operands, 0), rules.tensor(op, operands, 1)
    if source.type.dtype != base.type.dtype or source.type.device != base.type.device:
        rules.fail(op, f"{base.type} and its update {source.type} differ in dtype or device")
    return base, source


def _by_stride(attrs: Mapping[str, Attr]) -> list[tuple[Dim, Dim]]:
    """(stride, size) of the dims that matter, innermost first."""
    pairs = [(stride, size) for stride, size in zip(attrs["strides"], attrs["shape"], strict=True) if size != 1]
    return [] if 0 in attrs["shape"] else sorted(pairs, key=_stride_order)


def _stride_order(pair: tuple[Dim, Dim]) -> tuple[bool, int]:
    stride = pair[0]
    return (False, stride) if isinstance(stride, int) else (True, len(stride.terms))


def _update_strided(
    base: torch.Tensor, source: torch.Tensor, shape: Shape, strides: Shape, offset: int
) -> torch.Tensor:
    result = base.clone(memory_format=torch.contiguous_format)
    result.view(-1).as_strided(shape, strides, offset).copy_(source)  # type: ignore[arg-type]  # ints
    return result


def _lower_update_strided(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    shape, strides = op.attrs["shape"], op.attrs["strides"]
    kept = ctx.element(op.operands[0], index)
    if 0 in shape:
        return kept
    rest = rules.flatten_index(index, op.results[0].type.shape) - op.attrs["offset"]
    conditions = [rules.in_range(ctx, rest, 0, None)]
    source: list[Dim] = [0] * len(shape)
    order = sorted((d for d in range(len(shape)) if shape[d] != 1), key=lambda d: _stride_order((strides[d], 1)))
    for dim in reversed(order):
        source[dim] = rest // strides[dim]
        conditions.append(rules.in_range(ctx, source[dim], None, shape[dim]))
        rest = rest % strides[dim]
    if rest != 0:
        conditions.append(ctx.compute("eq", ctx.index_value(rest), ctx.index_value(0), dtype=bool_))
    inside = rules.all_of(ctx, conditions)
    assert inside is not None
    new = ctx.masked_element(op.operands[1], tuple(source), inside, 0)
    return ctx.compute("where", inside, new, kept, dtype=op.results[0].type.dtype.compute)


# update_slice


def _infer_update_slice(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("update_slice", attrs, ("starts", "steps"))
    base, source = _base_and_source("update_slice", operands)
    starts, steps = rules.check_shape("update_slice", attrs["starts"], "starts"), attrs["steps"]
    steps = rules.check_shape("update_slice", steps, "steps")
    if not len(starts) == len(steps) == base.type.rank == source.type.rank:
        rules.fail("update_slice", f"starts, steps, {base.type} and {source.type} differ in their number of dims")
    for start, step, size, count in zip(starts, steps, base.type.shape, source.type.shape, strict=True):
        last = start + (count - 1) * step
        if step == 0 or (isinstance(last, int) and isinstance(size, int) and count != 0 and last >= size):
            rules.fail("update_slice", f"{source.type} at {starts} in steps {steps} is outside {base.type}")
    return (base.type,)


def _update_slice(
    base: torch.Tensor, source: torch.Tensor, starts: tuple[int, ...], steps: tuple[int, ...]
) -> torch.Tensor:
    result = base.clone()
    window = zip(starts, steps, source.shape, strict=True)
    result[tuple(slice(start, start + step * count, step) for start, step, count in window)] = source
    return result


def _lower_update_slice(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    shape, counts = op.results[0].type.shape, _operand_shape(op, 1)
    conditions: list[LoopValue | None] = []
    source: list[Dim] = []
    for position, start, step, size, count in zip(
        index, op.attrs["starts"], op.attrs["steps"], shape, counts, strict=True
    ):
        moved = position - start
        room = start + count * step - size
        high = None if isinstance(room, int) and room >= 0 else count * step
        conditions.append(rules.in_range(ctx, moved, None if start == 0 else 0, high))
        if step != 1:
            conditions.append(ctx.compute("eq", ctx.index_value(moved % step), ctx.constant(0, i64), dtype=bool_))
        source.append(moved // step)
    inside = rules.all_of(ctx, conditions)
    if inside is None:
        return ctx.element(op.operands[1], tuple(source))
    new = ctx.masked_element(op.operands[1], tuple(source), inside, 0)
    return ctx.compute("where", inside, new, ctx.element(op.operands[0], index), dtype=op.results[0].type.dtype.compute)


def _flat_call(overload: str, source: bool = False) -> Any:
    def call(op: Op) -> AtenCall:
        operands = (Ref(0), Ref(1)) if source else (Ref(0),)
        return overload, (*operands, op.attrs["shape"], op.attrs["strides"], op.attrs["offset"]), {}

    return call


def _call_update_slice(op: Op) -> AtenCall:
    """Of numbers that kernels do not hold; a write reaches along one dim at a time.

    Raises:
        LoweringError: it is narrower than the base along several dims.
    """
    (base, source), starts, steps = op.inputs, op.attrs["starts"], op.attrs["steps"]
    partial = [d for d in range(base.type.rank) if source.shape[d] != base.shape[d]]
    if len(partial) > 1:
        raise LoweringError(f"update_slice of {base.dtype.name} along several dims has no library call", op.location)
    dim = partial[0] if partial else 0
    start, step = starts[dim], steps[dim]
    return "aten.slice_scatter.default", (Ref(0), Ref(1), dim, start, start + source.shape[dim] * step, step), {}


def _register_all() -> None:
    view = Kind.VIEW
    for definition in (
        OpDef(
            "reshape", view, "The same elements in row-major order. shape: with as many elements.",
            _infer_reshape, lambda x, shape: x.reshape(shape).clone(), lower=_lower_reshape,
            call=lambda op: ("aten.view_copy.default", (Ref(0), op.attrs["shape"]), {}),
        ),
        OpDef(
            "permute", view, "Dims in another order. dims: dim d of the result is dim dims[d] of the operand.",
            _infer_permute, lambda x, dims: x.permute(dims).clone(), lower=_lower_permute,
            call=lambda op: ("aten.permute_copy.default", (Ref(0), op.attrs["dims"]), {}),
        ),
        OpDef(
            "expand", view, "Broadcast by numpy's rule. shape: of the result.",
            _infer_expand, lambda x, shape: x.expand(shape).clone(), lower=_lower_expand,
            call=lambda op: ("aten.expand_copy.default", (Ref(0), op.attrs["shape"]), {}),
        ),
        OpDef(
            "slice", view, "Elements start:stop:step of one dim. dim; start <= stop <= size; step > 0.",
            _infer_slice, _slice, lower=_lower_slice,
            call=lambda op: (
                "aten.slice_copy.Tensor", (Ref(0), *(op.attrs[a] for a in ("dim", "start", "stop", "step"))), {}
            ),
        ),
        OpDef(
            "flip", view, "Dims in reverse. dims: which.",
            _infer_flip, lambda x, dims: x.flip(dims), lower=_lower_flip,
            call=lambda op: ("aten.flip.default", (Ref(0), op.attrs["dims"]), {}),
        ),
        OpDef(
            "pad", view, "A constant around the operand. low, high: elements before and after, per dim; value.",
            _infer_pad, _pad, lower=_lower_pad, call=_pad_call,
        ),
        OpDef(
            "concat", view, "Operands one after the other along a dim. dim.",
            _infer_concat, lambda *xs, dim: torch.cat(xs, dim), lower=_lower_concat,
            call=lambda op: ("aten.cat.default", (tuple(map(Ref, range(len(op.operands)))), op.attrs["dim"]), {}),
        ),
        OpDef(
            "as_strided", view, "A strided window on the row-major flattening. shape; strides and offset in elements.",
            _infer_as_strided, _as_strided, lower=_lower_as_strided, call=_flat_call("aten.as_strided_copy.default"),
        ),
        OpDef(
            "update_slice", view,
            "The base with the source written at base[starts[d] + k*steps[d], ...]. starts; steps >= 1.",
            _infer_update_slice, _update_slice, lower=_lower_update_slice, call=_call_update_slice,
        ),
        OpDef(
            "update_strided", view,
            "The base with the source written in a strided window on its row-major flattening. shape; strides; offset.",
            _infer_update_strided, _update_strided, lower=_lower_update_strided,
            call=_flat_call("aten.as_strided_scatter.default", source=True),
        ),
    ):  # fmt: skip
        register(definition)


_register_all()
