"""Loops over time as one Triton kernel: each program takes some rows of the batch through all turns.

    for turn in range(50):                                  one launch in place of one per step and turn
        for n_start in range(0, 128, NBLOCK):               a kernel of the turn, block of columns by block
            for k_start in range(0, 128, KBLOCK):           the products that it reads, where only it reads them:
                acc_0 = tl.dot(h, w[:, i1], acc_0)          gates are the epilogue of h @ w, nothing of it is stored
                acc_1 = tl.dot(h, w[:, i1 + 128], acc_1)
            ...
            tl.store(...)
        tl.debug_barrier()                                  the next step reads what other threads have stored

Rows need nothing of each other (`graphc.passes.rows_apart`), so there is no waiting for other programs, and what is
handed on from turn to turn stays in the caches of one processor; so do weights, if they fit. Products that several
kernels read, or that are handed on, are steps of their own. What lives within a turn is in scratch memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from graphc.codegen.triton.body import Body
from graphc.codegen.triton.helpers import text_of
from graphc.codegen.triton.joined_axes import int_extent
from graphc.codegen.triton.ops import POINTERS, Context, cast
from graphc.codegen.triton.tiles import machine_of, precision_of
from graphc.codegen.triton.tiling import TileDim, Tiling, needs_wide_index, power_of_two
from graphc.ir.dims import symbol
from graphc.ir.types import f32
from graphc.loopir.kernel import Kernel, Load, Store
from graphc.loopir.transform import rows_outermost, split_axis
from graphc.program.lifetimes import step_buffers, written_buffers
from graphc.program.loops import Binding, LoopStep
from graphc.program.plan import ARENA, BufferSpec, GemmStep, KernelStep, Plan, View
from graphc.program.triton_kernel import Launch, Scratch, TritonKernel

ROWS, COLUMNS, DEPTH = 16, 64, 64
"""Block of a program: rows are the fewest that matrix units take, so that there are as many programs as can be."""
WARPS, STAGES = 4, 2
_WIDE = 2**31 - 2**16
"""Elements of a buffer from which on places in it are computed in 64 bits."""


def fits(loop: LoopStep, target: str) -> bool:
    """Whether a loop is to be one kernel: the weights that each turn reads again stay in a processor's own memory."""
    machine = machine_of(target)
    weights = {(step.b.buffer, step.b.offset): step.b for step in loop.steps if isinstance(step, GemmStep)}
    return loop.rows > 0 and sum(prod(view.shape) * view.dtype.itemsize for view in weights.values()) <= machine.shared


def emit_loop(loop: LoopStep, plan: Plan, name: str) -> tuple[TritonKernel, tuple[int, ...]]:
    """The kernel of a loop whose rows go through it by themselves, and the buffers of the plan that it takes.

    Args:
        name: of the kernel.

    Raises:
        CodegenError: an element type or operator that Triton lacks.
    """
    writer = _Loop(loop, plan, name)
    return writer.module(), tuple(writer.taken)


@dataclass(frozen=True)
class _Product:
    """A product that a kernel computes as it needs it.

    Args:
        step: the product.
        columns: what is to be added to the column axis, per load of the product.
    """

    step: GemmStep
    columns: Mapping[str, int]


class _Loop:
    def __init__(self, loop: LoopStep, plan: Plan, name: str) -> None:
        self.loop, self.plan, self.name = loop, plan, name
        self.context = Context()
        self.lines: list[str] = []
        self.kernels = {
            number: _outermost(plan.kernels[step.kernel], loop.rows)
            for number, step in enumerate(loop.steps)
            if isinstance(step, KernelStep)
        }
        self.products = self._taken_in()
        inside = {item.step.out.buffer for found in self.products.values() for item in found}
        used = {index for step in loop.steps for index in step_buffers(step)} - inside
        self.own = [spec for spec in loop.specs if spec.kind == ARENA and spec.index in used]
        outer = [loop.bindings[index] for index in sorted(used) if loop.specs[index].kind != ARENA]
        self.taken = list(dict.fromkeys(index for binding in outer for index in _outer_buffers(binding)))
        self.parameters = {index: f"b{index}_ptr" for index in self.taken}
        self.scratch = {spec.index: f"turn{spec.index}_ptr" for spec in self.own}
        self.wide = any(_elements(plan.buffers[index]) > _WIDE for index in self.taken)

    # ------------------------------------------------------------------------------------ products inside of kernels

    def _taken_in(self) -> dict[int, list[_Product]]:
        """Per kernel step the products that only it reads, all of whose operands are there when it runs."""
        found: dict[int, list[_Product]] = {}
        for number, step in enumerate(self.loop.steps):
            if not isinstance(step, GemmStep) or step.accumulate or self.loop.specs[step.out.buffer].kind != ARENA:
                continue
            readers = [
                at
                for at, other in enumerate(self.loop.steps)
                if at != number and step.out.buffer in step_buffers(other)
            ]
            if len(readers) != 1 or readers[0] < number or readers[0] not in self.kernels:
                continue
            (reader,) = readers
            columns = self._columns(step, reader)
            if columns is not None and not self._overwritten(step, number, reader):
                found.setdefault(reader, []).append(_Product(step, columns))
        return found

    def _columns(self, product: GemmStep, reader: int) -> dict[str, int] | None:
        """Which column each load of a product is, next to the kernel's own column; None when they are no columns."""
        kernel, step = self.kernels[reader], self.loop.steps[reader]
        assert isinstance(step, KernelStep)
        names = [b.name for b, index in zip(kernel.buffers, step.buffers, strict=True) if index == product.out.buffer]
        if len(names) != 1 or step.offsets[step.buffers.index(product.out.buffer)] or len(kernel.axes) != 2:
            return None
        row, column = (symbol(axis.name) for axis in kernel.axes)
        found: dict[str, int] = {}
        for s in kernel.body:
            if not isinstance(s, Load | Store) or s.buffer != names[0]:
                continue
            rest = s.index - column - (row * product.out.strides[0] if self.loop.rows > 1 else 0)
            if isinstance(s, Store) or s.mask is not None or not isinstance(rest, int) or product.out.strides[1] != 1:
                return None
            found[s.id] = rest - product.out.offset
        return found

    def _overwritten(self, product: GemmStep, number: int, reader: int) -> bool:
        """Whether an operand of a product may be stored to before the kernel that takes it in has read all of it."""
        written = {
            index
            for step in self.loop.steps[number + 1 : reader + 1]
            for index in written_buffers(step, self.plan.kernels)
        }
        operands = (product.a.buffer, product.b.buffer)
        return any(
            self._meet(index, operand, turn)
            for index in written
            for operand in operands
            for turn in range(self.loop.length)
        )

    def _meet(self, one: int, other: int, turn: int) -> bool:
        """Whether two buffers of the loop share memory in a turn, as far as their ends tell."""
        (memory, low, high), (other_memory, first, last) = (self._span(index, turn) for index in (one, other))
        return memory == other_memory and low < last and first < high

    def _span(self, index: int, turn: int) -> tuple[int, int, int]:
        """Where a buffer of the loop lies in a turn: in which memory, and between which bytes."""
        spec = self.loop.specs[index]
        if spec.kind == ARENA:
            return -2 - index, 0, spec.nbytes
        outer, offset = self.loop.bindings[index].at(turn)
        found = self.plan.buffers[outer]
        start = offset * spec.dtype.itemsize + (found.arena_offset if found.kind == ARENA else 0)
        return -1 if found.kind == ARENA else outer, start, start + spec.nbytes

    # -------------------------------------------------------------------------------------------------------- module

    def module(self) -> TritonKernel:
        """The whole text."""
        rows = self.loop.rows
        self._line(1, f"row = tl.program_id(0) * MBLOCK + {self._typed('tl.arange(0, MBLOCK)')}[:, None]")
        if rows % ROWS:
            self._line(1, f"in_row = row < {rows}")
        self._line(1, f"for turn in range(0, {self.loop.length}):")
        inside = {id(item.step) for found in self.products.values() for item in found}
        for number, step in enumerate(self.loop.steps):
            if id(step) in inside:
                continue
            if isinstance(step, GemmStep):
                self._product(step)
            else:
                assert isinstance(step, KernelStep)
                self._kernel(number, step)
            self._line(2, "tl.debug_barrier()")
        parameters = [*self.parameters.values(), *self.scratch.values()]
        signature = [(self.parameters[index], POINTERS[self.plan.buffers[index].dtype.name]) for index in self.taken]
        scratch = tuple(Scratch(POINTERS[spec.dtype.name], _elements(spec)) for spec in self.own)
        signature += [(self.scratch[spec.index], item.dtype) for spec, item in zip(self.own, scratch, strict=True)]
        notes = dict.fromkeys(note for kernel in self.kernels.values() for note in kernel.notes)
        header = f"@triton.jit\ndef {self.name}({', '.join(parameters)}, MBLOCK: tl.constexpr):\n"
        header += "".join(f"    # src[{note}]\n" for note in notes)
        imports = "import triton\nimport triton.language as tl\n"
        if self.context.libdevice:
            imports += "from triton.language.extra import libdevice\n"
        text = imports + "\n\n" + text_of(self.context.helpers) + header + "\n".join(self.lines) + "\n"
        launch = Launch(self.name, (-(-rows // ROWS), 1, 1), (("MBLOCK", ROWS),), WARPS, STAGES)
        return TritonKernel(self.name, text, tuple(signature), (launch,), scratch)

    def _line(self, depth: int, text: str) -> None:
        self.lines.append("    " * depth + text)

    def _typed(self, text: str) -> str:
        return f"tl.cast({text}, tl.int64)" if self.wide else text

    def _pointer(self, index: int, name: str) -> str:
        """Define where a buffer of the loop begins in this turn; gives the variable."""
        spec = self.loop.specs[index]
        if spec.kind == ARENA:
            return self.scratch[index]
        binding = self.loop.bindings[index]
        (even, odd), (at_even, at_odd) = binding.buffers, binding.offsets
        text = self._place(even, at_even, binding.stride)
        if (odd, at_odd) != (even, at_even):
            text = f"tl.where(turn % 2 == 0, {text}, {self._place(odd, at_odd, binding.stride)})"
        if binding.first >= 0:
            text = f"tl.where(turn == 0, {self._place(binding.first, binding.first_offset, 0)}, {text})"
        self._line(2, f"{name} = {text}")
        return name

    def _place(self, outer: int, offset: int, stride: int) -> str:
        terms = [self.parameters[outer]]
        terms += [f"{self._typed('turn')} * {stride}"] if stride else []
        terms += [str(offset)] if offset else []
        return " + ".join(terms)

    # --------------------------------------------------------------------------------------------------------- steps

    def _kernel(self, number: int, step: KernelStep) -> None:
        """A kernel, with the products that it takes in."""
        kernel = self.kernels[number]
        products = self.products.get(number, [])
        inside = {item.step.out.buffer for item in products}
        self._line(2, f"# {kernel.name}")
        pointers: dict[str, str] = {}
        for buffer, index, offset in zip(kernel.buffers, step.buffers, step.offsets, strict=True):
            if index not in inside:
                place = self._pointer(index, f"{buffer.name}_{number}_ptr")
                pointers[buffer.name] = f"{place} + {offset}" if offset else place
        operands = [
            tuple(
                self._pointer(view.buffer, f"{name}_{number}_{at}")
                for name, view in (("left", item.step.a), ("right", item.step.b))
            )
            for at, item in enumerate(products)
        ]
        first, *others = kernel.axes
        m = TileDim(first.name, (first,), self.loop.rows, ROWS, "MBLOCK")
        extent = prod(int_extent(axis) for axis in others)
        block = _block(extent, COLUMNS)
        n = TileDim(others[0].name if len(others) == 1 else "n", tuple(others), extent, block, str(block))
        wide = self.wide or needs_wide_index(kernel, max(ROWS, block))
        body = Body(Tiling(kernel, (m, n), WARPS, wide=wide), self.context, pointers, self.lines, depth=2)
        body.line(f"for n_start in range(0, {extent}, {block}):")
        body.depth = 3
        body.line(f"{m.name} = {body.index_type('row')}")
        if not m.is_exact:
            body.line(f"in_{m.name} = in_row")
        body.line(f"{n.name} = n_start + {body.lanes(n)}", f"{n.extent}")
        body.mask_variable(n)
        body.axis_variables(n)
        accumulators = [
            self._multiply(body, item, left, right, m, n, at)
            for at, (item, (left, right)) in enumerate(zip(products, operands, strict=True))
        ]
        loads = {load: name for found in accumulators for load, name in found.items()}
        for s in kernel.body:
            if isinstance(s, Store):
                body.store(s)
            elif s.id in loads and isinstance(s, Load):
                rounded = cast(loads[s.id], f32, body.buffers[s.buffer].dtype)
                body.bind(s, cast(rounded, body.buffers[s.buffer].dtype, s.dtype), body.full)
            else:
                body.define(s)

    def _multiply(
        self, body: Body, item: _Product, left: str, right: str, m: TileDim, n: TileDim, number: int
    ) -> dict[str, str]:
        """The columns of a product that a kernel reads in this block: per load the name of its accumulator."""
        names = {at: f"acc_{number}_{place}" for place, at in enumerate(dict.fromkeys(item.columns.values()))}
        for name in names.values():
            body.line(f"{name} = tl.zeros([MBLOCK, {n.constexpr}], tl.float32)")
        columns = {name: n.name if at == 0 else f"({n.name} + {at})" for at, name in names.items()}
        self._dots(body.depth, item.step, left, right, columns, "" if n.is_exact else f"in_{n.name}")
        return {load: names[at] for load, at in item.columns.items()}

    def _dots(self, depth: int, step: GemmStep, left: str, right: str, columns: Mapping[str, str], mask: str) -> None:
        """Add products of all rows to accumulators, each of which has columns of its own."""
        inner = step.a.shape[1]
        block = _block(inner, DEPTH * 2 // step.a.dtype.itemsize)
        is_exact = inner % block == 0
        self._line(depth, f"for k_start in range(0, {inner}, {block}):")
        self._line(depth + 1, f"k = k_start + {self._typed(f'tl.arange(0, {block})')}")
        masks = [
            *([] if self.loop.rows % ROWS == 0 else ["in_row"]),
            *([] if is_exact else [f"(k < {inner})[None, :]"]),
        ]
        a = _address(left, step.a, "row", "k[None, :]")
        self._line(depth + 1, f"left = {_load(a, masks)}")
        masks = [*([] if is_exact else [f"(k < {inner})[:, None]"]), *([mask] if mask else [])]
        kind = precision_of(step.a.dtype)
        for name, column in columns.items():
            b = _address(right, step.b, "k[:, None]", column)
            self._line(depth + 1, f"{name} = tl.dot(left, {_load(b, masks)}, {name}{kind})")

    def _product(self, step: GemmStep) -> None:
        """A product as a step of its own."""
        rows, columns = step.out.shape
        block = _block(columns, COLUMNS)
        is_exact = columns % block == 0
        self._line(2, f"# {rows}x{columns}x{step.a.shape[1]} product")
        a, b, out = (
            self._pointer(view.buffer, f"{name}_{step.out.buffer}_ptr")
            for name, view in (("a", step.a), ("b", step.b), ("out", step.out))
        )
        self._line(2, f"for n_start in range(0, {columns}, {block}):")
        self._line(3, f"n = n_start + {self._typed(f'tl.arange(0, {block})')}[None, :]")
        self._line(3, f"acc = tl.zeros([MBLOCK, {block}], tl.float32)")
        self._dots(3, step, a, b, {"acc": "n"}, "" if is_exact else f"(n < {columns})")
        masks = [*([] if rows % ROWS == 0 else ["in_row"]), *([] if is_exact else [f"(n < {columns})"])]
        place = _address(out, step.out, "row", "n")
        if step.accumulate:
            self._line(3, f"acc += {_load(place, masks)}.to(tl.float32)")
        mask = f", mask={' & '.join(masks)}" if masks else ""
        self._line(3, f"tl.store({place}, {cast('acc', f32, step.out.dtype)}{mask})")


def _block(extent: int, most: int) -> int:
    return max(16, min(most, power_of_two(extent)))


def _load(place: str, masks: Sequence[str]) -> str:
    condition = f", mask={' & '.join(masks)}, other=0.0" if masks else ""
    return f"tl.load({place}{condition})"


def _address(pointer: str, view: View, row: str, column: str) -> str:
    terms = [pointer]
    for index, stride in zip((row, column), view.strides, strict=True):
        terms += [index if stride == 1 else f"{index} * {stride}"] if stride else []
    terms += [str(view.offset)] if view.offset else []
    return " + ".join(terms)


def _outermost(kernel: Kernel, rows: int) -> Kernel:
    """The kernel with the rows as its first axis of at least two."""
    found = rows_outermost(kernel, rows)
    assert found is not None, "seen before"
    return found if len(found.axes) > 1 else split_axis(found, found.axes[0].name, 1)


def _outer_buffers(binding: Binding) -> Iterator[int]:
    yield from binding.buffers
    if binding.first >= 0:
        yield binding.first


def _elements(spec: BufferSpec) -> int:
    return -(-spec.nbytes // spec.dtype.itemsize)
