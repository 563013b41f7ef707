"""Which tiles a product of products may have on a chip: those whose blocks fit its shared memory, and its registers.

    stages x steps x (width of keys + width of values)    on their way, or being multiplied with
    rows x width of queries                               all along, where matrix units read them from shared memory
    rows x steps                                          of what is loaded for each score

The table of tiles is for plain attention. Where more is loaded, or a chip has less room, stages go first, then steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from graphc.codegen.triton.chain_parts import ChainParts
from graphc.codegen.triton.tiles import ChainTile, candidate_chain_tiles, machine_of
from graphc.codegen.triton.tiling import TileDim
from graphc.loopir.kernel import Compute, Load

_LONG_FUNCTIONS = frozenset(("tanh", "sin", "cos", "erf", "log", "log1p", "expm1", "pow"))
"""What takes registers where there are accumulators of several results."""
_LEAST = 16
"""Rows and steps of the smallest tile."""
_WIDE = 128
"""Columns from which on accumulators of several results leave no registers for anything but weights."""


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
    machine = machine_of(target)
    is_whole = widest <= machine.beside and all(dim.is_exact for dim in (columns, *sums.values()))
    is_heavy = _takes_registers(parts, bounds, is_whole)
    tiles = candidate_chain_tiles(target, widest, dtype, len(parts.inner), len(parts.outers), draws=is_heavy)

    def fits(tile: ChainTile) -> bool:
        return _shared(parts, sums, columns, tile, machine.turns) <= machine.shared

    best = tiles[0]
    if is_heavy and len(parts.outers) > 1 and widest > _WIDE:
        best = replace(best, steps=_LEAST)
    while not fits(best) and max(best.stages, best.rows, best.steps) > _LEAST:
        if best.stages > 2:
            best = replace(best, stages=best.stages - 1)
        elif best.steps > _LEAST:
            best = replace(best, steps=best.steps // 2)
        else:
            best = replace(best, rows=best.rows // 2)
    return [best, *(tile for tile in tiles[1:] if fits(tile) and tile != best)]


def _takes_registers(parts: ChainParts, bounds: int, is_whole: bool) -> bool:
    """Whether blocks have to be smaller, for what is computed of each score or for what says where it is.

    Args:
        is_whole: rows of operands fill their blocks, and are not the widest.
    """
    ops = {s.op for s in parts.kernel.defines if isinstance(s, Compute)}
    if "philox" in ops or len(parts.outers) == 1:
        return "philox" in ops
    ends = [{axis.name for axis in parts.axes[kind]} for kind in "mj"]
    loads = [parts.domains[s.id] for s in parts.kernel.defines if isinstance(s, Load)]
    if not is_whole and any(all(end & domain for end in ends) for domain in loads):
        return True
    return bounds > 1 or bool(parts.axes["g"]) or not ops.isdisjoint(_LONG_FUNCTIONS)


def _shared(parts: ChainParts, sums: Mapping[str, TileDim], columns: TileDim, tile: ChainTile, turns: bool) -> int:
    """Bytes of blocks in shared memory, about.

    Args:
        turns: as of `Machine`. Where matrix units do not read operands either way around, a block that two products
            take is copied for each and goes through registers for one of them, as weights do; so may one of the rows.
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
    m, j = ({axis.name for axis in parts.axes[kind]} for kind in "mj")
    loads = [s for s in parts.kernel.defines if isinstance(s, Load) and parts.domains[s.id] & j]
    scores = sum(s.dtype.itemsize for s in loads if parts.domains[s.id] & m)
    taken = {s.id for name, _ in blocks for s in parts.closure((name,))}
    single = sum(s.dtype.itemsize for s in loads if s.id not in taken and not parts.domains[s.id] & m)
    if turns:
        held = sum(rows)
    else:
        scores += parts.by_id[parts.outers[0].left].dtype.itemsize
        held = max(rows) if tile.stages > 1 and len(rows) > 1 else 0
    steps = tile.stages * (sum(ahead.values()) + single) + max(0, tile.stages - 1) * again
    return tile.steps * steps + tile.rows * (held + tile.steps * scores)
