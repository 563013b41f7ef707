"""Steps done from Python: ATen calls and matrix products on torch tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from graphc.errors import GraphcError, HasPosition, LoweringError, UnsupportedError
from graphc.ir.graph import Named
from graphc.ir.types import DType
from graphc.program.plan import AtenStep, GemmStep, View
from graphc.runtime.tensors import torch_dtype

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


class AtenCall:
    """An `AtenStep` made ready: overload looked up, constants converted, only tensors left to fill in."""

    def __init__(self, step: AtenStep) -> None:
        self.step = step
        self.function = overload(step.op)
        self._args = [(_has_view(value), value if _has_view(value) else constant(value)) for value in step.args]
        self._kwargs = [
            (name, _has_view(value), value if _has_view(value) else constant(value)) for name, value in step.kwargs
        ]
        returns = self.function._schema.returns
        # a returned alias of an operand that the call writes to is no result of its own
        aliases = [item.alias_info is not None and item.alias_info.is_write for item in returns]
        keeps_all = len(step.outs) == len(returns) or any(str(item.type).startswith("List") for item in returns)
        self._dropped = () if keeps_all else tuple(number for number, alias in enumerate(aliases) if alias)

    def __call__(self, tensor_of: TensorOf) -> tuple[Any, ...]:
        """Run it; one result per entry of `step.outs`, None where the step takes none.

        A result that shares memory with an operand is copied: operands' buffers may be overwritten later.
        """
        args = [_resolve(value, tensor_of) if dynamic else value for dynamic, value in self._args]
        kwargs = {name: _resolve(value, tensor_of) if dynamic else value for name, dynamic, value in self._kwargs}
        returned = self.function(*args, **kwargs)
        results = _flat(returned) if isinstance(returned, (tuple, list)) else [returned]
        kept = [item for number, item in enumerate(results) if number not in self._dropped]
        if len(self.step.outs) > len(kept):
            raise LoweringError(
                f"{self.step.op} returned {len(kept)} results, the plan takes {len(self.step.outs)}", self.step.location
            )
        taken = [result if out >= 0 else None for out, result in zip(self.step.outs, kept, strict=False)]
        operands = [item for item in _flat([*args, *kwargs.values()]) if isinstance(item, torch.Tensor)]
        return tuple([_owned(result, operands) for result in taken])


def _flat(values: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if isinstance(value, (tuple, list)):
            found += _flat(value)
        else:
            found.append(value)
    return found


def _owned(result: Any, operands: list[torch.Tensor]) -> Any:
    if not isinstance(result, torch.Tensor):
        return result
    if result.layout is not torch.strided:
        raise UnsupportedError(f"a result with layout {result.layout} cannot be a value of a compiled program")
    if result.is_conj() or result.is_neg():
        result = result.resolve_conj().resolve_neg()
    storage = result.untyped_storage()._cdata
    if any(operand.untyped_storage()._cdata == storage for operand in operands):
        return result.clone()
    return result


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


def add_location(error: BaseException, location: HasPosition | None) -> None:
    """Say in an error's message which line of the user's program it comes from; its class stays."""
    if location is None or not location.line or isinstance(error, GraphcError):
        return
    where = f"  at {location.file}:{location.line}"
    if len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{where}",)
    else:
        error.add_note(where)
