"""Hypothesis strategies of random kernels, and inputs for them.

Values that every implementation must compute bit for bit are kept apart from those that come through a transcendental
function or a float sum: only the former decide comparisons, conversions to integers and argument reductions, so that a
last-place difference never grows into another answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from graphc.ir.dims import Dim, symbol
from graphc.ir.types import DTYPES, DType, bf16, bool_, f16, f32, f64, i32, i64
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.interpreter import run
from graphc.loopir.kernel import PARALLEL, ROW, Axis, Buffer, Kernel, operands
from graphc.loopir.numpy_ops import NUMPY_DTYPES, Array, bf16_to_float, float_to_bf16
from graphc.loopir.verifier import verify

EXTENTS = (1, 2, 3, 5, 8, 17, 24, 33)
EXACT_FLOAT = (
    "add",
    "sub",
    "mul",
    "maximum",
    "minimum",
    "neg",
    "abs",
    "where",
    "floor",
    "round",
    "sign",
    "fmax",
    "copysign",
)
SMOOTH_FLOAT = ("tanh", "exp", "erf", "sin", "cos", "atan", "expm1", "sqrt", "log1p")
INTEGER = ("add", "sub", "mul", "maximum", "minimum", "neg", "abs", "bitwise_and", "bitwise_xor", "where", "remainder",
           "floordiv", "sign")  # fmt: skip
LOGIC = ("logical_and", "logical_or", "logical_xor", "logical_not", "where")
COMPARE = ("lt", "le", "gt", "ge", "eq", "ne")


@dataclass
class _Pool:
    """Values built so far, by dtype; `exact` are those that must agree bit for bit."""

    names: dict[str, list[str]]
    exact: set[str]

    def add(self, name: str, dtype: DType, is_exact: bool) -> str:
        if name not in self.names.setdefault(dtype.name, []):
            self.names[dtype.name].append(name)
        if is_exact:
            self.exact.add(name)
        return name


def draw_kernel(
    random: Random,
    with_rows: bool | None = None,
    dtypes: Sequence[DType] = (f32, f32, f32, f64, i32, i64, bool_, bf16, f16),
) -> Kernel:
    """A random valid kernel: up to three parallel and two row axes, strided, masked and divided accesses.

    Args:
        random: decides everything.
        with_rows: True or False asks for kernels with or without reductions; None for both.
        dtypes: of the input buffers.
    """
    parallel = [Axis(f"i{k}", random.choice(EXTENTS), PARALLEL) for k in range(random.randint(0, 3))]
    has_rows = random.random() < 0.5 if with_rows is None else with_rows
    rows = [Axis(f"r{k}", random.choice(EXTENTS), ROW) for k in range(random.randint(1, 2) if has_rows else 0)]
    return _KernelDraw(random, tuple(parallel + rows), dtypes).kernel()


def kernels(**options: Any) -> st.SearchStrategy[Kernel]:
    """Strategy of random kernels; options as for `draw_kernel`."""
    return st.builds(lambda random: draw_kernel(random, **options), st.randoms(use_true_random=False))


def random_kernels(count: int, seed: int = 0, **options: Any) -> list[Kernel]:
    """The same `count` random kernels in every run."""
    return [draw_kernel(Random(seed * 1_000_003 + number), **options) for number in range(count)]


class _KernelDraw:
    def __init__(self, random: Random, axes: tuple[Axis, ...], dtypes: Sequence[DType]) -> None:
        self.random, self.axes, self.dtypes = random, axes, dtypes
        self.builder = KernelBuilder(axes)
        self.buffers: list[Buffer] = []
        self.pool = _Pool({}, set())

    def pick(self, items: Sequence[Any]) -> Any:
        return self.random.choice(list(items))

    def kernel(self) -> Kernel:
        for number in range(self.random.randint(1, 3)):
            self.input(number)
        for _ in range(self.random.randint(1, 6)):
            self.compute()
        for _ in range(self.random.randint(1, 2) if self.rows else 0):
            self.reduce()
            self.compute()
        for number in range(self.random.randint(1, 2)):
            self.output(number)
        if self.random.random() < 0.3:
            self.checks()
        kernel = self.builder.finish("random", tuple(self.buffers))
        verify(kernel)
        return kernel

    @property
    def rows(self) -> list[Axis]:
        return [axis for axis in self.axes if axis.kind == ROW]

    def layout(self, axes: Sequence[Axis]) -> tuple[Dim, int]:
        """Index and size of a buffer over some axes, in any order."""
        order = self.random.sample(list(axes), len(axes))
        index: Dim = 0
        for axis in order:
            index = index * axis.extent + symbol(axis.name)
        size = 1
        for axis in axes:
            size *= int(axis.extent)
        return index, size

    def input(self, number: int) -> None:
        dtype = self.pick(self.dtypes)
        axes = [axis for axis in self.axes if self.random.randint(0, 3)] or list(self.axes)
        index, size = self.layout(axes)
        kind = self.random.randint(0, 5)
        offset = 0
        if kind == 0 and size > 1:  # a reshape, a repeat
            divisor = self.pick([d for d in (2, 3, 4, 5, 8, 17) if d <= size] or [1])
            index = self.pick([index // divisor, index % divisor])
        elif kind == 1:
            offset = self.random.randint(1, 5)
        name = f"x{number}"
        mask = None
        if kind == 2 and axes:  # a pad: the first steps of an axis are outside
            axis = self.pick(axes)
            start = self.random.randint(0, int(axis.extent))
            mask = self.builder.compute(
                "ge", self.builder.index_value(symbol(axis.name)), self.builder.constant(start, i64)
            )
        self.buffers.append(Buffer(name, dtype, size + offset, "in"))
        value = self.builder.load(name, dtype, index + offset, mask, 0 if mask is None else dtype_value(dtype, 1))
        if dtype.is_reduced:
            value = self.builder.compute("cast", value, dtype=f32)
        self.pool.add(value, dtype.compute, True)

    def value(self, dtype: str, exact_only: bool = False) -> str | None:
        """A value of a dtype, or a constant when there is none."""
        found = [name for name in self.pool.names.get(dtype, []) if not exact_only or name in self.pool.exact]
        if not found or self.random.randint(0, 5) == 0:
            number = self.pick([-2, -1, 0, 1, 2, 0.5, 3])
            return self.pool.add(self.builder.constant(number, DTYPES[dtype]), DTYPES[dtype], True)
        return str(self.pick(found))

    def dtype(self) -> str:
        """A dtype there are values of, floats preferred."""
        found = [name for name, values in self.pool.names.items() if values]
        floats = [name for name in found if DTYPES[name].is_float]
        return str(self.pick(floats if floats and self.random.random() < 0.6 else found))

    def compute(self) -> None:
        dtype = self.dtype()
        choice = self.random.randint(0, 6)
        if choice == 0:
            a, b = self.value(dtype, True), self.value(dtype, True)
            assert a and b
            self.pool.add(self.builder.compute(self.pick(COMPARE), a, b), bool_, True)
        elif choice == 1 and self.axes:
            value = self.builder.index_value(symbol(self.pick(self.axes).name) * self.pick([1, 2, -1]) + 1)
            self.pool.add(value, i64, True)
        elif choice == 2:
            self.cast(dtype)
        else:
            self.arithmetic(dtype)

    def cast(self, dtype: str) -> None:
        target = self.pick([f32, f64, i32, i64, bool_])
        is_float = DTYPES[dtype].is_float
        value = self.value(dtype, exact_only=is_float and not target.is_float)
        assert value
        exact = value in self.pool.exact
        self.pool.add(self.builder.compute("cast", value, dtype=target), target, exact)

    def arithmetic(self, dtype: str) -> None:
        is_float, is_bool = DTYPES[dtype].is_float, dtype == "bool"
        smooth = is_float and self.random.random() < 0.5
        op = self.pick(SMOOTH_FLOAT if smooth else EXACT_FLOAT if is_float else LOGIC if is_bool else INTEGER)
        steps = op in ("floor", "round", "sign", "copysign")
        arity = 1 if smooth or op in ("neg", "abs", "sign", "floor", "round", "logical_not") else 2
        args = [str(self.value(dtype, steps)) for _ in range(arity)]
        if op == "where":
            args.insert(0, str(self.value("bool", True)))
        if op in ("exp", "expm1", "sqrt", "log1p") or (is_float and op == "mul"):  # keep numbers moderate
            three, low = self.builder.constant(3, DTYPES[dtype]), self.builder.constant(-0.5, DTYPES[dtype])
            args = [self.builder.compute("minimum", arg, three) for arg in args]
            args = [self.builder.compute("maximum", arg, low) for arg in args]
            if op == "sqrt":
                args = [self.builder.compute("abs", args[0])]
        exact = not smooth and all(arg in self.pool.exact or arg not in self.flat() for arg in args)
        if is_float and any(arg not in self.flat() for arg in args):
            exact = not smooth and self.clamped_exact(args)
        self.pool.add(self.builder.compute(op, *args), DTYPES[dtype], exact)

    def flat(self) -> set[str]:
        return {name for names in self.pool.names.values() for name in names}

    def clamped_exact(self, args: Sequence[str]) -> bool:
        """Whether clamped operands come from exact values."""
        by_id = {s.id: s for s in self.builder.body if hasattr(s, "id")}

        def exact(name: str) -> bool:
            if name in self.flat():
                return name in self.pool.exact
            statement = by_id[name]
            return all(exact(a) for a in getattr(statement, "args", ()))

        return all(exact(arg) for arg in args)

    def reduce(self) -> None:
        dtype = self.dtype()
        is_bool, is_float = dtype == "bool", DTYPES[dtype].is_float
        op = self.pick(("any", "all", "max") if is_bool else ("sum", "max", "min", "argmax", "argmin", "sum"))
        value = self.value(dtype, op in ("argmax", "argmin"))
        assert value
        if len(self.rows) == 1 and self.random.randint(0, 3) == 0 and op in ("sum", "max", "min"):
            result = self.builder.scan(op, value) if not is_bool else None
        else:
            result = self.builder.reduce(op, value)
        if result is not None:
            exact = value in self.pool.exact and not (is_float and op == "sum")
            self.pool.add(result, i64 if op.startswith("arg") else DTYPES[dtype], exact)

    def checks(self) -> None:
        """Cells that take maxima where conditions hold."""
        count = self.random.randint(1, 2)
        for cell in range(count):
            value = self.value("i64", True)
            assert value
            self.builder.store("failed", cell, value, self.value("bool", True), "max")
        self.buffers.append(Buffer("failed", i64, count, "inout"))

    def output(self, number: int) -> None:
        used = {name for s in self.builder.body for name in operands(s)}
        last = [(name, dtype) for dtype, names in self.pool.names.items() for name in names if name not in used]
        value, dtype = self.pick(last or [(name, dtype) for dtype, names in self.pool.names.items() for name in names])
        domain = self.builder.finish("x", tuple(self.buffers)).domains[value]
        is_row = bool(domain & {axis.name for axis in self.rows})
        axes = [axis for axis in self.axes if axis.kind == PARALLEL or is_row]
        index, size = self.layout(axes)
        target = DTYPES[dtype]
        if target == f32 and value in self.pool.exact and self.random.randint(0, 4) == 0:
            target = self.pick([bf16, f16])
            value = self.builder.compute("cast", value, dtype=target)
        name = f"y{number}{'' if value in self.pool.exact or target.is_reduced or not target.is_float else '_near'}"
        self.buffers.append(Buffer(name, target, size, "out"))
        self.builder.store(name, index, value)


def dtype_value(dtype: DType, value: int) -> bool | int | float:
    return bool(value) if dtype.kind == "bool" else float(value) if dtype.is_float else value


def random_array(dtype: DType, size: int, rng: np.random.Generator) -> Array:
    """A flat array as the interpreter takes it, with moderate numbers and a few special ones."""
    if dtype.kind == "bool":
        return np.asarray(rng.integers(0, 2, size).astype(np.bool_))
    if not dtype.is_float:
        low = 0 if dtype.kind == "uint" else -9
        return np.asarray(rng.integers(low, 10, size).astype(NUMPY_DTYPES[dtype.name]))
    values = np.round(rng.standard_normal(size) * 2, 3)
    if dtype.name == "bf16":
        return float_to_bf16(values.astype(np.float32))
    return values.astype(NUMPY_DTYPES[dtype.name])


def make_buffers(kernel: Kernel, seed: int = 0) -> dict[str, Array]:
    """Inputs with random contents and outputs with a recognisable filling."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for buffer in kernel.buffers:
        size = int(buffer.size)  # type: ignore[arg-type]
        if buffer.access == "out":
            found[buffer.name] = np.full(size, 77, NUMPY_DTYPES[buffer.dtype.name])
        else:
            found[buffer.name] = random_array(buffer.dtype, size, rng)
    return found


def oracle(kernel: Kernel, buffers: dict[str, Array]) -> dict[str, Array]:
    """Buffers after the interpreter ran on a copy."""
    result = {name: array.copy() for name, array in buffers.items()}
    run(kernel, result)
    return result


def assert_agree(kernel: Kernel, expected: dict[str, Array], actual: dict[str, Array], tolerance: float = 2e-5) -> None:
    """Compare buffers: bit for bit, except those named `..._near`, which went through inexact functions."""
    for buffer in kernel.buffers:
        x, y = expected[buffer.name], actual[buffer.name]
        where = f"buffer {buffer.name} of\n{kernel}"
        if not buffer.name.endswith("_near"):
            same = (x == y) | ((x != x) & (y != y))
            assert same.all(), f"{int((~same).sum())} elements differ, {x[~same][:3]} != {y[~same][:3]}: {where}"
            continue
        if buffer.dtype.name == "bf16":
            x, y = bf16_to_float(x), bf16_to_float(y)
        x, y = x.astype(np.float64), y.astype(np.float64)
        finite = np.isfinite(x)
        assert np.array_equal(x[~finite], y[~finite], equal_nan=True), where
        eps = tolerance if any(s.dtype == f32 for s in kernel.defines) else 1e-9
        scale = np.maximum(1.0, np.abs(x[finite]))
        worst = np.max(np.abs(x[finite] - y[finite]) / scale, initial=0.0)
        assert worst <= eps, f"error {worst:.2e}: {where}"
