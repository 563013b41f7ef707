"""Kernels on the elements of a table of rows: one launch, whatever the number of rows, or two for reductions of rows.

    @triton.jit
    def foreach2_update(table_ptr, blocks_ptr, XBLOCK: tl.constexpr, ALIGNMENT: tl.constexpr):
        block = tl.load(blocks_ptr + tl.program_id(0))
        row = block >> 32
        start = (block & 0xFFFFFFFF) * XBLOCK
        left = tl.load(table_ptr + row * 7) - start
        param_ptr = tl.load(table_ptr + (row * 7 + 2)).to(tl.pointer_type(tl.float32)) + start
        ...
        if left >= XBLOCK:
            ...

The table has a row of 64-bit words per tensor: its elements, the number of its first block, the addresses of its
buffers, and the numbers that belong to it. A program takes one block of one row; `blocks` says which. Only the last
block of a row has masks. A reduction leaves a number per block in scratch memory; a program per row combines them, in a
fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphc.codegen.triton.body import Body, needed, neutral
from graphc.codegen.triton.emit import parameter_names, pointer_type
from graphc.codegen.triton.helpers import text_of
from graphc.codegen.triton.ops import Context, Operand, cast, literal, tl_dtype
from graphc.codegen.triton.tiling import TileDim, Tiling
from graphc.errors import CodegenError
from graphc.ir.types import bool_
from graphc.loopir.kernel import Kernel, Load, Reduce, Statement, Store
from graphc.program.plan import RowArgument
from graphc.program.triton_kernel import ALIGNMENT, TABLE_BLOCK, Launch, Scratch, TritonKernel

_WARPS = 4
_WORD = 8
_FIRST_BUFFER = 2
"""Words of a row before the addresses of its buffers."""


def emit_table_kernel(kernel: Kernel, arguments: Sequence[RowArgument], width: int, numbers: int) -> TritonKernel:
    """The Triton module of a kernel on elements.

    Args:
        kernel: with one axis of symbolic extent: parallel, or a row that is reduced at once.
        arguments: per buffer of the kernel, as in `ForeachStep`.
        width: buffers per row of the table.
        numbers: numbers per row of the table, behind the buffers.

    Returns:
        One launch, or two. They take the table, the blocks, the shared buffers in order of the arguments, and scratch
        memory of an element per block. Grids and scratch memory are of one program and element, and are to be those of
        the blocks and of the rows, see `graphc.runtime.triton_foreach`.

    Raises:
        CodegenError: an element type or operator that Triton lacks.
    """
    return _TableWriter(kernel, arguments, width, numbers).module()


class _TableWriter:
    def __init__(self, kernel: Kernel, arguments: Sequence[RowArgument], width: int, numbers: int) -> None:
        (axis,) = kernel.axes
        self.axis = replace(axis, extent=TABLE_BLOCK)
        self.kernel = replace(kernel, axes=(self.axis,))
        self.arguments = dict(zip((buffer.name for buffer in kernel.buffers), arguments, strict=True))
        self.words, self.width = _FIRST_BUFFER + width + numbers, width
        self.pointers = parameter_names(kernel)
        self.shared = [b for b in kernel.buffers if self.arguments[b.name].kind == "shared"]
        self.reductions = [s for s in self.kernel.defines if isinstance(s, Reduce)]
        self.dtypes = {s.id: s.dtype for s in self.kernel.defines}
        self.name = kernel.name if kernel.name.isidentifier() else "foreach"
        self.context = Context()
        self.functions: list[str] = []
        self.launches: list[Launch] = []

    def module(self) -> TritonKernel:
        self._over_blocks()
        if self.reductions:
            self._over_rows()
        imports = "import triton\nimport triton.language as tl\n"
        if self.context.libdevice:
            imports += "from triton.language.extra import libdevice\n"
        text = f"{imports}\n\n{text_of(self.context.helpers)}" + "\n\n".join(self.functions)
        scratch = tuple(Scratch(pointer_type(self.dtypes[s.arg]), 1) for s in self.reductions)
        return TritonKernel(self.name, text, tuple(self._signature()), tuple(self.launches), scratch)

    def _signature(self) -> list[tuple[str, str]]:
        found = [("table_ptr", "*i64"), ("blocks_ptr", "*i64")]
        found += [(self.pointers[b.name], pointer_type(b.dtype)) for b in self.shared]
        return found + [(f"{s.id}_part_ptr", pointer_type(self.dtypes[s.arg])) for s in self.reductions]

    def _over_blocks(self) -> None:
        """A program per block: all that there is to do, or what a reduction finds in the block."""
        body = self._body(exact=True)
        body.line("block = tl.load(blocks_ptr + tl.program_id(0))")
        body.line("row = block >> 32")
        body.line("start = (block & 4294967295) * XBLOCK")
        body.line(f"left = tl.load(table_ptr + row * {self.words}) - start", "elements from here on")
        self._prologue(body)
        body.line(f"{self.axis.name} = tl.arange(0, XBLOCK)")
        body.line("if left >= XBLOCK:")
        self._branch(body)
        masked = self._body(exact=False)
        masked.line("else:")
        masked.depth += 1
        masked.line(f"in_{self.axis.name} = {self.axis.name} < left")
        masked.depth -= 1
        self._branch(masked)
        suffix = "_blocks" if self.reductions else ""
        self._finish(f"{self.name}{suffix}", [*body.lines, *masked.lines])

    def _over_rows(self) -> None:
        """A program per row: the partial results of its blocks made one, and what is made of that."""
        body = self._body(exact=True)
        body.line("row = tl.program_id(0).to(tl.int64)")
        body.line(f"count = (tl.load(table_ptr + row * {self.words}) + (XBLOCK - 1)) // XBLOCK", "blocks")
        body.line(f"first = tl.load(table_ptr + (row * {self.words} + 1))")
        body.line("start = 0")
        self._prologue(body)
        for s in self.reductions:
            dtype = self.dtypes[s.arg]
            fill = literal(neutral(s.op, dtype), dtype)
            body.line(f"{s.id}_acc = tl.full([XBLOCK], {fill}, {tl_dtype(dtype)})")
        body.line("for step in range(0, count, XBLOCK):")
        body.depth += 1
        body.line("part = step + tl.arange(0, XBLOCK)")
        for s in self.reductions:
            dtype = self.dtypes[s.arg]
            fill = literal(neutral(s.op, dtype), dtype)
            found = f"tl.load({s.id}_part_ptr + (first + part), mask=part < count, other={fill})"
            body.line(f"{s.id}_acc = {body.combined(s.op, f'{s.id}_acc', found, dtype)}")
        body.depth -= 1
        for statement in self.kernel.body:
            if isinstance(statement, Reduce):
                text = body.reduced_text(statement.op, f"{statement.id}_acc", statement.dtype)
                body.bind(statement, text, frozenset())
            elif isinstance(statement, Store) or not self.kernel.domains[statement.id]:
                self._state(body, statement)
        self._finish(f"{self.name}_rows", body.lines)

    def _body(self, exact: bool) -> Body:
        extent = TABLE_BLOCK if exact else TABLE_BLOCK - 1
        dim = TileDim(self.axis.name, (self.axis,), extent, TABLE_BLOCK, "XBLOCK", is_row=bool(self.reductions))
        return Body(Tiling(self.kernel, (dim,), _WARPS), self.context, self.pointers)

    def _prologue(self, body: Body) -> None:
        """The pointers and numbers of the row."""
        known: dict[int, str] = {}
        for name, item in self.arguments.items():
            if item.kind == "row":
                if item.number in known:  # what is updated in place
                    self.pointers[name] = known[item.number]
                    continue
                known[item.number] = self.pointers[name]
                self._pointer(body, self.pointers[name], item)
            elif item.kind == "scratch":
                body.line(f"{_number(name)} = {self._number(item)}", item.dtype.name)
            elif item.kind != "shared":
                raise CodegenError(f"kernel {self.kernel.name}: a table has no {item.kind}")

    def _word(self, number: int) -> str:
        return f"tl.load(table_ptr + (row * {self.words} + {number}))"

    def _pointer(self, body: Body, pointer: str, item: RowArgument) -> None:
        text = f"{self._word(_FIRST_BUFFER + item.number)}.to(tl.pointer_type({tl_dtype(item.dtype)}))"
        if not item.elementwise:
            body.line(f"{pointer} = {text}")
            return
        body.line(f"{pointer} = tl.multiple_of({text} + start, ALIGNMENT)")

    def _number(self, item: RowArgument) -> str:
        """The number of a row out of its word of 64 bits."""
        text = self._word(_FIRST_BUFFER + self.width + item.number // _WORD)
        if item.dtype == bool_:
            return f"({text} & 255) != 0"
        integer = f"tl.int{8 * item.dtype.itemsize}"
        narrow = text if item.dtype.itemsize == _WORD else f"{text}.to({integer})"
        return f"{narrow}.to({tl_dtype(item.dtype)}, bitcast=True)" if item.dtype.name[0] != "i" else narrow

    def _branch(self, body: Body) -> None:
        body.depth += 1
        wanted = {s.arg for s in self.reductions}
        if self.reductions:
            for define in needed(self.kernel.defines, wanted):
                self._state(body, define)
            for s in self.reductions:
                text = body.reduced_text(s.op, body.inside(s.arg, s.op), self.dtypes[s.arg])
                body.line(f"tl.store({s.id}_part_ptr + tl.program_id(0), {text})")
        else:
            for statement in self.kernel.body:
                self._state(body, statement)
        body.depth -= 1

    def _state(self, body: Body, s: Statement) -> None:
        if isinstance(s, Store):
            body.store(s)
        elif isinstance(s, Load) and self.arguments[s.buffer].kind == "scratch":
            item = self.arguments[s.buffer]
            body.values[s.id] = Operand(cast(_number(s.buffer), item.dtype, s.dtype), s.dtype)
            body.shapes[s.id] = frozenset()
        else:
            body.define(s)

    def _finish(self, name: str, lines: Sequence[str]) -> None:
        parameters = [*(name for name, _ in self._signature()), "XBLOCK: tl.constexpr", "ALIGNMENT: tl.constexpr"]
        notes = "".join(f"    # src[{note}]\n" for note in self.kernel.notes)
        text = "\n".join(lines)
        self.functions.append(f"@triton.jit\ndef {name}({', '.join(parameters)}):\n{notes}{text}\n")
        constexprs = (("XBLOCK", TABLE_BLOCK), ("ALIGNMENT", ALIGNMENT))
        self.launches.append(Launch(name, (1, 1, 1), constexprs, _WARPS))


def _number(buffer: str) -> str:
    return f"{buffer}_of_row"
