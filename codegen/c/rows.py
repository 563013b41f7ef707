"""C loops of kernels with reductions or scans: per row, one loop nest per stage.

Values that change along the row are computed in the loop of every stage that needs them, or kept in a row buffer when
that is cheaper. Values that do not are scalars (row shape) or arrays of one block of the vector axis (lanes shape).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphc.codegen.c.accumulators import Accumulator, accumulator, seen_values
from graphc.codegen.c.nest import Loop, Nest, write_nest
from graphc.codegen.c.scalar_text import c_type
from graphc.codegen.c.stages import Stage, plan_stages
from graphc.codegen.c.writer import Writer
from graphc.ir.dims import Dim, symbol
from graphc.ir.sizes import typical
from graphc.loopir.kernel import Index, Load, Scan, Store, operands

if TYPE_CHECKING:
    from graphc.codegen.c.emit import COptions

MIN_LANES, MAX_LANES = 64, 256
"""Elements of the vector axis carried together in the lanes shape: whole cache lines, arrays that stay in L1."""

ENOUGH_ROWS = 8
"""Parallel steps from which rows are not cut."""

CHUNKS = 32
"""Pieces a long row is cut into; fixed, so that sums do not depend on the number of threads."""

EXACT_BLOCK = 512
"""Elements of f64 summed without compensation."""


def write_rows(writer: Writer, options: COptions) -> None:
    """Write the function body of a kernel with row axes."""
    _RowWriter(writer, options).write()


@dataclass(frozen=True)
class _Chunks:
    """A row axis cut into `count` pieces of `size` steps."""

    axis: str
    count: int
    size: int


class _RowWriter:
    def __init__(self, writer: Writer, options: COptions) -> None:
        self.writer, self.options, self.facts = writer, options, writer.facts
        facts = self.facts
        self.kernel = facts.kernel
        self.seen = seen_values(self.kernel, facts.dtypes)
        self.safe = [name for name in facts.axes if facts.is_disjoint(name)]
        parallel = [axis.name for axis in self.kernel.parallel_axes]
        rows = [axis.name for axis in self.kernel.row_axes]
        vector = facts.vector_axis([*rows, *(name for name in parallel if name in self.safe)])
        assert vector is not None
        self.vector = vector
        self.lane = vector if vector in parallel else None
        self.outer = [name for name in parallel if name in self.safe and name != self.lane]
        self.serial = [name for name in parallel if name not in self.safe and name != self.lane]
        self.rows = [name for name in rows if name != vector] + ([vector] if vector in rows else [])
        self.has_scan = any(isinstance(s, Scan) for s in self.kernel.body)
        self.lanes = 1
        self.chunks: _Chunks | None = None
        self.choose_blocks()
        self.stages = plan_stages(facts, self.row_buffer_limit())

    def choose_blocks(self) -> None:
        """Lanes per block, and chunks of the row where the rows alone keep too few threads busy."""
        facts, steps = self.facts, typical(self.facts.points(self.outer))
        if self.lane is not None:
            extent = typical(facts.extent(self.lane))
            wanted = MAX_LANES
            if self.options.parallel:
                wanted = max(MIN_LANES, min(MAX_LANES, extent * steps // ENOUGH_ROWS // 16 * 16))
            self.lanes = max(1, min(wanted, extent))
            steps *= -(-extent // self.lanes)
        if not self.options.parallel or self.has_scan or self.serial or steps >= ENOUGH_ROWS:
            return
        if self.lane is not None and steps >= ENOUGH_ROWS // 2:
            return
        axis = max(self.rows, key=lambda name: (typical(facts.extent(name)), name == self.vector))
        extent = typical(facts.extent(axis))
        rest = typical(facts.points(self.rows)) // max(1, extent)
        least = max(1, self.options.chunk // max(1, rest * self.lanes))
        size = max(least, -(-extent // CHUNKS))
        if axis == self.vector:
            size = -(-size // 8) * 8
        stores = [s for s in self.kernel.stores if facts.domain(s) & facts.rows]
        is_possible = isinstance(facts.axes[axis].extent, int) and facts.is_disjoint(axis, stores)
        if is_possible and extent >= 2 * size and typical(facts.total_cost) >= self.options.parallel_cost * steps:
            self.chunks = _Chunks(axis, -(-facts.extent(axis) // size), size)
            if self.lane is not None:
                self.lanes = max(1, min(MAX_LANES, typical(facts.extent(self.lane))))

    def row_buffer_limit(self) -> int:
        """Values that fit the row buffers, 0 when rows are cut or of unknown size."""
        axes = [self.facts.axes[name].extent for name in self.rows]
        if self.chunks is not None or not all(isinstance(extent, int) for extent in axes):
            return 0
        row = max(1, self.facts.points(self.rows)) * self.lanes
        return self.options.row_buffer_bytes // row

    # -- structure

    def write(self) -> None:
        writer = self.writer
        loops = [self.loop(name) for name in self.outer]
        if self.lane is not None:
            loops.append(Loop(None, *self.bounds(self.lane), f"{self.lane}_block", self.lanes))
        if loops and self.options.parallel and self.chunks is None:
            collapse = f" collapse({len(loops)})" if len(loops) > 1 else ""
            writer.pragma(f"parallel for{collapse} schedule(static){self.options.threads_if}")
        loops += [self.loop(name) for name in self.serial]
        for loop in loops:
            writer.open(loop.head())
        if self.lane is not None:
            high = f"{writer.use('gc_min_index')}({self.lane}_block + {self.lanes}, {self.bounds(self.lane)[1]})"
            writer.line(f"const int64_t {self.lane}_end = {high};")
        self.body()
        for _ in loops:
            writer.close()

    def bounds(self, axis: str) -> tuple[str, str]:
        return "0", self.writer.index(self.facts.axes[axis].extent)

    def loop(self, axis: str) -> Loop:
        if axis == self.lane:
            return Loop(axis, f"{axis}_block", f"{axis}_end", axis)
        if self.chunks is not None and axis == self.chunks.axis:
            return Loop(axis, f"{axis}_chunk", f"{axis}_end", axis)
        low, high = self.bounds(axis)
        return Loop(axis, low, high, axis)

    def body(self) -> None:
        """One row, or one block of lanes: its stages, then what is stored once per row."""
        facts, writer = self.facts, self.writer
        for stage in self.stages:
            self.declare_row_buffers(stage)
            self.invariants(stage.targets())
            self.stage(stage)
        stores = [s for s in self.kernel.stores if not facts.domain(s) & facts.rows]
        self.invariants([name for s in stores for name in operands(s)])
        lane_stores = [s for s in stores if self.lane in facts.domain(s)]
        for s in stores:
            if s not in lane_stores:
                writer.store(s)
        if lane_stores:
            write_nest(writer, Nest([self.loop(str(self.lane))], lane_stores, simd=self.simd(lane_stores, ())))

    def declare_row_buffers(self, stage: Stage) -> None:
        for name in stage.keeps:
            size = self.facts.points(self.rows_of(name)) * (self.lanes if self.has_lanes(name) else 1)
            self.writer.line(f"{c_type(self.facts.dtypes[name])} {name}_row[{max(1, size)}];")

    def rows_of(self, name: str) -> list[str]:
        return [axis for axis in self.rows if axis in self.facts.domains[name]]

    def row_place(self, name: str) -> str:
        """C text of where a kept value lies."""
        position: Dim = 0
        for axis in self.rows_of(name):
            position = position * self.facts.extent(axis) + symbol(axis)
        if self.has_lanes(name):
            position = position * self.lanes + symbol(str(self.lane)) - symbol(f"{self.lane}_block")
        return f"{name}_row[{self.writer.index(position)}]"

    # -- values that do not change along the row

    def is_reloaded(self, name: str) -> bool:
        """True for values read again from memory in every loop rather than held in an array of lanes."""
        s = self.facts.by_id[name]
        if isinstance(s, Index):
            return not any(operand for operand in operands(s))
        return isinstance(s, Load) and s.mask is None and not operands(s)

    def invariants(self, targets: Iterable[str]) -> None:
        """Compute every value needed for `targets` that is the same along the row and not there yet."""
        facts, writer = self.facts, self.writer
        available = writer.available
        needed: set[str] = set()
        stack, seen = list(targets), set()
        while stack:
            name = stack.pop()
            if name in available or name in seen:
                continue
            seen.add(name)
            if not facts.is_element(name):
                needed.add(name)
            stack.extend(operands(facts.by_id[name]))
        ordered = [name for name in facts.by_id if name in needed]
        for name in ordered:
            if self.lane not in facts.domains[name]:
                writer.define(facts.by_id[name])
        lanes = [n for n in ordered if self.lane in facts.domains[n] and not self.is_reloaded(n)]
        if lanes:
            self.lane_values(lanes, ordered)

    def lane_values(self, names: Sequence[str], ordered: Sequence[str]) -> None:
        """Compute arrays of lanes."""
        facts, writer = self.facts, self.writer
        for name in names:
            writer.line(f"{c_type(facts.dtypes[name])} {name}_lane[{self.lanes}];")
        writer.pragma("simd")
        writer.open(self.loop(str(self.lane)).head())
        for name in ordered:
            if self.lane not in facts.domains[name]:
                continue
            writer.define(facts.by_id[name])
            if name in names:
                writer.line(f"{self.lane_place(name)} = {writer.read(name)};")
        writer.close()
        for name in names:
            writer.declare(name, self.lane_place(name))

    def lane_place(self, name: str) -> str:
        return f"{name}_lane[{self.lane} - {self.lane}_block]"

    # -- one stage

    def stage(self, stage: Stage) -> None:
        """The loops of one stage, and the results of its reductions."""
        found = [accumulator(s, self.facts.dtypes[s.arg], s.id in self.seen) for s in stage.reduces]
        args = {s.id: s.arg for s in stage.reduces}
        if self.chunks is None:
            self.declare(found, args)
            self.nest(stage, found, args)
            for a in found:
                self.finish(a, args[a.id])
        else:
            self.chunked(stage, found, args)

    def has_lanes(self, arg: str) -> bool:
        return self.lane is not None and self.lane in self.facts.domains[arg]

    def declare(self, found: Sequence[Accumulator], args: dict[str, str]) -> None:
        """Accumulators, set to what a reduction over nothing gives."""
        writer = self.writer
        arrays: list[tuple[str, str]] = []
        for a in found:
            is_array = self.has_lanes(args[a.id])
            variables = [(a.c_type, a.name, a.identity)]
            if a.has_flag and not is_array:
                variables.append(("int", a.flag, "0"))
            if a.is_compensated:
                variables.append(("double", a.error, "0.0"))
            for kind, name, value in variables:
                writer.line(f"{kind} {name}[{self.lanes}];" if is_array else f"{kind} {name} = {value};")
                if is_array:
                    arrays.append((name, value))
        if arrays:
            writer.open(f"for (int64_t l = 0; l < {self.lanes}; l++)")
            for name, value in arrays:
                writer.line(f"{name}[l] = {value};")
            writer.close()

    def nest(self, stage: Stage, found: Sequence[Accumulator], args: dict[str, str]) -> None:
        """The loops over the row, lanes innermost."""
        writer, facts = self.writer, self.facts
        loops = [self.loop(name) for name in self.rows]
        exact = [a for a in found if a.is_compensated and self.lane is None]
        if self.lane is not None:
            loops.append(self.loop(self.lane))
        elif exact and self.facts.extent(self.vector) > EXACT_BLOCK:
            loops[-1:] = self.exact_blocks(loops[-1])
        scans = self.declare_scans(stage)
        is_plain = bool(scans) and self.lane is None
        clauses = [] if is_plain or self.lane is not None else [c for a in found for c in self.clauses(a, exact)]
        simd = "" if is_plain else self.simd(stage.stores, clauses)
        before = [f"double {a.id}_part = 0.0;" for a in exact]
        after = [text for a in exact for text in a.add_exactly(a.name, a.error, f"{a.id}_part", writer.use)]
        nest = Nest(
            loops,
            stage.stores,
            updates=[(a, args[a.id]) for a in found],
            scans=scans,
            keep={name: self.row_place(name) for name in stage.keeps},
            update_lines=lambda a, value: self.update(a, args[a.id], value, a in exact),
            scan_lines=self.scan_step,
            simd=simd,
            before=before,
            after=after,
            rows=facts.rows,
        )
        write_nest(writer, nest)
        for name in stage.keeps:
            writer.declare(name, self.row_place(name))

    def exact_blocks(self, loop: Loop) -> list[Loop]:
        """The innermost loop in blocks short enough for a plain sum."""
        v = loop.variable
        outer = Loop(None, loop.low, loop.high, f"{v}_block", EXACT_BLOCK)
        end = f"{self.writer.use('gc_min_index')}({v}_block + {EXACT_BLOCK}, {loop.high})"
        return [outer, Loop(loop.axis, f"{v}_block", end, v)]

    def clauses(self, a: Accumulator, exact: Sequence[Accumulator]) -> tuple[str, ...]:
        return (f"reduction(+:{a.id}_part)",) if a in exact else a.clauses

    def simd(self, stores: Sequence[Store], clauses: Sequence[str]) -> str:
        """The directive of the innermost loop; empty when its steps may write one place."""
        if not self.facts.is_disjoint(self.vector, stores):
            return ""
        return " ".join(("simd", *clauses))

    def update(self, a: Accumulator, arg: str, value: str, is_exact: bool) -> Sequence[str]:
        use = self.writer.use
        if is_exact and self.lane is None:
            return (f"{a.id}_part += {value};",)
        place = f"[{self.lane} - {self.lane}_block]" if self.has_lanes(arg) else ""
        if a.is_compensated:
            return a.add_exactly(a.name + place, a.error + place, value, use)
        return (a.combine(a.name + place, value, use),) if place else a.update(value)

    def finish(self, a: Accumulator, arg: str) -> None:
        """From here on the reduction can be read as a value."""
        writer = self.writer
        if self.has_lanes(arg):
            place = f"[{self.lane} - {self.lane}_block]"
            value = a.name + place
            if a.is_compensated:
                value = f"({a.compensated(value, a.error + place)})"
            writer.declare(a.id, f"({a.result(value)})" if a.wide != a.dtype else value)
            return
        value = a.resolved(a.name, a.flag)
        if a.is_compensated:
            value = a.compensated(a.name, a.error)
        writer.line(f"const {c_type(a.dtype)} {a.id} = {a.result(value)};")
        writer.declare(a.id)

    # -- scans

    def declare_scans(self, stage: Stage) -> dict[str, Accumulator]:
        found: dict[str, Accumulator] = {}
        for s in stage.scans:
            a = accumulator(s, self.facts.dtypes[s.arg])
            a = Accumulator(f"{a.id}_s{stage.number}", a.op, a.dtype, a.wide)
            found[s.id] = a
            if self.has_lanes(s.arg):
                self.writer.line(f"{a.c_type} {a.name}[{self.lanes}];")
                self.writer.line(f"for (int64_t l = 0; l < {self.lanes}; l++) {a.name}[l] = {a.identity};")
            else:
                self.writer.line(f"{a.c_type} {a.name} = {a.identity};")
        return found

    def scan_step(self, name: str, a: Accumulator, value: str) -> Sequence[str]:
        place = f"[{self.lane} - {self.lane}_block]" if self.has_lanes(name) else ""
        step = a.combine(a.name + place, value, self.writer.use)
        return step, f"const {c_type(a.dtype)} {name} = {a.result(a.name + place)};"

    # -- rows cut into chunks

    def chunked(self, stage: Stage, found: Sequence[Accumulator], args: dict[str, str]) -> None:
        """The stage over chunks of the row in parallel, then its partial results combined in order."""
        writer, chunks = self.writer, self.chunks
        assert chunks is not None
        axis = chunks.axis
        for a in found:
            size = chunks.count * (self.lanes if self.has_lanes(args[a.id]) else 1)
            writer.line(f"{a.c_type} {a.id}_chunk[{size}];")
        writer.pragma(f"parallel for schedule(static){self.options.threads_if}")
        writer.open(f"for (int64_t chunk = 0; chunk < {chunks.count}; chunk++)")
        writer.line(f"const int64_t {axis}_chunk = chunk*{chunks.size};")
        _, high = self.bounds(axis)
        writer.line(f"const int64_t {axis}_end = {writer.use('gc_min_index')}({axis}_chunk + {chunks.size}, {high});")
        self.declare(found, args)
        self.nest(stage, found, args)
        for a in found:
            if self.has_lanes(args[a.id]):
                value = f"{a.name}[l]"
                if a.is_compensated:
                    value = a.compensated(value, f"{a.error}[l]")
                writer.line(
                    f"for (int64_t l = 0; l < {self.lanes}; l++) {a.id}_chunk[chunk*{self.lanes} + l] = {value};"
                )
                continue
            value = a.compensated(a.name, a.error) if a.is_compensated else a.resolved(a.name, a.flag)
            writer.line(f"{a.id}_chunk[chunk] = {value};")
        writer.close()
        for a in found:
            self.combine_chunks(a, args[a.id], chunks.count)

    def combine_chunks(self, a: Accumulator, arg: str, count: int) -> None:
        writer, lanes = self.writer, self.has_lanes(arg)
        variables = [(a.c_type, a.name, a.identity)]
        if a.is_compensated:
            variables.append(("double", a.error, "0.0"))
        if a.has_flag and not lanes:
            variables.append(("int", a.flag, "0"))
        for kind, name, value in variables:
            writer.line(f"{kind} {name}[{self.lanes}];" if lanes else f"{kind} {name} = {value};")
        if lanes:
            writer.open(f"for (int64_t l = 0; l < {self.lanes}; l++)")
            for _, name, value in variables:
                writer.line(f"{name}[l] = {value};")
            writer.close()
        writer.open(f"for (int64_t chunk = 0; chunk < {count}; chunk++)")
        place = ""
        value = f"{a.id}_chunk[chunk]"
        if lanes:
            writer.open(f"for (int64_t l = 0; l < {self.lanes}; l++)")
            place, value = "[l]", f"{a.id}_chunk[chunk*{self.lanes} + l]"
        if a.is_compensated:
            writer.line(*a.add_exactly(a.name + place, a.error + place, value, writer.use))
        else:
            writer.line(a.combine(a.name + place, value, writer.use))
        if lanes:
            writer.close()
        writer.close()
        self.finish(a, arg)
