"""Kernels on the elements of a table of rows: one launch, whatever the number of rows.

    @triton.jit
    def foreach2_update(table_ptr, blocks_ptr, XBLOCK: tl.constexpr, ALIGNMENT: tl.constexpr):
        block = tl.load(blocks_ptr + tl.program_id(0))
        row = block >> 32
        start = (block & 0xFFFFFFFF) * XBLOCK
        left = tl.load(table_ptr + row * 6) - start
        param_ptr = tl.load(table_ptr + (row * 6 + 1)).to(tl.pointer_type(tl.float32)) + start
        ...
        if left >= XBLOCK:
            ...

The table has a row of 64-bit words per tensor: its elements, the addresses of its buffers, and the numbers that belong
to it. A program takes one block of one row; `blocks` says which. Only the last block of a row has masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphc.codegen.triton.body import Body
from graphc.codegen.triton.emit import parameter_names, pointer_type
from graphc.codegen.triton.helpers import text_of
from graphc.codegen.triton.ops import Context, Operand, cast, tl_dtype
from graphc.codegen.triton.tiling import TileDim, Tiling
from graphc.errors import CodegenError
from graphc.ir.types import bool_
from graphc.loopir.kernel import Kernel, Load, Store
from graphc.program.plan import RowArgument
from graphc.program.triton_kernel import ALIGNMENT, TABLE_BLOCK, Launch, TritonKernel

_WARPS = 4
_WORD = 8


def emit_table_kernel(kernel: Kernel, arguments: Sequence[RowArgument], width: int, numbers: int) -> TritonKernel:
    """The Triton module of a kernel on elements.

    Args:
        kernel: with one parallel axis of symbolic extent.
        arguments: per buffer of the kernel, as in `ForeachStep`.
        width: buffers per row of the table.
        numbers: numbers per row of the table, behind the buffers.

    Returns:
        One function. It takes the table, the blocks, and then the shared buffers, in order of the arguments; its grid
        holds one program and is to be that of the blocks.

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
        self.words, self.width = 1 + width + numbers, width
        self.pointers = parameter_names(kernel)
        self.shared = [b for b in kernel.buffers if self.arguments[b.name].kind == "shared"]
        self.context = Context()

    def module(self) -> TritonKernel:
        body = self._body(exact=True)
        self._prologue(body)
        body.line("if left >= XBLOCK:")
        self._branch(body)
        lines = list(body.lines)
        masked = self._body(exact=False)
        masked.line("else:")
        masked.depth += 1
        masked.line(f"in_{self.axis.name} = {self.axis.name} < left")
        masked.depth -= 1
        self._branch(masked)
        lines += masked.lines
        return self._record("\n".join(lines))

    def _body(self, exact: bool) -> Body:
        extent = TABLE_BLOCK if exact else TABLE_BLOCK - 1
        dim = TileDim(self.axis.name, (self.axis,), extent, TABLE_BLOCK, "XBLOCK")
        return Body(Tiling(self.kernel, (dim,), _WARPS), self.context, self.pointers)

    def _prologue(self, body: Body) -> None:
        body.line("block = tl.load(blocks_ptr + tl.program_id(0))")
        body.line("row = block >> 32")
        body.line("start = (block & 4294967295) * XBLOCK")
        body.line(f"left = tl.load(table_ptr + row * {self.words}) - start", "elements from here on")
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
        body.line(f"{self.axis.name} = tl.arange(0, XBLOCK)")

    def _word(self, number: int) -> str:
        return f"tl.load(table_ptr + (row * {self.words} + {number}))"

    def _pointer(self, body: Body, pointer: str, item: RowArgument) -> None:
        text = f"{self._word(1 + item.number)}.to(tl.pointer_type({tl_dtype(item.dtype)}))"
        if not item.elementwise:
            body.line(f"{pointer} = {text}")
            return
        body.line(f"{pointer} = tl.multiple_of({text} + start, ALIGNMENT)")

    def _number(self, item: RowArgument) -> str:
        """The number of a row out of its word of 64 bits."""
        text = self._word(1 + self.width + item.number // _WORD)
        if item.dtype == bool_:
            return f"({text} & 255) != 0"
        integer = f"tl.int{8 * item.dtype.itemsize}"
        narrow = text if item.dtype.itemsize == _WORD else f"{text}.to({integer})"
        return f"{narrow}.to({tl_dtype(item.dtype)}, bitcast=True)" if item.dtype.name[0] != "i" else narrow

    def _branch(self, body: Body) -> None:
        body.depth += 1
        for s in self.kernel.body:
            if isinstance(s, Store):
                body.store(s)
            elif isinstance(s, Load) and self.arguments[s.buffer].kind == "scratch":
                item = self.arguments[s.buffer]
                body.values[s.id] = Operand(cast(_number(s.buffer), item.dtype, s.dtype), s.dtype)
                body.shapes[s.id] = frozenset()
            else:
                body.define(s)
        body.depth -= 1

    def _record(self, lines: str) -> TritonKernel:
        signature = [("table_ptr", "*i64"), ("blocks_ptr", "*i64")]
        signature += [(self.pointers[b.name], pointer_type(b.dtype)) for b in self.shared]
        parameters = [name for name, _ in signature]
        parameters += ["XBLOCK: tl.constexpr", "ALIGNMENT: tl.constexpr"]
        name = self.kernel.name if self.kernel.name.isidentifier() else "foreach"
        notes = "".join(f"    # src[{note}]\n" for note in self.kernel.notes)
        imports = "import triton\nimport triton.language as tl\n"
        if self.context.libdevice:
            imports += "from triton.language.extra import libdevice\n"
        function = f"@triton.jit\ndef {name}({', '.join(parameters)}):\n{notes}{lines}\n"
        text = f"{imports}\n\n{text_of(self.context.helpers)}{function}"
        constexprs = (("XBLOCK", TABLE_BLOCK), ("ALIGNMENT", ALIGNMENT))
        return TritonKernel(name, text, tuple(signature), (Launch(name, (1, 1, 1), constexprs, _WARPS),))


def _number(buffer: str) -> str:
    return f"{buffer}_of_row"
