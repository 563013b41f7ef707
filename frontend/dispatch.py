"""The TorchDispatchMode of a capture: what each kind of ATen call does to the graph under construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graphc.errors import EagerOnlyError, GraphcError, UnsupportedError
from graphc.frontend import counting, dynamic_index, host, move_calls, replay, scalers
from graphc.frontend.aten import layout
from graphc.frontend.aten.extern import import_extern
from graphc.frontend.aten.registry import CONTIGUOUS, RULES, Decline, Rule, load_rules
from graphc.frontend.aten.views import VIEW_RULES, StorageModeNeeded
from graphc.frontend.calls import Operands, call_values, import_functional, snapshot, to_states, wrap_results
from graphc.frontend.foreach_calls import list_handler, single_call, stacked
from graphc.frontend.functionalize import TensorState
from graphc.frontend.mutation import copy_, mutating_handler
from graphc.frontend.overloads import functional_of
from graphc.frontend.recorder import Recorder
from graphc.frontend.traced import TracedTensor
from graphc.ir.graph import Value

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
        recorder.builder.location = recorder.locator.of_call()
        try:
            if torch._C._len_torch_function_stack():  # called by autograd, and not by Python through all modes
                with torch._C.DisableTorchFunction():
                    return handler(recorder, func, args, kwargs or {})
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
    if name.startswith("aten.arange."):
        return _arange_handler(_plain_handler(func, name))
    if name == "aten.mul.Tensor":
        return _mul_handler(_plain_handler(func, name))
    if name in _AT_A_PLACE:
        return _place_handler(_AT_A_PLACE[name], _plain_handler(func, name))
    return _plain_handler(func, name)


def _plain_handler(func: Any, name: str) -> Handler:
    """How calls of an overload are handled that is like others."""
    if func.namespace in ("profiler", "inductor_test_only"):
        return _as_is
    if name in VIEW_RULES:
        return _view_handler(VIEW_RULES[name])
    load_rules()
    arguments = func._schema.arguments
    if name.startswith("aten._foreach_") and (single := single_call(func)) is not None:
        return list_handler(func, single, CaptureMode)
    if any(a.alias_info is not None and a.alias_info.is_write for a in arguments):
        if torch.Tag.inplace_view in func.tags:
            rule = VIEW_RULES.get(str(functional_of(func)))
            return move_calls.refuse if rule is None else move_calls.inplace_view(rule)
        functional = functional_of(func)
        return mutating_handler(func, RULES.get(str(functional)))
    if name == "aten.stack.default":
        return _stack_handler(_rule_handler(func, RULES[name]))
    if name in RULES:
        return _rule_handler(func, RULES[name])
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return _decompose
    if any(r.alias_info is not None for r in func._schema.returns):
        return _unknown_view
    return _extern


_NUMBERS = frozenset((bool, int, float, host.HostInt, host.HostFloat, host.HostBool))


def _rule_handler(func: Any, rule: Rule) -> Handler:
    arguments = func._schema.arguments
    with_scalar = any(a.name in ("self", "other") and str(a.type) == "number" for a in arguments)
    tensor_positions = [i for i, a in enumerate(arguments) if str(a.type) == "Tensor"]

    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operands = Operands()
        values, keywords = call_values(recorder, func, args, kwargs, operands)
        result = import_functional(recorder, rule, func, values, keywords, operands)
        if with_scalar or any(type(args[i]) in _NUMBERS for i in tensor_positions if i < len(args)):
            operands.has_number = True  # ATen makes a 0-d tensor of the number, which TensorIterator sees
        if recorder.imp.writes:
            _write_arguments(recorder, [*args, *kwargs.values()], [*values, *keywords.values()])
        return wrap_results(recorder, result, rule.layout, operands)

    return handle


def _stack_handler(plain: Handler) -> Handler:
    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        whole = stacked(recorder, args[0]) if len(args) == 1 and not kwargs and len(args[0]) > 1 else None
        return plain(recorder, func, args, kwargs) if whole is None else whole

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
    values, keywords = call_values(recorder, func, args, kwargs, operands)
    recorder.imp.begin(operands)
    with replay.located(recorder.builder.location):
        result = import_extern(recorder.imp, func, values, keywords).returned
    return wrap_results(recorder, result, CONTIGUOUS, operands)


def _view_handler(view: Callable[..., Any]) -> Handler:
    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        source = recorder.state_of(args[0])
        try:
            given = {name: to_states(recorder, item) for name, item in kwargs.items()}
            result = view(source, *(to_states(recorder, a) for a in args[1:]), **given)
        except StorageModeNeeded as needed:
            recorder.need_storage(needed.state)
        except Decline:
            return _unknown_view(recorder, func, args, kwargs)
        except GraphcError:
            raise
        except Exception as error:
            values, keywords = snapshot(recorder, args, kwargs)
            replay.raise_as_eager(recorder.imp, func, values, keywords, recorder.builder.location)
            raise error
        if isinstance(result, list):
            return [_view_tensor(recorder, state, source, args[0]) for state in result]
        return _view_tensor(recorder, result, source, args[0])

    return handle


def _place_handler(dynamic: Callable[..., Any], plain: Handler) -> Handler:
    """Of overloads whose place may be a number that data decide."""

    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = dynamic(recorder, *args) if any(isinstance(arg, torch.SymInt) for arg in args) else None
        return plain(recorder, func, args, kwargs) if found is None else found

    return handle


def _arange_handler(plain: Handler) -> Handler:
    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not counting.is_traced(*args):
            return plain(recorder, func, args, kwargs)
        with CaptureMode(recorder):
            return counting.arange(func, *args, **kwargs)

    return handle


_EVENLY_DISTRIBUTED = frozenset(("MaxBackward1", "MinBackward1", "MedianBackward0", "NanmedianBackward0"))


def _mul_handler(plain: Handler) -> Handler:
    """Products with a mask in gradients of what one element of all decides: autograd multiplies tensors of subclasses.

    Those of CPUs it fills, so that NaN and inf stay where the mask is.
    """

    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = args[0]
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.device.type != "cpu":
            return plain(recorder, func, args, kwargs)
        node = torch._C._current_autograd_node()
        if node is None or node.name() not in _EVENLY_DISTRIBUTED:
            return plain(recorder, func, args, kwargs)
        with CaptureMode(recorder):
            zeros = torch.ops.aten.new_zeros.default(args[1], mask.shape)
            return torch.ops.aten.masked_fill.Tensor(zeros, mask, args[1])

    return handle


def _view_tensor(recorder: Recorder, state: TensorState, source: TensorState, tensor: torch.Tensor) -> TracedTensor:
    here, step = recorder.builder.location, state
    while step is not source and step.parent is not None:
        step.location = here
        step = step.parent
    return recorder.make(state)


def _unknown_view(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A view that graphs have no form for (of complex numbers, of bytes): read by a call, refused when written."""
    from graphc.frontend.foreign_views import foreign_view

    if not isinstance(args[0], torch.Tensor):  # the number in the gradient of `x * 1j`, of no dtype of its own
        raise EagerOnlyError(f"{func} of the number {args[0]}; make it a tensor of a dtype", recorder.locator.here())
    values, keywords = snapshot(recorder, args, kwargs)
    with replay.located(recorder.builder.location):
        states = foreign_view(recorder, func, recorder.state_of(args[0]), values, keywords)
    made = [_view_tensor(recorder, state, recorder.state_of(args[0]), args[0]) for state in states]
    return made if isinstance(func._schema.returns[0].type, torch.ListType) else made[0]


def _decompose(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A composite operator, which arrives whole under inference mode: run torch's own decomposition."""
    with CaptureMode(recorder):
        return func.decompose(*args, **kwargs)


def _as_strided_copy(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Reads the storage, from its start, and not the tensor: as the view does, of which this is a copy."""
    with CaptureMode(recorder):
        return torch.ops.aten.as_strided.default(*args, **kwargs).clone(memory_format=torch.contiguous_format)


def _as_strided_scatter(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Writes to a copy of the storage, from its start on; a call of it would not know what lies before the tensor."""
    tensor, start = args[0], args[0].storage_offset()
    if start == 0 or len(args) < 4:
        return _extern(recorder, func, args, kwargs)
    strided = torch.ops.aten.as_strided.default
    offset = args[4] if len(args) > 4 else kwargs.get("storage_offset")
    with CaptureMode(recorder):
        whole = strided(tensor, (start + layout.span(tensor.shape, tensor.stride()),), (1,), 0).clone()
        strided(whole, args[2], args[3], start if offset is None else offset).copy_(args[1])
        return strided(whole, tensor.shape, tensor.stride(), start)


def _as_is(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _higher_order(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise UnsupportedError(
        f"the higher-order operator {func} (torch.cond, flex_attention, ...) is not supported; write the "
        "function without it"
    )


# single overloads


def item(recorder: Recorder, tensor: torch.Tensor) -> Any:
    """`tensor.item()` as a traced number."""
    known = recorder.known_tensor(tensor)
    if known is not None:
        return _known_item(known)
    value = recorder.value_of(tensor)
    if value.dtype.kind == "complex":  # there are no traced numbers of that kind: it is known, or a decision
        with CaptureMode(recorder):
            parts = torch.ops.aten.view_as_real.default(torch.ops.aten.resolve_conj.default(tensor)).reshape(2)
            return complex(*(float(item(recorder, parts.select(0, place))) for place in (0, 1)))
    number = recorder.builder.op("item", recorder.imp.reshape(value, ()))
    kind = float if value.dtype.is_float else bool if value.dtype.kind == "bool" else int
    return host.wrap(host.HostNode(recorder, number, kind))


def _known_item(tensor: torch.Tensor) -> Any:
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        return tensor.item()


def _item(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return item(recorder, args[0])


def _composed(function: Callable[..., Any]) -> Handler:
    """An overload that is written in others here."""

    def handle(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with CaptureMode(recorder):
            return function(*args, **kwargs)

    return handle


def _lift_fresh(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if type(args[0]) is TracedTensor:
        return args[0]
    return recorder.make(recorder.constant(args[0]))


def _nothing(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return None


def _no(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a library is to compute what torch does as well: the answer would go by data."""
    return False


def _is_same_size(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return recorder.state_of(args[0]).shape == recorder.state_of(args[1]).shape


def _has_same_storage_numel(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    first, second = (recorder.state_of(tensor).storage.base.type.numel for tensor in args)
    return first == second


_SPECIAL: dict[str, Handler] = {
    "aten.is_same_size.default": _is_same_size,
    "aten._has_same_storage_numel.default": _has_same_storage_numel,
    "aten._local_scalar_dense.default": _item,
    "aten.lift_fresh.default": _lift_fresh,
    "aten.as_strided_copy.default": _as_strided_copy,
    "aten.as_strided_scatter.default": _as_strided_scatter,
    "aten.copy_.default": copy_,
    "aten.resize_.default": move_calls.resize_,
    "aten.resize_as_.default": move_calls.resize_as_,
    **dict.fromkeys(("aten.set_.default", "aten.set_.source_Tensor"), move_calls.set_),
    "aten._amp_foreach_non_finite_check_and_unscale_.default": _composed(scalers.unscale),
    "aten._amp_update_scale_.default": _composed(scalers.update_scale),
    "aten._assert_tensor_metadata.default": _nothing,
    **dict.fromkeys(("aten._use_cudnn_ctc_loss.default", "aten._use_cudnn_ctc_loss.Tensor"), _no),
    **dict.fromkeys(
        (
            "aten.set_.source_Storage", "aten.set_.source_Storage_storage_offset", "aten.set_data.default",
            "aten._resize_output_.default",
        ),
        move_calls.refuse,
    ),
}  # fmt: skip

_AT_A_PLACE: dict[str, Callable[..., Any]] = {
    "aten.select.int": dynamic_index.select,
    "aten.select_backward.default": dynamic_index.select_backward,
    "aten.slice.Tensor": dynamic_index.slice_window,
    "aten.slice_backward.default": dynamic_index.slice_backward,
}
