"""Axes of a lowered kernel, made simple: cut where indices divide, joined where they step evenly, in memory order.

load x[(i0 // 64)*64 + i1*512 + i0 % 64]  axes i0: 512, i1: 8       as written from a reshape and a permute
load x[i0*64 + i1*512 + i2]               axes i0: 8, i1: 8, i2: 64 after cutting
load x[i0]                                axes i0: 4096             what a contiguous kernel becomes
"""

from __future__ import annotations

from collections.abc import Iterable

from graphc.ir.dims import Dim, Expr, FloorDiv, Mod, Sym, substitute, symbol, symbols
from graphc.ir.sizes import typical
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.kernel import (
    PARALLEL,
    ROW,
    Axis,
    Compute,
    Const,
    Contract,
    Index,
    Kernel,
    Load,
    Reduce,
    Scan,
    Store,
    operands,
)

MAX_CUTS = 8


def tidy(kernel: Kernel) -> Kernel:
    """The same kernel over as few and as plain axes as can be, without statements that nothing needs."""
    kernel = _without_unused(kernel)
    for _ in range(MAX_CUTS):
        cut = _find_cut(kernel)
        if cut is None:
            break
        kernel = _cut_axis(kernel, *cut)
    kernel = _order_axes(kernel)
    kernel = _join_axes(kernel)
    return _rename_axes(kernel)


def index_expressions(kernel: Kernel) -> Iterable[Dim]:
    for s in kernel.body:
        if isinstance(s, Index):
            yield s.expr
        elif isinstance(s, (Load, Store)):
            yield s.index


def rebuild(kernel: Kernel, axes: tuple[Axis, ...], mapping: dict[str, Dim]) -> Kernel:
    """The kernel with axes replaced by expressions over new ones; equal statements become one."""
    builder = KernelBuilder(axes)
    names: dict[str, str] = {}
    full = dict(mapping)

    def index(expr: Dim) -> Dim:
        return substitute(expr, full)

    def over(axes_before: tuple[str, ...]) -> tuple[str, ...]:
        places = [mapping.get(name, symbol(name)) for name in axes_before]
        return tuple(dict.fromkeys(name for place in places for name in sorted(symbols(place))))

    for s in kernel.body:
        if isinstance(s, Store):
            mask = None if s.mask is None else names[s.mask]
            builder.store(s.buffer, index(s.index), names[s.value], mask, s.mode)
            continue
        if isinstance(s, Load):
            mask = None if s.mask is None else names[s.mask]
            new = builder.load(s.buffer, s.dtype, index(s.index), mask, s.other)
        elif isinstance(s, Const):
            new = builder.constant(s.value, s.dtype)
        elif isinstance(s, Index):
            new = builder.index_value(index(s.expr))
        elif isinstance(s, Compute):
            new = builder.compute(s.op, *(names[arg] for arg in s.args), dtype=s.dtype)
        elif isinstance(s, Reduce):
            new = builder.reduce(s.op, names[s.arg], over(s.over))
        elif isinstance(s, Contract):
            new = builder.contract(names[s.left], names[s.right], s.tf32, over(s.over))
        else:
            new = builder.scan(s.op, names[s.arg])
        names[s.id] = new
        full[s.id] = symbol(new)
    return builder.finish(kernel.name, kernel.buffers, kernel.notes)


def _without_unused(kernel: Kernel) -> Kernel:
    needed: set[str] = set()
    kept: list[object] = []
    for s in reversed(kernel.body):
        if isinstance(s, Store) or s.id in needed:
            needed.update(operands(s))
            kept.append(s)
    body = tuple(reversed(kept))
    return Kernel(kernel.name, kernel.axes, kernel.buffers, body, kernel.notes)  # type: ignore[arg-type]


# cutting


def _find_cut(kernel: Kernel) -> tuple[str, int] | None:
    """An axis and the extent of its inner part, such that a division or modulo disappears."""
    extents = {axis.name: axis.extent for axis in kernel.axes}
    if any(isinstance(s, Scan) for s in kernel.body):
        extents = {axis.name: axis.extent for axis in kernel.parallel_axes}
    for expr in index_expressions(kernel):
        for atom in divisions(expr):
            name, divisor = _axis_of(atom.numerator), atom.denominator
            extent = extents.get(name or "")
            if name is None or not isinstance(divisor, int) or not isinstance(extent, int):
                continue
            if 1 < divisor < extent and extent % divisor == 0:
                return name, divisor
    return None


def divisions(expr: Dim) -> Iterable[FloorDiv | Mod]:
    """Floor divisions and modulos, inner ones first."""
    if isinstance(expr, int):
        return
    for monomial, _ in expr.terms:
        for atom in monomial:
            if not isinstance(atom, Sym):
                yield from divisions(atom.numerator)
                yield atom


def _axis_of(expr: Expr | Dim) -> str | None:
    if isinstance(expr, int) or len(expr.terms) != 1:
        return None
    ((monomial, coefficient),) = expr.terms
    if coefficient != 1 or len(monomial) != 1 or not isinstance(monomial[0], Sym):
        return None
    return monomial[0].name


def _cut_axis(kernel: Kernel, name: str, inner: int) -> Kernel:
    axes: list[Axis] = []
    taken = {axis.name for axis in kernel.axes}
    high, low = (_fresh(f"{name}{suffix}", taken) for suffix in ("h", "l"))
    for axis in kernel.axes:
        if axis.name != name:
            axes.append(axis)
            continue
        assert isinstance(axis.extent, int)
        axes += [Axis(high, axis.extent // inner, axis.kind), Axis(low, inner, axis.kind)]
    return rebuild(kernel, tuple(axes), {name: symbol(high) * inner + symbol(low)})


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


# ordering and joining


def _order_axes(kernel: Kernel) -> Kernel:
    """Parallel axes by falling step of the stores, then of the loads: the innermost one walks along memory.

    An index that is data steps with all axes that it depends on. Those of a `put` keep their order: it decides which
    value stays where several go to one place.
    """
    data = {name: domain for name, domain in kernel.domains.items() if domain}
    puts = [s.index for s in kernel.body if isinstance(s, Store) and s.mode == "put"]
    in_order = frozenset().union(*(data[name] for index in puts for name in symbols(index) if name in data))
    stores = [s.index for s in kernel.body if isinstance(s, Store)]
    loads = [s.index for s in kernel.body if isinstance(s, Load)]

    def order(axis: Axis) -> tuple[int, int]:
        by_data = [name for name, domain in data.items() if axis.name in domain]
        step = max((_largest_step(stores, name) for name in (axis.name, *by_data)), default=0)
        return (-step, 0 if axis.name in in_order else -_largest_step(loads, axis.name))

    parallel = sorted(kernel.parallel_axes, key=order)
    if tuple(parallel) == kernel.parallel_axes:
        return kernel
    return Kernel(kernel.name, (*parallel, *kernel.row_axes), kernel.buffers, kernel.body, kernel.notes)


def _largest_step(exprs: list[Dim], name: str) -> int:
    return max((abs(typical(_step(expr, name) or 0)) for expr in exprs), default=0)


def _step(expr: Dim, name: str) -> int | None:
    """Coefficient of an axis that enters linearly (0 = not at all); None when it enters in another way."""
    if isinstance(expr, int):
        return 0
    found = 0
    for monomial, coefficient in expr.terms:
        if len(monomial) == 1 and isinstance(monomial[0], Sym) and monomial[0].name == name:
            found = coefficient
        elif any((not isinstance(a, Sym) and name in symbols(_atom(a))) or (isinstance(a, Sym) and a.name == name)
                 for a in monomial):  # fmt: skip
            return None
    return found


def _atom(atom: FloorDiv | Mod) -> Expr:
    return Expr((((atom,), 1),))


def _join_axes(kernel: Kernel) -> Kernel:
    """Join neighbours a, b where every index steps by extent(b) times its step along b when a steps."""
    exprs = list(dict.fromkeys(expr for expr in index_expressions(kernel) if not isinstance(expr, int)))
    steps = {axis.name: [_step(expr, axis.name) for expr in exprs] for axis in kernel.axes}
    has_scan = any(isinstance(s, Scan) for s in kernel.body)
    joined: list[tuple[Axis, list[Axis]]] = []
    for axis in kernel.axes:
        last = joined[-1] if joined else None
        if last is not None and last[0].kind == axis.kind and not (has_scan and axis.kind == ROW):
            inner = axis.extent
            pairs = zip(steps[last[1][-1].name], steps[axis.name], strict=True)
            assert isinstance(inner, int) and isinstance(last[0].extent, int)
            if all(a is not None and b is not None and a == b * inner for a, b in pairs):
                joined[-1] = (Axis(last[0].name, last[0].extent * inner, axis.kind), [*last[1], axis])
                continue
        joined.append((axis, [axis]))
    if len(joined) == len(kernel.axes):
        return kernel
    mapping: dict[str, Dim] = {}
    for whole, parts in joined:
        if len(parts) > 1:
            # all indices are linear: the innermost part carries the step, the others fall away
            mapping.update({part.name: 0 for part in parts[:-1]})
            mapping[parts[-1].name] = symbol(whole.name)
    return rebuild(kernel, tuple(whole for whole, _ in joined), mapping)


def _rename_axes(kernel: Kernel) -> Kernel:
    """i0, i1, ... for parallel axes and r0, r1, ... for row axes, outermost first."""
    axes: list[Axis] = []
    mapping: dict[str, Dim] = {}
    for prefix, kind in (("i", PARALLEL), ("r", ROW)):
        for number, axis in enumerate(a for a in kernel.axes if a.kind == kind):
            axes.append(Axis(f"{prefix}{number}", axis.extent, kind))
            mapping[axis.name] = symbol(f"{prefix}{number}")
    return rebuild(kernel, tuple(axes), mapping)
