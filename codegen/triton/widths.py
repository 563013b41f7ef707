"""How wide accesses of global memory can be: from indices and tile, before there is machine code."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod

from graphc.codegen.triton.joined_axes import int_extent
from graphc.codegen.triton.tiling import TileDim, Tiling, stride
from graphc.ir.dims import Dim, Expr, Sym, symbols
from graphc.loopir.kernel import Buffer, Load, Store, is_value

WIDEST = 16
"""Bytes of the widest access of one thread."""

Access = Load | Store


def run(index: Dim, dim: TileDim) -> int:
    """How many neighbours along a tile dimension lie next to each other in memory before a jump; 0 for none."""
    found = 1
    for axis in reversed(dim.axes):
        if stride(index, axis.name) != found:
            break
        found *= int_extent(axis)
    return 0 if found == 1 else found


def widest(tiling: Tiling, s: Access, buffer: Buffer) -> int:
    """Bytes of the widest access by which a thread can read or write its part of a tile.

    It takes neighbours along a tile dimension, a start that is a multiple of the width in every row and program, and
    enough elements for all threads.
    """
    if not isinstance(s.index, Expr):
        return buffer.dtype.itemsize
    found = (width_along(tiling, s, buffer, dim) for dim in reversed(tiling.blocked))
    return next((width for width in found if width), buffer.dtype.itemsize)


def width_along(tiling: Tiling, s: Access, buffer: Buffer, dim: TileDim) -> int:
    """The same where neighbours lie along a given dimension; 0 where they do not, or are masked one by one."""
    size = buffer.dtype.itemsize
    if not isinstance(s.index, Expr) or (isinstance(s, Store) and s.mode != "set"):
        return 0
    neighbours = run(s.index, dim)
    if not neighbours or (s.mask is not None and _varies(tiling, s.mask, dim)):
        return 0
    others = [_alignment(monomial, c, dim, tiling) for monomial, c in s.index.terms if not _runs(monomial, dim)]
    whole = neighbours >= dim.extent
    aligned = gcd(WIDEST, size * gcd(dim.block, *others, *(() if whole else (neighbours,))))
    elements = prod(d.block for d in tiling.blocked if _touches(s.index, d, tiling)) // (32 * tiling.num_warps)
    return max(size, min(aligned, size * max(1, elements)))


def _touches(index: Dim, dim: TileDim, tiling: Tiling) -> bool:
    own = {axis.name for axis in dim.axes}
    names = symbols(index)
    return any(name in own or (is_value(name) and tiling.kernel.domains[name] & own) for name in names)


def _runs(monomial: tuple[object, ...], dim: TileDim) -> bool:
    return any(isinstance(atom, Sym) and atom.name in {axis.name for axis in dim.axes} for atom in monomial)


def _alignment(monomial: tuple[object, ...], coefficient: int, dim: TileDim, tiling: Tiling) -> int:
    """A number that divides a term of an index that is the same along a dimension; 1 where it is not."""
    names = symbols(Expr(((monomial, 1),))) if monomial else frozenset[str]()  # type: ignore[arg-type]
    own = {axis.name for axis in dim.axes}
    domains: Mapping[str, frozenset[str]] = tiling.kernel.domains
    touched = set[str]().union(*(domains[n] if is_value(n) else {n} for n in names)) if names else set()
    return 1 if touched & own else abs(coefficient)


def _varies(tiling: Tiling, mask: str, dim: TileDim) -> bool:
    return bool(tiling.kernel.domains[mask] & {axis.name for axis in dim.axes})
