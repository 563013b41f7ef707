"""Formulas over graph values, written as formulas: the gradients that are not ops of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, Union

from graphc.frontend.aten.importer import Importer
from graphc.ir.graph import Operand, Value
from graphc.ir.types import DType, f32

Factor: TypeAlias = Union["Term", bool, int, float]


@dataclass(frozen=True)
class Term:
    """A value that takes part in a formula.

    Args:
        imp: appends the ops.
        value: of the dtype the formula is computed in.
    """

    imp: Importer
    value: Value

    def op(self, name: str, *others: Factor) -> Term:
        """A pointwise op with this term as its first operand."""
        return Term(self.imp, self.imp.b.op(name, self.value, *map(_operand, others)))

    def __add__(self, other: Factor) -> Term:
        return self.op("add", other)

    def __sub__(self, other: Factor) -> Term:
        return self.op("sub", other)

    def __mul__(self, other: Factor) -> Term:
        return self.op("mul", other)

    def __truediv__(self, other: Factor) -> Term:
        return self.op("div", other)

    def __rsub__(self, other: float) -> Term:
        return Term(self.imp, self.imp.b.op("sub", other, self.value))

    def __neg__(self) -> Term:
        return self.op("neg")

    __radd__, __rmul__ = __add__, __mul__

    def where(self, yes: Factor, no: Factor) -> Term:
        """`yes` where this condition holds, else `no`."""
        return self.op("where", yes, no)

    def sum(self, dims: Sequence[int], keepdim: bool = True) -> Term:
        """Sum over dims; none gives the term itself."""
        if not dims:
            return self
        return Term(self.imp, self.imp.b.op("sum", self.value, dims=tuple(dims), keepdim=keepdim))

    def reshape(self, shape: Sequence[int]) -> Term:
        """The same elements in another shape."""
        return Term(self.imp, self.imp.reshape(self.value, shape))

    def to(self, dtype: DType) -> Value:
        """The result, rounded to a dtype."""
        value = self.imp.cast(self.value, dtype)
        assert isinstance(value, Value)
        return value


def _operand(factor: Factor) -> Operand:
    return factor.value if isinstance(factor, Term) else factor


def wide(imp: Importer, value: Value) -> Term:
    """A tensor as eager's kernels compute with it: reduced precision in float32."""
    return Term(imp, imp.cast(value, f32) if value.dtype.is_reduced else value)  # type: ignore[arg-type]


def formula(imp: Importer, fn: Callable[..., Term], *tensors: Value) -> Value:
    """A formula over tensors of one dtype, in the dtype eager computes in, rounded to theirs once."""
    return fn(*(wide(imp, tensor) for tensor in tensors)).to(tensors[0].dtype)
