"""Which tiles a product of products may have on a chip: those whose blocks fit its shared memory, and its registers.

stages x steps x (width of keys + width of values)    on their way, or being multiplied with
rows x width of queries                               all along, where matrix units read them from shared memory
rows x steps                                          of what is loaded for each score
"""

from __future__ import annotations

from collections.abc import Mapping

from graphc.codegen.triton.chain_parts import ChainParts
from graphc.codegen.triton.tiles import ChainTile, candidate_chain_tiles, machine_of
from graphc.codegen.triton.tiling import TileDim
from graphc.loopir.kernel import Compute, Load

_LONG_FUNCTIONS = frozenset(("tanh", "sin", "cos", "erf", "log", "log1p", "expm1", "pow"))
"""What takes registers where there are accumulators of several results."""
_ROW = 256
"""Bytes of the widest row of an operand that programs hold in registers."""


def tiles_of(
    parts: ChainParts, sums: Mapping[str, TileDim], columns: TileDim, bounds: int, target: str
) -> list[ChainTile]:
    """Tiles that a kernel may have on a chip, best first.

    Args:
        parts: of the kernel.
        sums: what each inner product sums over, by its name.
        columns: of the result.
        bounds: how many conditions on positions bound its loop.
        target: as in `graphc.codegen.triton.tiles.MACHINES`.
    """
    widest = max(columns.extent, *(dim.extent for dim in sums.values()))
    dtype = parts.by_id[parts.outers[0].left].dtype
    is_heavy = _takes_registers(parts, bounds)
    tiles = candidate_chain_tiles(target, widest, dtype, len(parts.inner), len(parts.outers), draws=is_heavy)
    machine = machine_of(target)
    fitting = [tile for tile in tiles if _shared(parts, sums, columns, tile, machine.turns) <= machine.shared]
    return fitting or [min(tiles, key=lambda tile: tile.stages)]


def _takes_registers(parts: ChainParts, bounds: int) -> bool:
    """Whether blocks have to be smaller, for what is computed of each score or for what says where it is."""
    ops = {s.op for s in parts.kernel.defines if isinstance(s, Compute)}
    if "philox" in ops or len(parts.outers) == 1:
        return "philox" in ops
    return bounds > 1 or bool(parts.axes["g"]) or not ops.isdisjoint(_LONG_FUNCTIONS)


def _shared(parts: ChainParts, sums: Mapping[str, TileDim], columns: TileDim, tile: ChainTile, turns: bool) -> int:
    """Bytes of blocks in shared memory, about: statistics per row come to some hundreds more.

    Args:
        turns: as of `Machine`. Where matrix units do not read operands as they lie there, a block that two products
            take goes through registers for one of them, as weights do, and as the widest row operands do.
    """
    rows = [sums[c.id].block * parts.by_id[c.left].dtype.itemsize for c in parts.inner]
    blocks = [(parts.factors(c)[1], sums[c.id].block) for c in parts.inner]
    blocks += [(other, columns.block) for _, other in parts.sides.values()]
    ahead: dict[str, int] = {}
    again = 0
    for name, width in blocks:
        s = parts.by_id[name]
        block, size = s.buffer if isinstance(s, Load) else name, width * s.dtype.itemsize
        again += 0 if turns or block not in ahead else size
        ahead[block] = max(ahead.get(block, 0), size)
    ends = [{axis.name for axis in parts.axes[kind]} for kind in "mj"]
    loads = [s for s in parts.kernel.defines if isinstance(s, Load)]
    scores = sum(s.dtype.itemsize for s in loads if not any(parts.domains[s.id].isdisjoint(end) for end in ends))
    if turns:
        held = sum(rows)
    else:
        scores += parts.by_id[parts.outers[0].left].dtype.itemsize
        held = max(rows) if max(rows) > _ROW and tile.stages > 1 else 0
    return tile.steps * (tile.stages * sum(ahead.values()) + again) + tile.rows * (held + tile.steps * scores)
