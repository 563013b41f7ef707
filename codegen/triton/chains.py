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

Gradients are kernels of the same form without running numbers: they read the maxima and sums. Conditions on the two
positions that make a score count for nothing, as a causal mask or a window, become bounds of the loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

from graphc.codegen.triton.body import Body
from graphc.codegen.triton.helpers import text_of
from graphc.codegen.triton.index_bounds import Bound, Conditions
from graphc.codegen.triton.indexing import index_text
from graphc.codegen.triton.joined_axes import int_extent
from graphc.codegen.triton.ops import POINTERS, Context, Operand, literal, tl_dtype
from graphc.codegen.triton.ragged import renamed
from graphc.codegen.triton.tiles import ChainTile, candidate_chain_tiles
from graphc.codegen.triton.tiling import TileDim, Tiling, needs_wide_index, power_of_two
from graphc.errors import CodegenError
from graphc.ir.dims import Dim, symbol
from graphc.ir.types import f32
from graphc.loopir.kernel import Axis, Compute, Const, Contract, Define, Index, Kernel, Load, Reduce, Store, operands
from graphc.program.triton_kernel import Launch, TritonKernel

RESERVED = frozenset(
    ("acc", "tile", "m_tile", "j_start", "first", "last", "peak", "total", "base", "scale", "new_peak", "weights")
)


_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


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


class _Chain:
    def __init__(
        self, kernel: Kernel, pointers: dict[str, str], name: str, target: str, tile: ChainTile | None
    ) -> None:
        self.kernel, self.pointers, self.name = kernel, pointers, name
        self.context = Context()
        self.by_id = {s.id: s for s in kernel.defines}
        self.domains = kernel.domains
        *self.inner, self.outer = kernel.contractions
        self.rows = frozenset(self.outer.over)
        self.chained, self.other = self._sides()
        self.axes = self._classes()
        self.sums = [tuple(axis for axis in kernel.row_axes if axis.name in c.over) for c in self.inner]
        inner = max(prod(int_extent(axis) for axis in axes) for axes in self.sums)
        columns = prod(int_extent(axis) for axis in self.axes["n"])
        dtype = self.by_id[self.outer.left].dtype
        self.candidates = [tile] if tile else candidate_chain_tiles(target, max(inner, columns), dtype, len(self.inner))
        self.tile = self.candidates[0]
        self.wide = needs_wide_index(kernel, max(self.tile.rows, self.tile.steps))
        self.batch = _dim("b", self.axes["b"], 1, "")
        self.m = _dim("m", self.axes["m"], self.tile.rows, "MBLOCK")
        self.j = _dim("j", self.axes["j"], self.tile.steps, "JBLOCK")
        self.n = _dim("n", self.axes["n"], max(16, power_of_two(columns)), "NBLOCK")
        self.softmax = _Softmax.of(self, kernel)
        self.lines: list[str] = []

    def _sides(self) -> tuple[str, str]:
        """The operand of the outer product that is computed from products, and the other one."""
        sides = self.outer.left, self.outer.right
        chained = [name for name in sides if any(isinstance(s, Contract) for s in self.closure((name,), True))]
        if len(chained) != 1:
            raise CodegenError(f"kernel {self.kernel.name}: both operands of a product are products themselves")
        return chained[0], sides[1 - sides.index(chained[0])]

    def _classes(self) -> dict[str, tuple[Axis, ...]]:
        chained, other = self.domains[self.chained], self.domains[self.other]
        found: dict[str, list[Axis]] = {kind: [] for kind in "bmnj"}
        for axis in (*self.kernel.parallel_axes, *(axis for axis in self.kernel.row_axes if axis.name in self.rows)):
            kind = "j" if axis.name in self.rows else "b"
            if kind == "b" and (axis.name in chained) != (axis.name in other):
                kind = "m" if axis.name in chained else "n"
            found[kind].append(axis)
        return {kind: tuple(axes) for kind, axes in found.items()}

    # -------------------------------------------------------------------------------------------------------- parts

    def closure(self, wanted: Iterable[str], through: bool = False, stop: frozenset[str] = frozenset()) -> list[Define]:
        """Statements that values come from, in order; inner products are not looked into unless `through`."""
        names, kept = set(wanted), list[Define]()
        for s in reversed(list(self.kernel.defines)):
            if s.id not in names or s.id in stop:
                continue
            kept.append(s)
            if through or not isinstance(s, Contract):
                names.update(operands(s))
        return kept[::-1]

    def _body(self, *dims: TileDim) -> Body:
        tiling = Tiling(self.kernel, tuple(dims), self.tile.warps, wide=self.wide)
        return Body(tiling, self.context, self.pointers, self.lines)

    def _index(self, body: Body, dim: TileDim, start: str = "") -> None:
        """Index variables of a dimension as this body's tensors have them."""
        first = f"{start} + " if start else ""
        body.line(f"{dim.name} = {first}{body.lanes(dim)}", f"{dim.extent}")
        body.mask_variable(dim)
        body.axis_variables(dim)

    def _changes(self, s: Define) -> bool:
        """It changes from step to step of the loop."""
        return bool(self.domains[s.id] & self.rows)

    def _factor(self, body: Body, name: str, summed: TileDim, statements: list[Define] | None = None) -> str:
        """An operand of a product over its whole block, zero behind the end of the sum."""
        for s in self.closure((name,)) if statements is None else statements:
            body.define(s)
        text, s = body.expanded(name if statements is None else statements[-1].id, body.full), self.by_id[name]
        along = {axis.name.removesuffix("_row") for axis in summed.axes}
        is_zero = isinstance(s, Load) and (s.mask is None or s.other == 0) and bool(self.domains[name] & along)
        if is_zero or body.blocked[summed.name].is_exact:
            return text
        zero = literal(0.0 if s.dtype.is_float else 0, s.dtype)
        return f"tl.where(in_{summed.name}, {text}, {zero})"

    def _define(self, body: Body, s: Define) -> None:
        """Write a statement; positions are compared as the 32-bit numbers they are, which is cheaper for each score."""
        sides = [self.by_id[arg] for arg in s.args] if isinstance(s, Compute) and s.op in _COMPARISONS else []
        texts = [index_text(self.context, side.expr, body.ranges) for side in sides if isinstance(side, Index)]
        if self.wide or len(texts) != 2 or not isinstance(s, Compute):
            body.define(s)
            return
        shape = body.shapes[s.args[0]] | body.shapes[s.args[1]]
        body.bind(s, f"({texts[0]}) {_COMPARISONS[s.op]} ({texts[1]})", shape)

    def _precision(self, contract: Contract, name: str) -> str:
        dtype = self.by_id[name].dtype
        return f', input_precision="{"tf32" if contract.tf32 else "ieee"}"' if dtype == f32 else ""

    # -------------------------------------------------------------------------------------------------------- module

    def module(self) -> TritonKernel:
        """The whole text."""
        scores, out = self._body(self.m, self.j), self._body(self.m, self.n)
        bounds = Conditions(self.kernel).bounds(self.chained, self.axes["m"], self.axes["j"])
        self._place(out, bounds)
        kept = self._before_loop(scores)
        first, last = self._limits(out, bounds)
        scores.line(f"acc = tl.zeros([MBLOCK, NBLOCK], {tl_dtype(self.outer.dtype)})")
        if self.softmax is not None:
            scores.line('peak = tl.full([MBLOCK, 1], float("-inf"), tl.float32)')
            scores.line("total = tl.zeros([MBLOCK, 1], tl.float32)")
        scores.line(f"for j_start in range({first}, {last}, JBLOCK):")
        self._step(scores, kept)
        self._finish(out)
        constexprs = [("MBLOCK", self.m.block), ("JBLOCK", self.j.block), ("NBLOCK", self.n.block)]
        constexprs += [(dim.constexpr, dim.block) for dim in map(self._sum_dim, range(len(self.inner)))]
        parameters = [*self.pointers.values(), *(f"{name}: tl.constexpr" for name, _ in constexprs)]
        notes = "".join(f"    # src[{note}]\n" for note in self.kernel.notes)
        function = f"@triton.jit\ndef {self.name}({', '.join(parameters)}):\n{notes}" + "\n".join(self.lines) + "\n"
        imports = "import triton\nimport triton.language as tl\n"
        if self.context.libdevice:
            imports += "from triton.language.extra import libdevice\n"
        text = imports + "\n\n" + text_of(self.context.helpers) + function
        signature = tuple((self.pointers[b.name], POINTERS[b.dtype.name]) for b in self.kernel.buffers)
        programs = self.batch.extent * self.m.programs if self.n.extent else 0
        launch = Launch(self.name, (programs, 1, 1), tuple(constexprs), self.tile.warps, self.tile.stages)
        return TritonKernel(self.name, text, signature, (launch,))

    def _sum_dim(self, number: int) -> TileDim:
        """The axis of an inner product's sum, held whole."""
        axes = self.sums[number]
        extent = prod(int_extent(axis) for axis in axes)
        return _dim(f"e{number}", axes, max(16, power_of_two(extent)), f"EBLOCK{number}")

    def _place(self, out: Body, bounds: list[Bound]) -> None:
        """Index variables of the program's rows and of the columns."""
        count = self.m.programs
        out.line("tile = tl.program_id(0)")
        if self.batch.extent != 1:
            out.line(f"{self.batch.name} = {out.index_type(f'(tile // {count})')}", f"{self.batch.extent}")
            out.axis_variables(self.batch)
        # programs with long loops start first
        longest_last = any(bound.is_upper and bound.slope > 0 for bound in bounds)
        out.line(f"m_tile = {f'{count - 1} - ' if longest_last else ''}tile % {count}")
        self._index(out, self.m, "m_tile * MBLOCK")
        self._index(out, self.n)

    def _limits(self, out: Body, bounds: list[Bound]) -> tuple[str, str]:
        """First and last position of the loop: all, or what conditions leave of them."""
        first, last = "0", str(self.j.extent)
        low = [b.text("m_tile * MBLOCK", "MBLOCK") for b in bounds if not b.is_upper]
        high = [b.text("m_tile * MBLOCK", "MBLOCK") for b in bounds if b.is_upper]
        if low:
            text = "0"
            for bound in low:
                text = f"tl.maximum({text}, {bound})"
            out.line(f"first = {text} // JBLOCK * JBLOCK")
            first = "first"
        if high:
            text = last
            for bound in high:
                text = f"tl.minimum({text}, {bound} + 1)"
            out.line(f"last = {text}")
            last = "last"
        return first, last

    def _operands(self, contract: Contract) -> tuple[str, str]:
        """Of an inner product the operand of the program's rows, and that of the loop's positions."""
        m, sides = {axis.name for axis in self.axes["m"]}, (contract.left, contract.right)
        for row, step in (sides, sides[::-1]):
            if not self.domains[row] & self.rows and not self.domains[step] & m:
                return row, step
        raise CodegenError(f"kernel {self.kernel.name}: an operand varies with rows and columns of the scores")

    def _before_loop(self, scores: Body) -> dict[str, str]:
        """What stays the same in the loop: operands of inner products, by product; numbers per row."""
        kept: dict[str, str] = {}
        for number, contract in enumerate(self.inner):
            row, _ = self._operands(contract)
            # under other names than in the loop, where the same axes run along the other dimension of tensors
            dim, statements = _renamed(self._sum_dim(number), self.closure((row,)), 1000 * (number + 1))
            body = self._body(self.m, dim)
            body.ranges |= {axis.name: (0, int_extent(axis) - 1) for axis in dim.axes}
            self._index(body, dim)
            kept[contract.id] = f"row{number}"
            body.line(f"row{number} = {self._factor(body, row, dim, statements)}")
        for s in self._before_softmax():
            if not self._changes(s) and not isinstance(s, Contract):
                self._define(scores, s)
        return kept

    def _before_softmax(self) -> list[Define]:
        """What the chained operand is made of, short of statistics and all that is made of them."""
        special = frozenset() if self.softmax is None else self.softmax.values
        return [s for s in self.closure((self.chained,)) if s.id not in special]

    def _step(self, scores: Body, kept: dict[str, str]) -> None:
        """One block of the loop."""
        scores.depth += 1
        start = scores.index_type("j_start")
        self._index(scores, self.j, start)
        for s in self._before_softmax():
            if isinstance(s, Contract):
                self._inner_product(scores, s, kept[s.id])
            elif self._changes(s):
                self._define(scores, s)
        if self.softmax is not None:
            self.softmax.step(scores)
            for s in self.closure((self.chained,)):
                self.softmax.after(scores, s)
        text, dtype = scores.expanded(self.chained, scores.full), self.by_id[self.chained].dtype
        if not scores.blocked[self.j.name].is_exact and self.softmax is None:
            text = f"tl.where(in_{self.j.name}, {text}, {literal(0.0, dtype)})"
        scores.line(f"weights = {text}")
        values = self._body(self.j, self.n)
        values.depth += 1
        self._index(values, self.j, start)
        operand = self._factor(values, self.other, self.j)
        values.line(f"acc = tl.dot(weights, {operand}, acc{self._precision(self.outer, self.other)})")

    def _inner_product(self, scores: Body, contract: Contract, row: str) -> None:
        dim = self._sum_dim(self.inner.index(contract))
        body = self._body(dim, self.j)
        body.depth = scores.depth
        self._index(body, dim)
        _, step = self._operands(contract)
        operand = self._factor(body, step, dim)
        scores.bind(contract, f"tl.dot({row}, {operand}{self._precision(contract, step)})", scores.full)

    def _finish(self, out: Body) -> None:
        """The division by the sum, and what follows the outer product."""
        rows = frozenset((self.m.name,))
        if self.softmax is not None:
            for reduce, name in ((self.softmax.peak, "peak"), (self.softmax.total, "total")):
                out.values[reduce.id], out.shapes[reduce.id] = Operand(name, f32), rows
            self.softmax.finish(out)
        out.values[self.outer.id] = Operand("acc", self.outer.dtype)
        out.shapes[self.outer.id] = out.full
        stores = [s for s in self.kernel.body if isinstance(s, Store)]
        wanted = [name for store in stores for name in operands(store)]
        for s in self.closure(wanted, stop=frozenset(out.values)):
            out.define(s)
        for store in stores:
            out.store(store)


class _Softmax:
    """A softmax over the outer product's sum, computed as the loop goes along.

    Attributes:
        peak, total: its maximum and its sum.
        values: the statistics and all that is made of them.
    """

    def __init__(self, chain: _Chain, peak: Reduce, total: Reduce) -> None:
        self.chain, self.peak, self.total = chain, peak, total
        exponential = chain.by_id[total.arg]
        shift = chain.by_id[exponential.args[0]] if isinstance(exponential, Compute) else None
        if not isinstance(shift, Compute) or shift.op != "sub" or shift.args[0] != peak.arg:
            raise CodegenError(f"kernel {chain.kernel.name}: a sum along with a product that is no softmax")
        self.exponential, self.shift, self.scores = exponential, shift, peak.arg
        self.values = frozenset(self._made_of((peak.id, total.id)))
        self.empty: tuple[str, bool] | None = None  # a condition on rows, and whether zeros are where it holds

    @staticmethod
    def of(chain: _Chain, kernel: Kernel) -> _Softmax | None:
        """The softmax of a kernel, if it has one."""
        found = {s.op: s for s in kernel.defines if isinstance(s, Reduce)}
        if not found:
            return None
        if sorted(found) != ["max", "sum"]:
            raise CodegenError(f"kernel {kernel.name}: reductions along with a product that are no softmax")
        return _Softmax(chain, found["max"], found["sum"])

    def _made_of(self, names: Iterable[str]) -> set[str]:
        found = set(names)
        for s in self.chain.kernel.defines:
            if not isinstance(s, Contract) and not found.isdisjoint(operands(s)):
                found.add(s.id)
        return found

    def step(self, body: Body) -> None:
        """Take a block of scores in: the running maximum and sum, and `acc` in the new scale."""
        j = self.chain.j
        scores = body.expanded(self.scores, body.full)
        if not body.blocked[j.name].is_exact:
            scores = f'tl.where(in_{j.name}, {scores}, float("-inf"))'
        body.line(f"scores = {scores}")
        body.line("new_peak = tl.maximum(peak, tl.max(scores, 1, keep_dims=True))")
        # rows without a score so far: nothing but zeros, and no NaN from the difference of infinities
        body.line('base = tl.where(new_peak == float("-inf"), 0.0, new_peak)')
        exp = "libdevice.exp" if self._is_exact() else "tl.exp"
        self.chain.context.libdevice |= self._is_exact()
        body.line(f"scale = {exp}(peak - base)")
        body.line("peak = new_peak")
        body.bind(self.exponential, f"{exp}(scores - base)", body.full)
        body.line(f"total = total * scale + tl.sum({self.exponential.id}, 1, keep_dims=True)")
        body.line("acc = acc * scale")

    def _is_exact(self) -> bool:
        """Products in f32 get the exponential of all kernels; matrix units of narrower floats the fast one."""
        return self.chain.by_id[self.chain.outer.left].dtype == f32

    def after(self, body: Body, s: Define) -> None:
        """A statement between the exponential and the outer product, as if the sum were 1."""
        if s.id in body.values or s.id in (self.peak.id, self.total.id, self.shift.id):
            return
        if isinstance(s, Compute) and s.op == "div" and s.args == (self.exponential.id, self.total.id):
            self._alias(body, s.id, self.exponential.id)
        elif isinstance(s, Compute) and s.op == "where" and self._is_of_row(s.args[0]):
            is_zero_where_true = self._is_zero(s.args[1])
            self.empty = s.args[0], is_zero_where_true
            self._alias(body, s.id, s.args[2 if is_zero_where_true else 1])
        elif self.chain.domains[s.id] & self.chain.rows:
            body.define(s)

    def _is_of_row(self, name: str) -> bool:
        return name in self.values and not self.chain.domains[name] & self.chain.rows

    def _is_zero(self, name: str) -> bool:
        s = self.chain.by_id[name]
        return isinstance(s, Const) and s.value == 0

    def _alias(self, body: Body, name: str, source: str) -> None:
        body.values[name], body.shapes[name] = body.values[source], body.shapes[source]

    def finish(self, body: Body) -> None:
        """The division by the sum, and zeros for rows that are masked whole where the program asks for them."""
        body.line("acc = tl.div_rn(acc, total)" if self._is_exact() else "acc = acc / total")
        if self.empty is None:
            return
        name, is_zero_where_true = self.empty
        for s in self.chain.closure((name,), stop=frozenset((self.peak.id, self.total.id))):
            body.define(s)
        condition = body.operand(name).typed
        body.line(f"acc = tl.where({condition}, {'0.0, acc' if is_zero_where_true else 'acc, 0.0'})")


def _renamed(dim: TileDim, statements: list[Define], first: int) -> tuple[TileDim, list[Define]]:
    """A dimension and statements over it with other names: `r1_row` for axis `r1`, values numbered anew."""
    axes = tuple(replace(axis, name=f"{axis.name}_row") for axis in dim.axes)
    names = {s.id: f"v{first + number}" for number, s in enumerate(statements)}
    places: dict[str, Dim] = {axis.name: symbol(f"{axis.name}_row") for axis in dim.axes}
    return replace(dim, name=f"{dim.name}_row", axes=axes), [renamed(s, names, places) for s in statements]


def _dim(name: str, axes: tuple[Axis, ...], block: int, constexpr: str) -> TileDim:
    extent = prod(int_extent(axis) for axis in axes)
    return TileDim(axes[0].name if len(axes) == 1 else name, axes, extent, block, constexpr)
