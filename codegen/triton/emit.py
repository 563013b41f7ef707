"""Loop IR to Triton text.

    kernel softmax ... axes(i: 4096 parallel, j: 1024 row)
      ->
    @triton.jit
    def softmax(x_ptr, y_ptr, RBLOCK: tl.constexpr):
        # src[model.py:12]
        i = tl.program_id(0)
        j = tl.arange(0, RBLOCK)
        v0 = tl.load(x_ptr + (i * 1024 + j))  # f32
        v1 = tl.reduce(v0, 0, _maximum)  # f32
        v2 = v0 - v1  # f32
        ...

Three forms. *Tile*: the whole iteration space of a program is one tile, statements follow each other as in the kernel
(pointwise, persistent rows); where sizes are odd they stand there twice, without and with masks. A row of several axes
is two dimensions of it where values go by one of them alone, see `graphc.codegen.triton.row_parts`. *Looped*: the row
is walked once per pass; a pass ends in the reductions that the next one needs, values are computed again in each pass.
The last step of a row that ends within it is written behind the loop, so that the loop has no masks.
*Split*: as looped, but each pass is a launch of its own in which several programs share a row; partial reductions go
through scratch memory and are combined, in a fixed order, by the next launch.
"""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import prod
from typing import TypeVar

from graphc.codegen.triton.body import Body, neutral
from graphc.codegen.triton.chains import RESERVED as CHAIN_NAMES
from graphc.codegen.triton.chains import chain_tiles, emit_chain
from graphc.codegen.triton.helpers import text_of
from graphc.codegen.triton.indexing import single_numbers
from graphc.codegen.triton.matmul import RESERVED as PRODUCT_NAMES
from graphc.codegen.triton.matmul import product_tiles
from graphc.codegen.triton.moments import part_length
from graphc.codegen.triton.ops import POINTERS, Context, literal, tl_dtype
from graphc.codegen.triton.persistent import emit_product
from graphc.codegen.triton.row_passes import Passes
from graphc.codegen.triton.running_sums import RunningSum, lanes_together
from graphc.codegen.triton.tiles import ChainTile, Choice, machine_of
from graphc.codegen.triton.tiling import TileDim, Tiling, choose_tiling, has_ragged_edge, power_of_two, summing
from graphc.errors import CodegenError
from graphc.ir.dims import symbols
from graphc.ir.sizes import typical
from graphc.ir.types import DType
from graphc.loopir.kernel import Const, Define, Kernel, Load, Reduce, Scan, Store, is_value, operands
from graphc.program.triton_kernel import Launch, Scratch, TritonKernel

_Tile = TypeVar("_Tile", Choice, ChainTile)

_MOST_STAGES = 4
_PIPELINED_BYTES = 48 << 10
"""Shared memory of a program for steps of loops that are on their way: several programs share a processor."""

_FEW_STATEMENTS = 12
"""Statements of a loop along a row that are worth writing twice, without masks and with them."""
_KEEP_ROLLED = (
    "tl.inline_asm_elementwise('.pragma \"nounroll\";\\nmov.b32 $0, $1;', "
    '"=r,r", [row_start], dtype=tl.int32, is_pure=False, pack=1)'
)
"""Begins a loop of which the assembler of PTX would write out all steps, a dozen or so. It is no function: where one is
called there is a label, behind which another block begins.
"""
LAST_STEP = "row_start = "
"""Begins the text of a last step that is apart from its loop."""

_RESERVED = frozenset(keyword.kwlist) | {
    "tl", "triton", "libdevice", "range", "float", "part", "parts", "row_start"
}  # fmt: skip


def emit_kernel(
    kernel: Kernel, *, tiling: Tiling | None = None, target: str = "", choice: Choice | None = None, form: str = ""
) -> TritonKernel:
    """The Triton module for a kernel.

    Args:
        kernel: any verified kernel with known extents.
        tiling: how to cut it, by default `choose_tiling(kernel)`; not for products of matrices.
        target: what tiles of products, and instructions, are chosen for, as in `graphc.codegen.triton.tiles`.
        choice: the tile of a product, by default the best by the model.
        form: instead, one of `kernel_forms(kernel, target)`, as a plan has it.

    Returns:
        text, launches and scratch memory; equal kernels give equal text but for names and notes.

    Raises:
        CodegenError: a symbolic extent, an element type or operator that Triton lacks.
    """
    if len(kernel.contractions) > 1:
        tile = _named(chain_tiles(kernel, target), form) if form else None
        return emit_chain(kernel, parameter_names(kernel), _function_name(kernel, CHAIN_NAMES), target, tile)
    if kernel.contractions:
        choice = _named(product_tiles(kernel, target), form) if form else choice
        return emit_product(kernel, parameter_names(kernel), _function_name(kernel, PRODUCT_NAMES), target, choice)
    writer = _Writer(kernel, tiling or choose_tiling(kernel), target)
    return writer.module()


def kernel_forms(kernel: Kernel, target: str) -> tuple[str, ...]:
    """The forms in which a kernel can be generated, the best by the model first: the tiles of products."""
    if not kernel.contractions:
        return ("",)
    tiles = chain_tiles(kernel, target) if len(kernel.contractions) > 1 else product_tiles(kernel, target)
    return tuple(tile.form for tile in tiles)


def _named(tiles: Sequence[_Tile], form: str) -> _Tile:
    return next(tile for tile in tiles if tile.form == form)


@dataclass(frozen=True)
class _Partial:
    """Scratch memory of one reduction in split form: `split` partial results per row."""

    pointer: str
    dtype: DType


class _Writer:
    def __init__(self, kernel: Kernel, tiling: Tiling, target: str) -> None:
        self.source, self.tiling, self.kernel = kernel, tiling, tiling.kernel
        self.context = Context(takes_ptx=bool(target) and machine_of(target).takes_ptx)
        self.pointers = parameter_names(kernel)
        self.functions: list[str] = []
        self.launches: list[Launch] = []
        self.partials: dict[str, tuple[_Partial, ...]] = {}
        self.settled: dict[str, _Partial] = {}
        self.scratch: list[Scratch] = []
        row_axes = {axis.name for axis in self.kernel.row_axes}
        self.in_row = {name for name, domain in self.kernel.domains.items() if domain & row_axes}
        self.row_axes = row_axes
        self.together: dict[str, int] = {}
        self.name = _function_name(self.kernel)

    def module(self) -> TritonKernel:
        if not self.tiling.looped:
            self._tile()
        elif self.tiling.split == 1:
            self._looped()
        else:
            self._split()
        signature = [(self.pointers[b.name], pointer_type(b.dtype)) for b in self.kernel.buffers]
        signature += [(p.pointer, s.dtype) for p, s in zip(self._memory(), self.scratch, strict=True)]
        imports = "import triton\nimport triton.language as tl\n"
        if self.context.libdevice:
            imports += "from triton.language.extra import libdevice\n"
        text = imports + "\n\n" + text_of(self.context.helpers) + "\n\n".join(self.functions)
        scratch, numbers = tuple(self.scratch), single_numbers(self.kernel)
        return TritonKernel(self.name, text, tuple(signature), tuple(self.launches), scratch, numbers=numbers)

    # --------------------------------------------------------------------------------------------------------- forms

    def _tile(self) -> None:
        body = self._body()
        if has_ragged_edge(self.tiling):
            self._tile_with_edge(body)
            return
        self._parallel_prologue(body)
        for dim in body.rows:
            body.row_variables(dim)
        self._statements(body)
        self._finish(body, self.name)

    def _tile_with_edge(self, body: Body) -> None:
        """All programs but the last one do without masks, which would make their accesses narrow."""
        (dim,) = self.tiling.dims
        whole = Body(
            replace(self.tiling, dims=(replace(dim, extent=dim.programs * dim.block),)), body.context, self.pointers
        )
        self._parallel_prologue(whole)
        program = whole.index_type("tl.program_id(0)")
        whole.line(f"if ({program} + 1) * {dim.constexpr} <= {dim.extent}:")
        body.line("else:")
        body.depth = whole.depth = 2
        self._statements(whole)
        body.mask_variable(dim)
        self._statements(body)
        body.lines = [*whole.lines, *body.lines]
        self._finish(body, self.name)

    def _statements(self, body: Body) -> None:
        for s in self.kernel.body:
            if isinstance(s, Store):
                body.store(s)
            elif isinstance(s, Reduce):
                body.reduce_tile(s)
            elif isinstance(s, Scan):
                body.scan_tile(s)
            else:
                body.define(s)

    def _passes(self) -> Passes:
        passes = Passes(self.kernel, self.in_row)
        sums = [pair for pair in passes.joint.values() if isinstance(pair, RunningSum)]
        self.together = lanes_together(self.tiling, sums)
        return passes

    def _looped(self) -> None:
        passes = self._passes()
        body = self._body()
        self._parallel_prologue(body)
        for number in range(passes.count):
            self._row_values(body, passes, number)
            reductions = passes.reductions(number)
            stores = passes.element_stores if number == passes.count - 1 else []
            body.line(f"# pass {number + 1} of {passes.count}")
            self._loop(body, passes, reductions, stores)
            for s in reductions:
                self._close(body, s, passes)
        self._row_values(body, passes, passes.count)
        for store in passes.row_stores:
            body.store(store)
        self._finish(body, self.name)

    def _split(self) -> None:
        passes = self._passes()
        for number in range(passes.count):
            for s in passes.reductions(number):
                self._allocate(s)
        if self.tiling.settles:
            self._allocate_settled(passes)
        for number in range(passes.count):
            reductions = passes.reductions(number)
            last = number == passes.count - 1
            ends_here = last and not reductions  # what is stored per row is known before the loop
            body = self._body()
            if self.tiling.settles and number:
                self._settle(passes, number, passes.row_stores if ends_here else [])
                ends_here = False
            self._parallel_prologue(body)
            self._earlier(body, passes, number, passes.wanted(number) | (passes.results() if ends_here else set()))
            body.line(f"part = {body.index_type('tl.program_id(1)')}")
            if ends_here:
                self._row_stores_by_first(body, passes)  # what is stored need not be kept during the loop
            self._loop(body, passes, reductions, passes.element_stores if last else [])
            for s in reductions:
                self._store_partial(body, s, passes)
            self._finish(body, f"{self.name}_pass{number + 1}", self.tiling.split)
        if passes.reductions(passes.count - 1):
            body = self._body(summing(self.tiling))
            self._parallel_prologue(body, body.tiling)
            self._earlier(body, passes, passes.count, passes.results())
            for store in passes.row_stores:
                body.store(store)
            self._finish(body, f"{self.name}_finish")

    # --------------------------------------------------------------------------------------------------------- parts

    def _body(self, tiling: Tiling | None = None) -> Body:
        return Body(tiling or self.tiling, self.context, self.pointers, together=self.together)

    def _parallel_prologue(self, body: Body, tiling: Tiling | None = None) -> None:
        """Index variables of the parallel dimensions, from the program number."""
        tiling = tiling or self.tiling
        below = tiling.programs
        for position, dim in enumerate(tiling.parallel):
            below //= max(1, dim.programs)
            program = "tl.program_id(0)"
            if below != 1:
                program = f"{program} // {below}"
            if position:
                program = f"({program}) % {dim.programs}" if below != 1 else f"{program} % {dim.programs}"
            if " " in program and (dim.is_blocked or self.tiling.wide):
                program = f"({program})"
            program = body.index_type(program)
            if dim.is_blocked:
                program = f"{program} * {dim.constexpr} + {body.lanes(dim)}"
            body.line(f"{dim.name} = {program}", _describe(dim))
            if dim.is_blocked:
                body.mask_variable(dim)
            body.axis_variables(dim)

    def _row_values(self, body: Body, passes: Passes, number: int) -> None:
        """Values without a row index that wait for exactly `number` passes."""
        for s in passes.row_values(number):
            body.define(s)

    def _loop(self, body: Body, passes: Passes, reductions: list[Reduce], stores: list[Store]) -> None:
        row = body.row
        assert row is not None
        for reduction in reductions:
            self._open(body, reduction, passes)
        statements = passes.elements(reductions, stores)
        for s in statements:
            if isinstance(s, Scan):
                fill = literal(neutral(s.op, s.dtype), s.dtype)
                body.line(f"{s.id}_carry = {_full(body, body.reduced, fill, s.dtype)}")
        outer = dict(body.values), dict(body.shapes)
        first, length = "row_start", row.extent
        if self.tiling.split > 1:
            length = part_length(row)
            first = f"part * {length} + row_start"
        whole = self._whole_steps(row, statements, reductions)
        with body.whole_row() if whole else nullcontext():
            stages = self._stages(statements, length)
            steps = f"{whole or length}, {row.constexpr}"
            steps = f"tl.range(0, {steps}, num_stages={stages})" if stages > 1 else f"range(0, {steps})"
            body.line(f"for row_start in {steps}:")
            body.depth += 1
            if whole and self.context.takes_ptx:
                body.line(_KEEP_ROLLED)
            self._step(body, passes, first, statements, reductions, stores)
            body.depth -= 1
        if whole:
            body.values, body.shapes = dict(outer[0]), dict(outer[1])
            body.line(f"{LAST_STEP}tl.full([], {whole}, tl.int32)")
            self._step(body, passes, first, statements, reductions, stores)
        body.values, body.shapes = outer
        for s in reductions:
            if s.op in ("argmax", "argmin"):
                body.line(f"{s.id}_at += {first.replace('row_start', body.lanes(row))}")

    def _whole_steps(self, row: TileDim, statements: Sequence[Define], reductions: Sequence[Reduce]) -> int:
        """Elements of a row that a loop without masks takes, before a last step with masks; 0 where one loop has all.

        A mask costs reductions a comparison and a choice per element.
        """
        few = sum(not isinstance(s, Const) for s in statements) <= _FEW_STATEMENTS
        if row.is_exact or self.tiling.split > 1 or not reductions or not few:
            return 0
        return row.extent - row.extent % row.block

    def _step(
        self, body: Body, passes: Passes, first: str, statements: Sequence[Define], reductions: Sequence[Reduce],
        stores: Sequence[Store],
    ) -> None:  # fmt: skip
        row, walked = self.tiling.row, body.row
        assert row is not None and walked is not None
        body.line(f"{row.name} = {first} + {body.lanes(row)}", _describe(row))
        body.mask_variable(walked)
        body.axis_variables(row, f"({first})")
        for s in statements:
            if isinstance(s, Scan):
                body.scan_tile(s, f"{s.id}_carry")
            else:
                body.define(s)
        for reduction in reductions:
            self._accumulate(body, reduction, passes)
        for store in stores:
            body.store(store)

    def _stages(self, statements: Sequence[Define], length: int) -> int:
        """Steps of a loop along a row whose loads are on their way at once, by way of shared memory.

        Registers would hold those of one step: few bytes where much is computed of each, as the assembler then asks for
        one array after the other.
        """
        loads = [s for s in statements if isinstance(s, Load) and s.id in self.in_row]
        if not loads or any(s.mask is not None or any(map(is_value, symbols(s.index))) for s in loads):
            return 1
        row = self.tiling.row
        assert row is not None
        step = sum(self._tile_size(s) * s.dtype.itemsize for s in loads)
        return min(_MOST_STAGES, typical(-(-length // row.block)), _PIPELINED_BYTES // step)

    def _tile_size(self, s: Load) -> int:
        """Elements of a program's tile of a value."""
        domain = self.kernel.domains[s.id]
        return prod(dim.block for dim in self.tiling.dims if any(axis.name in domain for axis in dim.axes))

    def _open(self, body: Body, s: Reduce, passes: Passes) -> None:
        """Accumulators before the loop, one per lane."""
        if s.id in passes.joint:
            passes.joint[s.id].open(body)
            return
        dtype = self._arg_dtype(s)
        fill = literal(neutral(s.op, dtype), dtype)
        body.line(f"{s.id}_acc = tl.full({body.lane_shape(s.id)}, {fill}, {tl_dtype(dtype)})")
        if s.op in ("argmax", "argmin"):
            index = body.index_dtype()
            body.line(f"{s.id}_at = {_full(body, body.full, '0', index)}", "where the step of the best begins")

    def _accumulate(self, body: Body, s: Reduce, passes: Passes) -> None:
        if s.id in passes.joint:
            assert body.row is not None
            passes.joint[s.id].update(body, body.row)
            return
        value = body.inside(s.arg, s.op)
        if s.op in ("argmax", "argmin"):
            self._accumulate_place(body, s, value)
        else:
            dtype = self._arg_dtype(s)
            if self.together.get(s.id, 1) > 1:
                value = body.neighbours_reduced(s.id, s.op, value, dtype)
            text = body.combined(s.op, f"{s.id}_acc", value, dtype)
            body.line(f"{s.id}_acc = {text}")

    def _accumulate_place(self, body: Body, s: Reduce, value: str) -> None:
        """Places come in order, so that the first of equals is there already. NaN is beyond every number, and stays."""
        best, new = f"{s.id}_acc", f"{s.id}_new"
        body.line(f"{new} = {value}")
        better = f"{new} {'>' if s.op == 'argmax' else '<'} {best}"
        if self._arg_dtype(s).is_float:
            better = f"~({new} {'<=' if s.op == 'argmax' else '>='} {best}) ^ ({best} != {best})"
        body.line(f"{s.id}_better = {better}")
        body.line(f"{best} = tl.where({s.id}_better, {new}, {best})")
        body.line(f"{s.id}_at = tl.where({s.id}_better, row_start, {s.id}_at)")

    def _close(self, body: Body, s: Reduce, passes: Passes) -> None:
        pair = passes.joint.get(s.id)
        if pair is not None:
            assert body.row is not None
            body.bind(s, pair.result(body, pair.close(body, body.row, pair.first.id)), body.reduced)
        elif s.op in ("argmax", "argmin"):
            body.arg_reduction(s, f"{s.id}_acc", f"{s.id}_at")
        else:
            body.bind(s, body.reduced_text(s.op, f"{s.id}_acc", s.dtype), body.reduced)

    def _arg_dtype(self, s: Reduce) -> DType:
        return next(d.dtype for d in self.kernel.defines if d.id == s.arg)

    # --------------------------------------------------------------------------------------------------- split form

    def _memory(self) -> list[_Partial]:
        return [*(part for parts in self.partials.values() for part in parts), *self.settled.values()]

    def _allocate_settled(self, passes: Passes) -> None:
        for number in range(1, passes.count):
            for s in passes.handed_on(number):
                self.settled[s.id] = _Partial(f"{s.id}_row_ptr", s.dtype)
                self.scratch.append(Scratch(pointer_type(s.dtype), max(1, _rows(self.tiling))))

    def _settle(self, passes: Passes, number: int, stores: Sequence[Store]) -> None:
        """A launch that makes the values per row that are known after `number` passes, and stores results."""
        fresh = passes.handed_on(number)
        body = self._body(summing(self.tiling))
        self._parallel_prologue(body, body.tiling)
        roots = {s.id for s in fresh} | {name for store in stores for name in operands(store)}
        self._earlier(body, passes, number, roots, making=number)
        for s in fresh:
            text = body.expanded(s.id, body.reduced)
            body.line(f"tl.store({self.settled[s.id].pointer} + ({self._row_offset()}), {text}{_edge(body)})")
        for store in stores:
            body.store(store)
        self._finish(body, f"{self.name}_rows{number}")

    def _load_settled(self, body: Body, s: Define) -> None:
        body.bind(s, f"tl.load({self.settled[s.id].pointer} + ({self._row_offset()}){_edge(body)})", body.reduced)

    def _allocate(self, s: Reduce) -> None:
        size = self.tiling.split * max(1, _rows(self.tiling))
        body = self._body()
        kinds = [self._arg_dtype(s)] + ([body.index_dtype()] if s.op in ("argmax", "argmin") else [])
        names = [f"{s.id}_part_ptr", f"{s.id}_part_at_ptr"][: len(kinds)]
        self.partials[s.id] = tuple(_Partial(name, kind) for name, kind in zip(names, kinds))
        self.scratch += [Scratch(pointer_type(kind), size) for kind in kinds]

    def _row_offset(self) -> str:
        """Position of a program's rows in scratch memory."""
        parallel = self.tiling.parallel
        return parallel[0].name if parallel else "0"

    def _store_partial(self, body: Body, s: Reduce, passes: Passes) -> None:
        parts = self.partials[s.id]
        pair = passes.joint.get(s.id)
        if pair is not None:
            assert body.row is not None
            body.line(f"{s.id}_part = {pair.close(body, body.row, f'{pair.first.id}_part')}")
        elif len(parts) == 2:
            keep = ", keep_dims=True" if len(body.blocked) > 1 else ""
            self.context.helpers.add(f"_{s.op}")
            names = f"{s.id}_part, {s.id}_part_at"
            body.line(f"{names} = tl.reduce(({s.id}_acc, {s.id}_at), {body.row_axis}, _{s.op}{keep})")
        else:
            body.line(f"{s.id}_part = {body.reduced_text(s.op, f'{s.id}_acc', parts[0].dtype)}")
        for partial, value in zip(parts, (f"{s.id}_part", f"{s.id}_part_at")):
            address = f"{partial.pointer} + (part * {_rows(self.tiling)} + {self._row_offset()})"
            body.line(f"tl.store({address}, {value}{_edge(body)})")

    def _earlier(self, body: Body, passes: Passes, number: int, roots: set[str], making: int = 0) -> None:
        """What values are made of that launches before this one left in scratch memory, after `number` passes.

        Args:
            roots: the values.
            making: this launch settles what is known after so many passes.
        """
        known = {name for name in self.settled if not making or passes.of[name] < making}
        wanted = passes.made_of(roots, known)
        for earlier in range(number + 1):
            for s in passes.row_values(earlier):
                if s.id in wanted:
                    self._load_settled(body, s) if s.id in known else body.define(s)
            if earlier == number:
                break
            for s in passes.reductions(earlier):
                if s.id in wanted:
                    self._load_settled(body, s) if s.id in known else self._load_partial(body, s, passes)

    def _load_partial(self, body: Body, s: Reduce, passes: Passes) -> None:
        places = f"tl.arange(0, {power_of_two(self.tiling.split)})"
        if len(body.blocked) > 1:
            places += "[None, :]"
        body.line(f"parts = {places}")
        values = self._partial_values(body, s)
        pair = passes.joint.get(s.id)
        if pair is not None:
            assert body.row is not None
            (firsts,) = self._partial_values(body, pair.first)
            body.bind(s, pair.result(body, pair.combine(body, body.row, firsts, values[0])), body.reduced)
        elif len(values) == 2:
            body.arg_reduction(s, values[0], values[1])
        else:
            body.bind(s, body.reduced_text(s.op, values[0], s.dtype), body.reduced)

    def _partial_values(self, body: Body, s: Reduce) -> list[str]:
        """Loads of what the programs that share a row have left of a reduction, along `parts`."""
        values: list[str] = []
        for partial in self.partials[s.id]:
            fill = neutral(s.op, partial.dtype) if not values else 0
            address = f"{partial.pointer} + (parts * {_rows(self.tiling)} + {self._row_offset()})"
            split = self.tiling.split
            masks = [] if split == power_of_two(split) else [f"(parts < {split})"]
            masks += body.edge_masks(body.reduced)
            inside = f", mask={' & '.join(masks)}, other={literal(fill, partial.dtype)}" if masks else ""
            values.append(f"tl.load({address}{inside})")
        return values

    def _row_stores_by_first(self, body: Body, passes: Passes) -> None:
        if not passes.row_stores:
            return
        body.line("if part == 0:")
        body.depth += 1
        for store in passes.row_stores:
            body.store(store)
        body.depth -= 1

    # -------------------------------------------------------------------------------------------------------- finish

    def _finish(self, body: Body, name: str, parts: int = 1) -> None:
        used = "\n".join(body.lines)
        tiling = body.tiling
        constexprs = tuple((dim.constexpr, dim.block) for dim in tiling.blocked)
        parameters = [*self.pointers.values(), *(item.pointer for item in self._memory())]
        parameters += [f"{constexpr}: tl.constexpr" for constexpr, _ in constexprs]
        header = f"@triton.jit\ndef {name}({', '.join(parameters)}):\n"
        notes = "".join(f"    # src[{note}]\n" for note in self.source.notes)
        self.functions.append(header + notes + (used or "    pass") + "\n")
        self.launches.append(Launch(name, (tiling.programs, parts, 1), constexprs, tiling.num_warps))


def _edge(body: Body) -> str:
    """The mask argument of accesses to one number per row."""
    masks = body.edge_masks(body.reduced)
    return f", mask={' & '.join(masks)}" if masks else ""


def _rows(tiling: Tiling) -> int:
    return tiling.parallel[0].extent if tiling.parallel else 1


def _full(body: Body, shape: frozenset[str], text: str, dtype: DType) -> str:
    # a scalar carry of a one-dimensional tile
    if not shape and len(body.blocked) == 1:
        return f"tl.full([], {text}, {tl_dtype(dtype)})"
    return f"tl.full({body.shape_text(shape)}, {text}, {tl_dtype(dtype)})"


def _describe(dim: TileDim) -> str:
    if len(dim.axes) < 2:
        return f"{dim.extent}"
    return f"({', '.join(axis.name for axis in dim.axes)}): {dim.extent}"


def pointer_type(dtype: DType) -> str:
    """`*fp32` for f32.

    Raises:
        CodegenError: Triton kernels here do not take the dtype.
    """
    tl_dtype(dtype)
    return POINTERS[dtype.name]


def _function_name(kernel: Kernel, taken: frozenset[str] = frozenset()) -> str:
    """The kernel's own name when it can be one.

    Raises:
        CodegenError: an axis has a name that generated code uses.
    """
    clash = sorted((_RESERVED | taken) & {axis.name for axis in kernel.axes})
    if clash:
        raise CodegenError(f"kernel {kernel.name}: an axis cannot be called {', '.join(clash)} in Triton code")
    return kernel.name if kernel.name.isidentifier() and kernel.name not in _RESERVED else "kernel"


def parameter_names(kernel: Kernel) -> dict[str, str]:
    """A name in Python for the pointer to each buffer."""
    names: dict[str, str] = {}
    for position, buffer in enumerate(kernel.buffers):
        name = f"{buffer.name}_ptr"
        if not name.isidentifier() or name in names.values() or buffer.name in _RESERVED:
            name = f"p{position}_ptr"
        names[buffer.name] = name
    return names
