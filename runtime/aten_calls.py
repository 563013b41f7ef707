"""Steps done from Python: ATen calls and matrix products on torch tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from graphc.errors import LoweringError, UnsupportedError, add_location
from graphc.ir.graph import Named
from graphc.ir.types import DType
from graphc.program.plan import AtenStep, GemmStep, View
from graphc.runtime.tensors import torch_dtype

_ACCESS = 16
"""Bytes that a thread of a GPU reads at once."""
TensorOf: TypeAlias = Callable[[View], Any]
"""Gives the tensor that a view describes, or the Python number of a view of a host buffer."""


@functools.cache
def overload(op: str) -> Any:
    """The torch operator overload named `namespace.name.overload`.

    Raises:
        LoweringError: this torch has no such overload.
    """
    namespace, name, variant = op.split(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), name), variant)
    except AttributeError:
        raise LoweringError(f"this torch has no operator {op}") from None


def constant(value: Any) -> Any:
    """A plain attribute as torch takes it: dtypes, devices, layouts and memory formats by name, the rest as it is."""
    if isinstance(value, DType):
        return torch_dtype(value)
    if isinstance(value, Named):
        return torch.device(value.name) if value.kind == "device" else getattr(torch, value.name)
    if isinstance(value, (tuple, list)):
        return [constant(item) for item in value]
    return value


def _has_view(value: Any) -> bool:
    if isinstance(value, View):
        return True
    return isinstance(value, (tuple, list)) and any(map(_has_view, value))


def _resolve(value: Any, tensor_of: TensorOf) -> Any:
    if isinstance(value, View):
        return tensor_of(value)
    if isinstance(value, (tuple, list)):
        return [_resolve(item, tensor_of) for item in value]
    return constant(value)


def reads_whole_accesses(op: str) -> bool:
    """Whether an operator takes for granted that its tensors begin at multiples of 16 bytes."""
    return op.startswith("aten._scaled_dot_product_") and "_for_cpu" not in op


def at_whole_accesses(tensor: Any) -> Any:
    """A tensor, or a copy of one that does not begin at a multiple of 16 bytes; a number as it is."""
    is_apart = isinstance(tensor, torch.Tensor) and tensor.data_ptr() % _ACCESS
    return tensor.clone() if is_apart else tensor


class AtenCall:
    """An `AtenStep` made ready: overload looked up, constants converted, only tensors left to fill in."""

    def __init__(self, step: AtenStep) -> None:
        self.step = step
        self.function = overload(step.op)
        self._args = [None if _has_view(value) else constant(value) for value in step.args]
        self._kwargs = {name: None if _has_view(value) else constant(value) for name, value in step.kwargs}
        # what is left to fill in, by place
        self._fill = [(at, value) for at, value in enumerate(step.args) if _has_view(value)]
        self._fill_named = [(name, value) for name, value in step.kwargs if _has_view(value)]
        returns = self.function._schema.returns
        # a returned alias of an operand that the call writes to is no result of its own
        aliases = [item.alias_info is not None and item.alias_info.is_write for item in returns]
        keeps_all = len(step.outs) == len(returns) or any(str(item.type).startswith("List") for item in returns)
        self._dropped = () if keeps_all else tuple(number for number, alias in enumerate(aliases) if alias)

    def __call__(self, tensor_of: TensorOf) -> tuple[Any, ...]:
        """Run it; one result per entry of `step.outs`, None where the step takes none.

        A result that shares memory with an operand is copied: operands' buffers may be overwritten later.
        """
        args, kwargs = self._args.copy(), self._kwargs
        for at, value in self._fill:
            args[at] = tensor_of(value) if type(value) is View else _resolve(value, tensor_of)
        if self._fill_named:
            kwargs = kwargs | {name: _resolve(value, tensor_of) for name, value in self._fill_named}
        returned = self.function(*args, **kwargs)
        results = _flat(returned) if isinstance(returned, (tuple, list)) else [returned]
        if self._dropped:
            results = [item for number, item in enumerate(results) if number not in self._dropped]
        outs = self.step.outs
        if len(results) > len(outs):
            results = [item for item in results if item is not None]  # gradients that were not asked for
        if len(results) > len(outs):
            results = [item for item in results if isinstance(item, torch.Tensor)]  # lengths, which the plan knows
        if any(index >= 0 for index in outs[len(results) :]):
            raise LoweringError(
                f"{self.step.op} returned {len(results)} results, the plan takes {len(outs)}", self.step.location
            )
        operands = [args[at] for at, _ in self._fill]
        if self._fill_named:
            operands += [kwargs[name] for name, _ in self._fill_named]
        storages = {item.untyped_storage()._cdata for item in _flat(operands) if isinstance(item, torch.Tensor)}
        return tuple([_owned(results[i], storages) if outs[i] >= 0 else None for i in range(len(outs))])


def _flat(values: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if isinstance(value, (tuple, list)):
            found += _flat(value)
        else:
            found.append(value)
    return found


def _owned(result: Any, storages: set[int]) -> Any:
    """A result that shares no memory with these storages."""
    if not isinstance(result, torch.Tensor):
        return result
    if result.layout is not torch.strided:
        raise UnsupportedError(f"a result with layout {result.layout} cannot be a value of a compiled program")
    if result.is_conj() or result.is_neg():
        result = result.resolve_conj().resolve_neg()
    return result.clone() if result.untyped_storage()._cdata in storages else result


def run_aten(step: AtenStep, tensor_of: TensorOf) -> tuple[Any, ...]:
    """Run an ATen step from Python.

    Args:
        step: the call.
        tensor_of: gives the tensor of a `View` (the Python number for a host buffer).

    Returns:
        One result per entry of `step.outs`; None where the step takes none. Tensors share no memory with operands.

    Raises:
        Whatever the operator raises, of the operator's own class, with the user's source line added.
    """
    return run_call(AtenCall(step), tensor_of)


def run_call(call: AtenCall, tensor_of: TensorOf) -> tuple[Any, ...]:
    """As `run_aten`, for a call made ready before."""
    try:
        return call(tensor_of)
    except Exception as error:
        add_location(error, call.step.location)
        raise


def run_gemm(step: GemmStep, tensor_of: TensorOf) -> None:
    """`out = a @ b (+ out)` on tensors, written into `out`'s own memory."""
    a, b, out = tensor_of(step.a), tensor_of(step.b), tensor_of(step.out)
    try:
        if 0 in out.shape or (step.accumulate and a.shape[-1] == 0):
            return
        if out.dim() == 2:
            torch.addmm(out, a, b, out=out) if step.accumulate else torch.mm(a, b, out=out)
        elif out.dim() == 3:
            torch.baddbmm(out, a, b, out=out) if step.accumulate else torch.bmm(a, b, out=out)
        else:
            product = torch.matmul(a, b)
            out.add_(product) if step.accumulate else out.copy_(product)
    except Exception as error:
        add_location(error, step.location)
        raise
