"""Rewrites of kernels that every code generator wants: fewer axes, fewer divisions, fewer kinds of reductions.

All of them keep the meaning of the kernel, and all are linear in the number of statements for a fixed number of axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from math import gcd

from graphc.ir.dims import Dim, Expr, FloorDiv, Mod, Ranges, Sym, floordiv, mod, simplify, substitute, symbol, symbols
from graphc.ir.sizes import bound
from graphc.ir.types import bool_, i64
from graphc.loopir.kernel import (
    ROW,
    Axis,
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
    operands,
)


def indices(kernel: Kernel) -> Iterator[Dim]:
    """Every index expression of a kernel, in statement order."""
    for s in kernel.body:
        if isinstance(s, (Load, Store)):
            yield s.index
        elif isinstance(s, Index):
            yield s.expr


def map_indices(body: Iterable[Statement], function: Callable[[Dim], Dim]) -> tuple[Statement, ...]:
    """Statements with `function` applied to every index expression."""
    found: list[Statement] = []
    for s in body:
        if isinstance(s, (Load, Store)):
            found.append(replace(s, index=function(s.index)))
        elif isinstance(s, Index):
            found.append(replace(s, expr=function(s.expr)))
        else:
            found.append(s)
    return tuple(found)


def axis_ranges(axes: Iterable[Axis]) -> dict[str, tuple[int, int | None]]:
    """Bounds of axes, for `graphc.ir.dims.simplify`."""
    return {a.name: (0, a.extent - 1 if isinstance(a.extent, int) else None) for a in axes}


def drop_dead(kernel: Kernel) -> Kernel:
    """Without values that no store needs."""
    needed: set[str] = set()
    kept: list[Statement] = []
    for s in reversed(kernel.body):
        if isinstance(s, Store) or s.id in needed:
            needed.update(operands(s))
            kept.append(s)
    return kernel if len(kept) == len(kernel.body) else replace(kernel, body=tuple(reversed(kept)))


def drop_idle_axes(kernel: Kernel) -> Kernel:
    """Without parallel axes along which the same is stored again and again: no index has to do with them."""
    if any(isinstance(s, Store) and s.mode == "add" for s in kernel.body):
        return kernel
    used = frozenset[str]().union(*(symbols(index) for index in indices(kernel)))
    axes = tuple(axis for axis in kernel.axes if axis.kind == ROW or axis.name in used or axis.extent == 0)
    return kernel if len(axes) == len(kernel.axes) else replace(kernel, axes=axes)


def drop_unit_axes(kernel: Kernel) -> Kernel:
    """Without axes of extent 1; one row axis stays when there are reductions or scans."""
    unit = [axis for axis in kernel.axes if axis.extent == 1]
    if any(isinstance(s, (Reduce, Scan)) for s in kernel.body) and all(a.extent == 1 for a in kernel.row_axes):
        unit.remove(kernel.row_axes[-1])
    if not unit:
        return kernel
    zero: dict[str, Dim] = {axis.name: 0 for axis in unit}
    axes = tuple(axis for axis in kernel.axes if axis not in unit)
    ranges = axis_ranges(axes)
    body = map_indices(kernel.body, lambda index: simplify(substitute(index, zero), ranges))
    return replace(kernel, axes=axes, body=_index_to_const(body))


def _index_to_const(body: tuple[Statement, ...]) -> tuple[Statement, ...]:
    return tuple(Const(s.id, i64, s.expr) if isinstance(s, Index) and isinstance(s.expr, int) else s for s in body)


def merge_axes(kernel: Kernel) -> Kernel:
    """With pairs of axes joined that are always indexed as one (`i*64 + j`, `j` of extent 64)."""
    merged = True
    while merged:
        merged = False
        for outer, inner in _pairs(kernel):
            found = _merge(kernel, outer, inner)
            if found is not None:
                kernel, merged = found, True
                break
    return kernel


def _pairs(kernel: Kernel) -> Iterator[tuple[Axis, Axis]]:
    if any(isinstance(s, Reduce) and s.op in ("argmax", "argmin") for s in kernel.body):
        rows = list(zip(kernel.row_axes, kernel.row_axes[1:], strict=False))
    else:
        rows = [(a, b) for a in kernel.row_axes for b in kernel.row_axes if a is not b]
    yield from rows
    yield from ((a, b) for a in kernel.parallel_axes for b in kernel.parallel_axes if a is not b)


def _merge(kernel: Kernel, outer: Axis, inner: Axis) -> Kernel | None:
    found: dict[Dim, Dim] = {}
    for index in indices(kernel):
        if index not in found:
            joined = _join(index, outer.name, inner.name, inner.extent)
            if joined is None:
                return None
            found[index] = joined
    axis = Axis(inner.name, outer.extent * inner.extent, inner.kind)
    axes = tuple(axis if a is inner else a for a in kernel.axes if a is not outer)
    ranges = axis_ranges(axes)
    return replace(kernel, axes=axes, body=map_indices(kernel.body, lambda index: simplify(found[index], ranges)))


def _join(index: Dim, outer: str, inner: str, extent: Dim) -> Dim | None:
    """`index` with `outer*extent + inner` written as `inner`, or None when they occur in another way."""
    if isinstance(index, int) or not (symbols(index) & {outer, inner}):
        return index
    outer_part: Dim = 0
    inner_part: Dim = 0
    total: Dim = 0
    for monomial, coefficient in index.terms:
        names = [atom.name for atom in monomial if isinstance(atom, Sym)]
        if outer in names or inner in names:
            rest: Dim = coefficient
            for atom in monomial:
                if isinstance(atom, Sym) and atom.name in (outer, inner):
                    continue
                rest = rest * Expr((((atom,), 1),))
            if names.count(outer) + names.count(inner) > 1 or symbols(rest) & {outer, inner}:
                return None
            if outer in names:
                outer_part = outer_part + rest
            else:
                inner_part = inner_part + rest
            continue
        product: Dim = coefficient
        for atom in monomial:
            factor = _join_atom(atom, outer, inner, extent)
            if factor is None:
                return None
            product = product * factor
        total = total + product
    if inner_part * extent != outer_part:
        return None
    return total + inner_part * symbol(inner)


def _join_atom(atom: Sym | FloorDiv | Mod, outer: str, inner: str, extent: Dim) -> Dim | None:
    if isinstance(atom, Sym):
        return symbol(atom.name)
    if symbols(atom.denominator) & {outer, inner}:
        return None
    numerator = _join(atom.numerator, outer, inner, extent)
    if numerator is None:
        return None
    return (floordiv if isinstance(atom, FloorDiv) else mod)(numerator, atom.denominator)


def split_axis(kernel: Kernel, name: str, factor: int) -> Kernel:
    """With axis `name` as `outer*factor + name`, `outer` right before it.

    Raises:
        ValueError: the extent is not a multiple of `factor`.
    """
    axis = next(a for a in kernel.axes if a.name == name)
    if not isinstance(axis.extent, int) or axis.extent % factor:
        raise ValueError(f"axis {name} of extent {axis.extent} is not a multiple of {factor}")
    taken = {a.name for a in kernel.axes} | {b.name for b in kernel.buffers}
    outer = next(f"{name}{suffix}" for suffix in "abcdefghijklmnopqrstuvwxyz" if f"{name}{suffix}" not in taken)
    pair = (Axis(outer, axis.extent // factor, axis.kind), Axis(name, factor, axis.kind))
    axes = tuple(part for a in kernel.axes for part in (pair if a is axis else (a,)))
    ranges = axis_ranges(axes)
    mapping: dict[str, Dim] = {name: symbol(outer) * factor + symbol(name)}
    body = map_indices(kernel.body, lambda index: simplify(substitute(index, mapping), ranges))
    return replace(kernel, axes=axes, body=body)


def rows_outermost(kernel: Kernel, rows: int) -> Kernel | None:
    """The kernel with an outermost parallel axis of so many steps, None when its first axis does not give one."""
    if not kernel.parallel_axes:
        return None
    first = kernel.axes[0]
    if first.extent == rows:
        return kernel
    if not isinstance(first.extent, int) or rows < 1 or first.extent % rows:
        return None
    return split_axis(kernel, first.name, first.extent // rows)


def split_divided_axes(kernel: Kernel) -> Kernel:
    """With axes split until no index divides them, where their extents allow it.

    for i in 4096: x[i // 64] ... y[i % 64]      ->      for ia in 64: for i in 64: x[ia] ... y[i]
    """
    if any(isinstance(s, Scan) for s in kernel.body):
        return kernel
    divisions = _count_divisions(kernel)
    for _ in range(8):
        if not divisions:
            break
        best: tuple[int, Kernel] | None = None
        for name, factor in _split_candidates(kernel):
            tried = split_axis(kernel, name, factor)
            count = _count_divisions(tried)
            if count < divisions and (best is None or count < best[0]):
                best = (count, tried)
        if best is None:
            break
        divisions, kernel = best
    return kernel


def _atoms(value: Dim) -> Iterator[FloorDiv | Mod]:
    if isinstance(value, int):
        return
    for monomial, _ in value.terms:
        for atom in monomial:
            if not isinstance(atom, Sym):
                yield atom
                yield from _atoms(atom.numerator)


def _count_divisions(kernel: Kernel) -> int:
    axes = {axis.name for axis in kernel.axes}
    return sum(1 for index in set(indices(kernel)) for atom in _atoms(index) if symbols(atom.numerator) & axes)


def _split_candidates(kernel: Kernel) -> list[tuple[str, int]]:
    extents = {axis.name: axis.extent for axis in kernel.axes}
    found: dict[tuple[str, int], None] = {}
    for index in set(indices(kernel)):
        for atom in _atoms(index):
            if not isinstance(atom.denominator, int):
                continue
            for monomial, coefficient in atom.numerator.terms:
                if len(monomial) != 1 or not isinstance(monomial[0], Sym):
                    continue
                name = monomial[0].name
                extent = extents.get(name)
                factor = atom.denominator
                if abs(coefficient) != 1:
                    factor //= gcd(bound(factor), bound(coefficient))
                if isinstance(extent, int) and 1 < factor < extent and extent % factor == 0:
                    found[name, factor] = None
    return sorted(found)


def lower_arg_reductions(kernel: Kernel) -> Kernel:
    """With argmax and argmin as a maximum followed by the least index that has it; a NaN counts as the extremum.

    v1: i64 = reduce argmax v0   ->   m = reduce max v0; h = eq v0 m (or isnan v0)
                                      k = where h index N; v1: i64 = reduce min k
    """
    if not any(isinstance(s, Reduce) and s.op in ("argmax", "argmin") for s in kernel.body):
        return kernel
    dtypes = {s.id: s.dtype for s in kernel.defines}
    position: Dim = 0
    extent: Dim = 1
    for axis in kernel.row_axes:
        position = position * axis.extent + symbol(axis.name)
        extent = extent * axis.extent
    fresh = 1 + max(int(name[1:]) for name in dtypes)
    body: list[Statement] = []

    def add(make: Callable[[str], Define]) -> str:
        nonlocal fresh
        statement = make(f"v{fresh}")
        fresh += 1
        body.append(statement)
        return statement.id

    for s in kernel.body:
        if not (isinstance(s, Reduce) and s.op in ("argmax", "argmin")):
            body.append(s)
            continue
        arg, dtype = s.arg, dtypes[s.arg]
        extremum = add(lambda v, s=s, d=dtype: Reduce(v, d, s.op[3:], s.arg))  # type: ignore[misc]
        hit = add(lambda v, a=arg, m=extremum: Compute(v, bool_, "eq", (a, m)))  # type: ignore[misc]
        if dtype.is_float:
            nan = add(lambda v, a=arg: Compute(v, bool_, "isnan", (a,)))  # type: ignore[misc]
            hit = add(lambda v, a=hit, b=nan: Compute(v, bool_, "logical_or", (a, b)))  # type: ignore[misc]
        at = add(lambda v: Index(v, i64, position))
        end = add(lambda v: Index(v, i64, extent) if isinstance(extent, Expr) else Const(v, i64, extent))
        chosen = add(lambda v, a=hit, b=at, c=end: Compute(v, i64, "where", (a, b, c)))  # type: ignore[misc]
        body.append(Reduce(s.id, i64, "min", chosen))
    return replace(kernel, body=_index_to_const(tuple(body)))


_NOT, _AND, _OR = (
    frozenset(("bitwise_not", "logical_not")), frozenset(("bitwise_and", "logical_and")),
    frozenset(("bitwise_or", "logical_or")),
)  # fmt: skip


def assume(kernel: Kernel, known: Mapping[str, bool]) -> Kernel:
    """The kernel where some bool values are known: conditions are decided, choices made, what nothing needs is dropped.

    Before, with v2 known to hold:      After:
        v2: bool = le v0 v1                 v5: f32 = exp v4
        v3: bool = bitwise_not v2
        v4: f32 = contract ...
        v5: f32 = where v3 -inf v4
        v6: f32 = exp v5

    Statements that stay keep their names.
    """
    truth, same = dict(known), dict[str, str]()
    body: list[Statement] = []
    for statement in kernel.body:
        s = with_operands(statement, same)
        if isinstance(s, Const) and s.dtype == bool_:
            truth[s.id] = bool(s.value)
        if isinstance(s, Compute) and s.id not in truth:
            decided = _decided(s, truth)
            if isinstance(decided, bool):
                truth[s.id] = decided
            elif decided is not None:
                same[s.id] = decided
                continue
        body.append(s)
    return drop_dead(replace(kernel, body=substitute_known(body, axis_ranges(kernel.axes), truth)))


def _decided(s: Compute, truth: Mapping[str, bool]) -> bool | str | None:
    """What a condition or a choice is: a truth value, another value, or not known."""
    if s.op == "where":
        return None if s.args[0] not in truth else s.args[1] if truth[s.args[0]] else s.args[2]
    if s.dtype != bool_ or not any(arg in truth for arg in s.args):
        return None
    if s.op in _NOT:
        return not truth[s.args[0]]
    if s.op in _AND | _OR:
        arg, other = s.args if s.args[0] in truth else s.args[::-1]
        return truth[arg] if truth[arg] == (s.op in _OR) else other
    return None


def with_operands(s: Statement, names: Mapping[str, str]) -> Statement:
    """A statement that reads other values: `names` says which instead of which."""
    if names.keys().isdisjoint(operands(s)):
        return s
    if isinstance(s, Compute):
        return replace(s, args=tuple(names.get(arg, arg) for arg in s.args))
    if isinstance(s, (Reduce, Scan)):
        return replace(s, arg=names.get(s.arg, s.arg))
    if isinstance(s, Contract):
        return replace(s, left=names.get(s.left, s.left), right=names.get(s.right, s.right))
    places: dict[str, Dim] = {old: symbol(new) for old, new in names.items()}
    if isinstance(s, Index):
        return replace(s, expr=substitute(s.expr, places))
    assert isinstance(s, (Load, Store))
    moved = replace(s, index=substitute(s.index, places), mask=None if s.mask is None else names.get(s.mask, s.mask))
    return replace(moved, value=names.get(moved.value, moved.value)) if isinstance(moved, Store) else moved


def substitute_known(body: Iterable[Statement], ranges: Ranges, known: Mapping[str, bool]) -> tuple[Statement, ...]:
    """Statements with masks of known truth taken out of loads, stores and choices.

    Args:
        body: statements.
        ranges: bounds of axes where these statements run; index expressions are simplified by them.
        known: truth of bool values there.
    """
    found: list[Statement] = []
    for s in body:
        if isinstance(s, Store):
            truth = known.get(s.mask) if s.mask is not None else None
            if truth is False:
                continue
            found.append(replace(s, index=simplify(s.index, ranges), mask=None if truth else s.mask))
        elif s.id in known:
            found.append(Const(s.id, bool_, known[s.id]))
        elif isinstance(s, Load):
            truth = known.get(s.mask) if s.mask is not None else None
            if truth is False:
                found.append(Const(s.id, s.dtype, s.other))
            else:
                found.append(replace(s, index=simplify(s.index, ranges), mask=None if truth else s.mask))
        elif isinstance(s, Index):
            found.append(replace(s, expr=simplify(s.expr, ranges)))
        elif isinstance(s, Compute) and s.op == "where" and s.args[0] in known:
            found.append(Compute(s.id, s.dtype, "cast", (s.args[1] if known[s.args[0]] else s.args[2],)))
        else:
            found.append(s)
    return tuple(found)
