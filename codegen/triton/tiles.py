"""Tiles of products of matrices, per chip: data, and the choice among them.

M x N x K            candidates of the chip, each with the rate it reaches on large products
  -> the one whose waves of programs take the least time; and how many programs share a long sum (split)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphc.codegen.triton.tiling import power_of_two
from graphc.ir.sizes import plain
from graphc.ir.types import DType, f32


def precision_of(dtype: DType, tf32: bool = False) -> str:
    """Arguments of `tl.dot`, with a comma in front, for operands of a dtype.

    A product of float32 is to be whole before something is added: Triton would start its sum from that, a bias say,
    and where the bias is larger than the products, every step of the sum would be rounded to it. What keeps Triton from
    it is an argument that is about 8-bit floats alone.
    """
    if dtype != f32:
        return ""
    return ', input_precision="tf32"' if tf32 else ', input_precision="ieee", max_num_imprecise_acc=1'


@dataclass(frozen=True)
class Tile:
    """How a program works on a product.

    Args:
        rows, columns, depth: of the block it takes; depth in elements of two bytes, see `depth_of`.
        warps: of 32 threads.
        stages: of the software pipeline: blocks of operands on their way at once.
        rate: relative to the best tile of the chip, on products of any size.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    rate: float


@dataclass(frozen=True)
class Machine:
    """What tiles depend on.

    Args:
        processors: that run programs side by side.
        shared: bytes of shared memory that a program may take.
        tiles: for matrix units, best first.
        describes: it copies blocks of matrices by themselves, told by descriptors of these (TMA).
        turns: matrix units read both operands from shared memory, either way around, so that one copy of a block serves
            two products; elsewhere a block that is read both ways goes through registers, and is not copied ahead.
        beside: columns of the widest accumulators of several results beside which registers are left for a mask.
        takes_ptx: kernels may have PTX in their text: instructions that take powers and reciprocals below 2^-126 for 0,
            which Triton works around, and what keeps loops from being written out.
    """

    processors: int
    shared: int
    tiles: tuple[Tile, ...]
    describes: bool = False
    turns: bool = False
    beside: int = 128
    takes_ptx: bool = False


_SMALL = (
    Tile(64, 64, 64, 4, 3, 0.6),
    Tile(32, 64, 64, 4, 3, 0.4),
    Tile(16, 64, 128, 4, 3, 0.25),
    Tile(64, 16, 128, 4, 3, 0.25),
    Tile(16, 32, 128, 2, 3, 0.15),
    Tile(16, 16, 128, 1, 3, 0.08),
)
MACHINES: dict[str, Machine] = {
    "cuda:80": Machine(
        108, 163 << 10,
        (Tile(128, 256, 32, 8, 3, 1.0), Tile(128, 128, 32, 4, 4, 0.95), Tile(128, 64, 32, 4, 4, 0.8),
         Tile(64, 128, 32, 4, 4, 0.8), *_SMALL),
        takes_ptx=True,
    ),
    "cuda:90": Machine(
        132, 227 << 10,
        (Tile(128, 256, 64, 8, 4, 1.0), Tile(128, 128, 64, 8, 4, 0.9), Tile(128, 64, 64, 4, 4, 0.75),
         Tile(64, 128, 64, 4, 4, 0.75), *_SMALL),
        describes=True, turns=True, beside=64, takes_ptx=True,
    ),
    "cuda:100": Machine(
        148, 227 << 10,
        (Tile(128, 256, 64, 8, 3, 1.0), Tile(128, 128, 64, 8, 4, 0.9), Tile(128, 64, 64, 4, 4, 0.7),
         Tile(64, 128, 64, 4, 4, 0.6), *_SMALL),
        describes=True, turns=True, takes_ptx=True,
    ),
    "hip:gfx942": Machine(
        304, 64 << 10,
        (Tile(256, 256, 64, 16, 1, 1.0), Tile(128, 128, 64, 8, 2, 0.9), Tile(128, 64, 64, 8, 2, 0.75),
         Tile(64, 128, 64, 8, 2, 0.75), *(replace(tile, stages=2) for tile in _SMALL)),
    ),
}  # fmt: skip
"""Rates are ranks until they have been measured: they only order the candidates."""
DEFAULT_MACHINE = "cuda:90"
_SHARED = {"cuda:86": 99 << 10, "cuda:89": 99 << 10, "cuda:120": 99 << 10, "cuda:121": 99 << 10}
"""Shared memory of chips that have less than the first of their family. Source: CUDA C++ Programming Guide, table of
technical specifications per compute capability."""
_FAMILIES = {
    "cuda:8": "cuda:80",
    "cuda:10": "cuda:100",
    "cuda:11": "cuda:100",
    "cuda:12": "cuda:80",
    "hip:": "hip:gfx942",
}
"""Which of the machines a chip that is not among them resembles, by how its name begins."""


def family_of(target: str) -> str:
    """The one of `MACHINES` that a chip is like, the default one for a chip that nothing is known of."""
    if target in MACHINES:
        return target
    return next((name for start, name in _FAMILIES.items() if target.startswith(start)), DEFAULT_MACHINE)


def machine_of(target: str) -> Machine:
    """What tiles of a chip depend on; one that is not in the table does not copy blocks by descriptors."""
    found = MACHINES[family_of(target)]
    if not target or target in MACHINES:
        return found
    return replace(found, shared=_SHARED.get(target, found.shared), describes=False)


SCALAR_TILES = (Tile(64, 64, 16, 4, 2, 1.0), Tile(32, 32, 32, 4, 2, 0.7), Tile(16, 16, 32, 1, 2, 0.3))
"""Of products without matrix units, in f32 as it is."""
GROUP = 8
"""Rows of tiles that are walked together, so that programs that run at the same time share operands in the L2 cache."""
SCALED_ELEMENTS = 128 * 128
"""Of the largest tile of 8-bit floats: beside more accumulators than that, registers for their scales are spilled."""
MOST_SUMS, MOST_BESIDE = 64, 256
"""What follows a product is done on so many sums per thread at once, with so many bytes of other operands, at most: all
sums of a large tile take half the registers already. Larger ones spilled."""
MOST_PIECES = 4
_PER_PROGRAM = 1 << 10
"""Bytes of shared memory that the chip takes for each program. Source: CUDA C++ Programming Guide, compute capability
9.x, shared memory."""
BARRIERS = 512
"""Bytes of shared memory for what is no block."""
WARPS = 8
"""Of programs that stay on a processor side by side: registers are there for so many, whatever they compute."""
MOST_CANDIDATES = 4
"""Tiles that are measured of one kernel."""
MOST_PARTS, LEAST_STEPS = 16, 8
"""Programs that share a sum at most, and steps of the loop that each of them makes at least."""


@dataclass(frozen=True)
class Choice:
    """How a product is cut into programs.

    Args:
        tile: of one step.
        parts: programs that share each sum.
        programs: that stay, and go from tile to tile; 0 = one per tile.
        pieces: of the tile, by columns, on which what follows the product is done one after the other.
    """

    tile: Tile
    parts: int = 1
    programs: int = 0
    pieces: int = 1

    @property
    def form(self) -> str:
        """Its name among the forms of a kernel."""
        tile = self.tile
        shared = f", {self.parts} parts" if self.parts > 1 else ""
        return f"tile {tile.rows}x{tile.columns}x{tile.depth}, {tile.warps} warps, {tile.stages} stages{shared}"


def depth_of(tile: Tile, dtype: DType) -> int:
    """Elements of the summed axis per step: as many bytes for every dtype."""
    return max(16, tile.depth * 2 // dtype.itemsize)


def _pieces(tile: Tile, beside: int) -> int:
    """In how many steps what follows the product is done."""
    pieces, sums = 1, tile.rows * tile.columns // (32 * tile.warps)
    while pieces < MOST_PIECES and (sums > MOST_SUMS or sums * beside > MOST_BESIDE) and tile.columns // pieces > 16:
        pieces, sums = 2 * pieces, sums // 2
    return pieces


def candidate_tiles(
    target: str, batch: int, rows: int, columns: int, inner: int, dtype: DType, *, loaded: int, scalar: bool,
    groups: int = 1, stored: int = 4, beside: int = 0, may_stay: bool = False,
) -> list[Choice]:  # fmt: skip
    """The tiles of a product that may be the fastest, `MOST_CANDIDATES` at most, the best by the model first.

    Args:
        target: `cuda:90`, ...; see `machine_of`.
        batch, rows, columns, inner: extents of the product; `inner` is summed over.
        dtype: of the operands of the matrix units.
        loaded: bytes of the widest element that is loaded for them.
        scalar: the matrix units do not take the dtype as it is.
        groups: of rows that follow each other, each with a matrix of its own: every border is one more tile.
        stored: bytes of the widest element that is stored.
        beside: bytes that what follows the product loads per element of its result.
        may_stay: programs may go from tile to tile on a chip that copies blocks: it can copy those of both operands, or
            rows have groups.
    """
    machine = machine_of(target)
    batch, rows, columns, inner = map(plain, (batch, rows, columns, inner))  # any tile is right for any size

    def fits(tile: Tile) -> bool:
        if dtype.itemsize == 1 and tile.rows * tile.columns > SCALED_ELEMENTS:
            return False
        return 2 * tile.rows * tile.depth + 2 * tile.depth * tile.columns <= machine.shared

    candidates = SCALAR_TILES if scalar else tuple(tile for tile in machine.tiles if fits(tile))

    def cost(tile: Tile) -> float:
        programs = batch * (-(-rows // tile.rows) + groups - 1) * -(-columns // tile.columns)
        waves = -(-programs // machine.processors)
        return waves * tile.rows * tile.columns / tile.rate

    def choice(tile: Tile) -> Choice:
        depth = min(depth_of(tile, dtype), max(16 if dtype.itemsize > 1 else 32, power_of_two(inner)))
        programs = batch * -(-rows // tile.rows) * -(-columns // tile.columns)
        stays = machine.describes and may_stay and programs > machine.processors
        # a program that stays loads the next tile while it stores one, through shared memory
        pieces = _pieces(tile, beside)
        held = BARRIERS + (tile.rows * tile.columns // pieces * stored if stays else 0)
        stages, step = tile.stages, depth * (tile.rows + tile.columns) * max(loaded, dtype.itemsize)
        while stages > 1 and stages * step > machine.shared - held:
            stages -= 1
        together = min(WARPS // tile.warps, (machine.shared + _PER_PROGRAM) // (stages * step + held + _PER_PROGRAM))
        stay = machine.processors * max(1, together) if stays else 0
        stay = stay if programs > stay else 0
        steps = -(-inner // depth)
        parts = min(MOST_PARTS, machine.processors // max(1, programs), steps // LEAST_STEPS)
        return Choice(replace(tile, depth=depth, stages=stages), max(1, parts), stay, pieces if parts < 2 else 1)

    return [choice(tile) for tile in sorted(candidates, key=cost)[:MOST_CANDIDATES]]


@dataclass(frozen=True)
class ChainTile:
    """How a program works on a product of products, such as attention.

    Args:
        rows: of the result that it computes.
        steps: positions of the outer sum per step of the loop.
        warps: of 32 threads.
        stages: of the software pipeline.
    """

    rows: int
    steps: int
    warps: int
    stages: int

    @property
    def form(self) -> str:
        """Its name among the forms of a kernel."""
        return f"tile {self.rows}x{self.steps}, {self.warps} warps, {self.stages} stages"


_CHAIN_TILES: dict[str, dict[int, tuple[ChainTile, ChainTile, ChainTile]]] = {
    # by the widest row of an operand: with one product inside, with several, and with several results as well.
    # The largest that spill no registers: accumulators and scores of a block are registers of its threads. With two
    # stages copies are waited for as soon as they are asked for; it takes three for a step of the loop in between.
    "cuda:80": {
        64: (ChainTile(128, 64, 8, 3), ChainTile(64, 32, 4, 3), ChainTile(64, 32, 4, 3)),
        128: (ChainTile(128, 64, 8, 3), ChainTile(64, 64, 8, 3), ChainTile(64, 64, 8, 3)),
        256: (ChainTile(64, 32, 8, 3), ChainTile(64, 32, 8, 3), ChainTile(32, 32, 8, 3)),
    },
    "cuda:90": {
        64: (ChainTile(128, 128, 8, 3), ChainTile(128, 128, 8, 3), ChainTile(128, 64, 8, 3)),
        128: (ChainTile(128, 128, 8, 3), ChainTile(128, 64, 8, 3), ChainTile(128, 64, 8, 3)),
        256: (ChainTile(128, 32, 8, 3), ChainTile(128, 32, 8, 3), ChainTile(64, 32, 8, 3)),
    },
    "hip:gfx942": {
        64: (ChainTile(128, 64, 8, 1), ChainTile(64, 64, 8, 1), ChainTile(64, 64, 8, 1)),
        128: (ChainTile(128, 64, 8, 1), ChainTile(64, 32, 8, 1), ChainTile(64, 32, 8, 1)),
        256: (ChainTile(64, 32, 8, 1), ChainTile(32, 32, 8, 1), ChainTile(32, 16, 8, 1)),
    },
}
_CHAIN_TILES["cuda:100"] = _CHAIN_TILES["cuda:90"] | {
    64: (*_CHAIN_TILES["cuda:90"][64][:2], ChainTile(64, 64, 4, 3)),
    256: (ChainTile(128, 32, 8, 3), ChainTile(128, 32, 8, 2), ChainTile(64, 32, 8, 3)),
}
_SCALAR_CHAIN_TILE = ChainTile(32, 32, 4, 1)
_DRAWN_STEPS = 32


def candidate_chain_tiles(
    target: str, width: int, dtype: DType, inner: int, outer: int, *, draws: bool
) -> list[ChainTile]:
    """The tiles of a product of products that may be the fastest, the best by the model first.

    Args:
        target: as for `candidate_tiles`.
        width: elements of the widest operand row: head dimensions.
        dtype: of the operands of the outer product.
        inner, outer: how many products are inside, and how many results there are.
        draws: a random number is computed for each score, which takes registers.
    """
    best = _SCALAR_CHAIN_TILE
    if dtype.itemsize <= 2:
        table = _CHAIN_TILES[family_of(target)]
        best = table[next(limit for limit in table if width <= limit)][(inner > 1) + (outer > 1)]
    if draws and best.steps > _DRAWN_STEPS:
        best = replace(best, steps=best.steps // 2)
    others = [replace(best, rows=best.rows // 2), replace(best, steps=best.steps // 2)]
    others += [replace(best, stages=stages) for stages in (best.stages - 1, best.stages + 1) if stages]
    return [best, *(tile for tile in others if min(tile.rows, tile.steps) >= 16)]
