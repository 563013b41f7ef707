"""How each reduction and scan is accumulated in C.

Float sums and products run in double whatever the operand, so that a sum of f32 is as good as its rounding; sums of f64
carry the exact error of every block (Knuth's two-sum), unless the kernel rounds what comes of them to f32. Maxima and
minima keep a NaN flag beside the running extremum: two one-cycle operations vectorise better than one comparison that
honours NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphc.codegen.c.scalar_text import Use, c_type, number
from graphc.ir.types import DType, f64, i64, u64
from graphc.loopir.interpreter import reduce_identity
from graphc.loopir.kernel import Kernel, Reduce, Scan, Statement, operands

_CLAUSE = {"sum": "+", "prod": "*", "max": "max", "min": "min", "any": "|", "all": "&"}


@dataclass(frozen=True)
class Accumulator:
    """One reduction or scan.

    Args:
        id: the value.
        op: sum, prod, max, min, any or all.
        dtype: dtype of the result.
        wide: dtype accumulated in.
        is_compensated: it carries the error of a sum.
    """

    id: str
    op: str
    dtype: DType
    wide: DType
    is_compensated: bool = False

    @property
    def name(self) -> str:
        """C variable of the running value."""
        return f"{self.id}_acc"

    @property
    def flag(self) -> str:
        """C variable that becomes true when a NaN was met."""
        return f"{self.id}_nan"

    @property
    def error(self) -> str:
        """C variable of the error of a compensated sum."""
        return f"{self.id}_err"

    @property
    def c_type(self) -> str:
        return "int" if self.wide.kind == "bool" else c_type(self.wide)

    @property
    def has_flag(self) -> bool:
        return self.op in ("max", "min") and self.dtype.is_float

    @property
    def identity(self) -> str:
        return number(reduce_identity(self.op, self.wide), self.wide)

    @property
    def clauses(self) -> tuple[str, ...]:
        """OpenMP reduction clauses of the vectorised loop."""
        main = f"reduction({_CLAUSE[self.op]}:{self.name})"
        return (main, f"reduction(|:{self.flag})") if self.has_flag else (main,)

    def update(self, value: str) -> tuple[str, ...]:
        """Lines of one step of a vectorised loop, on scalar variables."""
        if self.op in ("max", "min"):
            compare = ">" if self.op == "max" else "<"
            text = f"{self.name} = {value} {compare} {self.name} ? {value} : {self.name};"
            return (text, f"{self.flag} |= {value} != {value};") if self.has_flag else (text,)
        return (f"{self.name} {_CLAUSE[self.op]}= {value};",)

    def combine(self, target: str, value: str, use: Use) -> str:
        """`target` becomes the reduction of itself and `value`; NaN wins."""
        if self.has_flag:
            return f"{target} = {use(f'gc_{self.op}_{self.wide.name}')}({target}, {value});"
        if self.op in ("max", "min"):
            return f"{target} = {value} {'>' if self.op == 'max' else '<'} {target} ? {value} : {target};"
        return f"{target} {_CLAUSE[self.op]}= {value};"

    def add_exactly(self, target: str, error: str, value: str, use: Use) -> tuple[str, ...]:
        """Lines of a step of a compensated sum: `target` gets the sum, `error` what rounding took."""
        total = f"{self.id}_sum"
        return (
            f"const double {total} = {target} + {value};",
            f"{error} += {use('gc_two_sum')}({target}, {value}, {total});",
            f"{target} = {total};",
        )

    def resolved(self, value: str, flag: str) -> str:
        """The running value with its NaN flag taken in."""
        return f"{flag} ? {number(float('nan'), self.wide)} : {value}" if self.has_flag else value

    def result(self, value: str) -> str:
        """The result in its own dtype from the accumulated one."""
        return value if self.wide == self.dtype else f"({c_type(self.dtype)}){value}"

    def compensated(self, value: str, error: str) -> str:
        """The sum with its error added back; after an overflow the error is NaN and is left out."""
        return f"{value} + ({error} == {error} ? {error} : 0.0)"


def accumulator(s: Reduce | Scan, arg: DType, is_seen: bool = True) -> Accumulator:
    """The accumulator of a reduction or scan over values of dtype `arg`; `is_seen`: see `seen_values`."""
    op = s.op
    if arg.kind == "bool":
        op = {"max": "any", "min": "all"}.get(op, op)
    return Accumulator(s.id, op, s.dtype, _wide(op, arg), op == "sum" and s.dtype == f64 and is_seen)


def seen_values(kernel: Kernel, dtypes: Mapping[str, DType]) -> frozenset[str]:
    """Values of which every bit may be seen outside: what reaches memory otherwise than rounded to f32 or less."""
    by_id: dict[str, Statement] = {s.id: s for s in kernel.defines}
    seen: set[str] = set()
    stack = [name for s in kernel.stores for name in operands(s)]
    while stack:
        name = stack.pop()
        if name in seen or (dtypes[name].is_float and dtypes[name] != f64):
            continue
        seen.add(name)
        stack.extend(operands(by_id[name]))
    return frozenset(seen)


def _wide(op: str, arg: DType) -> DType:
    if op not in ("sum", "prod"):
        return arg
    if arg.is_float:
        return f64
    return u64 if arg.kind == "uint" else i64
