"""Joining groups that share an iteration space into one kernel.

Two groups become one when one reads what the other stores (the store may then fall away) or both read the same value,
when elements match one to one, and when no third node has to run between them. A row-level value (one number per row)
meets an element-level group by making the axes that it does not depend on row axes: so a maximum, a sum and a division
become softmax. The order of nodes is a list; a merge moves only the nodes between the two.
"""

from __future__ import annotations

from itertools import combinations

from graphc.ir.graph import Value
from graphc.ir.sizes import typical
from graphc.passes.access import Index
from graphc.passes.commits import may_merge
from graphc.passes.fuse import ROW_LIMITS
from graphc.passes.group import MAX_ARGUMENTS, MAX_VISITS, Group, bare, iterations, worth_rows
from graphc.passes.layout import int_shape
from graphc.passes.matching import match, match_chains, match_product, space_of, take_over
from graphc.passes.nodes import Node, Nodes
from graphc.passes.one_pass import takes_no_other_pass
from graphc.passes.updates import overwrites_its_input, scatters

REACH = 256
"""Merges look over at most so many nodes of the order: groups further apart share nothing that is still in a cache."""
SHARED_BYTES = 64
"""Least size of a value worth merging two of its readers for."""
MAX_SHARERS = 8
"""Readers of one value beyond which they are not compared with each other."""
ROUNDS = 3


def merge_groups(nodes: Nodes) -> list[Node]:
    """Join groups where it pays.

    Returns:
        All nodes that are left, in a valid order.
    """
    return _Merger(nodes).run()


class _Merger:
    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.fusion = nodes.fusion
        self.order: list[Node | None] = list(nodes.order())
        self.place: dict[Node, int] = {node: at for at, node in enumerate(self.order) if node is not None}
        outputs = {output.value for output in self.fusion.graph.outputs}
        views = {place.base for place in self.fusion.output_places.values()}
        self.kept = outputs | views | set(self.fusion.homes)

    def run(self) -> list[Node]:
        self._join_chains()
        for _ in range(ROUNDS):
            if not self._join_producers() | self._join_sharers():
                break
        return [node for node in self.order if node is not None]

    def _join_chains(self) -> None:
        """Merge products around the same inner product, which is then computed once."""
        holders: dict[Value, list[Group]] = {}
        for node in (item for item in self.order if isinstance(item, Group)):
            for product in node.sums:
                holders.setdefault(product, []).append(node)
        for pair in (pair for groups in holders.values() for pair in combinations(groups, 2)):
            if not self.place.keys() >= set(pair):
                continue
            first, second = sorted(pair, key=self.place.__getitem__)  # other merges may have moved them
            if first.device != second.device or not may_merge(first, second) or first.size + second.size > MAX_VISITS:
                continue
            merged = match_chains(first, second)
            if merged is None or not self._is_sound(merged, first, second):
                continue
            between = self._between(first, second, vertical=False)
            if between is not None:
                self._commit(first, second, merged, between)

    def _join_producers(self) -> bool:
        """Merge groups with the readers of what they store."""
        merged = False
        for node in [item for item in self.order if isinstance(item, Group)]:
            for value in list(node.roots):
                for reader in list(self.nodes.readers.get(value, ())):
                    producer = self.nodes.producer[value]
                    if not isinstance(reader, Group) or reader is producer or reader not in self.place:
                        continue
                    assert isinstance(producer, Group)
                    found = self._try(producer, reader, value, vertical=True) or self._dissolve(producer, reader, value)
                    merged |= found is not None
        return merged

    def _join_sharers(self) -> bool:
        """Merge groups that read the same value."""
        joined = False
        for value in list(self.nodes.readers):
            total = value.dtype.itemsize
            for size in int_shape(value):
                total *= size
            readers = [node for node in self.nodes.readers[value] if isinstance(node, Group) and value in node.visits]
            if typical(total) < SHARED_BYTES or not 2 <= len(readers) <= MAX_SHARERS:
                continue
            readers.sort(key=self.place.__getitem__)
            met: list[Group] = []
            for reader in readers:
                for at in reversed(range(len(met))):  # what lies between may depend on one and be no part of the other
                    merged = self._try(met[at], reader, value, vertical=False)
                    if merged is not None:
                        met[at], joined = merged, True
                        met.sort(key=self.place.__getitem__)
                        break
                else:
                    met.append(reader)
        return joined

    def _try(self, first: Group, second: Group, value: Value, vertical: bool) -> Group | None:
        """Merge two groups at a value that the first stores (vertical) or both read; first runs before second."""
        if (
            not may_merge(first, second)
            or first.device != second.device
            or first.size + second.size > MAX_VISITS
            or value in first.stores
            or first.sums
            or second.sums
        ):
            return None
        if vertical and value in self.fusion.early:
            return None
        at_first = first.roots[value] if vertical else _only_place(first, value)
        at_second = _only_place(second, value)
        if at_first is None or at_second is None:
            return None
        between = self._between(first, second, vertical)
        if between is None:
            return None
        shape = int_shape(value)
        if first.contracts or second.contracts:
            if not vertical or second.contracts or second.rows or second.axes_of(at_second) != second.axes.keys():
                return None
            merged = match_product(first, second, at_first, at_second, shape)
        else:
            merged = match(first, second, at_first, at_second, shape)
        if merged is None or not self._is_sound(merged, first, second):
            return None
        if _is_walked_again(merged, first, second, at_first, at_second, vertical):
            count, row = merged.extent(merged.parallel), merged.extent(merged.rows)
            in_one = vertical and self.fusion.backend == "triton" and takes_no_other_pass(second, value)
            if not in_one and not worth_rows(count, row, ROW_LIMITS[self.fusion.backend]):
                return None
        self._commit(first, second, merged, between)
        return merged

    def _dissolve(self, producer: Group, reader: Group, value: Value) -> Group | None:
        """Compute a value where its only reader needs it, at several places, when that is no more work."""
        if (
            not may_merge(producer, reader)
            or producer.rows
            or producer.overwrites
            or producer.contracts
            or reader.contracts
            or len(producer.roots) > 1
            or value in self.kept
        ):
            return None
        if value in self.fusion.early:
            return None
        if value in reader.overwrites.values():  # its memory is needed
            return None
        places = reader.visits.get(value)
        if not places or len(self.nodes.readers[value]) > 1 or producer.device != reader.device:
            return None
        if producer.size * len(places) + reader.size > MAX_VISITS:
            return None
        size = 1
        for extent in int_shape(value):
            size *= extent
        if sum(iterations(reader, place) for place in places) > size:
            return None
        between = self._between(producer, reader, vertical=True)
        merged = space_of(reader)
        take_over(merged, reader, {})
        own = producer.roots[value]
        for place, visit in places.items():
            mapping = {name: part for name, part in zip(map(bare, own), place, strict=True) if name is not None}
            take_over(merged, producer, mapping, is_masked=visit.masked)
        del merged.roots[value]
        if between is None or self._count_reads(merged) + len(merged.roots) > MAX_ARGUMENTS:
            return None
        if merged.overwrites and overwrites_its_input(merged, self.fusion.layouts):
            return None
        self.fusion.stored.discard(value)
        del self.nodes.readers[value]
        self._commit(producer, reader, merged, between)
        return merged

    def _count_reads(self, group: Group) -> int:
        stored = self.fusion.stored
        return sum(value in stored and value not in group.roots for value in group.visits)

    def _is_sound(self, merged: Group, first: Group, second: Group) -> bool:
        """Every value that one group stores and the other reads is read where it is computed, and sizes are sane."""
        for group in (first, second):
            for root in group.roots:
                if root in group.stores:
                    if root in first.visits or root in second.visits or not _is_done_once(group, merged, root):
                        return False
                elif any(index != merged.roots[root] for index in merged.visits.get(root, ())):
                    return False
        if self._count_reads(merged) + len(merged.roots) > MAX_ARGUMENTS:
            return False
        if not merged.overwrites:
            return True
        if any(base in merged.roots for base in merged.overwrites.values()):
            return False  # two stores to one place need an order
        return not overwrites_its_input(merged, self.fusion.layouts)

    def _between(self, first: Group, second: Group, vertical: bool) -> set[Node] | None:
        """Nodes between the two that depend on the first; None when the second depends on one of them."""
        low, high = self.place[first], self.place[second]
        if high - low > REACH:
            return None
        following = self.nodes.next
        if not vertical and second in following[first]:
            return None
        found: set[Node] = set()
        stack: list[Node] = [first]
        while stack:
            for node in following[stack.pop()]:
                if node is second or self.place[node] > high or node in found:
                    continue
                if second in following[node]:
                    return None
                found.add(node)
                stack.append(node)
        return found

    def _commit(self, first: Group, second: Group, merged: Group, later: set[Node]) -> None:
        """Replace both groups by the merged one; what depends on the first goes behind it."""
        merged.stage = max(first.stage, second.stage)
        nodes = self.nodes
        low, high = self.place[first], self.place[second]
        region = self.order[low : high + 1]
        early = [node for node in region if node is not None and node not in later and node not in (first, second)]
        late = [node for node in region if node in later]
        moved: list[Node | None] = [*early, merged, *late]
        moved = [None] * (len(region) - len(moved)) + moved
        self.order[low : high + 1] = moved
        del self.place[first], self.place[second]
        for at, node in enumerate(moved, low):
            if node is not None:
                self.place[node] = at
        following = (nodes.next.pop(first) | nodes.next.pop(second)) - {first, second}
        earlier = (nodes.previous.pop(first) | nodes.previous.pop(second)) - {first, second}
        nodes.next[merged], nodes.previous[merged] = following, earlier
        for node in following:
            nodes.previous[node] -= {first, second}
            nodes.previous[node].add(merged)
        for node in earlier:
            nodes.next[node] -= {first, second}
            nodes.next[node].add(merged)
        for group in (first, second):
            for value in nodes.reads(group):
                nodes.readers.get(value, {}).pop(group, None)
        for value in merged.roots:
            nodes.producer[value] = merged
        for value in nodes.reads(merged):
            nodes.readers.setdefault(value, {})[merged] = None


def _is_done_once(group: Group, merged: Group, root: Value) -> bool:
    """Whether an element that a group scatters to memory is so at one point of the merged space only."""
    return not scatters(group, root) or merged.axes_of(merged.roots[root]) >= frozenset(merged.parallel)


def _only_place(group: Group, value: Value) -> Index | None:
    """The one element of a value that a group needs at each point, everywhere; None when there are several."""
    places = group.visits.get(value)
    if places is None or len(places) != 1:
        return None
    ((index, visit),) = places.items()
    return None if visit.masked else index


def _is_walked_again(
    merged: Group, first: Group, second: Group, at_first: Index, at_second: Index, vertical: bool
) -> bool:
    """Whether one worker walks the elements of a whole row again, or stores them, for having merged."""
    if not merged.rows:
        return False
    if any(
        not group.rows and group.extent(tuple(group.axes)) > merged.extent(merged.parallel) for group in (first, second)
    ):
        return True
    is_row_number = bool(first.rows) and first.axes_of(at_first).isdisjoint(first.rows)
    return vertical and is_row_number and second.axes_of(at_second) != second.axes.keys()
