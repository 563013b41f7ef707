"""Import rules of running reductions."""

from __future__ import annotations

import torch

from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.operands import supported, wrap_dim
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, rule
from graphc.ir.graph import Value
from graphc.ir.types import i64


def _scan(imp: Importer, name: str, self: Value, dim: int, dtype: torch.dtype | None) -> Value:
    supported(self)
    x = imp.cast(self, imp.dtype(dtype, i64 if self.dtype.is_integral else self.dtype))
    assert isinstance(x, Value)
    supported(x)
    if x.dtype.kind == "bool":
        raise Decline("bools kept as bools")
    axis = wrap_dim(dim, self.type.rank)
    return imp.b.op(name, x, dim=axis) if self.shape else x


@rule("aten.cumsum.default", layout=CONTIGUOUS)
def cumsum(imp: Importer, self: Value, dim: int, dtype: torch.dtype | None = None) -> Value:
    return _scan(imp, "cumsum", self, dim, dtype)


@rule("aten.cumprod.default", layout=CONTIGUOUS)
def cumprod(imp: Importer, self: Value, dim: int, dtype: torch.dtype | None = None) -> Value:
    return _scan(imp, "cumprod", self, dim, dtype)
