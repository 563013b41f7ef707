"""Stacks in the place of sequences: a loop stores what it stacks where it has already read.

    turn              0       1       2       3
    reads             x[0]    x[1]    x[2]    x[3]         x is not read after the loop
    stores            y[0]    y[1]    y[2]    y[3]
    memory     ----   x[0]    x[1]    x[2]    x[3]
    later      y[0]   y[1]    y[2]    y[3]    ----

Turn n stores into the row that turn n - 1 has read, so nothing is asked of the kernels of a turn, and the two take one
row more than one of them. The gates of a recurrent network lie where its projected inputs were, and their gradients
where the gates were. And a stack that a kernel copies into a larger value, as the last turns of a loop that differ from
the others make it, is made there in the first place.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from graphc.ir.dims import Dim, Sym, bounds
from graphc.loopir.kernel import Kernel, Load, Store
from graphc.passes.layout import is_dense, span
from graphc.passes.memory import ALIGNMENT, Block, most_alive
from graphc.passes.sharing import Sharing
from graphc.program.lifetimes import step_buffers, written_buffers
from graphc.program.loops import Binding, LoopStep
from graphc.program.plan import AtenStep, BufferSpec, ForeachStep, GemmStep, KernelStep, Step, View

ALL, COPIES, NONE = "all", "copies", "none"


class Span(NamedTuple):
    """Elements of a buffer, from `low` up to `high`."""

    low: int
    high: int

    def moved(self, by: int) -> Span:
        """The same number of elements elsewhere."""
        return Span(self.low + by, self.high + by)

    def meets(self, other: Span) -> bool:
        """Whether the two have an element in common."""
        return self.low < other.high and other.low < self.high


def best_overlays(
    steps: Sequence[Step],
    buffers: Sequence[BufferSpec],
    kernels: Mapping[str, Kernel],
    able: Container[int],
    sharing: Sharing,
) -> Overlays:
    """Those that take the least memory; see `Overlays`."""
    found = [Overlays(steps, buffers, kernels, able, sharing, elide) for elide in (COPIES, ALL, NONE)]
    return min(found, key=Overlays.most_alive)


class _Row(NamedTuple):
    """The elements of a buffer that a loop uses in turn 0, and how far on it is in each later turn."""

    span: Span
    stride: int


class Overlays:
    """Finds the buffers of a program that lie over others.

    Args:
        steps, buffers, kernels: of the program; kernels of loops too.
        able: buffers that may be moved.
        sharing: of the kernels.
        elide: which copies to elide: `COPIES` = of kernels that do nothing else, `ALL`, `NONE`. What is made where it
            would be copied to takes no other place, so which of these takes the least memory differs.

    Attributes:
        place: buffer -> another one, and the element of it where the buffer starts; it may be before the first one.
        spared: numbers of steps that are not needed any more: they copied a buffer to the place where it now is.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        buffers: Sequence[BufferSpec],
        kernels: Mapping[str, Kernel],
        able: Container[int],
        sharing: Sharing,
        elide: str,
    ) -> None:
        self.steps, self.buffers, self.kernels, self.able, self.sharing = steps, buffers, kernels, able, sharing
        self.uses: dict[int, list[int]] = {}  # buffer -> numbers of the steps that use it
        self.place: dict[int, tuple[int, int]] = {}
        self.spared: set[int] = set()
        loops = [number for number, step in enumerate(steps) if isinstance(step, LoopStep)]
        if not loops:
            return
        for number, step in enumerate(steps):
            for index in dict.fromkeys(step_buffers(step)):
                self.uses.setdefault(index, []).append(number)
        for number, step in enumerate(steps):
            if isinstance(step, KernelStep) and (elide == ALL or (elide == COPIES and len(step.buffers) == 2)):
                self._copy(number, step)
        for number in loops:
            self._loop(number)

    def root(self, index: int) -> tuple[int, int]:
        """The buffer in which one lies in the end, and where."""
        offset = 0
        while index in self.place:
            index, more = self.place[index]
            offset += more
        return index, offset

    def _copy(self, number: int, step: KernelStep) -> None:
        """Have a stack made where a kernel would copy it to, in the memory of a larger value."""
        kernel = self.kernels[step.kernel]
        if not any(isinstance(self.steps[self.uses[index][0]], LoopStep) for index in step.buffers):
            return
        for load, store in _copies(kernel):
            names = [buffer.name for buffer in kernel.buffers]
            at, to = names.index(load.buffer), names.index(store.buffer)
            old, whole, start = step.buffers[at], step.buffers[to], step.offsets[to]
            is_stack = isinstance(self.steps[self.uses[old][0]], LoopStep) and step.buffers.count(old) == 1
            if not is_stack or step.offsets[at] or not _is_whole(load.index, kernel, self._size(old)):
                continue
            alone = len(kernel.body) == 2
            if (alone or self.sharing.allows(kernel, [load.buffer], store.buffer)) and self._may_be_in(
                old, whole, start, number
            ):
                self.place[old] = whole, start
                if alone:
                    self.spared.add(number)
                    self.uses[old].remove(number)
                    self.uses[whole].remove(number)

    def _may_be_in(self, old: int, whole: int, start: int, number: int) -> bool:
        """Whether a stack may be in its part of a larger value all the time, and not only from step `number` on."""
        able = self._is_able(old) and self._is_able(whole) and self._is_alike(old, whole)
        if not able or old in self.place or start * self.buffers[old].dtype.itemsize % ALIGNMENT:
            return False
        wanted = Span(start, start + self._size(old))
        for user in (user for user in self.uses[whole] if user != number):
            step = self.steps[user]
            if (user < number or whole in written_buffers(step, self.kernels)) and any(
                wanted.meets(span) for span in self._spans(step, whole)
            ):
                return False
        return not any(
            user > number and old in written_buffers(self.steps[user], self.kernels) for user in self.uses[old]
        )

    def most_alive(self) -> int:
        """Bytes of movable buffers that are there at most at a time."""
        ends: dict[int, list[int]] = {}  # first step, last step, first element, the one behind the last
        for index, users in self.uses.items():
            if self._is_able(index) and users:
                root, at = self.root(index)
                new = [users[0], users[-1], at, at + self._size(index)]
                old = ends.get(root, new)
                ends[root] = [min(old[0], new[0]), max(old[1], new[1]), min(old[2], new[2]), max(old[3], new[3])]
        sizes = {root: self.buffers[root].dtype.itemsize for root in ends}
        return most_alive(Block(a, b, (high - low) * sizes[root]) for root, (a, b, low, high) in ends.items())[1]

    def _loop(self, number: int) -> None:
        loop = self.steps[number]
        assert isinstance(loop, LoopStep)
        read, stored = _rows(loop, self.kernels)
        taken: set[int] = set()
        fresh = [
            index
            for index in stored
            if self._is_able(index) and self.uses[index][0] == number and index not in self.place
        ]
        for made in sorted(fresh, key=lambda index: -self.buffers[index].nbytes):
            for old in read:
                if old in taken or old in fresh or not self._is_able(old) or not self._is_alike(made, old):
                    continue
                start = _start(read[old], stored[made], ALIGNMENT // self.buffers[made].dtype.itemsize)
                if start is not None and self._is_free(old, Span(start, start + self._size(made)), number):
                    self.place[made] = old, start
                    taken.add(old)
                    break

    def _is_able(self, index: int) -> bool:
        return index in self.able

    def _is_alike(self, made: int, old: int) -> bool:
        one, other = self.buffers[made], self.buffers[old]
        return one.dtype.itemsize == other.dtype.itemsize and one.device == other.device

    def _size(self, index: int) -> int:
        return self.buffers[index].nbytes // self.buffers[index].dtype.itemsize

    def _is_free(self, old: int, wanted: Span, number: int) -> bool:
        """Whether nothing that loop `number`, or a later step, finds in the memory of `old` is where it will store."""
        root, offset = self.root(old)
        wanted = wanted.moved(offset)
        for index in (root, *self.place):
            other, at = self.root(index)
            if other != root:
                continue
            for user in self.uses[index]:
                if user < number or (user == number and index == old):
                    continue
                if user == number or any(wanted.meets(s.moved(at)) for s in self._spans(self.steps[user], index)):
                    return False
        return True

    def _spans(self, step: Step, index: int) -> list[Span]:
        """Where a step uses a buffer."""
        whole = Span(0, self._size(index))
        if isinstance(step, KernelStep):
            kernel = self.kernels[step.kernel]
            places = [at for at, buffer in enumerate(step.buffers) if buffer == index]
            return [_reach(kernel, kernel.buffers[at].name, whole).moved(step.offsets[at]) for at in places]
        if isinstance(step, LoopStep):
            return _turns(step, index)
        if isinstance(step, ForeachStep):
            return [whole]
        views = [step.a, step.b, step.out] if isinstance(step, GemmStep) else step.views()
        found = [_seen(view) for view in views if view.buffer == index]
        return [*found, whole] if isinstance(step, AtenStep) and index in step.outs else found


def _start(read: _Row, stored: _Row, unit: int) -> int | None:
    """Where a stack starts in the memory of a sequence, so that each turn stores where the turn before has read."""
    stride = read.stride
    rows = (read.span, stored.span)
    if stride != stored.stride or not stride or any(row.high - row.low > abs(stride) for row in rows):
        return None
    start = read.span.low - stride - stored.span.low
    return start // unit * unit if stride > 0 else -(-start // unit) * unit  # further from what is still to be read


def _rows(loop: LoopStep, kernels: Mapping[str, Kernel]) -> tuple[dict[int, _Row], dict[int, _Row]]:
    """Per buffer that a loop goes through evenly its rows: of buffers that it only reads, and of those it stores to.

    Of a buffer that it also stores to, only the rows it stores to count: it reads none but those of earlier turns.
    """
    written = {index for step in loop.steps for index in written_buffers(step, kernels)}
    found: dict[int, list[tuple[Binding, Span, bool]]] = {}
    for number, (spec, binding) in enumerate(zip(loop.specs, loop.bindings, strict=True)):
        size = spec.nbytes // spec.dtype.itemsize
        for index in {*binding.buffers, binding.first} - {-1}:
            found.setdefault(index, []).append((binding, Span(0, size), number in written))
    read: dict[int, _Row] = {}
    stored: dict[int, _Row] = {}
    for index, uses in found.items():
        stores = [use for use in uses if use[2]]
        row = _row(stores or uses)
        even = all(_is_even(binding, index) for binding, _, is_stored in uses if is_stored or not stores)
        if row is not None and even:
            (stored if stores else read)[index] = row
    return read, stored


def _is_even(binding: Binding, index: int) -> bool:
    """Whether a buffer is gone through from the first turn to the last."""
    return binding.buffers == (index, index) and binding.offsets[0] == binding.offsets[1] and binding.first < 0


def _row(uses: Sequence[tuple[Binding, Span, bool]]) -> _Row | None:
    strides = {binding.stride for binding, _, _ in uses}
    if len(strides) != 1:
        return None
    spans = [own.moved(binding.offsets[0]) for binding, own, _ in uses]
    return _Row(Span(min(s.low for s in spans), max(s.high for s in spans)), strides.pop())


def _turns(loop: LoopStep, index: int) -> list[Span]:
    """Where a loop uses a buffer, all turns together."""
    found: list[Span] = []
    for spec, binding in zip(loop.specs, loop.bindings, strict=True):
        own = Span(0, spec.nbytes // spec.dtype.itemsize)
        for turn in (0, 1, 2, loop.length - 2, loop.length - 1):  # it moves on evenly
            if not 0 <= turn < loop.length:
                continue
            buffer, offset = binding.at(turn)
            if buffer == index:
                found.append(own.moved(offset))
    return [Span(min(s.low for s in found), max(s.high for s in found))] if found else []


def _reach(kernel: Kernel, name: str, whole: Span) -> Span:
    """The elements of a buffer that a kernel may use, from where the buffer starts for it."""
    ranges = {axis.name: (0, axis.extent - 1) for axis in kernel.axes if isinstance(axis.extent, int)}
    reached = [bounds(s.index, ranges) for s in kernel.body if isinstance(s, (Load, Store)) and s.buffer == name]
    lows, highs = [low for low, _ in reached], [high for _, high in reached]
    if not reached or None in lows or None in highs:
        return whole
    return Span(min(low for low in lows if low is not None), 1 + max(high for high in highs if high is not None))


def _copies(kernel: Kernel) -> list[tuple[Load, Store]]:
    """What a kernel stores as it has loaded it, at the same place of another buffer."""
    loads = {s.id: s for s in kernel.body if isinstance(s, Load) and s.mask is None}
    pairs = [(loads[s.value], s) for s in kernel.stores if s.value in loads and s.mask is None and s.mode == "set"]
    return [(load, store) for load, store in pairs if load.index == store.index]


def _is_whole(index: Dim, kernel: Kernel, count: int) -> bool:
    """Whether an index is each number below `count` once."""
    if isinstance(index, int):
        return index == 0 and count == 1 and not kernel.axes
    strides: dict[str, int] = {}
    for monomial, coefficient in index.terms:
        if len(monomial) != 1 or not isinstance(monomial[0], Sym):
            return False
        strides[monomial[0].name] = coefficient
    extents = [axis.extent for axis in kernel.axes if isinstance(axis.extent, int)]
    steps = tuple(strides.get(axis.name, 0) for axis in kernel.axes)
    whole = len(extents) == len(steps) and is_dense(tuple(extents), steps)
    return whole and span(tuple(extents), steps) == count


def _seen(view: View) -> Span:
    return Span(view.offset, view.offset + span(view.shape, view.strides))
