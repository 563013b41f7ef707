"""Builds a kernel statement by statement, reusing equal statements (local CSE)."""

from __future__ import annotations

from graphc.errors import LoweringError
from graphc.ir.dims import Dim, simplify
from graphc.ir.sizes import Reciprocal, Size
from graphc.ir.types import DType, bool_, f64, i64
from graphc.loopir.kernel import (
    Axis,
    Buffer,
    Compute,
    Const,
    Contract,
    Define,
    Index,
    Kernel,
    Load,
    Reduce,
    Scan,
    Statement,
    Store,
)
from graphc.loopir.scalar import SCALAR_OPS


class KernelBuilder:
    """A kernel under construction. Value handles are ids (`v3`); equal pure statements give the same id.

    Args:
        axes: the iteration axes; their extents bound index expressions, which are simplified.
    """

    def __init__(self, axes: tuple[Axis, ...]) -> None:
        self.axes = axes
        self.body: list[Statement] = []
        self.dtypes: dict[str, DType] = {}
        self.constants: dict[str, bool | int | float] = {}
        self._known: dict[object, str] = {}
        self.ranges: dict[str, tuple[int, int | None]] = {
            axis.name: (0, axis.extent - 1 if isinstance(axis.extent, int) else None) for axis in axes
        }

    def _add(self, key: object, statement: Define) -> str:
        self._known[key] = statement.id
        self.body.append(statement)
        self.dtypes[statement.id] = statement.dtype
        return statement.id

    def _fresh(self) -> str:
        return f"v{len(self.dtypes)}"

    def constant(self, value: bool | int | float, dtype: DType) -> str:
        """A number; one that depends on sizes is made of them, as Python makes it."""
        if type(value) is Size:
            return self.compute("cast", self._size(value), dtype=dtype)
        if type(value) is Reciprocal:
            size = self.compute("cast", self._size(value.size), dtype=f64)
            return self.compute("cast", self.compute("div", self.constant(1.0, f64), size), dtype=dtype)
        value = bool(value) if dtype.kind == "bool" else float(value) if dtype.is_float else int(value)
        key = ("const", repr(value), dtype)
        found = self._known.get(key)
        if found is not None:
            return found
        name = self._add(key, Const(self._fresh(), dtype, value))
        self.constants[name] = value
        return name

    def index_value(self, expr: Dim) -> str:
        expr = simplify(expr, self.ranges)
        if isinstance(expr, int) and type(expr) is not Size:
            return self.constant(expr, i64)
        return self._size(expr)

    def _size(self, expr: Dim) -> str:
        key = ("index", expr)
        return self._known.get(key) or self._add(key, Index(self._fresh(), i64, expr))

    def load(
        self, buffer: str, dtype: DType, index: Dim, mask: str | None = None, other: bool | int | float = 0
    ) -> str:
        index = simplify(index, self.ranges)
        key = ("load", buffer, index, mask, repr(other))
        return self._known.get(key) or self._add(key, Load(self._fresh(), dtype, buffer, index, mask, other))

    def compute(self, op: str, *args: str, dtype: DType | None = None) -> str:
        """A scalar op; `dtype` is needed only by `cast` and `bitcast`.

        Raises:
            LoweringError: unknown op, wrong arity, or operands of a kind it does not take.
        """
        rule = SCALAR_OPS.get(op)
        if rule is None or len(args) != rule.arity:
            raise LoweringError(f"scalar op {op} with {len(args)} operands does not exist")
        source = self.dtypes[args[-1]]
        if source.kind not in rule.kinds:
            raise LoweringError(f"scalar op {op} does not take {source.name}")
        if rule.result == "given":
            if dtype is None:
                raise LoweringError(f"scalar op {op} needs a dtype")
            result = dtype
            if op == "cast" and result == source:
                return args[0]
        else:
            result = bool_ if rule.result == "bool" else source
        key = ("compute", op, args, result)
        return self._known.get(key) or self._add(key, Compute(self._fresh(), result, op, args))

    def reduce(self, op: str, arg: str, over: tuple[str, ...] = ()) -> str:
        result = i64 if op in ("argmax", "argmin") else self.dtypes[arg]
        key = ("reduce", op, arg, over)
        return self._known.get(key) or self._add(key, Reduce(self._fresh(), result, op, arg, over))

    def scan(self, op: str, arg: str) -> str:
        key = ("scan", op, arg)
        return self._known.get(key) or self._add(key, Scan(self._fresh(), self.dtypes[arg], op, arg))

    def contract(self, left: str, right: str, tf32: bool = False, over: tuple[str, ...] = ()) -> str:
        """The sum of products over row axes; operands of one dtype, reduced floats as they are."""
        key = ("contract", left, right, tf32, over)
        result = self.dtypes[left].compute
        return self._known.get(key) or self._add(key, Contract(self._fresh(), result, left, right, tf32, over))

    def store(self, buffer: str, index: Dim, value: str, mask: str | None = None, mode: str = "set") -> None:
        self.body.append(Store(buffer, simplify(index, self.ranges), value, mask, mode))

    def set_range(self, value: str, extent: Dim) -> None:
        """Say that a loaded index lies in [0, extent), so that index expressions with it can be simplified."""
        self.ranges[value] = (0, extent - 1 if isinstance(extent, int) else None)

    def finish(self, name: str, buffers: tuple[Buffer, ...], notes: tuple[str, ...] = ()) -> Kernel:
        return Kernel(name, self.axes, buffers, tuple(self.body), notes)
