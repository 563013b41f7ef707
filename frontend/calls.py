"""The two ends of a recorded call: its arguments as graph values, and its results as tensors with eager's strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from graphc.errors import CaptureError, InternalError, UnsupportedError
from graphc.frontend import host, replay
from graphc.frontend.aten import layout
from graphc.frontend.aten.extern import import_extern
from graphc.frontend.aten.importer import promoted_layouts
from graphc.frontend.aten.registry import CONTIGUOUS, LIKE, POINTWISE, Decline, Rule
from graphc.frontend.functionalize import read
from graphc.frontend.recorder import Recorder
from graphc.frontend.traced import TracedTensor
from graphc.ir.graph import Value
from graphc.ir.types import FLOAT8
from graphc.ops.registry import Kind, get


class Operands(dict[Value, tuple[int, ...]]):
    """Eager's strides of the tensors of a call, by value.

    Attributes:
        tensors: each with its strides; one value may stand for two tensors that are laid out differently.
        has_number: a Python number is among the operands that TensorIterator sees, as a 0-d tensor.
        resized: tensors that the call may give another shape. Another tensor with the elements of one of them gets a
            value of its own, since it keeps its shape.
    """

    def __init__(self, resized: Sequence[torch.Tensor] = ()) -> None:
        super().__init__()
        self.resized = resized
        self.tensors: list[tuple[Value, tuple[int, ...]]] = []
        self.has_number = False


def to_values(recorder: Recorder, item: Any, operands: Operands) -> Any:
    """An argument with tensors as Values and traced numbers as host Values."""
    kind = type(item)
    if kind is TracedTensor or isinstance(item, torch.Tensor):
        state = recorder.state_of(item)
        value = read(recorder.builder, state)
        if operands.resized and _has_elements_of(recorder, item, value, operands.resized):
            value = recorder.builder.op("reshape", value, shape=value.shape)
        operands[value] = state.strides
        operands.tensors.append((value, state.strides))
        return value
    if kind in _PLAIN:
        return item
    if kind is list or kind is tuple:  # a traced integer in a list is a size: it must be known
        return kind(host.size_of(p) if isinstance(p, torch.SymInt) else to_values(recorder, p, operands) for p in item)
    node = host.node_of(item)
    return host.known(item) if node is None else node.value


def _has_elements_of(recorder: Recorder, tensor: Any, value: Value, others: Sequence[torch.Tensor]) -> bool:
    """Whether a tensor is none of the others and has the value of one of them."""
    return all(tensor is not other for other in others) and any(
        value is read(recorder.builder, recorder.state_of(other)) for other in others
    )


MAX_RANK = 64
_PLAIN = frozenset((int, float, bool, type(None), str, torch.dtype, torch.device, torch.layout, torch.memory_format))


def call_values(
    recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], operands: Operands
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call as rules get them; `operands` receives the strides of its tensors.

    Raises:
        Exception: they lie on several devices, where eager refuses that.
    """
    if any(isinstance(arg, torch.SymInt) for arg in (*args, *kwargs.values())):
        args, kwargs = _fix_integers(func, args, kwargs)
    values = tuple([to_values(recorder, arg, operands) for arg in args])
    named = {key: to_values(recorder, item, operands) for key, item in kwargs.items()} if kwargs else kwargs
    if len({value.device for value, _ in operands.tensors if value.shape or value.device != "cpu"}) > 1:
        recorder.imp.begin(operands)
        replay.raise_as_eager(recorder.imp, func, values, named, recorder.builder.location)
    return values, named


def _fix_integers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Traced integers where the schema wants a size or a dim: they must be known. As operands they stay."""
    declared = {a.name: str(a.type) for a in func._schema.arguments}
    kinds = list(declared.values())
    fixed = [
        host.size_of(a) if isinstance(a, torch.SymInt) and "int" in kind.lower() else a for a, kind in zip(args, kinds)
    ]
    return (*fixed, *args[len(fixed) :]), {
        key: host.size_of(a) if isinstance(a, torch.SymInt) and "int" in declared[key].lower() else a
        for key, a in kwargs.items()
    }


def to_states(recorder: Recorder, item: Any) -> Any:
    """An argument of a view: tensors as states; sizes must be plain numbers."""
    if isinstance(item, torch.Tensor):
        return recorder.state_of(item)
    if isinstance(item, (list, tuple)):
        return [to_states(recorder, part) for part in item]
    return host.size_of(item) if isinstance(item, torch.SymInt) else item


def wrap_results(recorder: Recorder, result: Any, rule_layout: str, operands: Operands) -> Any:
    """What a rule gave as the tensors and traced numbers that the user gets."""
    if type(result) is Value or isinstance(result, Value):
        if result.type.is_host:
            kind = {"f64": float, "i64": int, "bool": bool}[result.dtype.name]
            return host.wrap(host.HostNode(recorder, result, kind))
        return recorder.wrap(result, result_strides(recorder, result, rule_layout, operands))
    if isinstance(result, (list, tuple)):
        return type(result)(wrap_results(recorder, part, rule_layout, operands) for part in result)
    return result


def result_strides(recorder: Recorder, value: Value, rule_layout: str, operands: Operands) -> Sequence[int]:
    """Strides that eager gives to a fresh result of a call."""
    given = recorder.imp.given_strides(value)
    if given is not None:
        return given
    shape: tuple[int, ...] = value.shape  # type: ignore[assignment]  # static by construction
    if rule_layout == LIKE and shape == operands.tensors[0][0].shape:
        return layout.dense_strides(shape, operands.tensors[0][1])
    pointwise = rule_layout == POINTWISE
    if not pointwise and rule_layout != CONTIGUOUS and value.op is not None:
        pointwise = get(value.op.name).kind is Kind.POINTWISE
    if not pointwise or len(shape) <= 1:
        return layout.contiguous(shape)
    numbers: list[layout.Layout] = [((), ())] if operands.has_number else []
    return layout.tensor_iterator_strides(shape, promoted_layouts(operands.tensors, value.dtype) + numbers)


def has_no_rules(value: Value, float8: bool = False) -> bool:
    """Most import rules cover no complex numbers, no 8-bit floats, and no more dims than TensorIterator takes."""
    is_float8 = value.dtype in FLOAT8 and not float8
    return value.dtype.kind == "complex" or is_float8 or value.type.rank > MAX_RANK


def import_functional(
    recorder: Recorder, rule: Rule | None, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any],
    operands: Operands,
) -> Any:  # fmt: skip
    """Import a call on Values; returns Values."""
    imp = recorder.imp
    imp.begin(operands)
    if (
        rule is None
        or any(has_no_rules(value, rule.float8) for value in operands)
        or not (operands or _makes_tensors(func))
    ):
        return import_extern(imp, func, args, kwargs).returned
    mark = len(recorder.graph.ops)
    try:
        return rule.fn(imp, *args, **kwargs)
    except Decline:
        del recorder.graph.ops[mark:]
    except Exception as error:
        del recorder.graph.ops[mark:]
        raise_fault(recorder, func, args, kwargs, error)
    imp.begin(operands)  # forgets what the rule said before it gave up
    return import_extern(imp, func, args, kwargs).returned


def _makes_tensors(func: Any) -> bool:
    """Whether an operator takes no tensor; rules of those that do count on one, where torch takes numbers as well."""
    return not any(str(argument.type) == "Tensor" for argument in func._schema.arguments)


def raise_fault(
    recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any], error: Exception
) -> NoReturn:
    """A rule failed.

    Raises:
        Exception: what eager raises for such arguments.
        InternalError: eager takes them. A rule that does not cover arguments says so with `Decline`.
    """
    if isinstance(error, (UnsupportedError, CaptureError)):
        raise error
    replay.raise_as_eager(recorder.imp, func, args, kwargs, recorder.builder.location)
    raise InternalError(
        f"the import rule of {func} failed, which is a fault of graphc ({type(error).__name__}: {error}). Please "
        "report it with this message and the call; until then run the function with graphc.eager()",
        recorder.builder.location,
    ) from error


def snapshot(recorder: Recorder, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments as Values, for asking eager about a call."""
    operands = Operands()
    values = tuple(to_values(recorder, arg, operands) for arg in args)
    keywords = {key: to_values(recorder, item, operands) for key, item in kwargs.items()}
    recorder.imp.begin(operands)
    return values, keywords
