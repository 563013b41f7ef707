"""Import rules of matrix products."""

from __future__ import annotations

from collections.abc import Sequence

from graphc.frontend.aten import layout
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.operands import fitting, is_number, supported
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, rule
from graphc.frontend.aten.stated import stated_call
from graphc.ir.graph import Attr, Operand, Value
from graphc.ir.types import bf16, f16, i8


def _shape(value: Value) -> tuple[int, ...]:
    return value.shape  # type: ignore[return-value]  # static


def _checked(*operands: Value, ranks: Sequence[int] = ()) -> None:
    """Check what eager's products ask for: one dtype, one device, given ranks.

    Raises:
        Decline: eager raises, or it is a dtype kernels do not compute with.
    """
    supported(*operands)
    first = operands[0]
    if first.dtype.kind == "bool" or any(v.dtype != first.dtype or v.device != first.device for v in operands):
        raise Decline("dtypes or devices")
    if ranks and tuple(v.type.rank for v in operands) != tuple(ranks):
        raise Decline("eager raises")


@rule("aten.mm.default", layout=CONTIGUOUS)
def mm(imp: Importer, self: Value, mat2: Value) -> Value:
    _checked(self, mat2, ranks=(2, 2))
    return imp.b.op("matmul", self, mat2)


@rule("aten._int_mm.default", layout=CONTIGUOUS)
def int_mm(imp: Importer, self: Value, mat2: Value) -> Value:
    _checked(self, mat2, ranks=(2, 2))
    if self.dtype != i8 or self.shape[1] != mat2.shape[0]:
        raise Decline("eager raises")
    (rows, inner), (_, columns) = _shape(self), _shape(mat2)
    if self.device != "cpu" and (rows <= 16 or inner % 8 or columns % 8):
        raise Decline("the library of a GPU refuses it")
    return imp.b.op("int_matmul", self, mat2)


@rule("aten.bmm.default", layout=CONTIGUOUS)
def bmm(imp: Importer, self: Value, mat2: Value) -> Value:
    _checked(self, mat2, ranks=(3, 3))
    if self.shape[0] != mat2.shape[0]:
        raise Decline("eager raises")
    return imp.b.op("matmul", self, mat2)


@rule("aten.mv.default", layout=CONTIGUOUS)
def mv(imp: Importer, self: Value, vec: Value) -> Value:
    _checked(self, vec, ranks=(2, 1))
    column = imp.reshape(vec, (*_shape(vec), 1))
    return imp.reshape(imp.b.op("matmul", self, column), _shape(self)[:1])


@rule("aten.dot.default", "aten.vdot.default", layout=CONTIGUOUS)
def dot(imp: Importer, self: Value, other: Value) -> Value:
    _checked(self, other, ranks=(1, 1))
    if self.shape != other.shape:
        raise Decline("eager raises")
    return imp.b.op("sum", imp.b.op("mul", self, other), dims=(0,), keepdim=False)


def _scaled_sum(imp: Importer, base: Value, product: Value, beta: Operand, alpha: Operand) -> Value:
    """`beta * base + alpha * product`; the base is not read at all when beta is 0."""
    term = _scaled(imp, product, alpha)
    if is_number(beta, 0):
        return term
    _check_broadcast(base, _shape(product))
    return imp.b.op("add", _scaled(imp, base, beta), term)


def _check_broadcast(base: Value, shape: tuple[int, ...]) -> None:
    """Check that a tensor can be added to one of this shape."""
    lead = len(shape) - base.type.rank
    if lead < 0 or any(size not in (1, shape[lead + i]) for i, size in enumerate(base.shape)):
        raise Decline("eager raises")


def _scaled(imp: Importer, value: Value, factor: Operand) -> Value:
    if is_number(factor, 1):
        return value
    number = factor if isinstance(factor, Value) else fitting(factor, value.dtype)  # type: ignore[arg-type]
    return imp.b.op("mul", value, number)


def _rounds_between(imp: Importer, value: Value, beta: Operand, alpha: Operand) -> bool:
    """Whether a scaled sum made of several ops would round more often than eager, by as much as the numbers scale.

    A plain sum is made one op again later; see `graphc.passes.products.RoundOnce`.
    """
    plain = is_number(beta, 1) and is_number(alpha, 1) and not imp.rounds_as_eager
    return value.dtype in (bf16, f16) and not plain and not isinstance(beta, Value) and not isinstance(alpha, Value)


@rule("aten.addmm.default", layout=CONTIGUOUS)
def addmm(imp: Importer, self: Value, mat1: Value, mat2: Value, beta: Operand = 1, alpha: Operand = 1) -> Value:
    _checked(mat1, mat2, ranks=(2, 2))
    _checked(self, mat1)
    scales: dict[str, Attr] = {"beta": beta, "alpha": alpha}
    if _rounds_between(imp, self, beta, alpha) and _shape(mat1)[1] == _shape(mat2)[0]:
        shape = (_shape(mat1)[0], _shape(mat2)[1])
        _check_broadcast(self, shape)
        return stated_call(imp, "aten.addmm.default", (self, mat1, mat2), [mat1.type.with_shape(shape)], scales)[0]
    return _scaled_sum(imp, self, imp.b.op("matmul", mat1, mat2), beta, alpha)


@rule("aten.addmv.default", layout=CONTIGUOUS)
def addmv(imp: Importer, self: Value, mat: Value, vec: Value, beta: Operand = 1, alpha: Operand = 1) -> Value:
    _checked(self, mat)
    return _scaled_sum(imp, self, mv(imp, mat, vec), beta, alpha)


@rule("aten.baddbmm.default", layout=CONTIGUOUS)
def baddbmm(imp: Importer, self: Value, batch1: Value, batch2: Value, beta: Operand = 1, alpha: Operand = 1) -> Value:
    _checked(self, batch1)
    if imp.rounds_as_eager and self.dtype in (bf16, f16):
        raise Decline("the library rounds sum and product at once")
    return _scaled_sum(imp, self, bmm(imp, batch1, batch2), beta, alpha)


@rule("aten.addbmm.default", layout=CONTIGUOUS)
def addbmm(imp: Importer, self: Value, batch1: Value, batch2: Value, beta: Operand = 1, alpha: Operand = 1) -> Value:
    _checked(self, batch1)
    total = imp.b.op("sum", bmm(imp, batch1, batch2), dims=(0,), keepdim=False)
    return _scaled_sum(imp, self, total, beta, alpha)


@rule("aten.addr.default")
def addr(imp: Importer, self: Value, vec1: Value, vec2: Value, beta: Operand = 1, alpha: Operand = 1) -> Value:
    _checked(self, vec1, vec2)
    if vec1.type.rank != 1 or vec2.type.rank != 1:
        raise Decline("eager raises")
    rows, columns = _shape(vec1) + _shape(vec2)
    column = imp.reshape(vec1, (rows, 1))
    result = _scaled_sum(imp, self, imp.b.op("mul", column, vec2), beta, alpha)
    parts = [(_shape(self), imp.strides(self)), ((rows, 1), (*imp.strides(vec1), 1)), ((columns,), imp.strides(vec2))]
    return imp.with_strides(result, layout.tensor_iterator_strides((rows, columns), parts))


@rule("aten.matmul.default", layout=CONTIGUOUS)
def matmul(imp: Importer, self: Value, other: Value) -> Value:
    _checked(self, other)
    if not self.shape or not other.shape:
        raise Decline("eager raises")
    a = imp.reshape(self, (1, *_shape(self))) if self.type.rank == 1 else self
    b = imp.reshape(other, (*_shape(other), 1)) if other.type.rank == 1 else other
    product = imp.b.op("matmul", a, b)
    shape = list(_shape(product))
    if other.type.rank == 1:
        del shape[-1]
    if self.type.rank == 1:
        del shape[len(product.shape) - 2]
    return imp.reshape(product, shape)


@rule("aten.linear.default", layout=CONTIGUOUS)
def linear(imp: Importer, input: Value, weight: Value, bias: Value | None = None) -> Value:
    if weight.type.rank != 2:
        raise Decline("a vector of weights")
    product = matmul(imp, input, imp.permute(weight, (1, 0)))
    if bias is None:
        return product
    _checked(product, bias)
    return imp.b.op("add", product, bias)
