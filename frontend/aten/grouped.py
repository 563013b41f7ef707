"""Import rules of products of matrices group by group."""

from __future__ import annotations

from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.operands import supported
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, rule
from graphc.ir.graph import Value
from graphc.ir.types import bf16, f16, f32, i32
from graphc.ops import grouped

_DTYPES = (bf16, f16, f32)


def _check(a: Value, b: Value, offsets: Value) -> None:
    """Check what the library's call asks of dtypes and shapes.

    Raises:
        Decline: eager raises or computes it otherwise.
    """
    supported(a, b, offsets)
    if a.dtype not in _DTYPES or a.dtype != b.dtype or a.device != b.device or offsets.device != a.device:
        raise Decline("dtypes or devices")
    if (a.type.rank, b.type.rank) not in ((2, 3), (2, 2)) or offsets.type.rank != 1 or 0 in offsets.shape:
        raise Decline("another form of groups")
    if a.shape[1] != b.shape[-2] or (b.type.rank == 3 and b.shape[0] != offsets.shape[0]):
        raise Decline("eager raises")


def _check_alignment(imp: Importer, *matrices: Value) -> None:
    """Check that rows or columns of matrices lie side by side, a multiple of 16 bytes apart.

    Raises:
        Decline: the library, where a backend may leave the product, refuses them.
    """
    for value in matrices:
        strides, shape = imp.strides(value), _shape(value)
        for inner, outer in ((-1, -2), (-2, -1)):
            if strides[inner] == 1 and strides[outer] >= max(1, shape[inner]):
                break
        else:
            raise Decline("neither rows nor columns lie side by side")
        if strides[outer] * value.dtype.itemsize % grouped.ALIGNMENT:
            raise Decline("rows that begin at no multiple of 16 bytes")


def _shape(value: Value) -> tuple[int, ...]:
    return value.shape  # type: ignore[return-value]  # static


@rule("aten._grouped_mm.default", layout=CONTIGUOUS)
def grouped_mm(
    imp: Importer, self: Value, mat2: Value, offs: Value | None = None, bias: Value | None = None,
    out_dtype: object = None,
) -> Value:  # fmt: skip
    if offs is None or offs.dtype != i32 or bias is not None or out_dtype is not None:
        raise Decline("no groups, or eager raises")
    _check(self, mat2, offs)
    _check_alignment(imp, self, mat2)
    return imp.b.op(grouped.NAME, self, mat2, offs)


@rule("transformers.grouped_mm_fallback.default", layout=CONTIGUOUS)
def grouped_mm_fallback(imp: Importer, input: Value, weight: Value, offs: Value) -> Value:
    """What transformers computes by a loop over experts, which waits for the ends of groups."""
    ends = _ends(imp, offs)
    _check(input, weight, ends)
    _check_alignment(imp, input, weight)
    return imp.b.op(grouped.NAME, input, weight, ends)


@rule("transformers.grouped_mm_fallback_backward.default")
def grouped_mm_fallback_backward(
    imp: Importer, input: Value, weight: Value, offs: Value, grad_output: Value
) -> tuple[Value, Value]:
    ends = _ends(imp, offs)
    rows, columns = imp.permute(weight, (0, 2, 1)), imp.permute(input, (1, 0))
    _check(grad_output, rows, ends)
    _check(columns, grad_output, ends)
    _check_alignment(imp, input, weight, grad_output)
    of_input = imp.b.op(grouped.NAME, grad_output, rows, ends)
    of_weight = imp.b.op(grouped.NAME, columns, grad_output, ends)
    return (
        imp.with_strides(of_input, imp.preserved_strides(input)),
        imp.with_strides(of_weight, imp.preserved_strides(weight)),
    )


def _ends(imp: Importer, offs: Value) -> Value:
    ends = imp.cast(offs, i32)
    assert isinstance(ends, Value)
    return ends
