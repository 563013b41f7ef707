"""Axes of a kernel joined where every index expression walks them as one: `i * 1024 + j` of two is `k` of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from graphc.errors import CodegenError
from graphc.ir.dims import Dim, Expr, FloorDiv, Mod, Sym, simplify, substitute, symbol
from graphc.loopir.kernel import PARALLEL, ROW, Axis, Index, Kernel, Load, Statement, Store


def _rewrite(statement: Statement, change: Callable[[Dim], Dim]) -> Statement:
    if isinstance(statement, (Load, Store)):
        return replace(statement, index=change(statement.index))
    return replace(statement, expr=change(statement.expr)) if isinstance(statement, Index) else statement


def index_of(statement: Statement) -> Dim | None:
    """The index expression of a statement that has one."""
    if isinstance(statement, (Load, Store)):
        return statement.index
    return statement.expr if isinstance(statement, Index) else None


def _divisions(value: Dim) -> int:
    """How many floor divisions and modulos an index expression takes."""
    if isinstance(value, int):
        return 0
    atoms = [atom for monomial, _ in value.terms for atom in monomial if not isinstance(atom, Sym)]
    return sum(1 + _divisions(atom.numerator) for atom in atoms if isinstance(atom, (FloorDiv, Mod)))


def _joined(expressions: Sequence[Dim], outer: Axis, inner: Axis, whole: Axis) -> dict[Dim, Dim] | None:
    """Every expression with `whole` = outer * extent(inner) + inner, or None when one would take more divisions."""
    mapping: dict[str, Dim] = {
        outer.name: symbol(whole.name) // inner.extent,
        inner.name: symbol(whole.name) % inner.extent,
    }
    ranges = {whole.name: (0, int_extent(whole) - 1)}
    result: dict[Dim, Dim] = {}
    for expression in expressions:
        new = simplify(substitute(expression, mapping), ranges)
        if _divisions(new) > _divisions(expression):
            return None
        result[expression] = new
    return result


def int_extent(axis: Axis) -> int:
    """The extent of an axis as an int.

    Raises:
        CodegenError: it is symbolic.
    """
    if isinstance(axis.extent, int):
        return axis.extent
    raise CodegenError(f"axis {axis.name} has the symbolic extent {axis.extent}; Triton kernels need known sizes")


def _replace_indices(body: tuple[Statement, ...], table: dict[Dim, Dim]) -> tuple[Statement, ...]:
    return tuple(_rewrite(s, lambda index: table.get(index, index)) for s in body)


def join_axes(kernel: Kernel) -> Kernel:
    """The kernel with axes of extent 1 dropped and neighbouring axes joined where no index expression gets harder."""
    ones: dict[str, Dim] = {axis.name: 0 for axis in kernel.axes if int_extent(axis) == 1}
    body = kernel.body
    if ones:
        body = tuple(_rewrite(s, lambda index: substitute(index, ones)) for s in body)
    groups = {kind: [a for a in kernel.axes if a.kind == kind and a.name not in ones] for kind in (PARALLEL, ROW)}
    for kind, axes in groups.items():
        position = len(axes) - 2
        while position >= 0:
            outer, inner = axes[position], axes[position + 1]
            whole = Axis(f"{outer.name}_{inner.name}", int_extent(outer) * int_extent(inner), kind)
            found = [index for s in body if (index := index_of(s)) is not None and isinstance(index, Expr)]
            changed = _joined(found, outer, inner, whole) if whole.extent else None
            if changed is not None:
                body = _replace_indices(body, changed)
                axes[position : position + 2] = [whole]
            position = min(position - 1, len(axes) - 2)
    return replace(kernel, axes=(*groups[PARALLEL], *groups[ROW]), body=body)
