"""Large products whose rows are reduced one by one, computed in chunks of rows: linear and cross-entropy, above all.

The logits of a language model are by far its largest tensor, and nothing needs them whole: each row becomes a loss, and
in the backward pass a row of the gradient of the input and a term of that of the weight. Here the product and all that
works on its rows are found in the graph, whatever they are, and written out once per chunk of rows, one chunk after the
other: memory holds the logits of one chunk. Sums over rows grow from chunk to chunk, in place.

What a chunk needs that is only known when all rows are through (a gradient that depends on the loss) splits the work in
two rounds; the second one computes the logits again.

Source: the idea is that of S. Hsu et al., Liger Kernel, arXiv 2410.10989, section 3.2, and of E. Wijmans et al., Cut
Your Losses in Large-Vocabulary Language Models, arXiv 2411.09009.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from graphc.ir.graph import Builder, Graph, Op, Operand, Value
from graphc.ir.sizes import bound
from graphc.ir.types import f32
from graphc.ops.registry import Kind, get
from graphc.passes.base import PassContext, PassResult, redirect_ends
from graphc.passes.layout import int_shape
from graphc.passes.row_regions import EXPANSION, Region, find_region, is_expanding
from graphc.passes.rows import Chunk, Rows, part_shape, positions, rows_of_operand, spans

MIN_ROWS = {"cpu": 256, "gpu": 2048}
"""Rows of a chunk at least: with fewer, reading the weight once per chunk takes longer than multiplying by it."""
LEAST_EXPANSION = {"cpu": EXPANSION, "gpu": 8}
"""Times longer than the rows of the left operand that rows must be. On a GPU a feed-forward layer had better be whole:
in training its product would be computed twice."""
MAX_CHUNKS = 64
"""Chunks at most, for compile time."""
_VIEWS = ("reshape", "permute", "expand", "slice")


def rows_per_chunk(rows: int, row_bytes: int, chunk_bytes: int, target: str) -> int:
    """The cost model: how many rows to compute at a time; all of them when chunks do not pay.

    Chunks cost a pass over the weight each, and save memory: that of the logits, and of their gradient. So they are
    used when the logits are at least twice as large as `chunk_bytes`, which is more than caches hold.
    """
    chosen = max(MIN_ROWS[target], chunk_bytes // row_bytes, -(-rows // MAX_CHUNKS))
    return chosen if rows >= 2 * chosen else rows


@dataclass(frozen=True)
class ChunkRows:
    """Computes a large product whose rows are reduced in chunks of rows.

    Before:
        %1: f32[8192, 131072] = matmul(%x, %w)
        %2: f32[8192, 1] = amax(%1) {dims=[1], keepdim=True}
    After, for two chunks:
        %3: f32[4096, 64] = slice(%x) {dim=0, start=0, stop=4096, step=1}
        %4: f32[4096, 131072] = matmul(%3, %w)
        %5: f32[4096, 1] = amax(%4) {dims=[1], keepdim=True}
        %6: f32[4096, 64] = slice(%x) {dim=0, start=4096, stop=8192, step=1}
        %7: f32[4096, 131072] = gemm(%6, %w, %5) {accumulate=False}
        %8: f32[4096, 1] = amax(%7) {dims=[1], keepdim=True}
        %2: f32[8192, 1] = concat(%5, %8) {dim=0}

    The second product names the results of the first chunk, so that it is computed after them.

    Args:
        rows: rows of a chunk; 0: by the cost model.
    """

    name: ClassVar[str] = "chunk-rows"
    rows: int = 0

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        modified = False
        gone: set[Op] = set()  # products in the region of another one
        for seed in [op for op in graph.ops if op.name == "matmul"]:
            count = 0 if seed in gone else self.rows_of_chunk(seed, ctx)
            region = find_region(graph, seed) if count else None
            if region is None:
                continue
            chunks = _chunks(region.count, region.batches, count)
            if len(chunks) > 1 and all(_has_rows(rows, chunk) for rows in region.known.values() for chunk in chunks):
                _Rewriting(graph, ctx, region, chunks).run()
                gone.update(region.ops)
                modified = True
        return PassResult(modified)

    def rows_of_chunk(self, seed: Op, ctx: PassContext) -> int:
        """Rows to compute at a time; 0 for a product that stays whole."""
        if not is_expanding(seed):
            return 0
        rows, columns = int_shape(seed.result)
        left = seed.operands[0]
        assert isinstance(left, Value)
        if columns < LEAST_EXPANSION[ctx.target] * int_shape(left)[1]:
            return 0
        row_bytes = columns * seed.result.dtype.itemsize
        found = self.rows or rows_per_chunk(rows, row_bytes, ctx.settings.chunk_bytes, ctx.target)
        return found if found < rows else 0


class _Rewriting:
    """Writes the ops of a region out chunk by chunk."""

    def __init__(self, graph: Graph, ctx: PassContext, region: Region, chunks: list[Chunk]) -> None:
        self.graph, self.region = graph, region
        self.builder = Builder(graph, ctx.infer)
        self.wide_products = ctx.target == "cpu"
        self.chunks = chunks
        self.old = list(graph.ops)
        self.uses, self.live = graph.uses(), graph.live_out()
        self.inside = set(region.ops)
        self.rounds = [self._ops_of(level) for level in range(max(region.level.values()) + 1)]
        self.whole: dict[Value, Value] = {}  # what stands for a value of the region once all chunks are through
        self.emitted: set[Op] = set()
        self.order: list[Value] = []  # results of the chunk before

    def run(self) -> None:
        self.graph.ops = []
        for op in self.old[: self.old.index(self.region.seed)]:
            self._emit(op)
        for level in range(len(self.rounds)):
            self._run_round(level)
        for op in self.old:
            self._emit(op)
        redirect_ends(self.graph, self.whole)

    def _emit(self, op: Op) -> None:
        """Put an op outside of the region into its new place."""
        if op in self.inside or op in self.emitted:
            return
        self.emitted.add(op)
        op.operands = [self.whole.get(item, item) if isinstance(item, Value) else item for item in op.operands]
        self.graph.ops.append(op)

    def _run_round(self, level: int) -> None:
        ops = self.rounds[level]
        self._emit_needs(ops)
        results = [op.result for op in ops if self.region.level[op] == level and self._is_needed(op, level)]
        parts: dict[Value, list[Value]] = {value: [] for value in results if value.op not in self.region.sums}
        totals: dict[Value, Value] = {}
        for chunk in self.chunks:
            writer = _Writer(self, chunk, set(ops))
            for op in ops:
                self.builder.location, self.builder.origin = op.location, op.origin
                if op in self.region.sums:
                    totals[op.result] = writer.add(op, totals.get(op.result))
                else:
                    writer.write(op)
            for value, found in parts.items():
                found.append(writer.env[value])
            self.order = [*totals.values(), *(found[-1] for found in parts.values())]
        for value, found in parts.items():
            assert value.op is not None
            self.builder.location, self.builder.origin = value.op.location, value.op.origin
            self._replace(value, self._joined(value, found))
        for value, total in totals.items():
            assert value.op is not None
            self.builder.location, self.builder.origin = value.op.location, value.op.origin
            same = total.dtype == value.dtype
            self._replace(value, total if same else self.builder.op("cast", total, dtype=value.dtype))

    def _replace(self, value: Value, by: Value) -> None:
        by.strides = value.strides
        self.whole[value] = by

    def _ops_of(self, level: int) -> list[Op]:
        """Ops of one round, with those of earlier rounds whose large results it needs: they are done again."""
        needed: set[Op] = {op for op, own in self.region.level.items() if own == level}
        for op in reversed(self.region.ops):
            if op in needed:
                needed.update(item.op for item in op.inputs if item.op in self.inside and self.region.is_large(item))
        return [op for op in self.region.ops if op in needed]

    def _emit_needs(self, ops: Sequence[Op]) -> None:
        """Everything outside of the region that the ops read, which may stand further below."""
        wanted = {item for op in ops for item in op.inputs}
        found: list[Op] = []
        for op in reversed(self.old):
            if op not in self.inside and op not in self.emitted and any(result in wanted for result in op.results):
                found.append(op)
                wanted.update(op.inputs)
        for op in reversed(found):
            self._emit(op)

    def _is_needed(self, op: Op, level: int) -> bool:
        """Whether a result is read outside of the region, or in a later round."""
        value = op.result
        if op in self.region.sums:
            return True
        if self.region.is_large(value):
            return False
        later = {other for ops in self.rounds[level + 1 :] for other in ops}
        return value in self.live or any(other not in self.inside or other in later for other in self.uses[value])

    def _joined(self, value: Value, parts: list[Value]) -> Value:
        """The whole of a value from its chunks."""
        b, rows, shape = self.builder, self.region.known[value], int_shape(value)
        if len(rows.dims) == 1:
            return b.op("concat", *parts, dim=rows.dims[0])
        batches: dict[tuple[int, int], list[Value]] = {}
        for chunk, part in zip(self.chunks, parts, strict=True):
            batches.setdefault((chunk.first, chunk.last), []).append(part)
        joined = [
            found[0] if len(found) == 1 else b.op("concat", *found, dim=rows.dims[1]) for found in batches.values()
        ]
        result = joined[0] if len(joined) == 1 else b.op("concat", *joined, dim=rows.dims[0])
        assert result.shape == shape
        return result


def _has_rows(rows: Rows, chunk: Chunk) -> bool:
    start, stop = positions(rows, chunk)
    return start < stop


def _chunks(rows: int, batches: int, count: int) -> list[Chunk]:
    """Chunks of about `count` rows: whole batches where several fit, else even parts of one."""
    rows, batches, count = bound(rows), bound(batches), bound(count)
    length = rows // batches
    if batches > 1 and length * 2 <= count:
        step = count // length
        return [Chunk(first, min(first + step, batches), 0, length) for first in range(0, batches, step)]
    pieces = -(-length // count)
    step = -(-length // pieces)
    return [
        Chunk(batch, batch + 1, start, min(start + step, length))
        for batch in range(batches)
        for start in range(0, length, step)
    ]


class _Writer:
    """Writes ops out for one chunk.

    Args:
        work: of the whole region.
        chunk: the rows.
        ops: what is done in this round; other values of the region are there as a whole.
    """

    def __init__(self, work: _Rewriting, chunk: Chunk, ops: set[Op]) -> None:
        self.work, self.chunk, self.ops = work, chunk, ops
        self.region, self.builder = work.region, work.builder
        self.env: dict[Value, Value] = {}
        self.parts: dict[tuple[Value, Rows], Value] = {}

    def write(self, op: Op) -> None:
        """The part of an op's result that belongs to the chunk."""
        if op is self.region.seed:
            left, right = op.operands
            assert isinstance(left, Value)
            part = self.part(left, self.region.known[op.result], again=False)
            after = dict.fromkeys(item for item in self.work.order if item is not part)
            if after:
                self.env[op.result] = self.builder.op("gemm", part, self.whole(right), *after, accumulate=False)
            else:
                self.env[op.result] = self.builder.op("matmul", part, self.whole(right))
            return
        self.env[op.result] = self._clone(op, self.region.known[op.result])

    def add(self, op: Op, total: Value | None) -> Value:
        """A sum over rows, with those of this chunk added."""
        b, known = self.builder, self.region.known
        wide = op.result.dtype.is_reduced  # a sum of rounded sums would be less exact than eager's
        round_terms = wide and not self.work.wide_products  # a GPU multiplies f32 at a tenth of the speed and less
        if op.name == "sum":
            (operand,) = op.inputs
            part = self.part(operand, known[operand])
            term = b.op("sum", b.op("cast", part, dtype=f32) if wide else part, **op.attrs)
            return term if total is None else b.op("add", total, term)
        rows = next(known[item] for item in op.inputs if item in known)
        factors: list[Value] = []
        for item, dim in zip(op.inputs, (1, 0), strict=True):
            part = self.part(item, rows._replace(dims=(dim,)), again=False)
            factors.append(b.op("cast", part, dtype=f32) if wide and not round_terms else part)
        if round_terms:
            term = b.op("cast", b.op("matmul", *factors), dtype=f32)
            return term if total is None else b.op("add", total, term)
        return b.op("matmul", *factors) if total is None else b.op("gemm", *factors, total, accumulate=True)

    def whole(self, operand: Operand) -> Operand:
        """An operand as it is."""
        return self.work.whole.get(operand, operand) if isinstance(operand, Value) else operand

    def part(self, value: Value, rows: Rows, again: bool = True) -> Value:
        """The part of a value that belongs to the chunk.

        Args:
            again: small values may be computed again instead of being read.
        """
        if value in self.env:
            return self.env[value]
        key = value, rows
        if key not in self.parts:
            inside = value.op in self.work.inside
            again = value.op is not None and not inside and (again or self.region.is_large(value))
            cloned = self._computed_again(value, rows) if again else None
            self.parts[key] = cloned or self._sliced(self.work.whole.get(value, value), rows)
        return self.parts[key]

    def _sliced(self, value: Value, rows: Rows) -> Value:
        for span in spans(rows, self.chunk):
            if span.dim >= 0 and value.shape[span.dim] not in (1, span.stop - span.start):
                value = self.builder.op("slice", value, dim=span.dim, start=span.start, stop=span.stop, step=1)
        return value

    def _computed_again(self, value: Value, rows: Rows) -> Value | None:
        """The part of a value that does not come from the product: large ones, such as a one-hot matrix, are made chunk
        by chunk; so are small ones with a number per row, such as what becomes of labels, so that the kernels of all
        chunks read memory in the same way and are one."""
        op, region = value.op, self.region
        assert op is not None
        large = [item for item in (value, *op.inputs) if region.is_large(item)]
        if len(op.results) != 1 or not (large or math.prod(int_shape(value)) <= region.count):
            return None
        kind = get(op.name).kind
        simple = kind in (Kind.POINTWISE, Kind.CREATION) or op.name in _VIEWS
        simple = simple or (is_expanding(op) and rows.dims == (0,))  # another product, such as a teacher's logits
        if not simple and not (large and kind is Kind.REDUCTION):
            return None
        if op.name == "iota" or op.attrs.get("effect"):
            return None
        factors = list(op.inputs)[: 1 if op.name == "matmul" else None]
        needs = [rows_of_operand(op, item, rows, self.region.batches) for item in factors]
        return None if any(found is None for found in needs) or min(rows.dims) < 0 else self._clone(op, rows)

    def _clone(self, op: Op, rows: Rows) -> Value:
        """An op on the parts of its operands; `rows` are those of its result."""
        operands: list[Operand] = []
        for number, item in enumerate(op.operands):
            if not isinstance(item, Value) or (op.name == "matmul" and number == 1):
                operands.append(self.whole(item))
                continue
            own = self.region.known.get(item) or rows_of_operand(op, item, rows, self.region.batches)
            assert own is not None
            operands.append(self.part(item, own) if own.dims else self.whole(item))
        if op.name == "slice" and op.attrs["dim"] in rows.dims:
            return self._slice_of(op, operands[0], rows)
        return self.builder.op(op.name, *operands, **self._attrs(op, rows))

    def _slice_of(self, op: Op, part: Operand, rows: Rows) -> Value:
        """A slice of positions: those of the chunk that it holds."""
        assert isinstance(part, Value)
        (operand,) = op.inputs
        before = self.region.known.get(operand) or rows_of_operand(op, operand, rows, self.region.batches)
        own = positions(rows, self.chunk)
        assert before is not None
        start = positions(before, self.chunk)[0]
        moved = rows.offset - before.offset
        low, high = own[0] + moved - start, own[1] + moved - start
        if (low, high) == (0, part.shape[op.attrs["dim"]]):
            return part
        return self.builder.op("slice", part, dim=op.attrs["dim"], start=low, stop=high, step=1)

    def _attrs(self, op: Op, rows: Rows) -> Mapping[str, object]:
        if "shape" in op.attrs:
            return {**op.attrs, "shape": part_shape(int_shape(op.result), rows, self.chunk)}
        if op.name == "pad":
            (operand,) = op.inputs
            before, after = (positions(item, self.chunk) for item in (self.region.known[operand], rows))
            dim, shift = rows.dims[-1], self.region.known[operand].offset - rows.offset
            low, high = list(op.attrs["low"]), list(op.attrs["high"])
            low[dim], high[dim] = before[0] + shift - after[0], after[1] - before[1] - shift
            return {**op.attrs, "low": tuple(low), "high": tuple(high)}
        return op.attrs
