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

Data may say by which matrix each row is multiplied (`graphc.codegen.triton.ragged`), as with a mixture of experts: the
program walks the groups that it finds among its rows, and stores the rows of one group at a time. Rows in the order of
their groups make that few; right it is in any order. A sum over a part of the axis is a loop over that part.

    halves = tl.split(..acc..)
    for half in tl.static_range(2):
        epilogue on halves[half]

Of a large tile the epilogue takes the left half of the columns, then the right one, or quarters: beside all sums there
is no room in registers for as many numbers that it loads, nor in shared memory for a tile that is to be stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from graphc.codegen.triton.body import Body
from graphc.codegen.triton.described import Matrix, matrix
from graphc.codegen.triton.helpers import text_of
from graphc.codegen.triton.indexing import single_numbers
from graphc.codegen.triton.joined_axes import int_extent, join_axes
from graphc.codegen.triton.ops import POINTERS, Context, Operand, literal, tl_dtype
from graphc.codegen.triton.ragged import bounds_of_sum, closure, domain_without, group_of_rows, with_number
from graphc.codegen.triton.tiles import GROUP, Choice, candidate_tiles, machine_of, precision_of
from graphc.codegen.triton.tiling import INT32_LIMIT, TileDim, Tiling, needs_wide_index
from graphc.codegen.triton.tiling import stride as axis_stride
from graphc.codegen.triton.widths import WIDEST
from graphc.errors import CodegenError
from graphc.ir.dims import static
from graphc.ir.types import FLOAT8, bool_
from graphc.loopir.kernel import Axis, Compute, Define, Kernel, Load, Store, operands
from graphc.program.triton_kernel import Launch, Scratch, TritonKernel

RESERVED = frozenset((
    "acc", "left", "right", "tile", "band", "height", "m_tile", "n_tile", "k_start", "part", "parts",
    "later", "within", "left_blocks", "right_blocks", "group", "groups", "first_group", "last_group", "member",
    "item", "items", "numbers", "count", "at", "step", "first", "last", "halves", "half", "quarters", "quarter",
))  # fmt: skip
STARTS = {"MBLOCK": "m_tile * MBLOCK", "NBLOCK": "n_tile * NBLOCK"}
STARTS["NHALF"] = STARTS["NBLOCK"] + " + half * NHALF"
STARTS["NQUARTER"] = STARTS["NHALF"] + " + quarter * NQUARTER"
"""Where a block begins, by the constant that is its size."""
PIECES = (("halves", "half", "NHALF"), ("quarters", "quarter", "NQUARTER"))
EXACT_STEPS = 128
"""Products of 8-bit floats that are added up before the sum is rounded as in f32: what the library does by default."""
LAST_STEP = "k_start = "
"""Begins the text of a last step that is apart from the loop."""
PARTS = "parts_ptr"
"""Scratch memory of sums that several programs share."""
RENAMED = 100_000
"""Number from which on statements are named anew."""
LONG = 512
"""Rows from which on a tile needs none of the next matrix: those that stay empty are few."""
FINISH_ROWS, FINISH_COLUMNS = 32, 64
"""Block of the launch that adds parts."""


def product_tiles(kernel: Kernel, target: str) -> list[Choice]:
    """The tiles that a kernel with a `contract` may have, as `candidate_tiles` says."""
    return Product(kernel, {}, kernel.name, target, None).candidates


@dataclass(frozen=True)
class _Side:
    """An operand while it is written.

    Args:
        name: `left` or `right`.
        body: its lines.
        inside: statements that change along the sum.
        text: its name among them.
    """

    name: str
    body: Body
    inside: list[Define]
    text: str


class Product:
    """The writer of the Triton module for a kernel that holds a `contract`.

    Args:
        kernel: with known extents.
        pointers: parameter name per buffer.
        name: of the function.
        target: as in `graphc.codegen.triton.tiles.MACHINES`.
        choice: the tile, by default the best of `product_tiles`.

    Attributes:
        left, right: names of the operands, as matrix units take them.
        axes: the kernel's by what they are to the product: `b` batch, `m` rows, `n` columns, `k` summed over.
        group: the value that says by which matrix each row is multiplied, if there is one.
        limits: loaded bounds of the sum.
        scratch: memory between launches, by the name of its parameter.
        matrices: both operands as they lie in memory, when blocks of both can be copied by a chip that does that.

    Raises:
        CodegenError: dtypes that `tl.dot` does not take.
    """

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
        if self.dtype.name not in ("bf16", "f16", "f32", "i8") and self.dtype not in FLOAT8:
            raise CodegenError(f"kernel {kernel.name}: no template multiplies matrices of {self.dtype.name}")
        self.group: str | None = None
        self.axes = self._classes()
        self.limits = self._limits()
        whole = self.axes
        self.matrices = self._in_memory(target)
        self.candidates = [choice] if choice else self._candidates(target)
        if self.axes != whole and not self.candidates[0].programs:
            self.axes, self.matrices = whole, None
            self.candidates = [choice] if choice else self._candidates(target)
        self.choice = self.candidates[0]
        if self.choice.parts > 1 and (self.group is not None or any(self.limits)):
            self.choice = replace(self.choice, parts=1)
        tile = self.choice.tile
        self.batch = _dim("b", self.axes["b"], 1, "")
        self.m = _dim("m", self.axes["m"], tile.rows, "MBLOCK")
        self.n = _dim("n", self.axes["n"], tile.columns, "NBLOCK")
        self.k = _dim("k", self.axes["k"], tile.depth, "KBLOCK", self.choice.parts)
        self.wide = needs_wide_index(self.kernel, max(tile.rows, tile.columns))
        self.scratch: dict[str, Scratch] = {}
        if self.choice.parts > 1:
            size = self.choice.parts * self.batch.extent * self.m.extent * self.n.extent
            self.scratch[PARTS] = Scratch(POINTERS[self.contract.dtype.name], size)
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
        found = self._sorted(left, right)
        if not found["m"]:
            self.group = group_of_rows(self.kernel, self.left, self.right)
        if self.group is None:
            return found
        return self._sorted(left, domain_without(self.kernel, self.right, self.group))

    def _sorted(self, left: frozenset[str], right: frozenset[str]) -> dict[str, tuple[Axis, ...]]:
        found: dict[str, list[Axis]] = {kind: [] for kind in "bmnk"}
        for axis in self.kernel.axes:
            kind = "k" if axis.name in self.rows else "b"
            if kind == "b" and (axis.name in left) != (axis.name in right):
                kind = "m" if axis.name in left else "n"
            found[kind].append(axis)
        return {kind: tuple(axes) for kind, axes in found.items()}

    def _limits(self) -> tuple[set[str], set[str]]:
        """Loaded bounds of the sum."""
        if len(self.axes["k"]) != 1:
            return set(), set()
        outer = [axis.name for axis in self.axes["b"]]
        return bounds_of_sum(self.kernel, (self.left, self.right), self.axes["k"][0].name, outer)

    def _candidates(self, target: str) -> list[Choice]:
        batch, rows, columns, inner = (prod(int_extent(axis) for axis in self.axes[kind]) for kind in "bmnk")
        loops = [s for s in self._closure((self.left, self.right)) if isinstance(s, Load) and self._is_inner(s)]
        return candidate_tiles(
            target, batch, rows, columns, inner, self.dtype, loaded=max((s.dtype.itemsize for s in loops), default=1),
            scalar=self.dtype.name == "f32" and not self.contract.tf32, groups=self._matrices(inner * columns),
            stored=max((self._width(s) for s in self.kernel.body if isinstance(s, Store)), default=1),
            beside=self._beside(), may_stay=self.matrices is not None or self.has_items,
        )  # fmt: skip

    @property
    def has_items(self) -> bool:
        """Rows have groups that can be listed, see `graphc.codegen.triton.group_items`."""
        return self.group is not None and not self.axes["b"]

    def _in_memory(self, target: str) -> tuple[Matrix, Matrix] | None:
        """Both operands, where a chip can copy blocks of both; what tiles need none of may become the batch for it."""
        has_sum = all(int_extent(axis) for axis in self.axes["k"])
        is_other = any(self.limits) or (self.group is not None and not self.has_items)
        if not machine_of(target).describes or is_other or not has_sum:
            return None
        for axes in (self.axes, self._apart("m"), self._apart("n"), self._apart("mn")):
            left = matrix(self.kernel, self.left, axes, "m", None)
            right = matrix(self.kernel, self.right, axes, "n", self.group)
            if left is not None and right is not None:
                self.axes = axes
                return left, right
        return None

    def _apart(self, kinds: str) -> dict[str, tuple[Axis, ...]]:
        """The axes with rows, or columns, along the last of several alone, when that is long."""
        moved = [axis for kind in kinds for axis in self.axes[kind][:-1] if int_extent(self.axes[kind][-1]) >= LONG]
        if self.group is not None or not moved:
            return self.axes
        found = {kind: tuple(axis for axis in axes if axis not in moved) for kind, axes in self.axes.items()}
        return found | {"b": (*self.axes["b"], *moved)}  # matrices that several share, one after the other

    def _matrices(self, size: int) -> int:
        """How many matrices rows may be multiplied by."""
        if self.group is None or not size:
            return 1
        names = {s.buffer for s in closure(self.kernel, (self.right,)) if isinstance(s, Load) and self._is_inner(s)}
        return max(1, max(static(b.size) for b in self.kernel.buffers if b.name in names) // size)

    def _width(self, s: Store | Load) -> int:
        return next(b.dtype.itemsize for b in self.kernel.buffers if b.name == s.buffer)

    def _beside(self) -> int:
        """Bytes that are loaded per element of the result."""
        rows, columns = ({axis.name for axis in self.axes[kind]} for kind in "mn")
        stored = [name for store in self.kernel.body if isinstance(store, Store) for name in operands(store)]
        loads = {s.id: s for s in self._closure(stored) if isinstance(s, Load)}
        domains = {name: self.kernel.domains[name] for name in loads}
        return sum(self._width(loads[name]) for name, own in domains.items() if own & rows and own & columns)

    # -------------------------------------------------------------------------------------------------------- parts

    def _closure(self, wanted: Iterable[str]) -> list[Define]:
        """Statements that values come from, in order, short of the contraction."""
        return closure(self.kernel, wanted, frozenset((self.contract.id,)))

    def _is_inner(self, s: Define) -> bool:
        """It changes from step to step of the loop."""
        return bool(self.kernel.domains[s.id] & self.rows)

    def body(self, lines: list[str], *dims: TileDim) -> Body:
        tiling = Tiling(self.kernel, tuple(dims), self.choice.tile.warps, wide=self.wide)
        return Body(tiling, self.context, self.pointers, lines)

    def place(self, body: Body, m: TileDim, n: TileDim, tile: str = "tile") -> None:
        """Where a tile is in the batch, and which rows and columns it has: tiles go in bands of `GROUP` rows."""
        rows, columns = m.programs, n.programs
        if self.batch.extent != 1:
            count, number = rows * columns, tile
            if count != 1:
                number = f"({tile} // {count})"
                body.line(f"within = {tile} % {count}")
            body.line(f"{self.batch.name} = {body.index_type(number)}", f"{self.batch.extent}")
            body.axis_variables(self.batch)
            tile = "within" if count != 1 else "0"
        self.place_bands(body, rows, columns, tile, "m_tile")

    def place_bands(self, body: Body, rows: int | str, columns: int, tile: str, row: str) -> None:
        """Which of the rows and columns of tiles a tile has, as `row` and `n_tile`.

        Args:
            rows: so many there are, a number or a variable.
        """
        if rows == 1 or columns == 1:
            body.line(f"{row} = {tile if columns == 1 else '0'}")
            body.line(f"n_tile = {tile if rows == 1 else '0'}")
        else:
            body.line(f"band = {tile} // {GROUP * columns} * {GROUP}")
            body.line(f"height = tl.minimum({rows} - band, {GROUP})")
            body.line(f"{row} = band + {tile} % {GROUP * columns} % height")
            body.line(f"n_tile = {tile} % {GROUP * columns} // height")

    def place_lanes(self, body: Body, *dims: TileDim) -> None:
        """Index variables along rows or columns of a tile, or of half a one."""
        for dim in dims:
            body.line(f"{dim.name} = {STARTS[dim.constexpr]} + {body.lanes(dim)}", f"{dim.extent}")
            body.mask_variable(dim)
            body.axis_variables(dim)

    def _factor_statements(self, name: str) -> tuple[list[Define], list[Define], str]:
        """What an operand is computed from, before the loop and in it, and its name there."""
        stop = frozenset((self.group,)) if self.group is not None and name == self.right else frozenset[str]()
        found = closure(self.kernel, (name,), stop)
        written = with_number(found, self.group, "group", RENAMED) if self.group in stop else {}
        before, inside = (
            [written.get(s.id, s) for s in found if self._is_inner(s) is is_inner] for is_inner in (False, True)
        )
        return before, inside, written[name].id if name in written else name

    def _factor(self, body: Body, name: str, inside: list[Define], text: str) -> str:
        """An operand of the product over its whole block, zero behind the end of the sum."""
        body.line(f"{self.k.name} = {body.index_type('k_start')} + {body.lanes(self.k)}", f"{self.k.extent}")
        body.mask_variable(body.blocked[self.k.name])
        body.axis_variables(self.k)
        for statement in inside:
            body.define(statement)
        text, s = body.expanded(text, body.full), self.by_id[name]
        is_zero_outside = isinstance(s, Load) and (s.mask is None or s.other == 0) and self._is_inner(s)
        if is_zero_outside or body.blocked[self.k.name].is_exact:
            return text
        return f"tl.where(in_{self.k.name}, {text}, {literal(0.0 if s.dtype.is_float else 0, s.dtype)})"

    def sum(self, lines: list[str], main: Body) -> None:
        """`acc`, the product's block, or its part of the sum."""
        whole = self._whole_steps()
        k = replace(self.k, parts=1, is_row=False, extent=whole)
        bounds = self._data_bounds(main) if any(self.limits) else f"0, {whole}"
        sides = self._sides(lines, main, k)
        main.line(self.zeros())
        parts = self.choice.parts if self.k.extent else 1
        length = self._steps_per_part() * k.block
        if parts > 1:
            main.line("part = tl.program_id(1)")
            bounds = f"part * {length}, tl.minimum(part * {length} + {length}, {whole})"
        main.line(f"for k_start in range({bounds}, KBLOCK):")
        main.depth += 1
        self._step(main, sides)
        main.depth -= 1
        if whole == self.k.extent:
            return
        sides = self._sides(lines, main, replace(k, extent=self.k.extent))
        if parts > 1:
            main.line(f"if part == {whole // length}:")
        main.depth += parts > 1
        main.line(f"{LAST_STEP}{whole}")
        self._step(main, sides)
        main.depth -= parts > 1

    def _whole_steps(self) -> int:
        """Elements of the sum that the loop takes: not the last block, where its mask would make accesses narrow."""
        extent, rest = self.k.extent, self.k.extent % self.k.block
        if any(self.limits) or not rest or extent == rest:
            return extent
        loads = [s for s in self._closure((self.left, self.right)) if isinstance(s, Load) and self._is_inner(s)]
        along = [s for s in loads if axis_stride(s.index, self.axes["k"][-1].name) == 1]
        narrow = any(rest * s.dtype.itemsize % WIDEST for s in along)
        return extent - rest if narrow else extent

    def _sides(self, lines: list[str], main: Body, k: TileDim) -> list[_Side]:
        """Both operands, with what of them does not change along the sum."""
        found = []
        for name, dims in (("left", (self.m, k)), ("right", (k, self.n))):
            body = self.body(lines, *dims)
            body.depth = main.depth
            if self.group is not None and name == "right":
                body.values["group"] = Operand("group", self.by_id[self.group].dtype)
                body.shapes["group"] = frozenset()
            before, inside, text = self._factor_statements(getattr(self, name))
            for s in before:
                if main.shapes.get(s.id) == frozenset():  # a number, which is there already
                    body.values[s.id], body.shapes[s.id] = main.values[s.id], main.shapes[s.id]
                else:
                    body.define(s)
            found.append(_Side(name, body, inside, text))
        return found

    def _step(self, main: Body, sides: Sequence[_Side]) -> None:
        """What is added to `acc` from `k_start` on."""
        for side in sides:
            side.body.depth = main.depth
            text = self._factor(side.body, getattr(self, side.name), side.inside, side.text)
            side.body.line(f"{side.name} = {text}")
        main.line(self.dot())

    def zeros(self) -> str:
        """What the loop starts from."""
        return f"acc = tl.zeros([MBLOCK, NBLOCK], {tl_dtype(self.contract.dtype)})"

    def dot(self) -> str:
        """The step of the loop that multiplies `left` by `right`."""
        precision = precision_of(self.dtype, self.contract.tf32)
        kind = f", out_dtype={tl_dtype(self.contract.dtype)}" if not self.dtype.is_float else ""
        if self.dtype in FLOAT8:  # the units add up few of them with all bits
            kind = f", max_num_imprecise_acc={min(EXACT_STEPS, self.choice.tile.depth)}"
        return f"acc = tl.dot(left, right, acc{precision}{kind})"

    def _steps_per_part(self) -> int:
        steps = -(-self.k.extent // self.k.block)
        return -(-steps // self.choice.parts)

    def _data_bounds(self, main: Body) -> str:
        """The part of the sum that data leave, from a whole block on."""
        low, high = (sorted(names) for names in self.limits)
        for s in self._closure((*low, *high)):
            main.define(s)
        first, last = "0", str(self.k.extent)
        for name in low:
            first = f"tl.maximum({first}, {main.operand(name).typed})"
        for name in high:
            last = f"tl.minimum({last}, {main.operand(name).typed})"
        main.line(f"first = {first} // KBLOCK * KBLOCK")
        main.line(f"last = {last}")
        return "first, last"

    def groups_of_rows(self, body: Body) -> tuple[str, str]:
        """The groups of a tile's rows, and a mask of the rows that there are, empty if these are all."""
        assert self.group is not None
        for s in self._closure((self.group,)):
            if s.id not in body.values:
                body.define(s)
        return body.operand(self.group).typed, "" if self.m.is_exact else f"in_{self.m.name}"

    def member(self, body: Body) -> str:
        """A mask of the rows that belong to `group`, by its name."""
        groups, inside = self.groups_of_rows(body)
        body.line(f"member = ({groups} == group){f' & {inside}' if inside else ''}")
        body.values["member"], body.shapes["member"] = Operand("member", bool_), frozenset((self.m.name,))
        return "member"

    def _groups(self, lines: list[str], main: Body) -> None:
        """The product and its epilogue for each group among the program's rows."""
        self.place_lanes(main, self.m)
        groups, inside = self.groups_of_rows(main)
        low, high = ((f"tl.where({inside}, {groups}, {fill})" if inside else groups) for fill in (INT32_LIMIT, -1))
        main.line(f"first_group = tl.min({low})")
        main.line(f"last_group = tl.max({high})")
        main.line("for group in range(first_group, last_group + 1):")
        main.depth += 1
        mask = self.member(main)
        main.line("if tl.max(member.to(tl.int32)) > 0:")
        main.depth += 1
        self.place_lanes(main, self.n)
        self.sum(lines, main)
        self.epilogue(lines, main, mask)

    def epilogue(self, lines: list[str], main: Body, mask: str = "") -> None:
        """What follows the product; stores where `mask` holds."""
        if not self.pieces:
            self._follow(main, "acc", mask)
            return
        pieces = self.choice.pieces
        n = replace(self.n, block=self.n.block // pieces, constexpr=self.pieces[-1][2], parts=pieces)
        body = self.body(lines, self.m, n)
        for name, shape in main.shapes.items():
            if n.name not in shape:
                body.values[name], body.shapes[name] = main.values[name], shape
        body.depth = main.depth
        sums = "acc"
        for both, one, size in self.pieces:
            body.line(f"{both} = tl.split(tl.permute(tl.reshape({sums}, [MBLOCK, 2, {size}]), (0, 2, 1)))")
            body.line(f"for {one} in tl.static_range(2):")
            body.depth += 1
            sums = f"{both}[{one}]"
        self.place_lanes(body, n)
        self._follow(body, sums, mask)

    def _follow(self, body: Body, sums: str, mask: str = "") -> None:
        """What follows the product on a tile, or half a one."""
        body.values[self.contract.id] = Operand(sums, self.contract.dtype)
        body.shapes[self.contract.id] = body.full
        stores = [s for s in self.kernel.body if isinstance(s, Store)]
        for s in self._closure(name for store in stores for name in operands(store)):
            if s.id not in body.values:
                body.define(s)
        for store in stores:
            if mask and store.mask is not None:
                both = f"{mask}_{store.mask}"
                body.line(f"{both} = {mask} & {body.operand(store.mask).typed}")
                body.values[both] = Operand(both, bool_)
                body.shapes[both] = body.shapes[mask] | body.shapes[store.mask]
                store = replace(store, mask=both)
            body.store(replace(store, mask=store.mask or mask) if mask else store)

    # -------------------------------------------------------------------------------------------------------- module

    def module(self) -> TritonKernel:
        """The whole text."""
        lines: list[str] = []
        body = self.body(lines, self.m, self.n)
        body.line("tile = tl.program_id(0)")
        self.place(body, self.m, self.n)
        if self.group is not None:
            self._groups(lines, body)
        else:
            self.place_lanes(body, self.m, self.n)
            self.sum(lines, body)
        if self.choice.parts > 1:
            masks = body.edge_masks(body.full)
            mask = f", mask={' & '.join(masks)}" if masks else ""
            body.line(f"tl.store({self._scratch_place('part')}, acc{mask})")
        elif self.group is None:
            self.epilogue(lines, body)
        programs = self.batch.extent * self.m.programs * self.n.programs
        self.function(self.name, lines, self.constexprs)
        self.launch(self.name, self.constexprs, (programs, self.choice.parts))
        if self.choice.parts > 1:
            self._finish()
        return self.assembled()

    @property
    def constexprs(self) -> tuple[tuple[str, int], ...]:
        """Sizes of the block."""
        tile = self.choice.tile
        pieces = ((size, tile.columns >> level) for level, (_, _, size) in enumerate(self.pieces, 1))
        return ("MBLOCK", tile.rows), ("NBLOCK", tile.columns), ("KBLOCK", tile.depth), *pieces

    @property
    def pieces(self) -> tuple[tuple[str, str, str], ...]:
        """Names of the pieces, of one of them and of its size, for each time that a tile is cut in two."""
        return PIECES[: self.choice.pieces.bit_length() - 1]

    def assembled(self, descriptors: int = 0) -> TritonKernel:
        """The module of all functions, with their launches."""
        signature = [(self.pointers[b.name], POINTERS[b.dtype.name]) for b in self.kernel.buffers]
        signature += [(name, item.dtype) for name, item in self.scratch.items()]
        imports = "import triton\nimport triton.language as tl\n"
        if self.context.libdevice:
            imports += "from triton.language.extra import libdevice\n"
        text = imports + "\n\n" + text_of(self.context.helpers) + "\n\n".join(self.functions)
        scratch = tuple(self.scratch.values())
        numbers = single_numbers(self.kernel)
        return TritonKernel(self.name, text, tuple(signature), tuple(self.launches), scratch, descriptors, numbers)

    def _scratch_place(self, part: str) -> str:
        number = part if self.batch.extent == 1 else f"({part} * {self.batch.extent} + {self.batch.name})"
        return f"{PARTS} + (({number} * {self.m.extent} + {self.m.name}) * {self.n.extent} + {self.n.name})"

    def _finish(self) -> None:
        """The launch that adds the parts and runs the epilogue."""
        lines: list[str] = []
        m, n = replace(self.m, block=FINISH_ROWS), replace(self.n, block=FINISH_COLUMNS)
        body = self.body(lines, m, n)
        body.line("tile = tl.program_id(0)")
        self.place(body, m, n)
        self.place_lanes(body, m, n)
        masks = body.edge_masks(body.full)
        mask = f", mask={' & '.join(masks)}" if masks else ""
        body.line(self.zeros())
        body.line(f"for part in range({self.choice.parts}):")
        body.line(f"    acc += tl.load({self._scratch_place('part')}{mask})")
        self._follow(body, "acc")
        constexprs, name = (("MBLOCK", m.block), ("NBLOCK", n.block)), f"{self.name}_finish"
        self.function(name, lines, constexprs)
        self.launches.append(Launch(name, (self.batch.extent * m.programs * n.programs, 1, 1), constexprs, 4, 1))

    def function(self, name: str, lines: list[str], constexprs: tuple[tuple[str, int], ...]) -> None:
        """Add a function to the module."""
        parameters = [*self.pointers.values(), *self.scratch]
        parameters += [f"{constexpr}: tl.constexpr" for constexpr, _ in constexprs]
        notes = "".join(f"    # src[{note}]\n" for note in self.source.notes)
        header = f"@triton.jit\ndef {name}({', '.join(parameters)}):\n"
        self.functions.append(header + notes + "\n".join(lines) + "\n")

    def launch(
        self, name: str, constexprs: tuple[tuple[str, int], ...], grid: tuple[int, int], unaligned: str = ""
    ) -> None:
        """Add a launch with the warps and stages of the tile."""
        tile = self.choice.tile
        self.launches.append(Launch(name, (*grid, 1), constexprs, tile.warps, tile.stages, unaligned))


def _dim(name: str, axes: tuple[Axis, ...], block: int, constexpr: str, parts: int = 1) -> TileDim:
    extent = prod(int_extent(axis) for axis in axes)
    return TileDim(axes[0].name if len(axes) == 1 else name, axes, extent, block, constexpr, parts=parts)
