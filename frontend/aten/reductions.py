"""Import rules of reductions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.operands import as_bool, is_number, supported, wrap_dim, wrap_dims
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, rule
from graphc.ir.graph import Operand, Value
from graphc.ir.types import DType, i64, u8

Dims = int | Sequence[int] | None


def _cast(imp: Importer, value: Value, dtype: DType) -> Value:
    supported(value)
    converted = imp.cast(value, dtype)
    assert isinstance(converted, Value)
    supported(converted)
    return converted


def _widened(imp: Importer, self: Value, dtype: torch.dtype | None) -> Value:
    """The operand of a sum or product: integers and bools are summed as i64 unless a dtype is given."""
    return _numbers(_cast(imp, self, imp.dtype(dtype, i64 if self.dtype.is_integral else self.dtype)))


def _numbers(value: Value) -> Value:
    supported(value)
    if value.dtype.kind == "bool":
        raise Decline("bools")
    return value


def _not_empty(value: Value, dims: Sequence[int]) -> None:
    if any(value.shape[dim] == 0 for dim in dims):
        raise Decline("eager raises for an empty dim")


# sums and products


@rule("aten.sum.default", "aten.sum.dim_IntList", layout=CONTIGUOUS)
def sum_(
    imp: Importer, self: Value, dim: Dims = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Value:
    x = _widened(imp, self, dtype)
    return imp.b.op("sum", x, dims=wrap_dims(dim, self.type.rank), keepdim=keepdim)


@rule("aten.nansum.default", layout=CONTIGUOUS)
def nansum(
    imp: Importer, self: Value, dim: Dims = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Value:
    x = _widened(imp, self, dtype)
    if x.dtype.is_float:
        x = imp.b.op("where", imp.b.op("isnan", x), 0.0, x)
    return imp.b.op("sum", x, dims=wrap_dims(dim, self.type.rank), keepdim=keepdim)


@rule("aten.prod.default", layout=CONTIGUOUS)
def prod(imp: Importer, self: Value, dtype: torch.dtype | None = None) -> Value:
    x = _widened(imp, self, dtype)
    return imp.b.op("prod", x, dims=wrap_dims(None, self.type.rank), keepdim=False)


@rule("aten.prod.dim_int", layout=CONTIGUOUS)
def prod_dim(imp: Importer, self: Value, dim: int, keepdim: bool = False, dtype: torch.dtype | None = None) -> Value:
    x = _widened(imp, self, dtype)
    return imp.b.op("prod", x, dims=wrap_dims(dim, self.type.rank), keepdim=keepdim)


@rule("aten.mean.default", "aten.mean.dim", layout=CONTIGUOUS)
def mean(
    imp: Importer, self: Value, dim: Dims = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Value:
    x = _cast(imp, self, imp.dtype(dtype, self.dtype))
    if not x.dtype.is_float:
        raise Decline("eager raises")
    return imp.b.op("mean", x, dims=wrap_dims(dim, self.type.rank), keepdim=keepdim)


@rule("aten.count_nonzero.default", "aten.count_nonzero.dim_IntList", layout=CONTIGUOUS)
def count_nonzero(imp: Importer, self: Value, dim: Dims = None) -> Value:
    ones = imp.b.op("cast", as_bool(imp, self), dtype=i64)
    return imp.b.op("sum", ones, dims=wrap_dims(dim, self.type.rank), keepdim=False)


@rule("aten.trace.default", layout=CONTIGUOUS)
def trace(imp: Importer, self: Value) -> Value:
    if self.type.rank != 2 or self.dtype.kind == "bool":
        raise Decline("eager raises")
    rows, columns = self.shape
    x = _widened(imp, self, None)
    length = min(rows, columns)  # type: ignore[type-var]  # static
    line = imp.b.op("as_strided", x, shape=(length,), strides=(columns + 1,), offset=0)
    return imp.b.op("sum", line, dims=(0,), keepdim=False)


# extremes


@rule("aten.amax.default", layout=CONTIGUOUS)
def amax(imp: Importer, self: Value, dim: Dims = (), keepdim: bool = False) -> Value:
    return _extreme(imp, "amax", self, dim, keepdim)


@rule("aten.amin.default", layout=CONTIGUOUS)
def amin(imp: Importer, self: Value, dim: Dims = (), keepdim: bool = False) -> Value:
    return _extreme(imp, "amin", self, dim, keepdim)


def _extreme(imp: Importer, name: str, self: Value, dim: Dims, keepdim: bool) -> Value:
    dims = wrap_dims(dim, self.type.rank)
    _not_empty(self, dims)
    if self.dtype.kind == "bool":
        return imp.b.op("any" if name == "amax" else "all", self, dims=dims, keepdim=keepdim)
    return imp.b.op(name, _numbers(self), dims=dims, keepdim=keepdim)


@rule("aten.max.default", layout=CONTIGUOUS)
def max_(imp: Importer, self: Value) -> Value:
    return _extreme(imp, "amax", self, None, False)


@rule("aten.min.default", layout=CONTIGUOUS)
def min_(imp: Importer, self: Value) -> Value:
    return _extreme(imp, "amin", self, None, False)


@rule("aten.max.dim", layout=CONTIGUOUS)
def max_dim(imp: Importer, self: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    return _extreme(imp, "amax", _numbers(self), dim, keepdim), _arg(imp, "argmax", self, dim, keepdim)


@rule("aten.min.dim", layout=CONTIGUOUS)
def min_dim(imp: Importer, self: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    return _extreme(imp, "amin", _numbers(self), dim, keepdim), _arg(imp, "argmin", self, dim, keepdim)


@rule("aten.aminmax.default", "aten._aminmax.default", "aten._aminmax.dim", layout=CONTIGUOUS)
def aminmax(imp: Importer, self: Value, dim: int | None = None, keepdim: bool = False) -> tuple[Value, Value]:
    if keepdim and dim is None:
        raise Decline("all dims kept")
    return _extreme(imp, "amin", self, dim, keepdim), _extreme(imp, "amax", self, dim, keepdim)


@rule("aten.argmax.default", layout=CONTIGUOUS)
def argmax(imp: Importer, self: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _arg(imp, "argmax", self, dim, keepdim)


@rule("aten.argmin.default", layout=CONTIGUOUS)
def argmin(imp: Importer, self: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _arg(imp, "argmin", self, dim, keepdim)


def _arg(imp: Importer, name: str, self: Value, dim: int | None, keepdim: bool) -> Value:
    rank = self.type.rank
    which = None if dim is None else wrap_dim(dim, rank)
    _not_empty(_numbers(self), range(rank) if which is None else wrap_dims(dim, rank))
    return imp.b.op(name, self, dim=which if rank else None, keepdim=keepdim)


# tests


@rule("aten.any.default", "aten.any.dim", "aten.any.dims", layout=CONTIGUOUS)
def any_(imp: Importer, self: Value, dim: Dims = None, keepdim: bool = False) -> Value:
    return _test(imp, "any", self, dim, keepdim)


@rule("aten.all.default", "aten.all.dim", "aten.all.dims", layout=CONTIGUOUS)
def all_(imp: Importer, self: Value, dim: Dims = None, keepdim: bool = False) -> Value:
    return _test(imp, "all", self, dim, keepdim)


def _test(imp: Importer, name: str, self: Value, dim: Dims, keepdim: bool) -> Value:
    if self.dtype == u8:
        raise Decline("eager gives u8, not bool")
    if dim is not None and not isinstance(dim, int) and not dim:
        raise Decline("an empty list of dims means none here")
    return imp.b.op(name, as_bool(imp, self), dims=wrap_dims(dim, self.type.rank), keepdim=keepdim)


# spread and norms


def _spread(imp: Importer, name: str, self: Value, dim: Dims, correction: Operand | None, keepdim: bool) -> Value:
    supported(self)
    if not self.dtype.is_float or isinstance(correction, Value):
        raise Decline("integers, or a traced correction")
    taken = 1 if correction is None else correction
    return imp.b.op(name, self, dims=wrap_dims(dim, self.type.rank), keepdim=keepdim, correction=taken)


@rule("aten.var.correction", layout=CONTIGUOUS)
def var(
    imp: Importer, self: Value, dim: Dims = None, correction: Operand | None = None, keepdim: bool = False
) -> Value:
    return _spread(imp, "var", self, dim, correction, keepdim)


@rule("aten.std.correction", layout=CONTIGUOUS)
def std(
    imp: Importer, self: Value, dim: Dims = None, correction: Operand | None = None, keepdim: bool = False
) -> Value:
    return _spread(imp, "std", self, dim, correction, keepdim)


@rule("aten.var_mean.correction", layout=CONTIGUOUS)
def var_mean(
    imp: Importer, self: Value, dim: Dims = None, correction: Operand | None = None, keepdim: bool = False
) -> tuple[Value, Value]:
    return _spread(imp, "var", self, dim, correction, keepdim), mean(imp, self, dim, keepdim)


@rule("aten.std_mean.correction", layout=CONTIGUOUS)
def std_mean(
    imp: Importer, self: Value, dim: Dims = None, correction: Operand | None = None, keepdim: bool = False
) -> tuple[Value, Value]:
    return _spread(imp, "std", self, dim, correction, keepdim), mean(imp, self, dim, keepdim)


@rule("aten.logsumexp.default", layout=CONTIGUOUS)
def logsumexp(imp: Importer, self: Value, dim: Dims, keepdim: bool = False) -> Value:
    x = _cast(imp, self, imp.dtype(None) if self.dtype.is_integral else self.dtype)
    return imp.b.op("logsumexp", x, dims=wrap_dims(dim, self.type.rank), keepdim=keepdim)


@rule("aten.linalg_vector_norm.default", layout=CONTIGUOUS)
def vector_norm(
    imp: Importer, self: Value, ord: Operand = 2, dim: Dims = None, keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Value:  # fmt: skip
    if not isinstance(ord, (int, float)) or not self.dtype.is_float:
        raise Decline("a traced order, or integers")
    x = _cast(imp, self, imp.dtype(dtype, self.dtype))
    dims = wrap_dims(dim, self.type.rank)
    if ord < 0 or is_number(ord, float("inf")):
        _not_empty(x, dims)
    return imp.b.op("norm", x, dims=dims, keepdim=keepdim, p=float(ord))


@rule(
    "aten.norm.Scalar", "aten.norm.ScalarOpt_dim", "aten.norm.ScalarOpt_dtype", "aten.norm.ScalarOpt_dim_dtype",
    layout=CONTIGUOUS,
)  # fmt: skip
def norm(
    imp: Importer, self: Value, p: Operand | None = 2, dim: Dims = None, keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Value:  # fmt: skip
    return vector_norm(imp, self, 2 if p is None else p, dim, keepdim, dtype)


@rule("aten.dist.default", layout=CONTIGUOUS)
def dist(imp: Importer, self: Value, other: Value, p: Operand = 2) -> Value:
    if self.dtype != other.dtype:
        raise Decline("dtypes differ")
    supported(self)
    return vector_norm(imp, imp.b.op("sub", self, other), p)
