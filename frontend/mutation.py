"""Calls that write to their arguments: in-place and `out=` overloads, and `copy_`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from graphc.errors import DataDependentError, EagerOnlyError, ResizesError
from graphc.frontend import overlap, replay
from graphc.frontend.aten import promotion
from graphc.frontend.aten.elsewhere import moved
from graphc.frontend.aten.extern import import_extern, written_arguments
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, Rule
from graphc.frontend.calls import (
    Operands,
    call_values,
    has_no_rules,
    raise_fault,
    result_strides,
    snapshot,
    to_values,
    wrap_results,
)
from graphc.frontend.functionalize import TensorState
from graphc.frontend.move_calls import resize
from graphc.frontend.overloads import functional_of
from graphc.frontend.recorder import Recorder
from graphc.frontend.traced import TracedTensor
from graphc.ir.graph import Value


def mutating_handler(func: Any, rule: Rule | None) -> Callable[..., Any]:
    """In-place and out= overloads: the functional rule and a write-back, else an extern that mutates."""
    names = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    takes_lists = func.name().startswith("aten::_foreach_")
    is_out = bool(func._schema.arguments[-1].kwarg_only and func._schema.arguments[-1].is_out)

    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        written = list(written_arguments(func, args, kwargs))
        _check_history(recorder, func, args, kwargs, written)
        meets = overlap.refuse_as_eager(recorder, func, args, kwargs, written, may_resize=is_out)
        if meets and len(written) > 1 and takes_lists:
            return _one_by_one(handle, recorder, func, args, kwargs, len(written))
        operands = Operands(written if is_out and meets else ())
        inputs = {k: v for k, v in kwargs.items() if k not in names} if is_out else kwargs
        values, keywords = call_values(recorder, func, args, inputs, operands)
        operands.resized = ()  # the importer keeps operands, and must not keep tensors of the capture
        keywords = dict(keywords)
        new: list[Value] | None = None
        if rule is not None:
            new = _functional_results(recorder, rule, func, values, keywords, operands, written)
        returned = None
        if new is None:
            full = {
                **keywords,
                **{key: to_values(recorder, kwargs[key], operands) for key in kwargs if key not in inputs},
            }
            recorder.imp.begin(operands)
            try:
                with replay.located(recorder.builder.location):
                    answer = import_extern(recorder.imp, func, values, full)
                new, returned = answer.mutated, answer.returned
            except (ResizesError, DataDependentError):
                if functional_of(func) is None:
                    raise
                new = _resized(recorder, func, values, keywords, full, operands, written)
        with replay.located(recorder.builder.location):
            for tensor, value in zip(written, new, strict=True):
                recorder.write(tensor, value)
        return _returned(recorder, func, args, kwargs, returned, operands)

    return handle


def _check_history(
    recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[torch.Tensor]
) -> None:
    """In eager, autograd follows what is written to a tensor in place; a program cannot put that into the user's own.

    An argument has a stand-in, and what is written to it is written again after the run (see `replays`). Another tensor
    must not be written at all, since autograd would make the capture a part of its history.

    Raises:
        EagerOnlyError: such a write to a tensor that is no argument.
    """
    if not torch.is_grad_enabled() or not func._schema.name.endswith("_"):
        return
    with torch._C.DisableTorchFunction():
        if not any(tensor.requires_grad for tensor in overlap.tensors([args, kwargs])):
            return
        for tensor in written:
            base = tensor if tensor._base is None else tensor._base
            if not (base.is_floating_point() or base.is_complex()):
                continue
            source = recorder.state_of(base).storage.source
            reason = f"it writes to {source.path if source is not None else 'a tensor'} in place what autograd follows"
            if type(base) is not TracedTensor:
                advice = "do that under torch.no_grad(), or write a detached tensor"
                raise EagerOnlyError(f"{reason}; {advice}", recorder.locator.here())


def _one_by_one(
    handle: Callable[..., Any], recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], count: int
) -> None:
    """A call on lists whose tensors share memory: eager goes through the lists, and each step sees the one before."""

    def part(item: Any, index: int) -> Any:
        return [item[index]] if isinstance(item, (list, tuple)) and len(item) == count else item

    for index in range(count):
        keywords = {key: part(item, index) for key, item in kwargs.items()}
        handle(recorder, func, tuple(part(arg, index) for arg in args), keywords)


def _functional_results(
    recorder: Recorder, rule: Rule, func: Any, values: tuple[Any, ...], keywords: dict[str, Any],
    operands: Operands, written: list[torch.Tensor],
) -> list[Value] | None:  # fmt: skip
    """New contents of the written tensors by the functional rule; None when they must come from the call itself."""
    imp = recorder.imp
    imp.begin(operands)
    if any(map(has_no_rules, operands)):
        return None
    mark = len(recorder.graph.ops)
    try:
        result = rule.fn(imp, *values, **keywords)
    except Decline:
        del recorder.graph.ops[mark:]
        return None
    except Exception as error:
        del recorder.graph.ops[mark:]
        full = dict(keywords)
        full.update(_out_values(recorder, func, written))
        raise_fault(recorder, func, values, full, error)
    results = [r for r in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(r, Value)]
    states = [recorder.state_of(tensor) for tensor in written]
    if any(r.dtype != s.dtype for r, s in zip(results, states, strict=False)):  # some operators insist on their own
        full = {**keywords, **_out_values(recorder, func, written)}
        replay.raise_as_eager(imp, func, values, full, recorder.builder.location)
    fits = len(results) == len(states) and all(
        r.device == s.device and _can_cast(r, s) for r, s in zip(results, states, strict=True)
    )
    if not fits or any(r.shape != s.shape for r, s in zip(results, states, strict=True)):
        full = {**keywords, **_out_values(recorder, func, written)}
        replay.raise_as_eager(imp, func, values, full, recorder.builder.location)
    if not fits:
        del recorder.graph.ops[mark:]
        return None
    return _resize_to(recorder, func, written, results, rule.layout, operands)


def _resized(
    recorder: Recorder, func: Any, values: tuple[Any, ...], keywords: dict[str, Any], full: dict[str, Any],
    operands: Operands, written: list[torch.Tensor],
) -> list[Value]:  # fmt: skip
    """New contents of tensors that a call without a rule makes larger or smaller, by the functional overload.

    Args:
        keywords: without tensors that are written.
        full: with them.
    """
    replay.raise_as_eager(recorder.imp, func, values, full, recorder.builder.location)
    recorder.imp.begin(operands)
    with replay.located(recorder.builder.location):
        returned = import_extern(recorder.imp, functional_of(func), values, keywords).returned
    results = list(returned) if isinstance(returned, (list, tuple)) else [returned]
    return _resize_to(recorder, func, written, results, CONTIGUOUS, operands)


def _resize_to(
    recorder: Recorder, func: Any, written: list[torch.Tensor], results: list[Value], rule_layout: str,
    operands: Operands,
) -> list[Value]:  # fmt: skip
    """Results in the dtypes of the tensors that they are written to, which get their shapes, as in eager."""
    found: list[Value] = []
    for tensor, result in zip(written, results, strict=True):
        state = recorder.state_of(tensor)
        if state.shape != result.shape:
            strides = tuple(result_strides(recorder, result, rule_layout, operands))
            resize(recorder, func, tensor, result.shape, strides)  # type: ignore[arg-type]  # static by construction
        found.append(recorder.imp.cast(result, state.dtype))  # type: ignore[arg-type]  # a tensor stays one
    return found


def _out_values(recorder: Recorder, func: Any, written: list[torch.Tensor]) -> dict[str, Any]:
    names = [a.name for a in func._schema.arguments if a.is_out]
    return dict(zip(names, (recorder.value_of(tensor) for tensor in written), strict=False))


def _can_cast(value: Value, state: TensorState) -> bool:
    if value.dtype == state.dtype:
        return True
    if state.dtype.kind == "complex":  # which graphs convert to in calls alone
        return False
    return torch.can_cast(promotion.to_torch(value.dtype), promotion.to_torch(state.dtype))


def _returned(recorder: Recorder, func: Any, args: Any, kwargs: dict[str, Any], own: Any, operands: Operands) -> Any:
    """The return value of a mutating call: its arguments where the schema says so."""
    returns = func._schema.returns
    if not returns:
        return None
    by_alias: dict[frozenset[str], Any] = {}
    for position, declared in enumerate(func._schema.arguments):
        if declared.alias_info is not None and declared.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(declared.name)
            by_alias[frozenset(declared.alias_info.before_set)] = given
    parts: Iterator[Any] = iter(own if isinstance(own, tuple) else (own,) * len(returns))
    found = []
    for declared in returns:
        mine = next(parts)
        if declared.alias_info is not None and declared.alias_info.is_write:
            found.append(by_alias[frozenset(declared.alias_info.before_set)])
        else:
            found.append(wrap_results(recorder, mine, CONTIGUOUS, operands))
    return found[0] if len(found) == 1 else tuple(found)


def copy_(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`target.copy_(source)`: cast, broadcast, moved between devices."""
    overlap.refuse_as_eager(recorder, func, args, kwargs, [args[0]])
    _check_history(recorder, func, args, kwargs, [args[0]])
    target, source = recorder.state_of(args[0]), recorder.value_of(args[1])
    imp = recorder.imp
    if has_no_rules(source) or has_no_rules(recorder.value_of(args[0])):
        return mutating_handler(func, None)(recorder, func, args, kwargs)
    values, _ = snapshot(recorder, args[:2], {})
    source = moved(imp, source, target.device)
    lead = len(target.shape) - len(source.shape)
    fits = lead >= 0 and all(s in (1, t) for s, t in zip(source.shape, target.shape[lead:], strict=True))
    if not fits:
        replay.raise_as_eager(imp, func, values, {}, recorder.builder.location)
        raise RuntimeError(f"copy_: shape {source.shape} does not broadcast to {target.shape}")
    new = imp.expand(imp.cast(source, target.dtype), target.shape)  # type: ignore[arg-type]
    with replay.located(recorder.builder.location):
        recorder.write(args[0], new)
    return args[0]
