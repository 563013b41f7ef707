"""Index expressions as Triton text."""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.triton.ops import Context
from graphc.ir.dims import Dim, Expr, FloorDiv, Mod, Sym, bounds
from graphc.loopir.kernel import Kernel, Load, Store

Bounds = Mapping[str, tuple[int, int | None]]


def index_text(context: Context, index: Dim, ranges: Bounds) -> str:
    """`index` as an expression over the axis variables and loaded values of the same names.

    Triton's integer `//` and `%` round to zero, so an operand that may be negative goes through a helper.
    """
    if isinstance(index, int):
        return str(index)
    text = ""
    for monomial, coefficient in index.terms:
        factors = [_atom_text(context, atom, ranges) for atom in monomial]
        if abs(coefficient) != 1 or not factors:
            factors.append(str(abs(coefficient)))
        product = " * ".join(factors)
        if not text:
            text = product if coefficient > 0 else f"-{product}"
        else:
            text += f" {'+' if coefficient > 0 else '-'} {product}"
    return text


def single_numbers(kernel: Kernel) -> tuple[int, ...]:
    """Positions of the buffers that are only accessed at places which no axis moves, one number at a time."""
    moving = {s.buffer for s in kernel.body if isinstance(s, (Load, Store)) and not isinstance(s.index, int)}
    return tuple(number for number, buffer in enumerate(kernel.buffers) if buffer.name not in moving)


def _atom_text(context: Context, atom: Sym | FloorDiv | Mod, ranges: Bounds) -> str:
    if isinstance(atom, Sym):
        return atom.name
    numerator = index_text(context, atom.numerator, ranges)
    if (isinstance(atom.numerator, Expr) and len(atom.numerator.terms) > 1) or " " in numerator:
        numerator = f"({numerator})"
    denominator = index_text(context, atom.denominator, ranges)
    low, _ = bounds(atom.numerator, ranges)
    if low is not None and low >= 0:
        return f"({numerator} {'//' if isinstance(atom, FloorDiv) else '%'} {denominator})"
    name = "_index_floordiv" if isinstance(atom, FloorDiv) else "_index_mod"
    return context.helper(name, numerator, denominator)
