"""What import rules work with: the graph builder, dtype promotion, eager's strides, and the `extern` escape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from graphc.frontend.aten import layout, promotion
from graphc.frontend.keys import Keys
from graphc.frontend.random_tape import RandomTape
from graphc.ir.graph import Attr, Builder, Op, Operand, Value
from graphc.ir.types import HOST, DType, TensorType, bool_, contiguous_strides

if TYPE_CHECKING:
    from graphc.frontend.aten.extern import Trial
    from graphc.frontend.aten.sized_trials import SizedTrial
    from graphc.frontend.known import Known


class Decisions(Protocol):
    """Answers for calls whose results have shapes that depend on data."""

    def results(self, func: Any, operands: list[Value], args: Any, kwargs: Any) -> Any:
        """Tensors like those that the call returns, in the structure of its schema."""

    def answered(self, op: Op) -> None:
        """The call is in the graph as this op."""


class Importer:
    """The side of the capture that import rules see.

    Attributes:
        b: the builder of the graph being captured; `imp.b.op("add", x, y)` appends an op and infers its type.
        keys: what random draws are made from.
        rounds_as_eager: every op rounds where eager rounds, and nowhere else.
        trials: what calls of libraries have been found to return, by what they are given: layers are alike.
        sized_trials: those of them on tensors of many sizes.
    """

    def __init__(self, builder: Builder, numerics: str = "default") -> None:
        self.b = builder
        self._operand_strides: dict[Value, tuple[int, ...]] = {}
        self._given_strides: dict[Value, tuple[int, ...]] = {}
        self.writes: list[tuple[Value, Value]] = []
        self.tape = RandomTape()
        self.rounds_as_eager = numerics == "eager"
        self.keys = Keys(builder, self.tape, not self.rounds_as_eager)
        self.decisions: Decisions | None = None  # asked for results whose shape depends on data
        self.known: Known | None = None  # values that no input decides
        self.trials: dict[str, Trial] = {}
        self.sized_trials: list[SizedTrial] = []

    # dtypes and devices

    def dtype(self, value: torch.dtype | DType | None, default: DType | None = None) -> DType:
        """A torch dtype as a graph dtype; None gives `default`, else torch's default dtype."""
        if isinstance(value, DType):
            return value
        if value is None:
            return default if default is not None else promotion.from_torch(torch.get_default_dtype())
        return promotion.from_torch(value)

    def device(self, value: torch.device | str | int | None, like: Value | None = None) -> str:
        """A device as the graph names it; None gives that of `like`, else torch's default device."""
        if value is None:
            return like.device if like is not None else _device_name(torch.get_default_device())
        return _device_name(torch.device(value))

    def cast(self, value: Operand, dtype: DType) -> Operand:
        """`value` in another dtype, or itself. Numbers are converted, traced numbers become 0-d cpu tensors."""
        if not isinstance(value, Value):
            return promotion.convert_number(value, dtype)
        if value.type.is_host:
            return self.b.op("to_tensor", value, dtype=dtype, device="cpu")
        return value if value.dtype is dtype or value.dtype == dtype else self.b.op("cast", value, dtype=dtype)

    def promote(self, *args: Operand, kind: str = "default") -> tuple[list[Operand], DType]:
        """Operands cast to the dtype torch computes in, and the dtype of the result.

        Args:
            *args: tensors, Python numbers and traced numbers. Tensors with dims outrank 0-d tensors, and these numbers.
            kind: `default`; `int_to_float` (integers are computed in the default float dtype, as in `exp`); `bool`
                (compared in the common dtype, the result is bool); `complex_to_float` (as default for reals).

        Returns:
            The operands (numbers and traced numbers stay what they are: they take the dtype of the tensors beside them)
            and the result dtype.
        """
        compute = promotion.common_dtype(args)
        if kind == "int_to_float" and compute.is_integral:
            compute = promotion.from_torch(torch.get_default_dtype())
        operands = [self.cast(arg, compute) if not is_host(arg) else arg for arg in args]
        return operands, bool_ if kind == "bool" else compute

    def result_dtype(self, *args: Operand) -> DType:
        """The dtype `torch.result_type` gives."""
        return promotion.common_dtype(args)

    # making values

    def tensor(self, value: Operand, dtype: DType, device: str) -> Value:
        """A number or traced number as a 0-d tensor; a tensor is cast."""
        if isinstance(value, Value) and value.type.is_host:
            return self.b.op("to_tensor", value, dtype=dtype, device=device)
        if isinstance(value, Value):
            cast = self.cast(value, dtype)
            assert isinstance(cast, Value)
            return cast
        return self.full((), value, dtype, device)

    def full(self, shape: Sequence[int], value: Operand, dtype: DType, device: str) -> Value:
        """A tensor filled with one number (an immediate, or a traced number)."""
        if isinstance(value, Value):
            return self.b.op("expand", self.tensor(value, dtype, device), shape=tuple(shape))
        if dtype.kind == "complex":
            options = {"dtype": promotion.to_torch(dtype), "device": torch.device(device)}
            made: Value = self.extern("aten.full.default", (tuple(shape), value), options)
            return made
        number = promotion.convert_number(value, dtype)
        return self.b.op("full", shape=tuple(shape), dtype=dtype, value=number, device=device)

    def full_like(self, like: Value, value: Operand, dtype: DType | None = None, device: str | None = None) -> Value:
        """A tensor of the shape (and, unless given, dtype and device) of `like`."""
        return self.full(_static(like), value, dtype or like.dtype, device or like.device)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """The same elements in row-major order in another shape; a no-op when it is the same."""
        new = tuple(shape)
        return value if value.shape == new else self.b.op("reshape", value, shape=new)

    def permute(self, value: Value, dims: Sequence[int]) -> Value:
        """Dimensions in another order; a no-op for the identity."""
        order = tuple(dim % max(value.type.rank, 1) for dim in dims)
        return value if order == tuple(range(len(order))) else self.b.op("permute", value, dims=order)

    def expand(self, value: Value, shape: Sequence[int]) -> Value:
        """Broadcast to a shape, numpy's rule; a no-op when it has it."""
        new = tuple(shape)
        return value if value.shape == new else self.b.op("expand", value, shape=new)

    def slice(self, value: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
        """Elements `start:stop:step` along a dim, bounds already clamped; a no-op for the whole."""
        if start == 0 and step == 1 and stop == value.shape[dim]:
            return value
        return self.b.op("slice", value, dim=dim, start=start, stop=stop, step=step)

    # strides

    def strides(self, value: Value) -> tuple[int, ...]:
        """Strides eager gives an operand of this call, in elements."""
        found = self._given_strides.get(value) or self._operand_strides.get(value)
        if found is not None:
            return found
        return value.strides if value.strides is not None else contiguous_strides(value.shape)  # type: ignore[return-value]

    def with_strides(self, value: Value, strides: Sequence[int]) -> Value:
        """State the strides eager gives a result of this call; returns `value`."""
        self._given_strides[value] = tuple(strides)
        return value

    def preserved_strides(self, value: Value) -> tuple[int, ...]:
        """Strides of `torch.empty_like(value)`: its own when dense, else dense strides in the same order of dims."""
        return layout.dense_strides(_static(value), self.strides(value))

    def memory_format_strides(self, value: Value, memory_format: torch.memory_format | None) -> tuple[int, ...]:
        """Strides of a fresh tensor of the shape of `value` made with a `memory_format=` argument (None preserves)."""
        return layout.format_strides(_static(value), self.strides(value), memory_format)

    def pointwise_strides(
        self, result: Value, operands: Sequence[Operand], uncast: Sequence[Value] = ()
    ) -> tuple[int, ...]:
        """Strides TensorIterator gives a fresh result computed from `operands`; those `uncast` keep their dtype."""
        tensors = [v for v in operands if isinstance(v, Value) and not v.type.is_host]
        known = [(_static(value), self.strides(value)) for value in uncast]
        known += promoted_layouts([(value, self.strides(value)) for value in tensors], result.dtype)
        known += [((), ())] * (len(operands) > len(tensors))  # a number is a 0-d tensor
        return layout.tensor_iterator_strides(_static(result), known)

    # mutation

    def write(self, argument: Value, new: Value) -> None:
        """Say that this call gives a tensor argument new contents which its schema does not tell of (the running
        statistics of `native_batch_norm`). The capture carries it out after the rule."""
        self.writes.append((argument, new))

    # ATen as it is

    def extern(self, overload: str, args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> Any:
        """Call an ATen overload as it is; arguments as a rule gets them.

        Returns:
            A Value, or a tuple of Values for several results (None for an undefined one).
        """
        from graphc.frontend.aten.extern import import_extern

        return import_extern(self, overload, args, kwargs or {}).returned

    def call(self, operands: Sequence[Value], attrs: dict[str, Attr], types: Sequence[TensorType]) -> Op:
        """Append an `extern` op; or the random draw that is made again because the generator has been set back."""
        is_random = attrs.get("effect") == "random"
        op = self.tape.again(operands, attrs) if is_random else None
        if op is None:
            op = self.b.multi("extern", operands, attrs, types)
            if is_random:
                self.tape.record(op)
        return op

    # used by the capture, not by rules

    def begin(self, operand_strides: dict[Value, tuple[int, ...]]) -> None:
        """Start a call: the strides of its operands."""
        self._operand_strides = operand_strides
        self._given_strides = {}
        self.writes = []

    def given_strides(self, value: Value) -> tuple[int, ...] | None:
        """Strides a rule stated for a result of this call."""
        return self._given_strides.get(value)


def is_host(operand: Operand) -> bool:
    """A traced number."""
    return isinstance(operand, Value) and operand.type.device == HOST


def tensor_type(tensor: torch.Tensor) -> TensorType:
    """The graph type of a torch tensor."""
    return TensorType(promotion.from_torch(tensor.dtype), tuple(tensor.shape), _device_name(tensor.device))


def _device_name(device: torch.device) -> str:
    if device.type == "cpu" or device.index is not None:
        return str(device) if device.type != "cpu" else "cpu"
    index = torch.accelerator.current_device_index() if device.type != "meta" else None
    return device.type if index is None else f"{device.type}:{index}"


def _static(value: Value) -> tuple[int, ...]:
    return value.shape  # type: ignore[return-value]


def promoted_layouts(operands: Sequence[tuple[Value, tuple[int, ...]]], result: DType) -> list[layout.Layout]:
    """Shapes and strides of operands as TensorIterator meets them: what has another dtype has been copied before.

    Args:
        operands: tensors, each with its strides.
        result: dtype of what is computed.
    """
    if not operands:
        return []
    common = promotion.common_dtype(value for value, _ in operands)
    common = result if result.is_float and common.is_integral else common
    return [
        (_static(value), strides if value.dtype == common else layout.dense_strides(_static(value), strides))
        for value, strides in operands
    ]
