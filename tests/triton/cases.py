"""Kernels of every kind in loop IR, small, for the tests of the Triton backend."""

from __future__ import annotations

from collections.abc import Callable

from graphc.ir.dims import Dim, symbol
from graphc.ir.types import DType, bf16, bool_, f16, f32, f64, i8, i16, i32, i64, u8, u32
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import ROW, Axis, Buffer, Gap, Kernel
from graphc.loopir.scalar import SCALAR_OPS
from tests.random_kernels import RANDOM_CASES

X, Y, Z = symbol("i"), symbol("j"), symbol("k")


def out(name: str, dtype: DType, size: int) -> Buffer:
    return Buffer(name, dtype, size, "out")


def given(name: str, dtype: DType, size: int) -> Buffer:
    return Buffer(name, dtype, size, "in")


def load(b: KernelBuilder, name: str, dtype: DType, index: Dim) -> str:
    """A load in the compute dtype."""
    return b.compute("cast", b.load(name, dtype, index), dtype=dtype.compute)


def rows(n: int, m: int) -> KernelBuilder:
    return KernelBuilder((Axis("i", n), Axis("j", m, ROW)))


def chain(n: int, m: int, dtype: DType = f32) -> Kernel:
    """gelu-like chain over a matrix and a row vector."""
    b = KernelBuilder((Axis("i", n), Axis("j", m)))
    x, w = load(b, "x", dtype, X * m + Y), load(b, "w", dtype, Y)
    half, one = b.constant(0.5, dtype.compute), b.constant(1.0, dtype.compute)
    t = b.compute("add", b.compute("erf", b.compute("mul", x, b.constant(0.7071, dtype.compute))), one)
    y = b.compute("add", b.compute("mul", b.compute("mul", x, half), t), w)
    b.store("y", X * m + Y, b.compute("cast", y, dtype=dtype))
    return b.finish("gelu_add", (given("x", dtype, n * m), given("w", dtype, m), out("y", dtype, n * m)))


def transpose(n: int, m: int, batch: int = 1) -> Kernel:
    b = KernelBuilder((Axis("k", batch), Axis("i", n), Axis("j", m)))
    x = b.load("x", f32, Z * (n * m) + Y * n + X)
    b.store("y", Z * (n * m) + X * m + Y, b.compute("add", x, x))
    return b.finish("transpose", (given("x", f32, batch * n * m), out("y", f32, batch * n * m)))


def softmax(n: int, m: int, dtype: DType = f32, strided: bool = False) -> Kernel:
    b = rows(n, m)
    at = Y * n + X if strided else X * m + Y
    x = load(b, "x", dtype, at)
    e = b.compute("exp", b.compute("sub", x, b.reduce("max", x)))
    y = b.compute("div", e, b.reduce("sum", e))
    b.store("y", at, b.compute("cast", y, dtype=dtype))
    return b.finish("softmax", (given("x", dtype, n * m), out("y", dtype, n * m)), ("model.py:12",))


def softmax_apart(n: int, m: int, pitch: int, dtype: DType) -> Kernel:
    """Rows with gaps behind them, and their sums."""
    b = rows(n, m)
    x = load(b, "x", dtype, X * pitch + Y)
    e = b.compute("exp", b.compute("sub", x, b.reduce("max", x)))
    total = b.reduce("sum", e)
    b.store("y", X * pitch + Y, b.compute("cast", b.compute("div", e, total), dtype=dtype))
    b.store("total", X, total)
    buffers = (Buffer(name, dtype, n * pitch, access, Gap(m, pitch)) for name, access in (("x", "in"), ("y", "out")))
    return b.finish("softmax", (*buffers, out("total", f32, n)))


def log_sum_exp(n: int, m: int, dtype: DType = f32) -> Kernel:
    b = rows(n, m)
    x = load(b, "x", dtype, X * m + Y)
    top = b.reduce("max", x)
    base = b.compute("where", b.compute("isinf", top), b.constant(0.0, f32), top)
    total = b.reduce("sum", b.compute("exp", b.compute("sub", x, base)))
    y = b.compute("add", b.compute("log", total), base)
    b.store("y", X, b.compute("cast", y, dtype=dtype))
    return b.finish("log_sum_exp", (given("x", dtype, n * m), out("y", dtype, n)))


def layer_norm(n: int, m: int, dtype: DType = f32) -> Kernel:
    b = rows(n, m)
    x, w, c = load(b, "x", dtype, X * m + Y), load(b, "w", dtype, Y), load(b, "b", dtype, Y)
    size = b.constant(float(m), dtype.compute)
    mean = b.compute("div", b.reduce("sum", x), size)
    d = b.compute("sub", x, mean)
    variance = b.compute("div", b.reduce("sum", b.compute("mul", d, d)), size)
    r = b.compute("rsqrt", b.compute("add", variance, b.constant(1e-5, dtype.compute)))
    y = b.compute("add", b.compute("mul", b.compute("mul", d, r), w), c)
    b.store("y", X * m + Y, b.compute("cast", y, dtype=dtype))
    b.store("mean", X, mean)
    buffers = (given("x", dtype, n * m), given("w", dtype, m), given("b", dtype, m), out("y", dtype, n * m))
    return b.finish("layer_norm", (*buffers, out("mean", dtype.compute, n)))


def column_sum(n: int, m: int) -> Kernel:
    """Sum over the outer dimension of an (n, m) matrix."""
    b = KernelBuilder((Axis("i", m), Axis("j", n, ROW)))
    b.store("y", X, b.reduce("sum", b.load("x", f32, Y * m + X)))
    return b.finish("column_sum", (given("x", f32, n * m), out("y", f32, m)))


def middle_sum(a: int, n: int, c: int) -> Kernel:
    """Sum over the middle dimension."""
    b = KernelBuilder((Axis("i", a), Axis("k", c), Axis("j", n, ROW)))
    b.store("y", X * c + Z, b.reduce("sum", b.load("x", f32, X * (n * c) + Y * c + Z)))
    return b.finish("middle_sum", (given("x", f32, a * n * c), out("y", f32, a * c)))


def channel_mean(n: int, c: int, hw: int) -> Kernel:
    """Batch norm's statistics: two row axes that do not join."""
    b = KernelBuilder((Axis("i", c), Axis("j", n, ROW), Axis("k", hw, ROW)))
    x = b.load("x", f32, Y * (c * hw) + X * hw + Z)
    mean = b.compute("div", b.reduce("sum", x), b.constant(float(n * hw), f32))
    b.store("m", X, mean)
    b.store("y", Y * (c * hw) + X * hw + Z, b.compute("sub", x, mean))
    return b.finish("channel_mean", (given("x", f32, n * c * hw), out("m", f32, c), out("y", f32, n * c * hw)))


def channel_moments(n: int, c: int, hw: int, dtype: DType = f32) -> Kernel:
    """Batch norm in training: mean and variance of channels, and what is normalised with them."""
    b = KernelBuilder((Axis("i", c), Axis("j", n, ROW), Axis("k", hw, ROW)))
    at = Y * (c * hw) + X * hw + Z
    x, size = load(b, "x", dtype, at), b.constant(float(n * hw), dtype.compute)
    mean = b.compute("div", b.reduce("sum", x), size)
    d = b.compute("sub", x, mean)
    variance = b.compute("div", b.reduce("sum", b.compute("mul", d, d)), size)
    b.store("m", X, mean)
    b.store("v", X, variance)
    scaled = b.compute("mul", d, b.compute("rsqrt", b.compute("add", variance, b.constant(1e-5, dtype.compute))))
    b.store("y", at, b.compute("cast", scaled, dtype=dtype))
    made = (out("m", dtype.compute, c), out("v", dtype.compute, c), out("y", dtype, n * c * hw))
    return b.finish("channel_moments", (given("x", dtype, n * c * hw), *made))


def row_moments(n: int, m: int, strided: bool = False) -> Kernel:
    """Variance alone, of rows or of columns."""
    b = rows(n, m)
    x, size = b.load("x", f32, Y * n + X if strided else X * m + Y), b.constant(float(m), f32)
    d = b.compute("sub", x, b.compute("div", b.reduce("sum", x), size))
    b.store("v", X, b.compute("div", b.reduce("sum", b.compute("mul", d, d)), size))
    return b.finish("variance", (given("x", f32, n * m), out("v", f32, n)))


def reduce_all(n: int, op: str, dtype: DType = f32) -> Kernel:
    b = KernelBuilder((Axis("j", n, ROW),))
    value = b.reduce(op, b.load("x", dtype, Y))
    b.store("y", 0, value)
    result = i64 if op.startswith("arg") else dtype
    return b.finish(f"reduce_{op}", (given("x", dtype, n), out("y", result, 1)))


def reduce_rows(n: int, m: int, op: str, dtype: DType = f32, strided: bool = False) -> Kernel:
    b = rows(n, m)
    b.store("y", X, b.reduce(op, b.load("x", dtype, Y * n + X if strided else X * m + Y)))
    return b.finish(f"{op}_rows", (given("x", dtype, n * m), out("y", i64 if op.startswith("arg") else dtype, n)))


def scan(n: int, m: int, op: str, dtype: DType = f32, strided: bool = False) -> Kernel:
    b = rows(n, m)
    at = Y * n + X if strided else X * m + Y
    b.store("y", at, b.scan(op, b.load("x", dtype, at)))
    return b.finish(f"cum_{op}", (given("x", dtype, n * m), out("y", dtype, n * m)))


def scan_of_centred(n: int, m: int) -> Kernel:
    """A running sum of what is left after the mean, then its maximum: a reduction, a scan and a reduction."""
    b = rows(n, m)
    x = b.load("x", f32, X * m + Y)
    total = b.scan("sum", b.compute("sub", x, b.compute("div", b.reduce("sum", x), b.constant(float(m), f32))))
    b.store("y", X * m + Y, total)
    b.store("z", X, b.reduce("max", total))
    return b.finish("brownian", (given("x", f32, n * m), out("y", f32, n * m), out("z", f32, n)))


def gather(n: int, m: int, table: int) -> Kernel:
    """Embedding rows, scaled."""
    b = KernelBuilder((Axis("i", n), Axis("j", m)))
    row = b.load("index", i64, X)
    b.set_range(row, table)
    b.store("y", X * m + Y, b.load("w", f32, symbol(row) * m + Y))
    return b.finish("embedding", (given("w", f32, table * m), given("index", i64, n), out("y", f32, n * m)))


def checked_gather(n: int, m: int) -> Kernel:
    """Rows at indices that are checked, a cell for too low ones and one for others, scaled by a divisor per element."""
    b = KernelBuilder((Axis("i", n), Axis("j", m)))
    given_, zero, last = b.load("at", i64, X), b.constant(0, i64), b.constant(4, i64)
    row = b.compute("minimum", b.compute("maximum", given_, zero), last)
    b.set_range(row, 5)
    divisor = b.load("d", i64, X * m + Y)
    b.store("failed", 0, given_, b.compute("lt", given_, zero), mode="max")
    b.store("failed", 1, given_, b.compute("gt", given_, last), mode="max")
    b.store("failed", 2, zero, b.compute("eq", divisor, zero), mode="max")
    b.store("y", X * m + Y, b.compute("floordiv", b.load("w", i64, symbol(row) * m + Y), divisor))
    buffers = (given("w", i64, 5 * m), given("at", i64, n), given("d", i64, n * m), out("y", i64, n * m))
    return b.finish("checked_rows", (*buffers, Buffer("failed", i64, 3, "inout")))


def scatter_add(n: int, m: int, table: int, dtype: DType = f32) -> Kernel:
    """The gradient of an embedding."""
    b = KernelBuilder((Axis("i", n), Axis("j", m)))
    row = b.load("index", i64, X)
    b.set_range(row, table)
    b.store("w", symbol(row) * m + Y, b.load("g", dtype, X * m + Y), mode="add")
    buffers = (given("g", dtype, n * m), given("index", i64, n), Buffer("w", dtype, table * m, "inout"))
    return b.finish("embedding_backward", buffers)


def concat(n: int, m: int, p: int) -> Kernel:
    """Two matrices side by side through masked loads."""
    b = KernelBuilder((Axis("i", n), Axis("j", m + p)))
    j, edge = b.index_value(Y), b.constant(m, i64)
    left = b.compute("lt", j, edge)
    right = b.compute("logical_not", left)
    x = b.load("x", f32, X * m + Y, left, 0.0)
    y = b.load("y", f32, X * p + Y - m, right, 0.0)
    b.store("z", X * (m + p) + Y, b.compute("where", left, x, y))
    return b.finish("concat", (given("x", f32, n * m), given("y", f32, n * p), out("z", f32, n * (m + p))))


def padded_stencil(n: int) -> Kernel:
    """x[(i - 2) // 2] with a padding value on the left: division of negative numbers."""
    b = KernelBuilder((Axis("i", n),))
    source = (X - 2) // 2
    inside = b.compute("ge", b.index_value(source), b.constant(0, i64))
    x = b.load("x", f32, source, inside, 7.0)
    b.store("y", X, b.compute("add", x, b.compute("cast", b.index_value((X - 2) % 3), dtype=f32)))
    return b.finish("padded", (given("x", f32, n), out("y", f32, n)))


def masked_store(n: int) -> Kernel:
    b = KernelBuilder((Axis("i", n),))
    x = b.load("x", f32, X)
    b.store("y", X, x, mask=b.compute("gt", x, b.constant(0.0, f32)))
    return b.finish("masked_store", (given("x", f32, n), Buffer("y", f32, n, "inout")))


def scalars() -> Kernel:
    """No axes at all."""
    b = KernelBuilder(())
    x = b.load("x", f64, 0)
    b.store("y", 0, b.compute("mul", x, b.constant(0.1, f64)))
    return b.finish("scalar", (given("x", f64, 1), out("y", f64, 1)))


def constants(n: int) -> Kernel:
    """Constants only, operations between constants, and a fill."""
    b = KernelBuilder((Axis("i", n),))
    third = b.compute("div", b.constant(1.0, f64), b.constant(3.0, f64))
    b.store("y", X, third)
    b.store("z", X, b.constant(-(2**63), i64))
    b.store("t", X, b.constant(True, bool_))
    b.store("s", X, b.compute("cast", b.constant(1e-40, f32), dtype=f64))
    buffers = (out("y", f64, n), out("z", i64, n), out("t", bool_, n), out("s", f64, n))
    return b.finish("constants", buffers)


def row_constant(n: int, m: int) -> Kernel:
    """A reduction over values that do not depend on the row, and a row value spread over the row."""
    b = rows(n, m)
    x = b.load("x", f32, X)
    s = b.reduce("sum", x)
    b.store("y", X * m + Y, b.compute("add", s, b.load("w", f32, Y)))
    b.store("c", X, b.reduce("prod", b.compute("add", b.load("w", f32, Y), b.constant(0.5, f32))))
    buffers = (given("x", f32, n), given("w", f32, m), out("y", f32, n * m), out("c", f32, n))
    return b.finish("row_constant", buffers)


def logic(n: int) -> Kernel:
    """Bools loaded, combined, stored."""
    b = KernelBuilder((Axis("i", n),))
    p, q = b.load("p", bool_, X), b.load("q", bool_, X)
    r = b.compute("logical_or", b.compute("logical_and", p, b.compute("logical_not", q)), b.compute("lt", p, q))
    b.store("y", X, b.compute("bitwise_xor", r, b.compute("maximum", p, q)))
    b.store("z", X, b.compute("cast", b.compute("minimum", p, q), dtype=i32))
    return b.finish("logic", (given("p", bool_, n), given("q", bool_, n), out("y", bool_, n), out("z", i32, n)))


def casts(n: int, source: DType, target: DType) -> Kernel:
    b = KernelBuilder((Axis("i", n),))
    b.store("y", X, b.compute("cast", b.load("x", source, X), dtype=target))
    return b.finish(f"cast_{source.name}_{target.name}", (given("x", source, n), out("y", target, n)))


def scalar_op(op: str, n: int, dtype: DType) -> Kernel:
    rule = SCALAR_OPS[op]
    b = KernelBuilder((Axis("i", n),))
    if op == "where":
        args = [b.load("c", bool_, X), b.load("x0", dtype, X), b.load("x1", dtype, X)]
        sources = (given("c", bool_, n), given("x0", dtype, n), given("x1", dtype, n))
    else:
        args = [b.load(f"x{k}", dtype, X) for k in range(rule.arity)]
        sources = tuple(given(f"x{k}", dtype, n) for k in range(rule.arity))
    value = b.compute(op, *args)
    b.store("y", X, value)
    return b.finish(f"op_{op}_{dtype.name}", (*sources, out("y", b.dtypes[value], n)))


CASES: dict[str, Callable[[], Kernel]] = {
    **RANDOM_CASES,
    "chain": lambda: chain(24, 64),
    "chain_odd": lambda: chain(7, 13),
    "chain_bf16": lambda: chain(12, 40, bf16),
    "chain_f16": lambda: chain(5, 33, f16),
    "chain_f64": lambda: chain(6, 20, f64),
    "chain_one": lambda: chain(1, 1),
    "chain_empty": lambda: chain(0, 5),
    "transpose": lambda: transpose(48, 40),
    "transpose_batch": lambda: transpose(20, 33, 3),
    "softmax": lambda: softmax(6, 128),
    "softmax_odd": lambda: softmax(5, 77),
    "softmax_apart": lambda: softmax_apart(5, 77, 80, bf16),
    "softmax_far_apart": lambda: softmax_apart(3, 61, 128, f32),
    "softmax_bf16": lambda: softmax(3, 50, bf16),
    "softmax_f64": lambda: softmax(3, 50, f64),
    "softmax_strided": lambda: softmax(70, 24, strided=True),
    "softmax_one_row": lambda: softmax(1, 300),
    "log_sum_exp": lambda: log_sum_exp(5, 77),
    "log_sum_exp_bf16": lambda: log_sum_exp(3, 96, bf16),
    "softmax_no_rows": lambda: softmax(0, 8),
    "layer_norm": lambda: layer_norm(6, 64),
    "layer_norm_f16": lambda: layer_norm(5, 40, f16),
    "column_sum": lambda: column_sum(50, 90),
    "middle_sum": lambda: middle_sum(3, 20, 36),
    "channel_mean": lambda: channel_mean(4, 6, 35),
    "channel_moments": lambda: channel_moments(4, 6, 35),
    "channel_moments_bf16": lambda: channel_moments(4, 3, 64, bf16),
    "variance": lambda: row_moments(5, 96),
    "variance_odd": lambda: row_moments(5, 71),
    "variance_strided": lambda: row_moments(40, 45, strided=True),
    "sum_all": lambda: reduce_all(1000, "sum"),
    "sum_of_nothing": lambda: reduce_all(0, "sum"),
    "max_all": lambda: reduce_all(700, "max"),
    "any_all": lambda: reduce_all(100, "any", bool_),
    "argmax_all": lambda: reduce_all(500, "argmax"),
    "argmin_rows": lambda: reduce_rows(9, 45, "argmin"),
    "argmax_int": lambda: reduce_rows(9, 45, "argmax", i32),
    "argmax_strided": lambda: reduce_rows(40, 45, "argmax", strided=True),
    "prod_rows": lambda: reduce_rows(9, 21, "prod"),
    "min_rows": lambda: reduce_rows(9, 21, "min"),
    "max_i64": lambda: reduce_rows(9, 21, "max", i64),
    "min_u8": lambda: reduce_rows(9, 21, "min", u8),
    "sum_i8": lambda: reduce_rows(9, 21, "sum", i8),
    "sum_i64": lambda: reduce_rows(9, 21, "sum", i64),
    "all_rows": lambda: reduce_rows(9, 3, "all", bool_),
    "any_rows_of_nothing": lambda: reduce_rows(4, 0, "any", bool_),
    "cumsum": lambda: scan(5, 60, "sum"),
    "cumsum_strided": lambda: scan(40, 30, "sum", strided=True),
    "cumsum_i32": lambda: scan(5, 60, "sum", i32),
    "cumprod": lambda: scan(4, 17, "prod"),
    "cummax": lambda: scan(4, 50, "max"),
    "cummin_i64": lambda: scan(4, 50, "min", i64),
    "brownian": lambda: scan_of_centred(5, 45),
    "gather": lambda: gather(20, 24, 11),
    "checked_gather": lambda: checked_gather(20, 24),
    "scatter_add": lambda: scatter_add(30, 8, 5),
    "scatter_add_i64": lambda: scatter_add(30, 8, 5, i64),
    "concat": lambda: concat(6, 10, 7),
    "padded": lambda: padded_stencil(45),
    "masked_store": lambda: masked_store(90),
    "scalars": scalars,
    "constants": lambda: constants(5),
    "row_constant": lambda: row_constant(6, 37),
    "logic": lambda: logic(64),
    **{
        f"cast_{a.name}_{b.name}": lambda a=a, b=b: casts(40, a, b)
        for a, b in (
            (f32, bf16), (bf16, f32), (f32, f16), (f64, f32), (f64, bf16), (f32, i32), (f32, i64), (f32, u8),
            (f64, u32), (f32, bool_), (bool_, f32), (i64, f32), (i32, i8), (i16, bool_), (u8, f64), (i64, bf16),
            (bool_, i64),
        )
    },
}  # fmt: skip


def scalar_ops(ops: tuple[str, ...], n: int, dtype: DType) -> Kernel:
    """Several operators on the same operands, each stored on its own."""
    b = KernelBuilder((Axis("i", n),))
    condition = b.load("c", bool_, X)
    loaded = [b.load(f"x{k}", dtype, X) for k in range(2)]
    buffers = [given("c", bool_, n), given("x0", dtype, n), given("x1", dtype, n)]
    edges = [b.compute("cast", b.index_value(X), dtype=i32), *(b.constant(edge, i32) for edge in (9, 50, 31))]
    for op in ops:
        args = {"where": [condition, *loaded], "bounded": [*edges, loaded[0]]}.get(op) or loaded[: SCALAR_OPS[op].arity]
        value = b.compute(op, *args)
        b.store(f"y_{op}", X, value)
        buffers.append(out(f"y_{op}", b.dtypes[value], n))
    return b.finish(f"ops_{dtype.name}", tuple(buffers))


def scalar_op_cases() -> dict[str, Callable[[], Kernel]]:
    """Every scalar operator on every kind of dtype it takes, sixteen to a kernel; casts and random words are cases."""
    dtypes = {"float": (f32, f64), "int": (i32, i64, i8), "uint": (u8,), "bool": (bool_,)}
    found: dict[str, Callable[[], Kernel]] = {}
    for kind, members in dtypes.items():
        ops = [op for op, rule in SCALAR_OPS.items() if kind in rule.kinds and rule.result != "given"]
        for dtype in members:
            for first in range(0, len(ops), 16):
                part = tuple(ops[first : first + 16])
                found[f"{dtype.name}_{first // 16}"] = lambda part=part, dtype=dtype: scalar_ops(part, 64, dtype)
    return found
