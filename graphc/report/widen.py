"""A graph in float64: the same ops, every narrower float a double, so that running it gives the exact results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from graphc.ir.graph import Attr, Graph, Input, Op, Output, Value, Write
from graphc.ir.interpreter import Datum
from graphc.ir.types import DType, TensorType, c32, c64, c128, f32, f64
from graphc.ops.extern import effect

WIDE = {torch.complex64: torch.complex128, torch.complex32: torch.complex128}


def widen(graph: Graph) -> Graph:
    """A copy in which floats are f64 and complex numbers c128. Random draws, and ops on bits, stay as they are."""
    twin = Graph(graph.name)
    new: dict[Value, Value] = {}
    for item in graph.inputs:
        new[item] = Input(item.name, _type(item.type), item.role, item.path, item.strides)
        twin.inputs.append(new[item])  # type: ignore[arg-type]  # made the line above
    for op in graph.ops:
        _append(twin, op, new)
    twin.writes = [Write(new[write.target], new[write.value]) for write in graph.writes]  # type: ignore[arg-type]
    twin.outputs = [Output(new[output.value], output.view) for output in graph.outputs]
    return twin


def _append(twin: Graph, op: Op, new: dict[Value, Value]) -> None:
    operands = [new[item] if isinstance(item, Value) else item for item in op.operands]
    if not _is_kept(op):
        twin_op = Op(op.name, operands, {key: _attr(value) for key, value in op.attrs.items()},
                     [_type(result.type) for result in op.results], op.location,
                     [result.name for result in op.results])  # fmt: skip
        twin.ops.append(twin_op)
        for old, made in zip(op.results, twin_op.results, strict=True):
            made.strides = old.strides
            new[old] = made
        return
    narrow = [
        _cast(twin, made, old.type, op) if isinstance(old, Value) and isinstance(made, Value) else made
        for old, made in zip(op.operands, operands, strict=True)
    ]
    names = [f"{result.name}_narrow" for result in op.results]
    kept = Op(op.name, narrow, op.attrs, [result.type for result in op.results], op.location, names)
    twin.ops.append(kept)
    for old, made in zip(op.results, kept.results, strict=True):
        made.strides = old.strides
        new[old] = _cast(twin, made, _type(old.type), op)


def _is_kept(op: Op) -> bool:
    """What a draw gives depends on its dtype; bits of another width are other bits."""
    return effect(op) == "random" or op.name == "bitcast" or "view.dtype" in str(op.attrs.get("op", ""))


def _cast(twin: Graph, value: Value, wanted: TensorType, op: Op) -> Value:
    if value.type == wanted:
        return value
    made = Op("cast", [value], {"dtype": wanted.dtype}, [wanted], op.location, [f"{value.name}_cast{len(twin.ops)}"])
    made.result.strides = value.strides
    twin.ops.append(made)
    return made.result


def _type(found: TensorType) -> TensorType:
    return found.with_dtype(_dtype(found.dtype))


def _dtype(dtype: DType) -> DType:
    if dtype in (c32, c64):
        return c128
    return f64 if dtype == f32 or dtype.is_reduced else dtype


def _attr(value: Attr) -> Attr:
    if isinstance(value, DType):
        return _dtype(value)
    if isinstance(value, Graph):
        return widen(value)
    if isinstance(value, dict):
        return {key: _attr(item) for key, item in value.items()}
    return tuple(map(_attr, value)) if isinstance(value, tuple) else value


def widen_data(data: Sequence[Any]) -> list[Datum]:
    """Copies of a graph's inputs in float64, laid out as they were."""
    return [_wide(item) if isinstance(item, torch.Tensor) else item for item in data]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    narrow = tensor.dtype.is_floating_point and tensor.dtype != torch.float64
    dtype = torch.float64 if narrow else WIDE.get(tensor.dtype, tensor.dtype)
    return copied(tensor, dtype)


def copied(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A detached copy with the strides of a tensor, elements that share a place included."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    compact = plain
    for dim, step in enumerate(plain.stride()):
        if step == 0 and plain.shape[dim] > 1:
            compact = compact.narrow(dim, 0, 1)
    made = torch.empty_strided(compact.shape, plain.stride(), dtype=dtype or plain.dtype, device=plain.device)
    return made.copy_(compact).as_strided(plain.shape, plain.stride())
