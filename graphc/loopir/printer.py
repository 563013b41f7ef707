"""Kernels as text; `graphc.loopir.parser` reads it back."""

from __future__ import annotations

import math

from graphc.ir.dims import Dim
from graphc.ir.types import DType
from graphc.loopir.kernel import Buffer, Compute, Const, Contract, Index, Kernel, Load, Reduce, Scan, Statement, Store


def print_kernel(kernel: Kernel) -> str:
    """The text of a kernel, one statement per line.

    Args:
        kernel: any kernel, valid or not.

    Returns:
        Text without a final newline, such that `parse_kernel(print_kernel(k)) == k`.
    """
    return "\n".join(kernel_lines(kernel))


def kernel_lines(kernel: Kernel) -> list[str]:
    """Lines of `print_kernel`: header, one per note, one per statement (from `statement_line_offset` on)."""
    buffers = ", ".join(f"{b.name}: {b.access} {b.dtype.name}[{b.size}]{_gap(b)}" for b in kernel.buffers)
    axes = ", ".join(f"{a.name}: {a.extent} {a.kind}" for a in kernel.axes)
    header = f"kernel {kernel.name}({buffers}) axes({axes}) {{"
    return [
        header,
        *(f"  # {note}" for note in kernel.notes),
        *(f"  {print_statement(s)}" for s in kernel.body),
        "}",
    ]


def _gap(buffer: Buffer) -> str:
    return "" if buffer.gap is None else f" rows {buffer.gap.row} of {buffer.gap.pitch}"


def statement_line_offset(kernel: Kernel) -> int:
    """Index in `kernel_lines` of the first statement."""
    return 1 + len(kernel.notes)


def print_statement(statement: Statement) -> str:
    """One statement as text, without indentation."""
    if isinstance(statement, Store):
        mask = f" mask {statement.mask}" if statement.mask is not None else ""
        mode = f" mode {statement.mode}" if statement.mode != "set" else ""
        return f"store {statement.buffer}[{_index(statement.index)}] = {statement.value}{mask}{mode}"
    return f"{statement.id}: {statement.dtype.name} = {_right_side(statement)}"


def _right_side(statement: Statement) -> str:
    if isinstance(statement, Load):
        text = f"load {statement.buffer}[{_index(statement.index)}]"
        if statement.mask is not None:
            text += f" mask {statement.mask} other {_number(statement.other, statement.dtype)}"
        return text
    if isinstance(statement, Const):
        return f"const {_number(statement.value, statement.dtype)}"
    if isinstance(statement, Index):
        return f"index {_index(statement.expr)}"
    if isinstance(statement, Compute):
        return f"{statement.op} {' '.join(statement.args)}"
    if isinstance(statement, Reduce):
        return f"reduce {statement.op} {statement.arg}{_over(statement)}"
    if isinstance(statement, Contract):
        return f"contract {'tf32 ' if statement.tf32 else ''}{statement.left} {statement.right}{_over(statement)}"
    assert isinstance(statement, Scan)
    return f"scan {statement.op} {statement.arg}"


def _over(statement: Reduce | Contract) -> str:
    return f" over {' '.join(statement.over)}" if statement.over else ""


def _index(expr: Dim) -> str:
    return str(expr)


def _number(value: bool | int | float, dtype: DType) -> str:
    if dtype.kind == "bool":
        return "true" if value else "false"
    if not dtype.is_float:
        return str(int(value))
    value = float(value)
    if math.isnan(value):
        return "nan"
    return repr(value)
