"""Two groups as one over common axes: where the value they share is in either space says which axes are the same.

first   axes i0: 32, i1: 1024, r0: 128       %x at (i0, i1, r0)
second  axes i0: 32768, r0: 128              %x at (i0 // 1024, i0 % 1024, r0)
  -> axes i0: 32, i1: 1024, r0: 128          everything of both, the second's i0 written as i0 * 1024 + i1
"""

from __future__ import annotations

from graphc.ir.dims import Dim, simplify, substitute, symbol, symbols
from graphc.ir.graph import Value
from graphc.ops.registry import Kind, get
from graphc.passes.access import Index, normalise
from graphc.passes.axes import divisions
from graphc.passes.group import Group, bare
from graphc.passes.layout import int_shape
from graphc.passes.updates import source_of

MAX_CUTS = 4


def match(first: Group, second: Group, at_first: Index, at_second: Index, shape: tuple[int, ...]) -> Group | None:
    """Both groups as one over the axes of either; axes are cut where the shared value is read by a part of one."""
    for _ in range(MAX_CUTS):
        merged = _align(first, second, at_first, at_second, shape) or _align(second, first, at_second, at_first, shape)
        if merged is not None:
            return merged
        if (cut := _cut(first, at_first)) is not None:
            first, at_first = cut
        elif (cut := _cut(second, at_second)) is not None:
            second, at_second = cut
        else:
            return None
    return None


def match_product(
    product: Group, second: Group, at_product: Index, at_second: Index, shape: tuple[int, ...]
) -> Group | None:
    """A product of matrices and what reads it as one; every axis stays one of rows, of columns or of the batch."""
    while (cut := _cut(second, at_second)) is not None:
        second, at_second = cut
    merged = match(product, second, at_product, at_second, shape)
    if merged is None:
        return None
    for value, places in merged.visits.items():
        if value.op is None or get(value.op.name).contract is None or not any(v.expanded for v in places.values()):
            continue
        for index in places:
            rows, columns = (merged.axes_of((part,)) for part in index[-2:])
            if rows & columns or merged.axes_of(index[:-2]) & (rows | columns):
                return None
    return merged


def match_chains(first: Group, second: Group) -> Group | None:
    """Two products around the same inner product, summed over the same rows, as one group that computes it once.

    So the gradients of keys and values are one kernel: both multiply the scores' gradients, or weights, from the left.

    Returns:
        None when the results have other columns, when an inner product would be needed at two places, or when one of
        them has a softmax of its own.
    """
    shared = [product for product in first.sums if product in second.sums]
    if not shared or any(map(_has_reductions, (first, second))):
        return None
    for mover, stayer in ((second, first), (first, second)):
        merged = _align_chains(mover, stayer, shared)
        if merged is not None and all(len(merged.visits[product]) == 1 for product in merged.sums):
            return merged
    return None


def _has_reductions(group: Group) -> bool:
    return any(
        value.op is not None
        and get(value.op.name).kind is Kind.REDUCTION
        and any(visit.expanded for visit in places.values())
        for value, places in group.visits.items()
    )


def _align_chains(mover: Group, stayer: Group, shared: list[Value]) -> Group | None:
    """The mover expressed in the axes of the stayer, and both as one group; see `match_chains`."""
    ((at_mover, _),) = mover.visits[shared[0]].items()
    ((at_stayer, _),) = stayer.visits[shared[0]].items()
    mapping: dict[str, Dim] = {}
    for own, other, size in zip(at_mover, at_stayer, int_shape(shared[0]), strict=True):
        found = _same_place(mover, stayer, own, other, size)
        if found is None or not mapping.keys().isdisjoint(found):
            return None
        mapping |= found
    if stayer.axes_of(tuple(mapping.get(name, 0) for name in mover.rows)) != frozenset(stayer.rows):
        return None
    columns, own_columns = (
        [name for name in group.parallel if name not in group.axes_of(place)]
        for group, place in ((stayer, at_stayer), (mover, at_mover))
    )
    if [stayer.axes[name] for name in columns] != [mover.axes[name] for name in own_columns]:
        return None
    mapping |= {own: symbol(name) for own, name in zip(own_columns, columns, strict=True)}
    merged = space_of(stayer)
    merged.sums = dict(stayer.sums)
    for product, names in mover.sums.items():
        if product not in merged.sums:
            merged.sums[product] = tuple(_fresh_axis(merged, mover.axes[name]) for name in names)
        mapping |= {own: symbol(name) for own, name in zip(names, merged.sums[product], strict=True)}
    if mapping.keys() != mover.axes.keys():  # the mover sums over an axis that the inner product does not have
        return None
    take_over(merged, stayer, {})
    take_over(merged, mover, mapping)
    return merged


def _same_place(mover: Group, stayer: Group, own: Dim, other: Dim, size: int) -> dict[str, Dim] | None:
    """What the axes of one part of an index are in the other space: one axis is anything, several are as many there."""
    name = bare(own)
    if size == 1 or name is not None:
        return {} if size == 1 else {str(name): other} if mover.axes.get(str(name)) == size else None
    names, others = _by_step(own), _by_step(other)
    sizes = [mover.axes.get(name, 0) for name in names]
    if 0 in sizes or sizes != [stayer.axes.get(name, 0) for name in others]:
        return None
    mapping: dict[str, Dim] = {name: symbol(place) for name, place in zip(names, others, strict=True)}
    return mapping if substitute(own, mapping) == other else None


def _by_step(part: Dim) -> list[str]:
    """The names in a sum of multiples, that of the largest step first."""
    terms = () if isinstance(part, int) else part.terms
    return [str(monomial[0]) for monomial, _ in sorted(terms, key=lambda term: -term[1]) if monomial]


def _cut(group: Group, index: Index) -> tuple[Group, Index] | None:
    """The group with one axis, that `index` divides, as two; and `index` over them."""
    for part in index:
        for atom in divisions(part):
            name, inner = bare(atom.numerator), atom.denominator
            if name not in group.axes or not isinstance(inner, int) or not 1 < inner < group.axes[name]:
                continue
            if group.axes[name] % inner or (group.has_scan and name in group.rows):
                continue
            return _cut_axis(group, name, inner, index)
    return None


def _cut_axis(group: Group, name: str, inner: int, index: Index) -> tuple[Group, Index]:
    cut = Group(group.device, group.position)
    mapping: dict[str, Dim] = {}
    for axis, extent in group.axes.items():
        sizes = {axis: extent} if axis != name else {f"{axis}h": extent // inner, f"{axis}l": inner}
        for part, size in sizes.items():
            cut.axes[part], cut.ranges[part] = size, (0, max(size - 1, 0))
        mapping[axis] = symbol(axis) if axis != name else symbol(f"{axis}h") * inner + symbol(f"{axis}l")
    halves = {name: (f"{name}h", f"{name}l")}
    cut.rows = tuple(part for axis in group.rows for part in halves.get(axis, (axis,)))
    take_over(cut, group, mapping)
    return cut, tuple(simplify(substitute(part, mapping), cut.ranges) for part in index)


def _align(mover: Group, stayer: Group, at_mover: Index, at_stayer: Index, shape: tuple[int, ...]) -> Group | None:
    """The mover expressed in the axes of the stayer, and both as one group; None when spaces do not match.

    Args:
        at_mover, at_stayer: the element of the value they share, of the given shape, in either space.
    """
    mapping: dict[str, Dim] = {}
    for own, other, size in zip(at_mover, at_stayer, shape, strict=True):
        name = bare(own)
        if own == 0 and size == 1:
            continue
        if name is None or name in mapping or mover.axes.get(name) != size:
            return None
        mapping[name] = other
    used = stayer.covers(at_stayer, shape)
    if used is None:
        return None
    merged = space_of(stayer)
    rest = tuple(name for name in mover.axes if name not in mapping)
    if not rest:
        fits = _match_elements(mover, merged, mapping, used)
    else:
        fits = set(rest) == set(mover.rows) and _match_rows(mover, merged, mapping, used)
    if not fits or ((mover.has_scan or stayer.has_scan) and not _keeps_scan(mover, stayer, merged, mapping)):
        return None
    take_over(merged, stayer, {})
    take_over(merged, mover, mapping)
    return merged


def _match_elements(mover: Group, merged: Group, mapping: dict[str, Dim], used: frozenset[str]) -> bool:
    """All axes of the mover are named by the shared value."""
    everything = frozenset(merged.axes)
    if not mover.rows:
        return used == everything or bool(merged.rows and used == frozenset(merged.parallel))
    if used != everything:
        return False
    images = [merged.axes_of((mapping[name],)) for name in mover.rows]
    rows = frozenset().union(*images)
    if any(merged.axes_of((mapping[name],)) & rows for name in mover.parallel):
        return False
    if merged.rows:
        return frozenset(merged.rows) == rows
    named = tuple(bare(mapping[name]) for name in mover.rows)
    if all(name is not None for name in named):
        merged.rows = tuple(name for name in named if name is not None)
    else:
        merged.rows = tuple(name for name in merged.axes if name in rows)
    return True


def _match_rows(mover: Group, merged: Group, mapping: dict[str, Dim], used: frozenset[str]) -> bool:
    """The shared value is one number per row of the mover."""
    everything = frozenset(merged.axes)
    row = mover.extent(mover.rows)
    if merged.rows:
        if used != frozenset(merged.parallel) or merged.extent(merged.rows) != row:
            return False
    elif used == everything:
        merged.rows = tuple(_fresh_axis(merged, mover.axes[name]) for name in mover.rows)
    else:
        rest = tuple(name for name in merged.axes if name not in used)
        if merged.extent(rest) != row:
            return False
        merged.rows = rest
    parts = merged.row_parts(tuple(mover.axes[name] for name in mover.rows))
    mapping.update(zip(mover.rows, parts, strict=True))
    return True


def _fresh_axis(group: Group, extent: int) -> str:
    name = bare(group.add_axis(extent, "r"))
    assert name is not None
    return name


def _keeps_scan(mover: Group, stayer: Group, merged: Group, mapping: dict[str, Dim]) -> bool:
    """A running reduction needs its axis as the only row axis, whole."""
    if len(merged.rows) != 1 or (stayer.has_scan and merged.rows != stayer.rows):
        return False
    return not mover.has_scan or bare(mapping[mover.rows[0]]) == merged.rows[0]


def space_of(group: Group) -> Group:
    """A group over the same axes, with nothing in it."""
    return Group(
        group.device, group.position, dict(group.axes), group.rows, data=dict(group.data), ranges=dict(group.ranges)
    )


def take_over(merged: Group, part: Group, mapping: dict[str, Dim], is_masked: bool = False) -> None:
    """Add everything of a group, with its axes replaced; without a mapping it is over the same axes."""
    full = dict(mapping)
    if mapping:
        for name, depends in part.data.items():
            fresh = f"g{len(merged.data)}"
            merged.data[fresh] = frozenset().union(*(merged.axes_of((mapping[axis],)) for axis in depends))
            merged.ranges[fresh] = part.ranges[name]
            full[name] = symbol(fresh)
    is_same = all(place == symbol(name) for name, place in full.items())

    def moved(index: Index, shape: tuple[int, ...]) -> Index:
        if is_same or not any(symbols(place) for place in index):
            return index
        return normalise(tuple(substitute(place, full) for place in index), shape, merged.ranges)

    for value, index in part.roots.items():
        source = value if value not in part.stores or value.op is None else source_of(value.op)
        merged.roots[value] = moved(index, int_shape(source))
    for value, places in part.visits.items():
        for index, visit in places.items():
            at = moved(index, int_shape(value))
            merged.visit(value, at, visit.masked or is_masked)
            found = merged.visits[value][at]
            found.expanded = found.expanded or visit.expanded
    merged.overwrites.update(part.overwrites)
    merged.stores.update(part.stores)
    merged.has_scan = merged.has_scan or part.has_scan
    merged.contracts = merged.contracts or part.contracts
    merged.position = max(merged.position, part.position)
