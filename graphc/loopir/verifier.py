"""Checks that a kernel means something: SSA, dtypes, buffer accesses, domains of reductions and stores."""

from __future__ import annotations

from graphc.errors import InvalidGraphError
from graphc.ir.dims import Dim, Sym, bounds, symbols
from graphc.ir.types import FLOAT8, DType, bool_, i64
from graphc.loopir.kernel import (
    PARALLEL,
    ROW,
    Compute,
    Const,
    Contract,
    Index,
    Kernel,
    Load,
    Reduce,
    Scan,
    Statement,
    Store,
    is_value,
    operands,
)
from graphc.loopir.printer import kernel_lines, statement_line_offset
from graphc.loopir.scalar import REDUCE_OPS, SCALAR_OPS, SCAN_OPS

WINDOW = 5
"""Lines shown before and after the faulty one."""


def verify(kernel: Kernel) -> None:
    """Check every invariant of a kernel.

    Raises:
        InvalidGraphError: the first broken invariant, with the lines around it. Bounds are checked where they can be
            decided: accesses without mask whose index is linear in axes of known extent.
    """
    _Verifier(kernel).run()


class _Verifier:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.axes = {axis.name: axis for axis in kernel.axes}
        self.buffers = {buffer.name: buffer for buffer in kernel.buffers}
        self.rows = frozenset(axis.name for axis in kernel.row_axes)
        self.dtypes: dict[str, DType] = {}
        self.domains: dict[str, frozenset[str]] = {}
        self.stored: set[str] = set()
        self.position = -1
        self.ranges: dict[str, tuple[int, int | None]] = {
            a.name: (0, a.extent - 1 if isinstance(a.extent, int) else None) for a in kernel.axes
        }
        self.is_empty = any(axis.extent == 0 for axis in kernel.axes)

    def fail(self, reason: str) -> InvalidGraphError:
        lines = kernel_lines(self.kernel)
        at = 0 if self.position < 0 else statement_line_offset(self.kernel) + self.position
        shown = range(max(0, at - WINDOW), min(len(lines), at + WINDOW + 1))
        window = "\n".join(f"{'>' if number == at else ' '} {lines[number]}" for number in shown)
        return InvalidGraphError(f"kernel {self.kernel.name}: {reason}\n{window}")

    def run(self) -> None:
        self.check_header()
        for position, statement in enumerate(self.kernel.body):
            self.position = position
            self.check_statement(statement)

    def check_header(self) -> None:
        if len(self.buffers) != len(self.kernel.buffers):
            raise self.fail("two buffers have the same name")
        if len(self.axes) != len(self.kernel.axes):
            raise self.fail("two axes have the same name")
        for name in (*self.axes, *self.buffers):
            if is_value(name) or not name.isidentifier():
                raise self.fail(f"{name!r} cannot name an axis or a buffer")
        for name in self.axes.keys() & self.buffers.keys():
            raise self.fail(f"{name!r} names an axis and a buffer")
        kinds = [axis.kind for axis in self.kernel.axes]
        if any(kind not in (PARALLEL, ROW) for kind in kinds):
            raise self.fail("an axis is neither parallel nor row")
        if kinds != sorted(kinds, key=(PARALLEL, ROW).index):
            raise self.fail("row axes come after parallel axes")
        for axis in self.kernel.axes:
            if isinstance(axis.extent, int) and axis.extent < 0:
                raise self.fail(f"axis {axis.name} has a negative extent")
        for buffer in self.kernel.buffers:
            if buffer.access not in ("in", "out", "inout"):
                raise self.fail(f"buffer {buffer.name} has unknown access {buffer.access!r}")
            if buffer.dtype.kind == "complex":
                raise self.fail(f"buffer {buffer.name} is complex; kernels hold real numbers only")

    def check_statement(self, s: Statement) -> None:
        for name in operands(s):
            if name not in self.dtypes:
                raise self.fail(f"{name} is used before it is defined")
        if isinstance(s, Store):
            return self.check_store(s)
        if s.id in self.dtypes:
            raise self.fail(f"{s.id} is defined twice")
        if not is_value(s.id):
            raise self.fail(f"a value is named v and a number, not {s.id!r}")
        domain: frozenset[str] = frozenset().union(*(self.domains[name] for name in operands(s)))
        if isinstance(s, Load):
            domain |= self.check_load(s)
        elif isinstance(s, Index):
            domain |= self.check_index(s)
        elif isinstance(s, Const):
            self.check_const(s)
        elif isinstance(s, Compute):
            self.check_compute(s)
        elif isinstance(s, Reduce):
            self.check_reduce(s)
            domain -= frozenset(s.over) or self.rows
        elif isinstance(s, Contract):
            self.check_contract(s)
            domain -= frozenset(s.over) or self.rows
        else:
            self.check_scan(s)
            domain |= self.rows
        self.dtypes[s.id], self.domains[s.id] = s.dtype, domain

    def index_domain(self, index: Dim) -> frozenset[str]:
        """Axes an index expression depends on, through data-dependent indices too."""
        found: frozenset[str] = frozenset()
        for name in symbols(index):
            if name in self.axes:
                found |= {name}
            elif is_value(name):
                if self.dtypes[name].kind not in ("int", "uint"):
                    raise self.fail(f"{name} is {self.dtypes[name].name}; an index is an integer")
                found |= self.domains[name]
            elif name in self.buffers:
                raise self.fail(f"{name} is a buffer, not a number")
        return found

    def check_access(self, buffer: str, index: Dim, mask: str | None, accesses: tuple[str, str]) -> frozenset[str]:
        found = self.buffers.get(buffer)
        if found is None:
            raise self.fail(f"there is no buffer {buffer}")
        if found.access not in accesses:
            raise self.fail(f"buffer {buffer} is {found.access}")
        domain = self.index_domain(index)
        if mask is not None:
            if self.dtypes[mask] != bool_:
                raise self.fail(f"mask {mask} is {self.dtypes[mask].name}, not bool")
            return domain
        if not self.is_empty and isinstance(found.size, int) and _is_linear(index):
            low, high = bounds(index, self.ranges)
            if not any(is_value(name) for name in symbols(index)) and low is not None and low < 0:
                raise self.fail(f"index {index} of {buffer} reaches {low}, below 0")
            if high is not None and high >= found.size:
                raise self.fail(f"index {index} of {buffer} reaches {high}, size {found.size}")
        return domain

    def check_load(self, s: Load) -> frozenset[str]:
        domain = self.check_access(s.buffer, s.index, s.mask, ("in", "inout"))
        if s.dtype != self.buffers[s.buffer].dtype:
            raise self.fail(f"{s.id} is {s.dtype.name}, buffer {s.buffer} is {self.buffers[s.buffer].dtype.name}")
        if s.buffer in self.stored:
            raise self.fail(f"buffer {s.buffer} is read after it was written")
        return domain

    def check_index(self, s: Index) -> frozenset[str]:
        if s.dtype != i64:
            raise self.fail(f"an index is i64, not {s.dtype.name}")
        return self.index_domain(s.expr)

    def check_const(self, s: Const) -> None:
        expected = bool if s.dtype.kind == "bool" else float if s.dtype.is_float else int
        if type(s.value) is not expected:
            raise self.fail(f"constant {s.value!r} is not a {s.dtype.name}")

    def check_compute(self, s: Compute) -> None:
        rule = SCALAR_OPS.get(s.op)
        if rule is None:
            raise self.fail(f"there is no scalar op {s.op}")
        if len(s.args) != rule.arity:
            raise self.fail(f"{s.op} takes {rule.arity} operands, not {len(s.args)}")
        dtypes = [self.dtypes[name] for name in s.args]
        if s.op == "where" and dtypes.pop(0) != bool_:
            raise self.fail("the first operand of where is bool")
        if s.op == "bounded":
            edges, dtypes = dtypes[:-1], dtypes[-1:]
            if not edges[0].is_integral or edges[0] == bool_ or any(dtype != edges[0] for dtype in edges):
                raise self.fail("the position and the edges of bounded are integers of one dtype")
        if rule.result == "given":
            if s.op == "philox" and [d.name for d in (*dtypes, s.dtype)] != ["i64", "i64", "u32"]:
                raise self.fail("philox takes two i64 and gives a u32")
            if s.op == "bitcast" and dtypes[0].itemsize != s.dtype.itemsize:
                raise self.fail(f"bitcast from {dtypes[0].name} to {s.dtype.name} changes the size")
            return
        if any(dtype != dtypes[0] for dtype in dtypes):
            raise self.fail(f"operands of {s.op} differ in dtype: {', '.join(d.name for d in dtypes)}")
        if dtypes[0].kind not in rule.kinds:
            raise self.fail(f"{s.op} does not take {dtypes[0].name}")
        if dtypes[0].is_reduced:
            raise self.fail(f"{s.op} on {dtypes[0].name}: reduced floats are computed in f32, cast first")
        expected = bool_ if rule.result == "bool" else dtypes[0]
        if s.dtype != expected:
            raise self.fail(f"{s.op} gives {expected.name}, not {s.dtype.name}")

    def check_reduction(self, op: str, arg: DType) -> None:
        if arg.is_reduced:
            raise self.fail(f"{op} on {arg.name}: reduced floats are computed in f32, cast first")
        if op in ("any", "all") and arg != bool_:
            raise self.fail(f"{op} takes bool, not {arg.name}")
        if op in ("sum", "prod") and arg == bool_:
            raise self.fail(f"{op} does not take bool")

    def check_reduce(self, s: Reduce) -> None:
        if s.op not in REDUCE_OPS:
            raise self.fail(f"there is no reduction {s.op}")
        if not self.rows:
            raise self.fail("a reduction needs a row axis")
        self.check_over(s.over)
        arg = self.dtypes[s.arg]
        self.check_reduction(s.op, arg)
        expected = i64 if s.op in ("argmax", "argmin") else arg
        if s.dtype != expected:
            raise self.fail(f"reduce {s.op} of {arg.name} gives {expected.name}, not {s.dtype.name}")

    def check_over(self, over: tuple[str, ...]) -> None:
        if not self.rows.issuperset(over):
            raise self.fail(f"{' '.join(over)}: not all of them are row axes")

    def check_contract(self, s: Contract) -> None:
        left, right = self.dtypes[s.left], self.dtypes[s.right]
        if (left != right and not {left, right} <= FLOAT8) or left == bool_:
            raise self.fail(f"contract does not take {left.name} and {right.name}")
        if s.dtype != left.compute:
            raise self.fail(f"contract of {left.name} gives {left.compute.name}, not {s.dtype.name}")
        self.check_over(s.over)
        others = [other for other in self.kernel.body if isinstance(other, (Contract, Reduce, Scan))]
        if len(others) > 1 and not all(not isinstance(other, Scan) and other.over for other in others):
            raise self.fail(
                "a kernel that contracts has no scan, and names the axes of all reductions if it has several"
            )

    def check_scan(self, s: Scan) -> None:
        if s.op not in SCAN_OPS:
            raise self.fail(f"there is no scan {s.op}")
        if len(self.rows) != 1:
            raise self.fail(f"a scan needs exactly one row axis, there are {len(self.rows)}")
        arg = self.dtypes[s.arg]
        self.check_reduction(s.op, arg)
        if s.dtype != arg:
            raise self.fail(f"scan {s.op} of {arg.name} gives {arg.name}, not {s.dtype.name}")

    def check_store(self, s: Store) -> None:
        domain = self.check_access(s.buffer, s.index, s.mask, ("out", "inout"))
        if s.mode not in ("set", "put", "add", "max"):
            raise self.fail(f"there is no store mode {s.mode}")
        dtype = self.dtypes[s.value]
        if dtype != self.buffers[s.buffer].dtype:
            raise self.fail(f"{s.value} is {dtype.name}, buffer {s.buffer} is {self.buffers[s.buffer].dtype.name}")
        whole = domain | self.domains[s.value] | (self.domains[s.mask] if s.mask is not None else frozenset())
        if s.mode == "set" and whole - domain:
            raise self.fail(f"several elements along {', '.join(sorted(whole - domain))} go to one place of {s.buffer}")
        if s.mode == "add":
            self.check_add(s, dtype, whole)
        if s.mode == "max" and (self.buffers[s.buffer].access != "inout" or dtype != i64 or domain):
            raise self.fail("a cell of which the maximum is kept is one place of an inout buffer of i64")
        self.stored.add(s.buffer)

    def check_add(self, s: Store, dtype: DType, domain: frozenset[str]) -> None:
        if self.buffers[s.buffer].access != "inout":
            raise self.fail(f"buffer {s.buffer} is added to, so it is inout")
        if dtype == bool_ or dtype.is_reduced:
            raise self.fail(f"cannot add {dtype.name} in memory")
        missing = self.axes.keys() - self.rows - domain
        missing |= self.rows - domain if self.rows & domain else frozenset()
        if missing:
            raise self.fail(f"how often to add along {', '.join(sorted(missing))} is not said")


def _is_linear(index: Dim) -> bool:
    """True for sums of multiples of axes and constants, for which interval arithmetic is exact."""
    if isinstance(index, int):
        return True
    return all(
        not monomial or (len(monomial) == 1 and isinstance(monomial[0], Sym) and not is_value(monomial[0].name))
        for monomial, _ in index.terms
    )
