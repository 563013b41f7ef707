"""Masks of attention scores: what lies between a product and the softmax of it, and hides some of its elements.

scores = mul(matmul(q, k), 0.125)
a = where(%causal == 0, -inf, scores)       hidden by minus infinity
b = where(%seen, a, -3.4e38)                replaced by a large negative number
c = add(b, %padding)                        added to, by 0 or a large negative number
exp(sub(c, amax(c)))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from graphc.ir.dims import static
from graphc.ir.graph import Graph, Input, Op, Operand, Role, Value
from graphc.ops import rules
from graphc.ops.registry import Kind, get
from graphc.passes.base import constant_of
from graphc.passes.chains import Chain, open_group
from graphc.passes.group import group_of
from graphc.passes.layout import int_shape

KEYS, QUERIES = -1, -2
"""Dims of scores."""
LARGE = 1e3
"""How negative a number has to be that hides a score."""
_DEPTH = 32
"""Ops between a product and a softmax, at most."""
_PURE = (Kind.POINTWISE, Kind.VIEW, Kind.CREATION, Kind.REDUCTION)


@dataclass(frozen=True)
class Mask:
    """An op that hides scores.

    Args:
        op: a `where`, or an `add`.
        value: the condition, or what is added.
        number: what is put in the place of scores; None where something is added.
        hides: scores are replaced where the condition holds; else where it does not.
        factor: what is multiplied behind it.
    """

    op: Op
    value: Value
    number: float | None = None
    hides: bool = True
    factor: float = 1.0

    @property
    def is_exact(self) -> bool:
        """It leaves nothing of the score that it hides."""
        return self.number == -math.inf

    @property
    def kept(self) -> Value:
        """The scores that it is put on."""
        kept = self.op.operands[2 if self.hides else 1] if self.number is not None else self._other
        assert isinstance(kept, Value)
        return kept

    @property
    def _other(self) -> Operand:
        first, second = self.op.operands
        return second if first is self.value else first


@dataclass
class Scores:
    """What one or several chains take exponentials of.

    Attributes:
        masks: the last one first.
        product: that they are made of, where nothing but masks and factors is in between.
        factor: what all of it is multiplied with.
    """

    value: Value
    chains: list[Chain] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    product: Op | None = None
    factor: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the scores where they are masked."""
        return int_shape(self.masks[0].op.result)

    @property
    def is_exact(self) -> bool:
        return all(mask.is_exact for mask in self.masks)

    def find_masks(self) -> bool:
        """Whether there are masks in memory that are the same for several heads, all seen in one shape."""
        moved_from: int | None = None
        value = self.value
        while value.op is not None:
            op = value.op
            mask = self._mask_of(op)
            if mask is not None:
                if moved_from is not None:
                    return False  # what several masks hide together is not told of two shapes
                self.masks.append(mask)
                value = mask.kept
            elif op.name == "cast":
                value = next(iter(op.inputs))
            elif op.name in ("mul", "div") and _is_positive(op.operands[1]):
                number = float(op.operands[1])  # type: ignore[arg-type]
                self.factor *= number if op.name == "mul" else 1 / number
                value = next(iter(op.inputs))
            elif get(op.name).kind is Kind.VIEW and len(op.operands) == 1:
                moved_from = len(self.masks) or None
                value = next(iter(op.inputs))
            elif op.name == "add" and (bias := self._biased(op)) is not None:
                self.factor, value = math.nan, bias
            else:
                self.product = op if op.name == "matmul" and self.factor == self.factor else None
                break
        if self.product is None:
            self.masks = [mask for mask in self.masks if mask.is_exact]
        return bool(self.masks) and self._are_in_memory()

    def _are_in_memory(self) -> bool:
        data, shape = _Data(), self.shape
        values = [mask.value for mask in self.masks]
        if not any(data.holds(value) and value.shape[-1:] == shape[-1:] for value in values):
            return False
        if len(dict.fromkeys(values)) < len(values):
            return False
        together = rules.broadcast("where", [int_shape(value) for value in values])
        return math.prod(static(size) for size in together) < math.prod(shape)

    def _mask_of(self, op: Op) -> Mask | None:
        condition = op.operands[0] if op.name == "where" else None
        if isinstance(condition, Value):
            first, second = op.operands[1:]
            for hidden, kept, hides in ((first, second, True), (second, first, False)):
                number = constant_of(hidden)
                if isinstance(number, (int, float)) and self._is_inside(kept, op):
                    return Mask(op, condition, float(number), hides, self.factor) if number <= -LARGE else None
        if op.name == "add":
            for kept, added in (op.operands, op.operands[::-1]):
                if self._is_inside(kept, op) and isinstance(added, Value) and _may_hide(added, op.result):
                    return Mask(op, added, factor=self.factor)
        return None

    def _is_inside(self, operand: Operand, op: Op) -> bool:
        """Whether an operand is scores, of the shape that the result has."""
        return (
            isinstance(operand, Value)
            and operand in self.chains[0].values
            and int_shape(operand) == int_shape(op.result)
        )

    def _biased(self, op: Op) -> Value | None:
        """The scores that something is added to that is no mask: -inf stays what it is."""
        inside = [x for x in op.operands if self._is_inside(x, op)]
        return inside[0] if len(inside) == 1 and isinstance(inside[0], Value) else None

    def may_come_early(self, place: Mapping[Op, int]) -> bool:
        """Whether all masks can be made before the first one is put on: nothing that has an effect is moved.

        Args:
            place: of ops in the graph.
        """
        first = min(place[mask.op] for mask in self.masks)
        stack, seen = [mask.value for mask in self.masks], set[Value]()
        while stack:
            value = stack.pop()
            op = value.op
            if op is None or value in seen or place[op] < first:
                continue
            if get(op.name).kind not in _PURE:
                return False
            seen.add(value)
            stack.extend(op.inputs)
        return True

    def dims(self) -> list[int]:
        """Which dims of the scores kernels loop over."""
        place = self.masks[0].op.result
        return sorted({_looped_over(chain, place) for chain in self.chains} - {0}, reverse=True)


def softmax_scores(chain: Chain) -> Iterator[Value]:
    """What exponentials inside a chain are of, short of what is subtracted."""
    for value in chain.values:
        shifted = value.op.operands[0] if value.op is not None and value.op.name == "exp" else None
        if isinstance(shifted, Value) and shifted.op is not None and shifted.op.name == "sub":
            scores = shifted.op.operands[0]
            if isinstance(scores, Value) and scores in chain.values:
                yield scores


def may_have_masks(graph: Graph) -> bool:
    """Whether there is a softmax of what memory may hide parts of, at a glance."""
    data = _Data()
    for op in graph.ops:
        value = op.operands[0] if op.name == "exp" else None
        is_masked = False
        for _ in range(_DEPTH):
            source = value.op if isinstance(value, Value) else None
            if source is None or len(source.results) != 1 or not source.operands:
                break
            if source.name == "matmul":
                if is_masked and source.result.type.rank > 2:  # heads share a mask
                    return True
                break
            size = math.prod(int_shape(source.result))
            wide = [x for x in source.inputs if math.prod(int_shape(x)) == size]
            if source.name in ("where", "add"):
                is_masked |= any(data.holds(x) for x in source.inputs if x not in wide)
            value = wide[-1] if wide and source.name != "sub" else source.operands[0]
    return False


def _may_hide(added: Value, scores: Value) -> bool:
    """Whether what is added may be a mask: the same for several heads, and not learned."""
    if not added.dtype.is_float or math.prod(int_shape(added)) >= math.prod(int_shape(scores)):
        return False
    return _Data().holds(added) and not _Data(learned=True).holds(added)


def _is_positive(operand: object) -> bool:
    return isinstance(operand, (int, float)) and 0 < operand < math.inf


def _looped_over(chain: Chain, place: Value) -> int:
    """Along which dim of scores the kernel of a chain has its loop: keys or queries; 0 for neither."""
    if place not in chain.values:
        return 0
    group = open_group(group_of(chain.outer.result, 0), chain)
    if group is None:
        return 0
    (index,) = group.visits[place]
    rows = frozenset(group.rows)
    return next((dim for dim in (KEYS, QUERIES) if group.axes_of((index[dim],)) & rows), 0)


@dataclass
class _Data:
    """Tells what is data from what positions alone tell.

    Args:
        learned: data are parameters.
    """

    learned: bool = False
    known: dict[Value, bool] = field(default_factory=dict)

    def holds(self, value: Value) -> bool:
        """Whether a value is made of anything but numbers and positions."""
        stack = [value]
        while stack:
            item = stack[-1]
            op = item.op
            if item in self.known:
                stack.pop()
            elif op is None or get(op.name).kind not in _PURE:
                self.known[item] = not self.learned or (isinstance(item, Input) and item.role is Role.PARAM)
            else:
                waits = [x for x in op.inputs if x not in self.known]
                stack += waits
                if not waits:
                    self.known[item] = any(self.known[x] for x in op.inputs)
        return self.known[value]
