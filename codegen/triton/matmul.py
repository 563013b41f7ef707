"""Products of matrices as Triton text: the template for kernels of loop IR that hold a `contract`.

    v0: bf16 = load x[i0*K + r0]          prologue of the left operand, in the loop; what lacks r0 before it
    v1: bf16 = load w[r0*N + i1]          prologue of the right operand, likewise
    v2: f32 = contract v0 v1              acc = tl.dot(v0, v1, acc)
    v3: f32 = add v2 v..                  epilogue, on the tile of results
    store y[i0*N + i1] = v..

Parallel axes that only the left operand varies with are rows, those of the right one columns, all others the batch. So
transposes, merged heads and broadcast operands are index arithmetic. Blocks have masks where extents do not divide.
When there are few tiles and a long sum, several programs share it: each leaves its part in scratch memory, and a second
launch adds the parts in a fixed order and runs the epilogue.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

from graphc.codegen.triton.body import Body
from graphc.codegen.triton.helpers import text_of
from graphc.codegen.triton.ops import POINTERS, Context, Operand, literal, tl_dtype
from graphc.codegen.triton.tiles import GROUP, Choice, candidate_tiles
from graphc.codegen.triton.tiling import TileDim, Tiling, int_extent, join_axes, needs_wide_index
from graphc.errors import CodegenError
from graphc.loopir.kernel import Axis, Compute, Contract, Define, Kernel, Load, Store, operands
from graphc.program.triton_kernel import Launch, Scratch, TritonKernel

RESERVED = frozenset(("acc", "left", "right", "tile", "band", "height", "m_tile", "n_tile", "k_start", "part", "parts"))
FINISH_ROWS, FINISH_COLUMNS = 32, 64
"""Block of the launch that adds parts."""


def emit_product(
    kernel: Kernel, pointers: dict[str, str], name: str, target: str, choice: Choice | None
) -> TritonKernel:
    """The Triton module for a kernel that holds a `contract`.

    Args:
        kernel: with known extents.
        pointers: parameter name per buffer.
        name: of the function.
        target: as in `graphc.codegen.triton.tiles.MACHINES`.
        choice: the tile, by default the best of `product_tiles`.

    Raises:
        CodegenError: dtypes that `tl.dot` does not take.
    """
    return _Product(kernel, pointers, name, target, choice).module()


def product_tiles(kernel: Kernel, target: str) -> list[Choice]:
    """The tiles that a kernel with a `contract` may have, as `candidate_tiles` says; arguments as of `emit_product`."""
    return _Product(kernel, {}, kernel.name, target, None).candidates


class _Product:
    def __init__(self, kernel: Kernel, pointers: dict[str, str], name: str, target: str, choice: Choice | None) -> None:
        self.source, self.kernel = kernel, join_axes(kernel)
        self.pointers, self.name = pointers, name
        self.context = Context()
        (found,) = self.kernel.contractions
        self.contract = found
        self.by_id = {s.id: s for s in self.kernel.defines}
        self.rows = frozenset(axis.name for axis in self.kernel.row_axes)
        self.left, self.right = (self._narrow(name) for name in (found.left, found.right))
        self.dtype = self.by_id[self.left].dtype
        if self.dtype.name not in ("bf16", "f16", "f32", "i8"):
            raise CodegenError(f"kernel {kernel.name}: no template multiplies matrices of {self.dtype.name}")
        self.axes = self._classes()
        batch, rows, columns, inner = (prod(int_extent(axis) for axis in self.axes[kind]) for kind in "bmnk")
        loops = [s for s in self._closure((self.left, self.right)) if isinstance(s, Load) and self._is_inner(s)]
        self.candidates = [choice] if choice else candidate_tiles(
            target, batch, rows, columns, inner, self.dtype, loaded=max((s.dtype.itemsize for s in loops), default=1),
            scalar=self.dtype.name == "f32" and not found.tf32,
        )  # fmt: skip
        self.choice = self.candidates[0]
        tile = self.choice.tile
        self.batch = _dim("b", self.axes["b"], 1, "")
        self.m = _dim("m", self.axes["m"], tile.rows, "MBLOCK")
        self.n = _dim("n", self.axes["n"], tile.columns, "NBLOCK")
        self.k = _dim("k", self.axes["k"], tile.depth, "KBLOCK", self.choice.parts)
        self.wide = needs_wide_index(self.kernel, max(tile.rows, tile.columns))
        self.functions: list[str] = []
        self.launches: list[Launch] = []

    def _narrow(self, name: str) -> str:
        """Bytes that are widened for the product: matrix units take them as they are."""
        s = self.by_id[name]
        if s.dtype.name == "i32" and isinstance(s, Compute) and s.op == "cast":
            return s.args[0]
        return name

    def _classes(self) -> dict[str, tuple[Axis, ...]]:
        left, right = (self.kernel.domains[name] for name in (self.contract.left, self.contract.right))
        found: dict[str, list[Axis]] = {kind: [] for kind in "bmnk"}
        for axis in self.kernel.axes:
            kind = "k" if axis.name in self.rows else "b"
            if kind == "b" and (axis.name in left) != (axis.name in right):
                kind = "m" if axis.name in left else "n"
            found[kind].append(axis)
        return {kind: tuple(axes) for kind, axes in found.items()}

    # -------------------------------------------------------------------------------------------------------- parts

    def _closure(self, wanted: Iterable[str]) -> list[Define]:
        """Statements that values come from, in order, short of the contraction."""
        names, kept = set(wanted), list[Define]()
        for s in reversed(list(self.kernel.defines)):
            if s.id in names and not isinstance(s, Contract):
                kept.append(s)
                names.update(operands(s))
        return kept[::-1]

    def _is_inner(self, s: Define) -> bool:
        """It changes from step to step of the loop."""
        return bool(self.kernel.domains[s.id] & self.rows)

    def _body(self, lines: list[str], *dims: TileDim) -> Body:
        tiling = Tiling(self.kernel, tuple(dims), self.choice.tile.warps, wide=self.wide)
        return Body(tiling, self.context, self.pointers, lines)

    def _place(self, body: Body, m: TileDim, n: TileDim) -> None:
        """Index variables of the program's block: its batch, and tiles in bands of `GROUP` rows."""
        rows, columns = m.programs, n.programs
        body.line("tile = tl.program_id(0)")
        if self.batch.extent != 1:
            number = body.index_type(f"(tile // {rows * columns})")
            body.line(f"{self.batch.name} = {number}", f"{self.batch.extent}")
            body.axis_variables(self.batch)
            body.line(f"tile = tile % {rows * columns}")
        if rows == 1 or columns == 1:
            body.line(f"m_tile = {'tile' if columns == 1 else '0'}")
            body.line(f"n_tile = {'tile' if rows == 1 else '0'}")
        else:
            body.line(f"band = tile // {GROUP * columns} * {GROUP}")
            body.line(f"height = tl.minimum({rows} - band, {GROUP})")
            body.line(f"m_tile = band + tile % {GROUP * columns} % height")
            body.line(f"n_tile = tile % {GROUP * columns} // height")
        for dim, number in ((m, "m_tile"), (n, "n_tile")):
            body.line(f"{dim.name} = {number} * {dim.constexpr} + {body.lanes(dim)}", f"{dim.extent}")
            body.mask_variable(dim)
            body.axis_variables(dim)

    def _outer(self, body: Body, name: str) -> None:
        for s in self._closure((name,)):
            if not self._is_inner(s):
                body.define(s)

    def _factor(self, body: Body, name: str) -> str:
        """An operand of the product over its whole block, zero behind the end of the sum."""
        body.line(f"{self.k.name} = {body.index_type('k_start')} + {body.lanes(self.k)}", f"{self.k.extent}")
        if self.k.extent % self.k.block:
            body.line(f"in_{self.k.name} = {self.k.name} < {self.k.extent}")
        body.axis_variables(self.k)
        for s in self._closure((name,)):
            if self._is_inner(s):
                body.define(s)
        text, s = body.expanded(name, body.full), self.by_id[name]
        is_zero_outside = isinstance(s, Load) and (s.mask is None or s.other == 0) and self._is_inner(s)
        if is_zero_outside or body.blocked[self.k.name].is_exact:
            return text
        return f"tl.where(in_{self.k.name}, {text}, {literal(0.0 if s.dtype.is_float else 0, s.dtype)})"

    def _sum(self, lines: list[str], main: Body) -> None:
        """`acc`, the product's block, or its part of the sum."""
        k = replace(self.k, parts=1, is_row=False)
        left, right = self._body(lines, self.m, k), self._body(lines, k, self.n)
        for body, name in ((left, self.left), (right, self.right)):
            self._outer(body, name)
        out = tl_dtype(self.contract.dtype)
        main.line(f"acc = tl.zeros([MBLOCK, NBLOCK], {out})")
        bounds = f"0, {k.extent}"
        if k.extent and self.choice.parts > 1:
            length = self._steps_per_part() * k.block
            main.line("part = tl.program_id(1)")
            bounds = f"part * {length}, tl.minimum(part * {length} + {length}, {k.extent})"
        main.line(f"for k_start in range({bounds}, KBLOCK):")
        for body in (left, right):
            body.depth += 1
        left.line(f"left = {self._factor(left, self.left)}")
        right.line(f"right = {self._factor(right, self.right)}")
        precision = (
            f', input_precision="{"tf32" if self.contract.tf32 else "ieee"}"' if self.dtype.name == "f32" else ""
        )
        kind = f", out_dtype={out}" if not self.dtype.is_float else ""
        right.line(f"acc = tl.dot(left, right, acc{precision}{kind})")

    def _steps_per_part(self) -> int:
        steps = -(-self.k.extent // self.k.block)
        return -(-steps // self.choice.parts)

    def _epilogue(self, body: Body) -> None:
        body.values[self.contract.id] = Operand("acc", self.contract.dtype)
        body.shapes[self.contract.id] = body.full
        stores = [s for s in self.kernel.body if isinstance(s, Store)]
        for s in self._closure(name for store in stores for name in operands(store)):
            body.define(s)
        for store in stores:
            body.store(store)

    # -------------------------------------------------------------------------------------------------------- module

    def module(self) -> TritonKernel:
        """The whole text."""
        lines: list[str] = []
        body = self._body(lines, self.m, self.n)
        self._place(body, self.m, self.n)
        self._sum(lines, body)
        scratch: tuple[Scratch, ...] = ()
        if self.choice.parts == 1:
            self._epilogue(body)
        else:
            size = self.choice.parts * self.batch.extent * self.m.extent * self.n.extent
            scratch = (Scratch(POINTERS[self.contract.dtype.name], size),)
            masks = body.edge_masks(body.full)
            mask = f", mask={' & '.join(masks)}" if masks else ""
            body.line(f"tl.store({self._scratch_place('part')}, acc{mask})")
        tile = self.choice.tile
        constexprs = (("MBLOCK", tile.rows), ("NBLOCK", tile.columns), ("KBLOCK", tile.depth))
        programs = self.batch.extent * self.m.programs * self.n.programs
        self._function(self.name, lines, constexprs, (programs, self.choice.parts), tile.warps, tile.stages)
        if scratch:
            self._finish()
        signature = [(self.pointers[b.name], POINTERS[b.dtype.name]) for b in self.kernel.buffers]
        signature += [("parts_ptr", item.dtype) for item in scratch]
        imports = "import triton\nimport triton.language as tl\n"
        if self.context.libdevice:
            imports += "from triton.language.extra import libdevice\n"
        text = imports + "\n\n" + text_of(self.context.helpers) + "\n\n".join(self.functions)
        return TritonKernel(self.name, text, tuple(signature), tuple(self.launches), scratch)

    def _scratch_place(self, part: str) -> str:
        number = part if self.batch.extent == 1 else f"({part} * {self.batch.extent} + {self.batch.name})"
        return f"parts_ptr + (({number} * {self.m.extent} + {self.m.name}) * {self.n.extent} + {self.n.name})"

    def _finish(self) -> None:
        """The launch that adds the parts and runs the epilogue."""
        lines: list[str] = []
        m, n = replace(self.m, block=FINISH_ROWS), replace(self.n, block=FINISH_COLUMNS)
        body = self._body(lines, m, n)
        self._place(body, m, n)
        masks = body.edge_masks(body.full)
        mask = f", mask={' & '.join(masks)}" if masks else ""
        body.line(f"acc = tl.zeros([MBLOCK, NBLOCK], {tl_dtype(self.contract.dtype)})")
        body.line(f"for part in range({self.choice.parts}):")
        body.line(f"    acc += tl.load({self._scratch_place('part')}{mask})")
        self._epilogue(body)
        constexprs = (("MBLOCK", m.block), ("NBLOCK", n.block))
        self._function(f"{self.name}_finish", lines, constexprs, (self.batch.extent * m.programs * n.programs, 1), 4, 1)

    def _function(
        self, name: str, lines: list[str], constexprs: tuple[tuple[str, int], ...], grid: tuple[int, int], warps: int,
        stages: int,
    ) -> None:  # fmt: skip
        parameters = [*self.pointers.values(), *(["parts_ptr"] if self.choice.parts > 1 else [])]
        parameters += [f"{constexpr}: tl.constexpr" for constexpr, _ in constexprs]
        notes = "".join(f"    # src[{note}]\n" for note in self.source.notes)
        header = f"@triton.jit\ndef {name}({', '.join(parameters)}):\n"
        self.functions.append(header + notes + "\n".join(lines) + "\n")
        self.launches.append(Launch(name, (*grid, 1), constexprs, warps, stages))


def _dim(name: str, axes: tuple[Axis, ...], block: int, constexpr: str, parts: int = 1) -> TileDim:
    extent = prod(int_extent(axis) for axis in axes)
    return TileDim(axes[0].name if len(axes) == 1 else name, axes, extent, block, constexpr, parts=parts)
