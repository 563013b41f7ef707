"""The TorchDispatchMode of a capture: what each kind of ATen call does to the graph under construction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graphc.errors import CaptureError, DataDependentError, GraphcError, UnsupportedError
from graphc.frontend import host, replay
from graphc.frontend.aten import layout, promotion
from graphc.frontend.aten.extern import import_extern, written_arguments
from graphc.frontend.aten.registry import CONTIGUOUS, POINTWISE, RULES, Decline, Rule, load_rules
from graphc.frontend.aten.views import VIEW_RULES, StorageModeNeeded
from graphc.frontend.functionalize import TensorState, read
from graphc.frontend.overloads import functional_of
from graphc.frontend.recorder import Recorder
from graphc.frontend.traced import TracedTensor
from graphc.ir.graph import Value
from graphc.ops.registry import Kind, get

Handler: TypeAlias = Callable[[Recorder, Any, tuple[Any, ...], dict[str, Any]], Any]
_HANDLERS: dict[Any, Handler] = {}


class CaptureMode(TorchDispatchMode):
    """Records every ATen call of the block into a graph.

    Args:
        recorder: the capture.
    """

    supports_higher_order_operators = True  # they come here too, to be refused with the user's line

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch wraps the method below so that it imports torch._dynamo, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorder = self.recorder
        handler = _HANDLERS.get(func)
        if handler is None:
            handler = _HANDLERS[func] = _choose(func)
        recorder.builder.location = recorder.locator.here()
        try:
            return handler(recorder, func, args, kwargs or {})
        except GraphcError as error:
            if error.location is None and recorder.builder.location:
                raise type(error)(error.message, recorder.builder.location) from None
            raise


def _choose(func: Any) -> Handler:
    """How calls of an overload are handled; decided once per process."""
    if not isinstance(func, torch._ops.OpOverload):
        return _higher_order
    name = str(func)
    if name in _SPECIAL:
        return _SPECIAL[name]
    if func.namespace in ("profiler", "inductor_test_only"):
        return _as_is
    if name in VIEW_RULES:
        return _view_handler(VIEW_RULES[name])
    load_rules()
    arguments = func._schema.arguments
    if any(a.alias_info is not None and a.alias_info.is_write for a in arguments):
        if torch.Tag.inplace_view in func.tags:
            return _inplace_view_handler(func)
        functional = functional_of(func)
        return _mutating_handler(func, RULES.get(str(functional)))
    if name in RULES:
        return _rule_handler(func, RULES[name])
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return _decompose
    if any(r.alias_info is not None for r in func._schema.returns):
        return _unknown_view
    return _extern


# arguments and results


class Operands(dict[Value, tuple[int, ...]]):
    """Eager's strides of the tensors of a call, by value.

    Attributes:
        layouts: shape and strides of each tensor; one value may stand for two tensors that are laid out differently.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layouts: list[layout.Layout] = []


def _to_values(recorder: Recorder, item: Any, operands: Operands) -> Any:
    """An argument with tensors as Values and traced numbers as host Values."""
    kind = type(item)
    if kind is TracedTensor or isinstance(item, torch.Tensor):
        state = recorder.state_of(item)
        value = read(recorder.builder, state)
        operands[value] = state.strides
        operands.layouts.append((state.shape, state.strides))
        return value
    if kind in _PLAIN:
        return item
    if kind is list or kind is tuple:  # a traced integer in a list is a size: it must be known
        return kind(int(p) if isinstance(p, torch.SymInt) else _to_values(recorder, p, operands) for p in item)
    node = host.node_of(item)
    return item if node is None else node.value


_PLAIN = frozenset((int, float, bool, type(None), str, torch.dtype, torch.device, torch.layout, torch.memory_format))


def _call_values(
    recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operands: Operands
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call as rules get them; `operands` receives the strides of its tensors."""
    if any(isinstance(arg, torch.SymInt) for arg in (*args, *kwargs.values())):
        args, kwargs = _fix_integers(func, args, kwargs)
    values = tuple([_to_values(recorder, arg, operands) for arg in args])
    return values, {key: _to_values(recorder, item, operands) for key, item in kwargs.items()} if kwargs else kwargs


def _fix_integers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Traced integers where the schema wants a size or a dim: they must be known. As operands they stay."""
    declared = {a.name: str(a.type) for a in func._schema.arguments}
    kinds = list(declared.values())
    fixed = [int(a) if isinstance(a, torch.SymInt) and "int" in kind.lower() else a for a, kind in zip(args, kinds)]
    return (*fixed, *args[len(fixed) :]), {
        key: int(a) if isinstance(a, torch.SymInt) and "int" in declared[key].lower() else a
        for key, a in kwargs.items()
    }


def _to_states(recorder: Recorder, item: Any) -> Any:
    """An argument of a view: tensors as states; sizes must be plain numbers."""
    if isinstance(item, torch.Tensor):
        return recorder.state_of(item)
    if isinstance(item, (list, tuple)):
        return [_to_states(recorder, part) for part in item]
    return int(item) if isinstance(item, torch.SymInt) else item


def _wrap_results(recorder: Recorder, result: Any, rule_layout: str, operands: Operands) -> Any:
    if type(result) is Value or isinstance(result, Value):
        if result.type.is_host:
            kind = {"f64": float, "i64": int, "bool": bool}[result.dtype.name]
            return host.wrap(host.HostNode(recorder, result, kind))
        return recorder.wrap(result, _result_strides(recorder, result, rule_layout, operands))
    if isinstance(result, (list, tuple)):
        return type(result)(_wrap_results(recorder, part, rule_layout, operands) for part in result)
    return result


def _result_strides(recorder: Recorder, value: Value, rule_layout: str, operands: Operands) -> Sequence[int]:
    given = recorder.imp.given_strides(value)
    if given is not None:
        return given
    shape: tuple[int, ...] = value.shape  # type: ignore[assignment]  # static by construction
    pointwise = rule_layout == POINTWISE
    if not pointwise and rule_layout != CONTIGUOUS and value.op is not None:
        pointwise = get(value.op.name).kind is Kind.POINTWISE
    if not pointwise or len(shape) <= 1:
        return layout.contiguous(shape)
    return layout.tensor_iterator_strides(shape, operands.layouts)


# kinds of calls


def _import_functional(
    recorder: Recorder, rule: Rule | None, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any],
    operands: Operands,
) -> Any:  # fmt: skip
    """Import a call on Values; returns Values."""
    imp = recorder.imp
    imp.begin(operands)
    if rule is None or any(v.dtype.kind == "complex" or v.dtype.name.startswith("f8") for v in operands):
        return import_extern(imp, func, args, kwargs).returned
    mark = len(recorder.graph.ops)
    try:
        return rule.fn(imp, *args, **kwargs)
    except Decline:
        del recorder.graph.ops[mark:]
    except Exception as error:
        del recorder.graph.ops[mark:]
        _fault(recorder, func, args, kwargs, error)
    return import_extern(imp, func, args, kwargs).returned


def _fault(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any], error: Exception) -> None:
    """A rule failed: raise what eager raises for such arguments, or note that the call runs as it is."""
    if isinstance(error, (UnsupportedError, CaptureError)):
        raise error
    replay.raise_as_eager(recorder.imp, func, args, kwargs, recorder.builder.location)
    recorder.warnings.append(
        f"{recorder.builder.location.file}:{recorder.builder.location.line}: {func} runs as it is: {error}"
    )


_NUMBERS = frozenset((bool, int, float, host.HostInt, host.HostFloat, host.HostBool))


def _rule_handler(func: Any, rule: Rule) -> Handler:
    with_scalar = func._overloadname == "Scalar"
    tensor_positions = [i for i, a in enumerate(func._schema.arguments) if str(a.type) == "Tensor"]

    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operands = Operands()
        values, keywords = _call_values(recorder, func, args, kwargs, operands)
        result = _import_functional(recorder, rule, func, values, keywords, operands)
        if with_scalar or any(type(args[i]) in _NUMBERS for i in tensor_positions if i < len(args)):
            operands.layouts.append(((), ()))  # ATen makes a 0-d tensor of the number, which TensorIterator sees
        if recorder.imp.writes:
            _write_arguments(recorder, [*args, *kwargs.values()], [*values, *keywords.values()])
        return _wrap_results(recorder, result, rule.layout, operands)

    return handle


def _write_arguments(recorder: Recorder, arguments: list[Any], values: list[Any]) -> None:
    """Carry out what a rule said with `Importer.write`: mutation that the schema does not tell of."""
    tensors = {value: tensor for value, tensor in zip(values, arguments, strict=True) if isinstance(value, Value)}
    writes, recorder.imp.writes = recorder.imp.writes, []
    with replay.located(recorder.builder.location):
        for value, new in writes:
            recorder.write(tensors[value], new)


def _extern(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    operands = Operands()
    values, keywords = _call_values(recorder, func, args, kwargs, operands)
    recorder.imp.begin(operands)
    with replay.located(recorder.builder.location):
        result = import_extern(recorder.imp, func, values, keywords).returned
    return _wrap_results(recorder, result, CONTIGUOUS, operands)


def _view_handler(view: Callable[..., Any]) -> Handler:
    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        source = recorder.state_of(args[0])
        try:
            result = view(source, *(_to_states(recorder, a) for a in args[1:]), **kwargs)
        except StorageModeNeeded as needed:
            recorder.need_storage(needed.state)
        except Decline:
            return _unknown_view(recorder, func, args, kwargs)
        except GraphcError:
            raise
        except Exception as error:
            values, keywords = _snapshot(recorder, args, kwargs)
            replay.raise_as_eager(recorder.imp, func, values, keywords, recorder.builder.location)
            raise error
        if isinstance(result, list):
            return [_view_tensor(recorder, state, source, args[0]) for state in result]
        return _view_tensor(recorder, result, source, args[0])

    return handle


def _view_tensor(recorder: Recorder, state: TensorState, source: TensorState, tensor: torch.Tensor) -> TracedTensor:
    here, step = recorder.builder.location, state
    while step is not source and step.parent is not None:
        step.location = here
        step = step.parent
    return recorder.make(state)


def _snapshot(recorder: Recorder, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    operands = Operands()
    values = tuple(_to_values(recorder, arg, operands) for arg in args)
    keywords = {key: _to_values(recorder, item, operands) for key, item in kwargs.items()}
    recorder.imp.begin(operands)
    return values, keywords


def _unknown_view(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A view that graphs have no form for (of complex numbers, of bytes): read by a call, refused when written."""
    from graphc.frontend.foreign_views import foreign_view

    values, keywords = _snapshot(recorder, args, kwargs)
    with replay.located(recorder.builder.location):
        states = foreign_view(recorder, func, recorder.state_of(args[0]), values, keywords)
    made = [_view_tensor(recorder, state, recorder.state_of(args[0]), args[0]) for state in states]
    return made if isinstance(func._schema.returns[0].type, torch.ListType) else made[0]


def _inplace_view_handler(func: Any) -> Handler:
    """`t_`, `squeeze_`, ...: the tensor itself becomes a view."""
    functional = functional_of(func)
    if str(functional) not in VIEW_RULES:
        return _refuse_storage_change
    view = VIEW_RULES[str(functional)]

    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if type(args[0]) is not TracedTensor:
            return _refuse_storage_change(recorder, func, args, kwargs)
        try:
            state = view(recorder.state_of(args[0]), *(_to_states(recorder, a) for a in args[1:]), **kwargs)
        except (IndexError, RuntimeError, ValueError):
            values, keywords = _snapshot(recorder, args, kwargs)
            replay.raise_as_eager(recorder.imp, func, values, keywords, recorder.builder.location)
            raise
        with torch._C._DisableTorchDispatch():  # the kernel changes sizes and strides of the stand-in, nothing else
            func(*args, **kwargs)
        args[0].state = state
        return args[0]

    return handle


def _mutating_handler(func: Any, rule: Rule | None) -> Handler:
    """In-place and out= overloads: the functional rule and a write-back, else an extern that mutates."""
    names = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    is_out = bool(func._schema.arguments[-1].kwarg_only and func._schema.arguments[-1].is_out)

    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        written = list(written_arguments(func, args, kwargs))
        operands = Operands()
        inputs = {k: v for k, v in kwargs.items() if k not in names} if is_out else kwargs
        values, keywords = _call_values(recorder, func, args, inputs, operands)
        keywords = dict(keywords)
        new: list[Value] | None = None
        if rule is not None:
            new = _functional_results(recorder, rule, func, values, keywords, operands, written)
        if new is None:
            keywords.update({key: _to_values(recorder, kwargs[key], operands) for key in kwargs if key not in inputs})
            recorder.imp.begin(operands)
            with replay.located(recorder.builder.location):
                answer = import_extern(recorder.imp, func, values, keywords)
            new, returned = answer.mutated, answer.returned
        else:
            returned = None
        with replay.located(recorder.builder.location):
            for tensor, value in zip(written, new, strict=True):
                recorder.write(tensor, value)
        return _returned(recorder, func, args, kwargs, returned, operands)

    return handle


def _functional_results(
    recorder: Recorder, rule: Rule, func: Any, values: tuple[Any, ...], keywords: dict[str, Any],
    operands: Operands, written: list[torch.Tensor],
) -> list[Value] | None:  # fmt: skip
    """New contents of the written tensors by the functional rule; None when they must come from the call itself."""
    imp = recorder.imp
    imp.begin(operands)
    if any(v.dtype.kind == "complex" or v.dtype.name.startswith("f8") for v in operands):
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
        _fault(recorder, func, values, full, error)
        return None
    results = [r for r in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(r, Value)]
    states = [recorder.state_of(tensor) for tensor in written]
    fits = len(results) == len(states) and all(
        r.shape == s.shape and r.device == s.device and _can_cast(r, s) for r, s in zip(results, states, strict=True)
    )
    if not fits:
        del recorder.graph.ops[mark:]
        full = dict(keywords)
        full.update(_out_values(recorder, func, written))
        replay.raise_as_eager(imp, func, values, full, recorder.builder.location)
        return None
    return [imp.cast(r, s.dtype) for r, s in zip(results, states, strict=True)]  # type: ignore[misc]


def _out_values(recorder: Recorder, func: Any, written: list[torch.Tensor]) -> dict[str, Any]:
    names = [a.name for a in func._schema.arguments if a.is_out]
    return dict(zip(names, (recorder.value_of(tensor) for tensor in written), strict=False))


def _can_cast(value: Value, state: TensorState) -> bool:
    if value.dtype == state.dtype:
        return True
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
            found.append(_wrap_results(recorder, mine, CONTIGUOUS, operands))
    return found[0] if len(found) == 1 else tuple(found)


def _decompose(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A composite operator, which arrives whole under inference mode: run torch's own decomposition."""
    with CaptureMode(recorder):
        return func.decompose(*args, **kwargs)


def _as_is(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _higher_order(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise UnsupportedError(
        f"the higher-order operator {func} (torch.cond, flex_attention, ...) is not supported; write the "
        "function without it"
    )


def _refuse_storage_change(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise UnsupportedError(
        f"{func} changes the storage or the geometry of an existing tensor, which a compiled program cannot; make a "
        "new tensor instead"
    )


# single overloads


def item(recorder: Recorder, tensor: torch.Tensor) -> Any:
    """`tensor.item()` as a traced number."""
    value = recorder.value_of(tensor)
    if value.dtype.kind == "complex":
        raise DataDependentError("`.item()` of a complex tensor is not supported; take the real and imaginary parts")
    number = recorder.builder.op("item", recorder.imp.reshape(value, ()))
    kind = float if value.dtype.is_float else bool if value.dtype.kind == "bool" else int
    return host.wrap(host.HostNode(recorder, number, kind))


def _item(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return item(recorder, args[0])


def _lift_fresh(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if type(args[0]) is TracedTensor:
        return args[0]
    return recorder.make(recorder.constant(args[0]))


def _copy_(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target, source = recorder.state_of(args[0]), recorder.value_of(args[1])
    imp = recorder.imp
    if (
        source.dtype.kind == "complex"
        or target.dtype.kind == "complex"
        or "f8" in source.dtype.name + target.dtype.name
    ):
        return _mutating_handler(func, None)(recorder, func, args, kwargs)
    values, _ = _snapshot(recorder, args[:2], {})
    if source.device != target.device:
        moved = import_extern(imp, "aten._to_copy.default", (source,), {"device": torch.device(target.device)})
        source = moved.returned
    lead = len(target.shape) - len(source.shape)
    fits = lead >= 0 and all(s in (1, t) for s, t in zip(source.shape, target.shape[lead:], strict=True))
    if not fits:
        replay.raise_as_eager(imp, func, values, {}, recorder.builder.location)
        raise RuntimeError(f"copy_: shape {source.shape} does not broadcast to {target.shape}")
    new = imp.expand(imp.cast(source, target.dtype), target.shape)  # type: ignore[arg-type]
    with replay.located(recorder.builder.location):
        recorder.write(args[0], new)
    return args[0]


def _resize_(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if tuple(args[1]) == recorder.state_of(args[0]).shape:
        return args[0]
    return _refuse_storage_change(recorder, func, args, kwargs)


def _nothing(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return None


_SPECIAL: dict[str, Handler] = {
    "aten._local_scalar_dense.default": _item,
    "aten.lift_fresh.default": _lift_fresh,
    "aten.copy_.default": _copy_,
    "aten.resize_.default": _resize_,
    "aten._assert_tensor_metadata.default": _nothing,
    **{
        f"aten.{name}": _refuse_storage_change
        for name in (
            "set_.source_Tensor", "set_.source_Storage", "set_.source_Storage_storage_offset", "set_.default",
            "set_.source_Tensor_storage_offset", "set_data.default", "resize_as_.default", "_resize_output_.default",
        )
    },
}  # fmt: skip
