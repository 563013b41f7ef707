"""One loop nest: each value is computed in the outermost loop in which it can be, stores come last.

for (i ...) {                      level 1: values that depend on i only
  #pragma omp simd reduction(+:v4_acc)
  for (j ...) {                    level 2: values that depend on j, updates of accumulators, stores
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphc.codegen.c.accumulators import Accumulator
from graphc.codegen.c.random_text import BLOCK
from graphc.codegen.c.writer import Writer
from graphc.ir.dims import Dim, substitute, symbol
from graphc.ir.sizes import typical
from graphc.ir.types import i64
from graphc.loopir.analysis import breakpoints, closure, known_truths
from graphc.loopir.kernel import Compute, Const, Define, Index, Scan, Statement, Store, operands
from graphc.loopir.transform import substitute_known

MAX_SEGMENTS = 8
MIN_RUN = 16
"""Steps of the innermost loop from which random words are computed in runs."""


@dataclass(frozen=True)
class Loop:
    """One `for`.

    Args:
        axis: the axis it runs over; None for a loop over blocks or chunks of one.
        low, high: bounds as C text.
        variable: C variable.
        step: what the variable advances by.
        pragma: OpenMP directive before it, without `#pragma omp`.
    """

    axis: str | None
    low: str
    high: str
    variable: str
    step: int = 1
    pragma: str = ""

    def head(self, low: str | None = None, high: str | None = None) -> str:
        v = self.variable
        advance = f"{v}++" if self.step == 1 else f"{v} += {self.step}"
        return f"for (int64_t {v} = {low or self.low}; {v} < {high or self.high}; {advance})"


@dataclass
class Nest:
    """What a loop nest does.

    Args:
        loops: outermost first; the last one runs over the vector axis when there is one.
        stores: done in the loop that their domain asks for.
        updates: accumulators with the value each takes in.
        scans: running accumulators that give values.
        keep: values to write to a buffer as well, with the C place to write to.
        collapse: how many outer loops must stay perfectly nested.
        simd: OpenMP `simd` directive text for the last loop, or empty.
        update_lines, scan_lines: write one accumulation.
        before, after: lines around the innermost loop.
        rows: row axes among the loops; accumulations happen inside the innermost of them.
        cut: cut the innermost loop where masks change their truth.
    """

    loops: Sequence[Loop]
    stores: Sequence[Store] = ()
    updates: Sequence[tuple[Accumulator, str]] = ()
    scans: Mapping[str, Accumulator] = field(default_factory=dict)
    keep: Mapping[str, str] = field(default_factory=dict)
    update_lines: Callable[[Accumulator, str], Sequence[str]] | None = None
    scan_lines: Callable[[str, Accumulator, str], Sequence[str]] | None = None
    collapse: int = 0
    simd: str = ""
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    rows: frozenset[str] = frozenset()
    cut: bool = True


def write_nest(writer: Writer, nest: Nest) -> None:
    """Write a loop nest and everything it computes."""
    _NestWriter(writer, nest).write()


@dataclass(frozen=True)
class _Segment:
    low: int | None
    high: int | None
    body: Mapping[str, Define]
    stores: Sequence[Store]
    needed: frozenset[str]


@dataclass(frozen=True)
class _Cell:
    """A variable that stands for a cell in the innermost loop: its maximum, or a flag where all values are one number.

    A flag is narrow, so it does not make the vectors of the loop shorter.
    """

    variable: str
    constant: str | None

    @property
    def declaration(self) -> str:
        return f"int64_t {self.variable} = INT64_MIN;" if self.constant is None else f"int {self.variable} = 0;"

    @property
    def clause(self) -> str:
        return f"reduction({'max' if self.constant is None else '|'}:{self.variable})"

    @property
    def has_some(self) -> str:
        return f"{self.variable} != INT64_MIN" if self.constant is None else self.variable

    @property
    def value(self) -> str:
        return self.variable if self.constant is None else self.constant

    def update(self, mask: str | None, value: str, maximum: str) -> str:
        """The line of one step; `maximum` is the function of two."""
        if self.constant is not None:
            return f"{self.variable} |= {mask or '1'};"
        chosen = value if mask is None else f"{mask} ? {value} : INT64_MIN"
        return f"{self.variable} = {maximum}({self.variable}, {chosen});"


@dataclass(frozen=True)
class _Place:
    """An index that data give and a check looks at.

    Args:
        check: the store to its cell.
        cell: in the innermost loop.
        given, name: the index as it is, and within its bounds.
        limit: the last one that passes; the first is 0.
    """

    check: Store
    cell: _Cell
    given: str
    name: str
    limit: int


class _NestWriter:
    def __init__(self, writer: Writer, nest: Nest) -> None:
        self.writer, self.nest, self.facts = writer, nest, writer.facts
        self.level_of_axis = {loop.axis: k + 1 for k, loop in enumerate(nest.loops) if loop.axis is not None}
        row_levels = [level for axis, level in self.level_of_axis.items() if axis in nest.rows]
        self.row_level = max(row_levels, default=0)
        self.stop = writer.available
        self.running: frozenset[str] = frozenset()  # random words that a run has computed
        self.cells = self.name_cells()
        self.has_masks = any(dtype.kind == "bool" for dtype in self.facts.dtypes.values())

    def level(self, domain: Iterable[str]) -> int:
        """Number of loops around a statement of this domain."""
        found = max((self.level_of_axis.get(axis, 0) for axis in domain), default=0)
        return max(found, self.nest.collapse) if found else 0

    def write(self) -> None:
        nest, depth = self.nest, len(self.nest.loops)
        segments = self.segments()
        needed = frozenset().union(*(segment.needed for segment in segments))
        outer = replace(self.segment(None, None, self.writer.ranges, []), needed=needed)
        for level in range(depth):
            self.statements(outer, level)
            if level < depth - 1:
                self.open(nest.loops[level])
        if depth == 0:
            self.statements(segments[0], 0)
            return
        self.writer.line(*nest.before)
        self.writer.line(*(cell.declaration for cell in self.cells.values()))
        for segment in segments:
            self.innermost(segment)
        for (buffer, index), cell in self.cells.items():
            place = self.writer.element(buffer, index)
            self.writer.line(f"if ({cell.has_some}) {self.writer.use('gc_cell_max')}(&{place}, {cell.value});")
        self.writer.line(*nest.after)
        for _ in range(depth - 1):
            self.writer.close()

    def name_cells(self) -> dict[tuple[str, Dim], _Cell]:
        """What the innermost loop keeps maxima in, so that it can be vectorised, by the places they go to."""
        depth = len(self.nest.loops)
        values: dict[tuple[str, Dim], set[str]] = {}
        for s in self.nest.stores:
            if s.mode == "max" and depth and self.level(self.facts.domain(s)) == depth:
                values.setdefault((s.buffer, s.index), set()).add(s.value)
        found: dict[tuple[str, Dim], _Cell] = {}
        for place, names in values.items():
            variable = self.writer.fresh(f"gc_{place[0]}")
            constant = len(names) == 1 and isinstance(self.facts.by_id[min(names)], Const)
            found[place] = _Cell(variable, self.writer.read(min(names)) if constant else None)
        return found

    def open(self, loop: Loop) -> None:
        if loop.pragma:
            self.writer.pragma(loop.pragma)
        self.writer.open(loop.head())

    def innermost(self, segment: _Segment) -> None:
        loop, writer = self.nest.loops[-1], self.writer
        low, high = loop.low, loop.high
        saved = writer.ranges
        if segment.low is not None and segment.high is not None and loop.axis is not None:
            low = _tighter(writer, "max", low, segment.low)
            high = _tighter(writer, "min", high, segment.high)
            writer.ranges = {**saved, loop.axis: (segment.low, segment.high - 1)}
        pragma = " ".join(part for part in (loop.pragma, self.nest.simd) if part)
        pragma += "".join(f" {cell.clause}" for cell in self.cells.values()) if pragma else ""
        runs = self.runs(segment)
        if runs:
            loop, pragma = self.open_runs(segment, runs, replace(loop, low=low, high=high), pragma)
            low, high = loop.low, loop.high
        if pragma:
            writer.pragma(pragma)
        writer.open(loop.head(low, high))
        for run in runs:
            writer.declare(run.id, f"{run.id}_run[{loop.variable} - {loop.variable}_run]")
        self.running = frozenset(run.id for run in runs)
        self.statements(segment, len(self.nest.loops))
        self.running = frozenset()
        writer.close()
        if runs:
            writer.close()
        writer.ranges = saved

    def runs(self, segment: _Segment) -> list[Compute]:
        """Random words that are neighbours from step to step of the innermost loop."""
        axis, depth = self.nest.loops[-1].axis, len(self.nest.loops)
        if axis is None or typical(self.facts.extent(axis)) < MIN_RUN:
            return []
        return [
            s for name, s in segment.body.items()
            if isinstance(s, Compute) and s.op == "philox" and name in segment.needed and name not in self.stop
            and self.value_level(name) == depth and self.value_level(s.args[0]) < depth
            and self.first_word(segment, s) is not None
        ]  # fmt: skip

    def first_word(self, segment: _Segment, s: Compute) -> Dim | None:
        """The number of the word at the start of a run; None when a step is not one word on."""
        axis, number = str(self.nest.loops[-1].axis), segment.body[s.args[1]]
        if not isinstance(number, Index) or operands(number) or self.facts.step(number.expr, axis) != 1:
            return None
        return substitute(number.expr, {axis: symbol(f"{self.nest.loops[-1].variable}_run")})

    def open_runs(self, segment: _Segment, runs: Sequence[Compute], loop: Loop, pragma: str) -> tuple[Loop, str]:
        """Open a loop over runs of words, each computed at once; returns the loop over one of them, and its pragma."""
        writer, v = self.writer, loop.variable
        if loop.pragma:
            writer.pragma(pragma.replace(" simd", ""))
            pragma = "simd" + "".join(f" {cell.clause}" for cell in self.cells.values()) if "simd" in pragma else ""
        writer.open(f"for (int64_t {v}_run = {loop.low}; {v}_run < {loop.high}; {v}_run += {BLOCK})")
        writer.line(f"const int64_t {v}_stop = {writer.use('gc_min_index')}({v}_run + {BLOCK}, {loop.high});")
        for s in runs:
            first = self.first_word(segment, s)
            assert first is not None
            arguments = f"{s.id}_words, {writer.read(s.args[0])}, {writer.index(first)}, {v}_stop - {v}_run"
            writer.line(f"uint32_t {s.id}_words[{BLOCK + 8}];")
            writer.line(f"const uint32_t *{s.id}_run = {writer.use('gc_philox_words')}({arguments});")
        return Loop(loop.axis, f"{v}_run", f"{v}_stop", v), pragma

    def segments(self) -> list[_Segment]:
        """The innermost loop cut where masks change, each piece with its own statements.

        What goes on from element to element, and what is kept for another loop, no piece leaves out.
        """
        targets = [*(value for _, value in self.nest.updates), *self.nest.keep]
        whole = self.segment(None, None, self.writer.ranges, targets)
        loop = self.nest.loops[-1] if self.nest.loops else None
        if not self.nest.cut or loop is None or loop.axis is None:
            return [whole]
        masks = [name for name in whole.needed if self.facts.dtypes[name].kind == "bool"]
        cuts = breakpoints(self.facts, loop.axis, masks)
        extent = self.facts.axes[loop.axis].extent
        if not isinstance(extent, int) or len(cuts) >= MAX_SEGMENTS:
            return [whole]
        low, high = self.writer.ranges[loop.axis]
        assert high is not None
        edges = [low, *(cut for cut in cuts if low < cut <= high), high + 1]
        if len(edges) == 2:
            return [whole]
        found: list[_Segment] = []
        for a, b in reversed(list(itertools.pairwise(edges))):
            piece = self.segment(a, b, {**self.writer.ranges, loop.axis: (a, b - 1)}, targets)
            found.insert(0, piece)
            targets = [*targets, *(n for n in piece.needed if isinstance(piece.body[n], Scan) and n not in targets)]
        return found

    def segment(
        self, low: int | None, high: int | None, ranges: Mapping[str, tuple[int, int | None]], targets: list[str]
    ) -> _Segment:
        body: Sequence[Statement] = (*self.facts.kernel.defines,)
        stores: Sequence[Store] = self.nest.stores
        if self.has_masks:
            known = known_truths(self.facts, ranges)
            body = substitute_known(body, ranges, known)
            stores = [s for s in substitute_known(stores, ranges, known) if isinstance(s, Store)]
        by_id = {s.id: s for s in body if not isinstance(s, Store)}
        wanted = [*targets, *(name for s in stores for name in operands(s))]
        return _Segment(low, high, by_id, stores, frozenset(closure(wanted, by_id, self.stop)))

    def statements(self, segment: _Segment, level: int) -> None:
        """Everything that happens at one level, in order."""
        writer, nest = self.writer, self.nest
        places = self.checked_places(segment) if level == len(nest.loops) else {}
        done = {id(place.check) for place in places.values()}
        for name, s in segment.body.items():
            if name not in segment.needed or self.value_level(name) != level or name in self.running:
                continue
            if isinstance(s, Scan):
                self.scan(s)
            elif name in places:
                self.place(segment, places[name])
            elif not places or name not in writer.available:  # else a place has asked for it before
                writer.define(s)
            if name in nest.keep:
                writer.line(f"{nest.keep[name]} = {writer.read(name)};")
        for accumulator, value in nest.updates:
            if max(self.value_level(value), self.row_level) == level:
                assert nest.update_lines is not None
                writer.line(*nest.update_lines(accumulator, writer.read(value)))
        cells = self.cells if level == len(nest.loops) else {}
        for store in segment.stores:
            if self.level(self.facts.domain(store)) != level or id(store) in done:
                continue
            cell = cells.get((store.buffer, store.index)) if store.mode == "max" else None
            if cell is None:
                writer.store(store)
            else:
                mask = None if store.mask is None else writer.read(store.mask)
                writer.line(cell.update(mask, writer.read(store.value), writer.use("gc_max_index")))

    def checked_places(self, segment: _Segment) -> dict[str, _Place]:
        """Places that are checked, in a loop of single steps: a jump that is never made costs less than bounds."""
        loop = self.nest.loops[-1] if self.nest.loops else None
        if loop is None or self.nest.simd or "simd" in loop.pragma:
            return {}
        found: dict[str, _Place] = {}
        for store in segment.stores:
            cell = self.cells.get((store.buffer, store.index)) if store.mode == "max" else None
            failed = segment.body.get(store.mask or "")
            if cell is None or not isinstance(failed, Compute) or failed.op != "ne":
                continue
            given, bounded = failed.args
            low = self._bound(segment, bounded, "minimum")
            high = None if low is None else self._bound(segment, low[0], "maximum")
            if low is None or high != (given, 0) or low[1] < 0 or bounded in found:
                continue
            if bounded not in closure([store.value], segment.body, self.stop):
                found[bounded] = _Place(store, cell, given, bounded, low[1])
        return found

    def _bound(self, segment: _Segment, name: str, op: str) -> tuple[str, int] | None:
        """What an integer is bounded by, from one side: its name and the bound."""
        s = segment.body.get(name)
        if not isinstance(s, Compute) or s.op != op or s.dtype != i64:
            return None
        limit = self.facts.by_id.get(s.args[1])
        return (s.args[0], int(limit.value)) if isinstance(limit, Const) else None

    def place(self, segment: _Segment, place: _Place) -> None:
        """A place that is within bounds but where its check fails, which is also noted then."""
        writer = self.writer
        wanted = closure([place.check.value], segment.body, self.stop)
        for name, s in segment.body.items():
            if name in wanted and name not in writer.available and self.value_level(name) == len(self.nest.loops):
                writer.define(s)
        given = writer.read(place.given)
        writer.line(f"int64_t {place.name} = {given};")
        writer.open(f"if (__builtin_expect((uint64_t){given} > {place.limit}, 0))")
        writer.line(f"{place.name} = {writer.value_text(segment.body[place.name])};")
        writer.line(place.cell.update(None, writer.read(place.check.value), writer.use("gc_max_index")))
        writer.close()
        writer.declare(place.name)

    def value_level(self, name: str) -> int:
        return self.level(self.facts.domains[name])

    def scan(self, s: Scan) -> None:
        accumulator = self.nest.scans[s.id]
        assert self.nest.scan_lines is not None
        self.writer.line(*self.nest.scan_lines(s.id, accumulator, self.writer.read(s.arg)))
        self.writer.declare(s.id)


def _tighter(writer: Writer, kind: str, bound: str, limit: int) -> str:
    """The tighter of a loop bound and a constant."""
    if bound.isdigit():
        return str(max(int(bound), limit) if kind == "max" else min(int(bound), limit))
    return f"{writer.use(f'gc_{kind}_index')}({bound}, {limit})"
