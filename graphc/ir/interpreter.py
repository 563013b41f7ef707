"""Runs a graph op by op in eager PyTorch: the meaning of the IR, and the oracle of everything that compiles it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch

from graphc.errors import InvalidGraphError, add_location
from graphc.ir.definitions import GetDefinition, registry
from graphc.ir.dims import Dim
from graphc.ir.graph import Graph, Input, Op, Output, Value
from graphc.ir.types import contiguous_strides

Datum: TypeAlias = torch.Tensor | bool | int | float | complex
"""A tensor, or a Python number for a value on the host."""


@torch.no_grad()
def run(graph: Graph, inputs: Sequence[Datum], get_def: GetDefinition | None = None) -> list[Datum]:
    """Run `graph` on real tensors.

    Args:
        graph: a well-formed graph with static shapes.
        inputs: one tensor per graph input (a Python number for one on the host), with the types stated there. Those
            that the graph writes get their new contents in place.
        get_def: look-up of operator definitions; the registry of `graphc.ops` by default.

    Returns:
        One item per output. An output that is an input is that very tensor; a view of an input or of another output
        shares its storage; everything else is fresh memory, with the strides its value asks for.

    Raises:
        InvalidGraphError: wrong number of inputs, an op gave another number of results than it states, or a layout
            with symbolic sizes.
        What eager raises for the data, with the user's source line added.

    Numerics: each op as eager computes it; reduced-precision intermediates are rounded after each op.
    """
    if len(inputs) != len(graph.inputs):
        raise InvalidGraphError(f"graph {graph.name} takes {len(graph.inputs)} inputs, {len(inputs)} were given")
    environment: dict[Value, Datum] = dict(zip(graph.inputs, inputs, strict=True))
    lookup = get_def or registry()
    last_use = _last_uses(graph)
    for op in graph.ops:
        run_op(op, environment, lookup)
        for value in last_use.get(op, ()):
            del environment[value]
    return _finish(graph, environment, inputs)


def _as_stated(value: Value, datum: Datum) -> Datum:
    """An operand with the strides its value states."""
    if not isinstance(datum, torch.Tensor) or isinstance(value, Input):
        return datum
    strides = contiguous_strides(tuple(datum.shape)) if value.strides is None else value.strides
    same = all(n < 2 or s == t for n, s, t in zip(datum.shape, datum.stride(), strides, strict=True))
    return datum if same or 0 in datum.shape else _laid_out(datum, strides)  # type: ignore[arg-type]  # static shapes


def _last_uses(graph: Graph) -> dict[Op, list[Value]]:
    """For each op the values that nothing needs after it."""
    last: dict[Value, Op] = {}
    for op in graph.ops:
        for value in (*op.inputs, *op.results):
            last[value] = op
    needed = graph.live_out()
    found: dict[Op, list[Value]] = {}
    for value, op in last.items():
        if value not in needed:
            found.setdefault(op, []).append(value)
    return found


def run_op(op: Op, environment: dict[Value, Datum], lookup: GetDefinition) -> None:
    """Run one op on the data of its operands in `environment`, which receives its results.

    Raises:
        What eager raises for the data, with the user's source line added.
    """
    operands = [environment[item] if isinstance(item, Value) else item for item in op.operands]
    if op.name == "extern":  # the call may depend on strides
        operands = [
            _as_stated(item, datum) if isinstance(item, Value) else datum
            for item, datum in zip(op.operands, operands, strict=True)
        ]
    try:
        answer = lookup(op.name).reference(*operands, **op.attrs)
    except Exception as error:
        add_location(error, op.location)
        raise
    results = tuple(answer) if isinstance(answer, (tuple, list)) else (answer,)
    if len(results) != len(op.results):
        raise InvalidGraphError(f"{op.name} gave {len(results)} results instead of {len(op.results)}", op.location)
    environment.update(zip(op.results, results, strict=True))


def _finish(graph: Graph, environment: dict[Value, Datum], inputs: Sequence[Datum]) -> list[Datum]:
    """Give outputs and new contents memory of their own, then write, then hand out what lives in inputs."""
    taken = {item.untyped_storage().data_ptr() for item in inputs if isinstance(item, torch.Tensor)}
    bases: dict[Value, Datum] = {}
    for output in graph.outputs:
        value = output.value
        if value in bases:
            continue
        datum = environment[value]
        if isinstance(datum, torch.Tensor) and not isinstance(value, Input):
            datum = _own(value, datum, taken)
        bases[value] = datum
    contents = [(write.target, environment[write.value]) for write in graph.writes if write.target is not write.value]
    settled = [(environment[target], _apart(datum, taken)) for target, datum in contents]
    for destination, source in settled:
        assert isinstance(destination, torch.Tensor) and isinstance(source, torch.Tensor)
        destination.copy_(source)
    return [_view(output, bases[output.value]) for output in graph.outputs]


def _own(value: Value, datum: torch.Tensor, taken: set[int]) -> torch.Tensor:
    """`datum` in storage that nothing else has, laid out as the value asks."""
    strides = _static(contiguous_strides(tuple(datum.shape)) if value.strides is None else value.strides)
    storage = datum.untyped_storage().data_ptr()
    whole = datum.storage_offset() == 0 and datum.untyped_storage().nbytes() == datum.numel() * datum.element_size()
    if storage in taken or not whole or datum.stride() != strides or datum.is_conj() or datum.is_neg():
        datum = _laid_out(datum, strides)
    taken.add(datum.untyped_storage().data_ptr())
    return datum


def _laid_out(datum: torch.Tensor, strides: Sequence[int]) -> torch.Tensor:
    """A copy with the given strides; dims of stride 0 keep one element for all."""
    compact = datum
    for dim, step in enumerate(strides):
        if step == 0 and datum.shape[dim] > 1:
            compact = compact.narrow(dim, 0, 1)
    copy = torch.empty_strided(compact.shape, strides, dtype=datum.dtype, device=datum.device).copy_(compact)
    return copy.as_strided(datum.shape, strides)


def _apart(datum: Datum, taken: set[int]) -> Datum:
    """`datum`, copied when it lives in memory that the writes may change."""
    if isinstance(datum, torch.Tensor) and datum.untyped_storage().data_ptr() in taken:
        return datum.clone()
    return datum


def _view(output: Output, base: Datum) -> Datum:
    view = output.view
    if view is None or not isinstance(base, torch.Tensor):
        return base
    # the offset counts from the value's first element, which for an input need not be its storage's first
    (offset,) = _static((view.offset,))
    return base.as_strided(_static(view.shape), _static(view.strides), base.storage_offset() + offset)


def _static(dims: Sequence[Dim]) -> tuple[int, ...]:
    sizes = tuple(size for size in dims if isinstance(size, int))
    if len(sizes) != len(dims):
        raise InvalidGraphError(f"the interpreter needs static sizes, not [{', '.join(map(str, dims))}]")
    return sizes
