"""Matrix products in the native program: register tiles or BLAS where strides allow, else libtorch's own product.

BLAS is column-major, so `out = a b` in row-major order is computed as `out^T = b^T a^T`: a row-major matrix is, read
in column-major order, its own transpose. Transposed operands cost nothing: they set BLAS's transpose flag.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphc.codegen.tile_text import BLOCKINGS
from graphc.ir.types import DType, f32, f64
from graphc.program.plan import GemmStep, View

_INT_MAX = 2**31 - 1
MAX_BATCH_RANK = 8
REAL_NAMES: dict[DType, str] = {f32: "float", f64: "double"}
GEMM_SYMBOLS: dict[DType, tuple[str, str]] = {f32: ("sgemm_", "sgemm_batch_"), f64: ("dgemm_", "dgemm_batch_")}


@dataclass(frozen=True)
class Matrices:
    """One operand of a batched product: batch strides, then the two strides of each matrix, in elements."""

    batch: tuple[int, ...]
    row: int
    column: int


@dataclass(frozen=True)
class Product:
    """`out[i] = a[i] b[i]` for all batch indices i: sizes and strides without batch dims that do not matter.

    Args:
        batch: sizes of the batch dims left after dropping ones, joining dims and folding rows.
        m, n, k: rows of `out`, columns of `out`, length of the inner products.
    """

    batch: tuple[int, ...]
    m: int
    n: int
    k: int
    a: Matrices
    b: Matrices
    out: Matrices

    def transposed(self) -> Product:
        """The same product written as `out^T = b^T a^T`."""
        flip = [Matrices(x.batch, x.column, x.row) for x in (self.b, self.a, self.out)]
        return Product(self.batch, self.n, self.m, self.k, *flip)


@dataclass(frozen=True)
class BlasCall:
    """Arguments of one (batched) gemm in column-major terms: `c = op(first) op(second) + beta c`."""

    product: Product
    swapped: bool
    transpose: tuple[str, str]
    leading: tuple[int, int, int]


def product_of(step: GemmStep) -> Product:
    """The product a step asks for, with as few batch dims as its strides allow."""
    m, k = step.a.shape[-2:]
    n = step.b.shape[-1]
    a, b, out = (Matrices(v.strides[:-2], v.strides[-2], v.strides[-1]) for v in (step.a, step.b, step.out))
    product = Product(step.out.shape[:-2], m, n, k, a, b, out)
    return _fold_rows(_join_batch(product))


def _join_batch(p: Product) -> Product:
    """Drop batch dims of size 1 and join neighbours that all three operands step through evenly."""
    sizes: list[int] = []
    strides: list[list[int]] = [[], [], []]
    for d, size in enumerate(p.batch):
        if size == 1:
            continue
        here = [x.batch[d] for x in (p.a, p.b, p.out)]
        if sizes and all(outer[-1] == size * inner for outer, inner in zip(strides, here, strict=True)):
            sizes[-1] *= size
            for outer, inner in zip(strides, here, strict=True):
                outer[-1] = inner
            continue
        sizes.append(size)
        for outer, inner in zip(strides, here, strict=True):
            outer.append(inner)
    a, b, out = (replace(x, batch=tuple(s)) for x, s in zip((p.a, p.b, p.out), strides, strict=True))
    return Product(tuple(sizes), p.m, p.n, p.k, a, b, out)


def _fold_rows(p: Product) -> Product:
    """One matrix b for the whole innermost batch dim: its rows are more rows of one product."""
    while p.batch and p.b.batch[-1] == 0 and p.m > 0:
        size = p.batch[-1]
        if p.m == 1:
            rows = [x.batch[-1] for x in (p.a, p.out)]
        elif all(x.batch[-1] == p.m * x.row for x in (p.a, p.out)):
            rows = [p.a.row, p.out.row]
        else:
            break
        a, out = (Matrices(x.batch[:-1], row, x.column) for x, row in zip((p.a, p.out), rows, strict=True))
        p = Product(p.batch[:-1], p.m * size, p.n, p.k, a, replace(p.b, batch=p.b.batch[:-1]), out)
    return p


def _row_major(rows: int, columns: int, x: Matrices) -> int | None:
    """Leading dimension of a matrix whose columns lie next to each other, or None."""
    if columns == 1 or x.column == 1:
        leading = max(columns, 1) if rows <= 1 else x.row
        return leading if max(columns, 1) <= leading <= _INT_MAX else None
    return None


def _layout(rows: int, columns: int, x: Matrices) -> tuple[str, int] | None:
    """BLAS's transpose flag and leading dimension of a matrix read in column-major order, or None."""
    leading = _row_major(rows, columns, x)
    if leading is not None:
        return "N", leading
    leading = _row_major(columns, rows, Matrices(x.batch, x.column, x.row))
    return None if leading is None else ("T", leading)


def blas_call(p: Product) -> BlasCall | None:
    """How BLAS computes the product, or None when its strides are not BLAS's."""
    if any(size > _INT_MAX for size in (p.m, p.n, p.k)) or len(p.batch) > MAX_BATCH_RANK:
        return None
    swapped = _row_major(p.m, p.n, p.out) is None
    if swapped:
        p = p.transposed()
    leading = _row_major(p.m, p.n, p.out)
    first, second = _layout(p.k, p.n, p.b), _layout(p.m, p.k, p.a)
    if leading is None or first is None or second is None:
        return None
    return BlasCall(p, swapped, (first[0], second[0]), (first[1], second[1], leading))


# Sizes from which products by tiles may beat BLAS. The generated C, which knows the processor, decides the rest:
# see `graphc.codegen.tile_text`.
_LEAST_ROWS, _LEAST_COLUMNS, _LEAST_INNER = 3, 8, 2


def fits_tiles(step: GemmStep, call: BlasCall) -> bool:
    """True for the products that may be computed by tiles."""
    p = call.product
    return step.out.dtype is f32 and p.m >= _LEAST_ROWS and p.n >= _LEAST_COLUMNS and p.k >= _LEAST_INNER


BLAS = "blas"
"""The form of a product that is a call of BLAS; those by tiles are `BLOCKINGS`."""


def tile_line(step: GemmStep, call: BlasCall) -> str:
    """The C statement of a product by tiles; where the step does not ask for them, only if they win over BLAS."""
    blocking = BLOCKINGS.get(step.form)
    one, batch = "matmul_tiles", "matmul_batch_tiles"
    if blocking is not None:
        one, batch = (f"{name}{blocking.suffix}" for name in ("multiply_by_tiles", "multiply_batch_by_tiles"))
    p = call.product
    first, second = (step.a, step.b) if call.swapped else (step.b, step.a)
    b_strides, a_strides = (
        f"{leading}, 1" if transpose == "N" else f"1, {leading}"
        for transpose, leading in zip(call.transpose, call.leading[:2], strict=True)
    )
    matrices = (
        f"{p.m}, {p.n}, {p.k}, {address(second)}, {a_strides}, {address(first)}, {b_strides}, "
        f"{int(step.accumulate)}, {address(step.out)}, {call.leading[2]}"
    )
    if not p.batch:
        return f"{one}({matrices});"
    strides = ", ".join(longs(x.batch) for x in (p.a, p.b, p.out))
    return f"{batch}({matrices}, {len(p.batch)}, {longs(p.batch)}, {strides});"


def is_empty(step: GemmStep) -> bool:
    """True when there is nothing to compute: no element, or nothing to add to any."""
    return 0 in step.out.shape or (step.accumulate and step.a.shape[-1] == 0)


def address(view: View, number: str | None = None) -> str:
    """C expression for where a view begins; `number` names its buffer when that is not a literal."""
    number = number or str(view.buffer)
    return f"p[{number}]" if view.offset == 0 else f"AT({number}, {view.offset * view.dtype.itemsize})"


def longs(values: tuple[int, ...]) -> str:
    """C expression for an array of sizes or strides."""
    return f"(const int64_t[]){{{', '.join(map(str, values)) or '0'}}}"


def blas_line(step: GemmStep, call: BlasCall) -> str:
    """The C statement of a gemm that BLAS computes."""
    real = REAL_NAMES[step.out.dtype]
    p = call.product
    first, second = (step.a, step.b) if call.swapped else (step.b, step.a)
    beta = "1" if step.accumulate else "0"
    matrices = (
        f"'{call.transpose[0]}', '{call.transpose[1]}', {p.n}, {p.m}, {p.k}, {address(first)}, {call.leading[0]}, "
        f"{address(second)}, {call.leading[1]}, {beta}, {address(step.out)}, {call.leading[2]}"
    )
    if not p.batch:
        return f"matmul_{real}({matrices});"
    strides = ", ".join(longs(x.batch) for x in (p.b, p.a, p.out))
    return f"matmul_batch_{real}({matrices}, {len(p.batch)}, {longs(p.batch)}, {strides});"


def aten_line(step: GemmStep, product: Product, dtype_code: int) -> str:
    """The C condition, true on failure, of a gemm that libtorch computes."""
    p = product
    sizes = longs((*p.batch, p.m, p.n, p.k))
    operands = ", ".join(
        f"{address(view)}, {longs((*x.batch, x.row, x.column))}"
        for view, x in ((step.a, p.a), (step.b, p.b), (step.out, p.out))
    )
    return f"matmul_aten({int(step.accumulate)}, {dtype_code}, {len(p.batch)}, {sizes}, {operands})"
