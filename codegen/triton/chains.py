"""Products of products as Triton text: the template for kernels of loop IR that hold several `contract`s.

    attention, per block of queries:            loop IR of the kernel
    q tile                                       operands of inner products without the outer sum's axis
    for each block of keys:
        s = dot(q, k)                            inner products, each whole: its sum is short
        t = ...                                  statements over (query, key): scale, mask, bias, dropout, ...
        peak, total, acc scaled                  reduce max, reduce sum: kept as running numbers
        acc += dot(exp(t - peak), v)             the outer product
    acc / total                                  the division by the sum, once
    ...                                          what follows the outer product

Gradients are kernels of the same form without running numbers: they read the maxima and sums. One may have several
outer products, as the gradients of keys and values are: they share the loop and the scores, and a block that both an
inner and an outer product multiply with is loaded once, where matrix units take it either way around.

Conditions on the two positions that make a score count for nothing, as a causal mask or a window, become bounds of the
loop. It is cut where blocks begin in which all of them hold, and whose positions all exist: there is nothing to mask.
So do the edges of masks in memory, which kernels before this one have found (`mask_edges.py`).
A loop over several groups of positions, as of query heads that share keys, is cut in the same way for each of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

from graphc.codegen.triton.body import Body
from graphc.codegen.triton.chain_parts import ChainParts
from graphc.codegen.triton.chain_scores import RunningSoftmax, ScoresBody
from graphc.codegen.triton.chain_tiles import tiles_of
from graphc.codegen.triton.helpers import text_of
from graphc.codegen.triton.index_bounds import Bound, Conditions
from graphc.codegen.triton.indexing import single_numbers
from graphc.codegen.triton.joined_axes import int_extent
from graphc.codegen.triton.mask_edges import MaskEdges, rows_are_queries
from graphc.codegen.triton.ops import POINTERS, Context, Operand, literal, tl_dtype
from graphc.codegen.triton.ragged import renamed
from graphc.codegen.triton.tiles import ChainTile, machine_of, precision_of
from graphc.codegen.triton.tiling import TileDim, Tiling, needs_wide_index, power_of_two
from graphc.ir.dims import Dim, substitute, symbol
from graphc.ir.types import f32
from graphc.loopir.kernel import Axis, Contract, Define, Kernel, Load, Reduce, Store, operands
from graphc.loopir.transform import assume
from graphc.program.triton_kernel import Launch, TritonKernel

RESERVED = frozenset(
    ("acc", "acc0", "acc1", "tile", "m_tile", "j_start", "first", "last", "whole_first", "whole_last", "step", "steps",
     "head", "at", "peak", "new_peak", "total", "base", "new_base", "shift", "slope", "scale", "scores", "weights")
)  # fmt: skip
_TURNED_ITEM = 2
"""Bytes of the widest elements of which matrix units take a block either way around."""


def emit_chain(
    kernel: Kernel, pointers: dict[str, str], name: str, target: str, tile: ChainTile | None = None
) -> TritonKernel:
    """The Triton module for a kernel that holds several `contract`s.

    Args:
        kernel: with known extents.
        pointers: parameter name per buffer.
        name: of the function.
        target: as in `graphc.codegen.triton.tiles.MACHINES`.
        tile: by default the best of `chain_tiles`.

    Raises:
        CodegenError: a form that this template does not take.
    """
    return _Chain(kernel, pointers, name, target, tile).module()


def chain_tiles(kernel: Kernel, target: str) -> list[ChainTile]:
    """The tiles that such a kernel may have, as `candidate_chain_tiles` says; arguments as of `emit_chain`."""
    return _Chain(kernel, {}, kernel.name, target, None).candidates


@dataclass(frozen=True)
class _Loop:
    """A part of the loop over positions: from `first` up to `last`, as texts.

    Args:
        is_whole: nothing is masked in it.
        behind: where it goes on behind `last`, and up to where.
    """

    first: str
    last: str
    is_whole: bool
    behind: tuple[str, str] | None = None


class _Chain:
    def __init__(
        self, kernel: Kernel, pointers: dict[str, str], name: str, target: str, tile: ChainTile | None
    ) -> None:
        self.pointers, self.name = pointers, name
        self.context = Context()
        parts = ChainParts(kernel)
        self.edges = MaskEdges(kernel, parts.chained, parts.axes["j"])
        self.kernel = kernel = self.edges.kernel
        self.parts = ChainParts(kernel)
        self.axes = self.parts.axes
        self.sums: dict[str, TileDim] = {}
        for number, contract in enumerate(self.parts.inner):
            axes = self.parts.sum_axes(contract)
            block = max(16, power_of_two(_extent(axes)))
            self.sums[contract.id] = _dim(f"e{number}", axes, block, f"EBLOCK{number}")
        columns = _extent(self.axes["n"])
        dtype = self.parts.by_id[self.parts.outers[0].left].dtype
        self.exact = dtype == f32
        self.turns = machine_of(target).turns
        conditions = Conditions(kernel)
        self.bounds = conditions.bounds(self.parts.chained, self.axes["m"], self.axes["j"])
        self.known = conditions.known_within(self.bounds, self.axes["m"], self.axes["j"])
        self.n = _dim("n", self.axes["n"], max(16, power_of_two(columns)), "NBLOCK")
        bounds = len(self.bounds) or int(bool(self.edges))
        self.candidates = [tile] if tile else tiles_of(self.parts, self.sums, self.n, bounds, target)
        self.tile = self.candidates[0]
        self.wide = needs_wide_index(kernel, max(self.tile.rows, self.tile.steps))
        self.batch = _dim("b", self.axes["b"], 1, "")
        self.m = _dim("m", self.axes["m"], self.tile.rows, "MBLOCK")
        self.j = _dim("j", self.axes["j"], self.tile.steps, "JBLOCK")
        self.groups = _dim("g", self.axes["g"], 1, "") if self.axes["g"] else None
        self.lines: list[str] = []
        outers = self.parts.outers
        self.results = {o.id: "acc" if len(outers) == 1 else f"acc{number}" for number, o in enumerate(outers)}

    # -------------------------------------------------------------------------------------------------------- parts

    def _tiling(self, dims: tuple[TileDim, ...]) -> Tiling:
        return Tiling(self.kernel, dims, self.tile.warps, wide=self.wide)

    def _body(self, *dims: TileDim) -> Body:
        return Body(self._tiling(dims), self.context, self.pointers, self.lines)

    def _scores(self, parts: ChainParts, j: TileDim) -> ScoresBody:
        tiling = self._tiling((self.m, j))
        return ScoresBody(tiling, self.context, self.pointers, self.lines, parts=parts, exact=self.exact)

    def _index(self, body: Body, dim: TileDim, start: str = "") -> None:
        """Index variables of a dimension as this body's tensors have them."""
        first = f"{start} + " if start else ""
        body.line(f"{dim.name} = {first}{body.lanes(dim)}", f"{dim.extent}")
        body.mask_variable(dim)
        body.axis_variables(dim)

    def _factor(self, body: Body, s: Define, summed: TileDim, statements: Iterable[Define]) -> str:
        """An operand of a product over its whole block, zero behind the end of the sum.

        Args:
            s: what it is in the kernel.
            statements: it and what it is made of, in order, perhaps under other names.
        """
        last = s
        for last in statements:
            body.define(last)
        text = body.expanded(last.id, body.full)
        if body.blocked[summed.name].is_exact or _is_zero_outside(self.parts, s, summed):
            return text
        zero = literal(0.0 if s.dtype.is_float else 0, s.dtype)
        return f"tl.where(in_{summed.name}, {text}, {zero})"

    def _precision(self, contract: Contract) -> str:
        return precision_of(self.parts.by_id[contract.left].dtype, contract.tf32)

    # -------------------------------------------------------------------------------------------------------- module

    def module(self) -> TritonKernel:
        """The whole text."""
        out = self._body(self.m, self.n)
        self._place(out)
        before = self._scores(self.parts, self.j)
        kept = self._before_loop(before)
        loops = self._loops_between(out, before) if self.edges else self._loops(out)
        for outer in self.parts.outers:
            out.line(f"{self.results[outer.id]} = tl.zeros([MBLOCK, NBLOCK], {tl_dtype(outer.dtype)})")
        softmax = RunningSoftmax.of(self.parts)
        if softmax is not None:
            softmax.open(before)
        for loop in loops:
            softmax = self._loop(loop, self._parts_of(loop), before, kept)
        if softmax is not None:
            softmax.finish(out, self.exact)
        self._finish(out)
        return self._kernel()

    def _parts_of(self, loop: _Loop) -> ChainParts:
        """The parts of the kernel in a loop, where some conditions are known, as long as it needs all its products."""
        if not self.edges:
            found = assume(self.kernel, self.known) if loop.is_whole else self.kernel
        else:
            found = self.edges.without_masks if loop.is_whole else self.edges.with_masks
        return ChainParts(found) if len(found.contractions) == len(self.kernel.contractions) else self.parts

    def _kernel(self) -> TritonKernel:
        constexprs = [(dim.constexpr, dim.block) for dim in (self.m, self.j, self.n, *self.sums.values())]
        parameters = [*self.pointers.values(), *(f"{name}: tl.constexpr" for name, _ in constexprs)]
        notes = "".join(f"    # src[{note}]\n" for note in self.kernel.notes)
        function = f"@triton.jit\ndef {self.name}({', '.join(parameters)}):\n{notes}" + "\n".join(self.lines) + "\n"
        imports = "import triton\nimport triton.language as tl\n"
        if self.context.libdevice:
            imports += "from triton.language.extra import libdevice\n"
        text = imports + "\n\n" + text_of(self.context.helpers) + function
        signature = tuple((self.pointers[b.name], POINTERS[b.dtype.name]) for b in self.kernel.buffers)
        programs = self.batch.extent * self.m.programs if self.n.extent else 0
        launch = Launch(
            self.name, (programs, 1, 1), tuple(constexprs), self.tile.warps, self.tile.stages, flushes=not self.exact
        )
        return TritonKernel(self.name, text, signature, (launch,), numbers=single_numbers(self.kernel))

    def _place(self, out: Body) -> None:
        """Index variables of the program's rows and of the columns."""
        count = self.m.programs
        out.line("tile = tl.program_id(0)")
        if self.batch.extent != 1:
            out.line(f"{self.batch.name} = {out.index_type(f'(tile // {count})')}", f"{self.batch.extent}")
            out.axis_variables(self.batch)
        # programs with long loops start first
        longest_last = any(bound.is_upper and bound.slope > 0 for bound in self.bounds)
        longest_last |= bool(self.edges) and rows_are_queries(self.kernel, self.parts.rows)  # most masks are causal
        out.line(f"m_tile = {f'{count - 1} - ' if longest_last else ''}tile % {count}")
        self._index(out, self.m, "m_tile * MBLOCK")
        self._index(out, self.n)

    def _loops(self, out: Body) -> list[_Loop]:
        """The loop, cut where blocks begin and end in which nothing is masked."""
        low, high = ([bound for bound in self.bounds if bound.is_upper == side] for side in (False, True))
        extent, block = self.j.extent, self.j.block
        whole_first, whole_last, first, last = "0", str(extent // block * block), "0", str(extent)
        if low:
            out.line(f"first = {_extreme('maximum', '0', low)} // JBLOCK * JBLOCK")
            first = "first"
        if high:
            out.line(f"last = {_extreme('minimum', str(extent), high, 1)}")
            last = "last"
        if not self.bounds and self.j.is_exact:
            return [_Loop(first, last, True)]
        if extent < block or len(self.j.axes) > 1:
            return [_Loop(first, last, False)]
        if low:
            strictest = _extreme("maximum", "first", low, generous=False)
            out.line(f"whole_first = ({strictest} + JBLOCK - 1) // JBLOCK * JBLOCK")
            whole_first = "whole_first"
        if high:
            strictest = _extreme("minimum", whole_last, high, 1, generous=False)
            out.line(f"whole_last = tl.maximum({strictest}, {whole_first}) // JBLOCK * JBLOCK")
            whole_last = "whole_last"
        elif low:
            out.line(f"whole_last = tl.maximum({whole_last}, whole_first)")
            whole_last = "whole_last"
        # masked ones first: behind a loop that may well not run at all, assemblers wait for every single product
        loops = [_Loop(first, f"tl.minimum(whole_first, {last})", False)] if low else []
        if high or not self.j.is_exact:
            loops.append(_Loop(whole_last, last, False))
        return [*loops, _Loop(whole_first, whole_last, True)]

    def _loops_between(self, out: Body, before: Body) -> list[_Loop]:
        """The loop between the edges of masks in memory, cut where blocks begin and end in which they hide nothing."""
        self.edges.define(out, before, self.m, self.j.extent, self.j.block)
        if self.j.extent < self.j.block:
            return [_Loop("first", "last", False)]
        masked = _Loop("first", "tl.minimum(whole_first, last)", False, behind=("whole_last", "last"))
        return [masked, _Loop("whole_first", "whole_last", True)]

    def _before_loop(self, scores: ScoresBody) -> dict[str, str]:
        """What stays the same in the loop: operands of inner products, by product; numbers per row."""
        kept: dict[str, str] = {}
        for number, contract in enumerate(self.parts.inner):
            row, _ = self.parts.factors(contract)
            # under other names than in the loop, where the same axes run along the other dimension of tensors
            statements = self.parts.closure((row,))
            dim, statements = _renamed(self.sums[contract.id], statements, 1000 * (number + 1))
            body = self._body(self.m, dim)
            body.ranges |= {axis.name: (0, int_extent(axis) - 1) for axis in dim.axes}
            self._index(body, dim)
            kept[contract.id] = f"row{number}"
            body.line(f"row{number} = {self._factor(body, self.parts.by_id[row], dim, statements)}")
        for s in self._before_softmax(self.parts, self.parts.chained):
            if not self.parts.changes(s) and not isinstance(s, Contract):
                scores.define(s)
        return kept

    def _before_softmax(self, parts: ChainParts, wanted: list[str]) -> list[Define]:
        """What chained operands are made of, short of statistics and all that is made of them."""
        softmax = RunningSoftmax.of(parts)
        special = frozenset[str]() if softmax is None else softmax.values
        return [s for s in parts.closure(wanted) if s.id not in special]

    # -------------------------------------------------------------------------------------------------------- loops

    def _loop(self, loop: _Loop, parts: ChainParts, before: ScoresBody, kept: dict[str, str]) -> RunningSoftmax | None:
        """One part of the loop; returns the softmax as it is computed in it."""
        j = self.j
        if loop.is_whole and not j.is_exact:
            j = replace(j, extent=j.programs * j.block)
        scores = self._scores(parts, j)
        scores.values, scores.shapes = dict(before.values), dict(before.shapes)
        self._loop_variables(scores, loop)
        self._index(scores, j, scores.index_type("j_start"))
        softmax = RunningSoftmax.of(parts, self.parts)
        blocks = _Blocks(self, parts)
        for outer in sorted(parts.outers, key=lambda outer: len(parts.closure((parts.sides[outer.id][0],)))):
            chained, _ = parts.sides[outer.id]
            for s in self._before_softmax(parts, [chained]):
                if s.id in scores.values:
                    continue
                if isinstance(s, Contract):
                    self._inner_product(scores, j, s, kept[s.id], blocks)
                else:
                    scores.define(s)
            if softmax is not None:
                softmax.step(scores, j)
            self._outer_product(scores, j, outer, blocks)
        return softmax

    def _loop_variables(self, scores: ScoresBody, loop: _Loop) -> None:
        """The head of a loop, and where it is: in a group of positions, if there are several, and among them."""
        groups = self.groups
        if groups is None and loop.behind is None:
            scores.line(f"for j_start in range({loop.first}, {loop.last}, JBLOCK):")
            scores.depth += 1
            return
        # one loop through all groups, so that the blocks of the next one are on their way when one ends
        count, at = _steps(loop.first, loop.last, self.j.block), "step"
        if loop.behind is not None:
            scores.line(f"head = {count}")
            count = f"head + {_steps(*loop.behind, self.j.block)}"
        scores.line(f"steps = {count}")
        scores.line(f"for step in range(0, {f'{groups.extent} * ' if groups else ''}steps):")
        scores.depth += 1
        if groups is not None:
            scores.line(f"{groups.name} = {scores.index_type('(step // steps)')}", f"{groups.extent}")
            scores.axis_variables(groups)
            at = "step % steps"
        if loop.behind is None:
            scores.line(f"j_start = {loop.first} + {at} * JBLOCK")
            return
        if groups is not None:
            scores.line(f"at = {at}")
            at = "at"
        scores.line(f"j_start = tl.where({at} < head, {loop.first}, {loop.behind[0]} - head * JBLOCK) + {at} * JBLOCK")

    def _inner_product(self, scores: ScoresBody, j: TileDim, contract: Contract, row: str, blocks: _Blocks) -> None:
        dim, parts = self.sums[contract.id], scores.parts
        _, step = parts.factors(contract)
        operand = blocks.get(step, dim, is_turned=True)
        if operand is None:
            body = self._body(dim, j)
            body.depth = scores.depth
            self._index(body, dim)
            operand = self._factor(body, parts.by_id[step], dim, parts.closure((step,)))
            blocks.add(step, dim, operand, is_turned=True)
        scores.bind(contract, f"tl.dot({row}, {operand}{self._precision(contract)})", scores.full)

    def _outer_product(self, scores: ScoresBody, j: TileDim, outer: Contract, blocks: _Blocks) -> None:
        parts = scores.parts
        chained, other = parts.sides[outer.id]
        text = scores.expanded(chained, scores.full)
        if not j.is_exact and not any(isinstance(s, Reduce) for s in parts.kernel.defines):
            text = f"tl.where(in_{j.name}, {text}, {literal(0.0, parts.by_id[chained].dtype)})"
        scores.line(f"weights = {text}")
        operand = blocks.get(other, self.n, is_turned=False)
        if operand is None:
            first = 1000 * (1 + len(self.parts.inner) + parts.outers.index(outer))
            dim, statements = _renamed(j, parts.closure((other,)), first)
            body = self._body(dim, self.n)
            body.depth = scores.depth
            body.ranges |= {axis.name: (0, int_extent(axis) - 1) for axis in dim.axes}
            self._index(body, dim, scores.index_type("j_start"))
            operand = self._factor(body, parts.by_id[other], dim, statements)
            blocks.add(other, self.n, operand, is_turned=False)
        acc = self.results[outer.id]
        scores.line(f"{acc} = tl.dot(weights, {operand}, {acc}{self._precision(outer)})")

    def _finish(self, out: Body) -> None:
        """What follows the outer products."""
        for outer in self.parts.outers:
            out.values[outer.id] = Operand(self.results[outer.id], outer.dtype)
            out.shapes[outer.id] = out.full
        stores = [s for s in self.kernel.body if isinstance(s, Store)]
        wanted = [name for store in stores for name in operands(store)]
        for s in self.parts.closure(wanted, stop=frozenset(out.values)):
            out.define(s)
        for store in stores:
            out.store(store)


class _Blocks:
    """Blocks that were loaded in a step of the loop for one product, and may serve another one the other way around.

    Of the keys, an outer product reads (key, width), and an inner one (width, key): these are turned.
    """

    def __init__(self, chain: _Chain, parts: ChainParts) -> None:
        self.chain, self.parts = chain, parts
        self.found: dict[object, tuple[str, bool]] = {}

    def _key(self, name: str, dim: TileDim) -> object:
        """What is loaded, whatever its columns are called; None when it is more than loaded."""
        s, chain = self.parts.by_id[name], self.chain
        if not chain.turns or not isinstance(s, Load) or s.mask is not None or s.dtype.itemsize > _TURNED_ITEM:
            return None
        if not all(_is_zero_outside(self.parts, s, along) for along in (dim, chain.j)):
            return None
        places: dict[str, Dim] = {axis.name: symbol(f"column{number}") for number, axis in enumerate(dim.axes)}
        return s.buffer, s.dtype, substitute(s.index, places), tuple(axis.extent for axis in dim.axes)

    def get(self, name: str, dim: TileDim, is_turned: bool) -> str | None:
        """The text of an operand that has been loaded before."""
        text, was_turned = self.found.get(self._key(name, dim), (None, False))
        return text if text is None or was_turned == is_turned else f"tl.trans({text})"

    def add(self, name: str, dim: TileDim, text: str, is_turned: bool) -> None:
        """Note the text of an operand."""
        key = self._key(name, dim)
        if key is not None:
            self.found[key] = text, is_turned


def _steps(first: str, last: str, block: int) -> str:
    """How many steps it takes from one position to another one, as text."""
    if first.isdigit() and last.isdigit():
        return f"{max(0, int(last) - int(first) + block - 1)} // JBLOCK"
    return f"tl.maximum({last} - {first} + JBLOCK - 1, 0) // JBLOCK"


def _extreme(function: str, start: str, bounds: list[Bound], add: int = 0, generous: bool = True) -> str:
    """The maximum or minimum of a number and what bounds say for the program's rows."""
    text = start
    for bound in bounds:
        edge = bound.text("m_tile * MBLOCK", "MBLOCK", generous)
        text = f"tl.{function}({text}, {edge}{f' + {add}' if add else ''})"
    return text


def _is_zero_outside(parts: ChainParts, s: Define, summed: TileDim) -> bool:
    """Whether an operand is loaded as zero behind the end of a sum."""
    along = {axis.name.removesuffix("_row") for axis in summed.axes}
    return isinstance(s, Load) and (s.mask is None or s.other == 0) and bool(parts.domains[s.id] & along)


def _extent(axes: tuple[Axis, ...]) -> int:
    return prod(int_extent(axis) for axis in axes)


def _renamed(dim: TileDim, statements: list[Define], first: int) -> tuple[TileDim, list[Define]]:
    """A dimension and statements over it with other names: `r1_row` for axis `r1`, values numbered anew."""
    axes = tuple(replace(axis, name=f"{axis.name}_row") for axis in dim.axes)
    names = {s.id: f"v{first + number}" for number, s in enumerate(statements)}
    places: dict[str, Dim] = {axis.name: symbol(f"{axis.name}_row") for axis in dim.axes}
    return replace(dim, name=f"{dim.name}_row", axes=axes), [renamed(s, names, places) for s in statements]


def _dim(name: str, axes: tuple[Axis, ...], block: int, constexpr: str) -> TileDim:
    return TileDim(axes[0].name if len(axes) == 1 else name, axes, _extent(axes), block, constexpr)
