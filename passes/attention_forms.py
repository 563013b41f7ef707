"""What attention looks like in a graph, as people write it and as autograd records its gradients.

scores    a product of queries and keys; casts, constant factors, a mask that hides what is ahead, in any order
weights   softmax of the scores along the keys, cast; read by nothing but the products here
result    a product of the weights and values

All operands may be views: matrices are followed back to what they are views of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeGuard

from graphc.ir.graph import Graph, Op, Operand, Value
from graphc.ops.extern import effect
from graphc.passes.layout import int_shape
from graphc.passes.matrices import Matrices, before, matrices
from graphc.passes.positions import Step, Told, tell

_HIDDEN = -3.38e38
"""What is put in the place of a score to hide it, or added, is at most this once it is scaled: no score is less."""
_SOFTMAXES = ("softmax", "safe_softmax")
_FACTORS = ("mul", "div")


@dataclass(frozen=True)
class Role:
    """Which operand's gradient a product computes, and whether transposed."""

    operand: int
    is_turned: bool = False


@dataclass
class Form:
    """Attention in a graph.

    Attributes:
        product: what gives its result.
        query, key, value: with rows that are places and columns that are the width of a head.
        cotangent: of the result; None without a backward pass.
        gradients: the products of the backward pass that give gradients.
    """

    product: Op
    query: Matrices
    key: Matrices
    value: Matrices
    causal: bool
    scale: float
    batch: tuple[int, int] = (1, 1)
    cotangent: Matrices | None = None
    gradients: dict[Op, Role] = field(default_factory=dict)

    @property
    def query_shape(self) -> tuple[int, ...]:
        return (*self.batch, self.query.size(self.query.rows), self.query.size(self.query.columns))

    @property
    def keys(self) -> int:
        return self.key.size(self.key.rows)


def find_forms(graph: Graph) -> Iterator[Form]:
    """All attention of a graph of which nothing inside is read by anything else."""
    softmaxes = [op for op in graph.ops if op.name in _SOFTMAXES]
    if not softmaxes:
        return
    users, live, known = _uses(graph), graph.live_out(), dict[Value, "Told | None"]()
    order = {op: number for number, op in enumerate(graph.ops)}
    for op in softmaxes:
        form = _Finder(op, users, live, known).find()
        if form is not None and all(order[form.product] < order[later] for later in form.gradients):
            yield form


def _uses(graph: Graph) -> dict[Value, list[Op]]:
    """For each value the ops that read it, of those that something comes of."""
    users: dict[Value, list[Op]] = {value: [] for value in graph.values()}
    wanted = graph.live_out()
    for op in reversed(graph.ops):
        if effect(op) or not wanted.isdisjoint(op.results):
            wanted.update(op.inputs)
            for value in dict.fromkeys(op.inputs):
                users[value].append(op)
    return users


# one softmax


class _Finder:
    """Looks at what is around one softmax.

    Args:
        softmax: the op.
        users, live: of the graph's values: who reads them, and which are handed out.
        known: as for `tell`.
    """

    def __init__(
        self, softmax: Op, users: Mapping[Value, list[Op]], live: set[Value], known: dict[Value, Told | None]
    ) -> None:
        self.softmax, self.users, self.live, self.known = softmax, users, live, known
        self.weights = softmax.results[0]
        self.inside: set[Value] = {self.weights}
        self.ops: set[Op] = {softmax}

    def find(self) -> Form | None:
        rank = self.weights.type.rank
        if rank < 2 or self.softmax.attrs["dim"] != rank - 1 or 0 in self.weights.shape or 1 in self.weights.shape[-2:]:
            return None
        form = self._forward()
        if form is None or not self._backward(form):
            return None
        batch = _common_batch([item for item in (form.query, form.key, form.value, form.cotangent) if item is not None])
        if batch is None or not self._is_closed():
            return None
        form.batch = batch
        return form

    def _is_closed(self) -> bool:
        """Whether nothing inside is read from outside."""
        return self.live.isdisjoint(self.inside) and all(
            user in self.ops for value in self.inside for user in self.users[value]
        )

    # forward

    def _forward(self) -> Form | None:
        found = self._scores()
        products = [op for op in self._readers(self.weights, ("cast",)) if op.name == "matmul"]
        results = [op for op in products if op.operands[0] in self.inside and self._place(op.operands[0]) == (0, 1)]
        if found is None or len(results) != 1:
            return None
        (product,) = results
        inner, scale, causal = found
        query, turned, value = inner.operands[0], inner.operands[1], product.operands[1]
        assert isinstance(query, Value) and isinstance(turned, Value) and isinstance(value, Value)
        dtypes = {item.dtype.name for item in (query, turned, value, product.results[0])}
        if len(dtypes) != 1 or value in self.inside:
            return None
        self.ops.add(product)
        form = Form(product, matrices(query), matrices(turned).turned, matrices(value), causal, scale)
        places = form.query.size(form.query.rows), form.keys
        if places != tuple(self.weights.shape[-2:]) or form.value.size(form.value.rows) != form.keys:
            return None
        widths = {item.size(item.columns) for item in (form.query, form.key, form.value)}
        return form if len(widths) == 1 and (not causal or places[0] == places[1]) else None

    def _scores(self) -> tuple[Op, float, bool] | None:
        """The product that scores come from, what they are multiplied by, and whether what is ahead is hidden."""
        (value,) = self.softmax.inputs
        at, scale, causal = matrices(value, until=value), 1.0, False
        while at.source.op is not None:
            op = at.source.op
            self.inside.add(at.source)
            self.ops.add(op)
            if op.name == "matmul":
                is_whole = len(at.rows) == len(at.columns) == 1 and at.is_plain and _is_at_end(at)
                return (op, scale, causal) if is_whole else None
            step = self._score_step(op, scale)
            if step is not None:
                source, factor, hides = step
                if hides and not (_is_at_end(at) and at.is_plain):
                    return None
                at, scale, causal = replace(at, source=source), scale * factor, causal or hides
                continue
            earlier = before(at, op, ())
            if earlier is None:
                return None
            at = earlier
        return None

    def _score_step(self, op: Op, scale: float) -> tuple[Value, float, bool] | None:
        """What scores are made of by an op that keeps their shape, the factor, and whether it hides what is ahead.

        Args:
            scale: what its result is multiplied by later.
        """
        shape = op.results[0].shape if op.results else ()
        if op.name == "cast":
            (source,) = op.inputs
            return (source, 1.0, False) if source.dtype.is_float else None
        if op.name == "where":
            told = self._told(op.operands[0])
            if told is None:
                return None
            first, second = op.operands[1:]
            if told.is_constant:
                kept: Operand = first if told.below else second
                return (kept, 1.0, False) if _has_shape(kept, shape) else None
            # hidden where the condition holds ahead, or where it holds up to there
            hidden, kept = (first, second) if told.above else (second, first)
            number = self._number(hidden)
            is_hidden = number is not None and number * scale <= _HIDDEN
            if not _hides_ahead(told) or not is_hidden or not _has_shape(kept, shape):
                return None
            return kept, 1.0, True
        if op.name in (*_FACTORS, "add"):
            for kept, other in (op.operands, reversed(op.operands)) if op.name != "div" else (op.operands,):
                told = self._told(other)
                if told is not None and _has_shape(kept, shape):
                    return _added(kept, told, scale) if op.name == "add" else _multiplied(kept, told, op.name)
        return None

    def _told(self, operand: Operand) -> Step | None:
        found = tell(operand, self.known)
        return found if isinstance(found, Step) else None

    def _number(self, operand: Operand) -> float | None:
        told = self._told(operand)
        return float(told.below) if told is not None and told.is_constant else None

    def _readers(self, start: Value, through: Sequence[str]) -> Iterator[Op]:
        """Ops that read a value, or views of it; what lies between is inside."""
        stack = [start]
        while stack:
            value = stack.pop()
            for op in self.users[value]:
                if op.name in (*through, "reshape", "permute"):
                    self.ops.add(op)
                    self.inside.add(op.results[0])
                    stack.append(op.results[0])
                else:
                    yield op

    def _place(
        self, operand: Operand, start: Value | None = None, through: Sequence[str] = ("cast",)
    ) -> tuple[int, ...]:
        """Which of the last two dims rows and columns of a view are: (0, 1) as they are, (1, 0) turned.

        Args:
            start: what it is a view of; None = the weights.
        """
        start = self.weights if start is None else start
        assert isinstance(operand, Value)
        found = matrices(operand, through, start)
        rank = start.type.rank
        lead = tuple(dim for dim, size in enumerate(int_shape(start)[:-2]) if size != 1)
        if found.source is not start or found.lead != lead:
            return ()
        return tuple(dim - (rank - 2) for dim in (*found.rows, *found.columns))

    # backward

    def _backward(self, form: Form) -> bool:
        """Take the gradients in; False where something else is done with the weights."""
        cotangents: list[Value] = []
        slopes: list[Op] = []
        for op in self._readers(self.weights, ("cast",)):
            if op is form.product:
                continue
            if op.name == "softmax_gradient":
                slopes.append(op)
            elif op.name == "matmul" and op.operands[0] in self.inside and self._place(op.operands[0]) == (1, 0):
                form.gradients[op] = Role(2)
                cotangents.append(op.operands[1])  # type: ignore[arg-type]  # a product of tensors
            else:
                return False
            self.ops.add(op)
        if len(slopes) > 1:
            return False
        if slopes:
            cotangent = self._slopes(form, slopes[0])
            if cotangent is None:
                return False
            cotangents.append(cotangent)
        found = {matrices(value) for value in cotangents}
        if len(found) > 1 or any(value.dtype != form.product.results[0].dtype for value in cotangents):
            return False
        form.cotangent = found.pop() if found else None
        return True

    def _slopes(self, form: Form, op: Op) -> Value | None:
        """The gradients of queries and keys, from that of the softmax; the cotangent that it is made of."""
        gradient, weights = op.operands
        assert isinstance(gradient, Value) and isinstance(weights, Value)
        if weights not in self.inside or self._place(weights) != (0, 1):
            return None
        inner = self._inner(gradient)
        if inner is None:
            return None
        cotangent, turned = inner.operands
        assert isinstance(cotangent, Value) and isinstance(turned, Value)
        if matrices(turned).turned != form.value:
            return None
        start = op.results[0]
        self.inside.add(start)
        for reader in self._slope_readers(start):
            role = self._role(form, reader, start) if reader.name == "matmul" else None
            if role is None:
                return None
            form.gradients[reader] = role
            self.ops.add(reader)
        return cotangent

    def _inner(self, gradient: Value) -> Op | None:
        """The product of the cotangent and values that a gradient of the weights is."""
        value: Value | None = gradient
        while value is not None and value.op is not None:
            self.inside.add(value)
            self.ops.add(value.op)
            if value.op.name == "matmul":
                is_same = self._place(gradient, value) == (0, 1)
                return value.op if is_same else None
            value = next(iter(value.op.inputs)) if value.op.name in ("cast", "reshape", "permute") else None
        return None

    def _slope_readers(self, start: Value) -> Iterator[Op]:
        """Ops that read the gradient of the scores, whatever factors and masks are in between."""
        stack = [start]
        while stack:
            value = stack.pop()
            for op in self.users[value]:
                if op.name in ("cast", "reshape", "permute") or self._slope_step(op, value) is not None:
                    self.ops.add(op)
                    self.inside.add(op.results[0])
                    stack.append(op.results[0])
                else:
                    yield op

    def _slope_step(self, op: Op, value: Value) -> float | None:
        """The factor that an op multiplies a gradient of the scores by; setting to 0 what weighs 0 is none."""
        if op.name == "where":
            told = self._told(op.operands[0])
            if told is None or told.is_constant or not _hides_ahead(told):
                return None
            hidden, kept = op.operands[1:] if told.above else reversed(op.operands[1:])
            return 1.0 if kept is value and self._number(hidden) == 0 else None
        if op.name not in _FACTORS or not _has_shape(value, op.results[0].shape):
            return None
        others = op.operands[1:] if op.operands[0] is value else op.operands[:1] if op.name == "mul" else []
        number = self._number(others[0]) if others else None
        return None if not number else number if op.name == "mul" else 1 / number

    def _role(self, form: Form, op: Op, start: Value) -> Role | None:
        """Which gradient a product of the scores' gradient is."""
        left, right = op.operands
        assert isinstance(left, Value) and isinstance(right, Value)
        is_left = left in self.inside
        if is_left and right in self.inside:
            return None
        slope, other = (left, right) if is_left else (right, left)
        place = self._place(slope, start, ("cast", "where", *_FACTORS))
        if not math.isclose(self._factor(slope, start), form.scale, rel_tol=1e-6) or len(place) != 2:
            return None
        found = matrices(other)
        # ds @ k, ds^T @ q, q^T @ ds (which is turned), k^T @ ds^T
        operand = 0 if place == ((0, 1) if is_left else (1, 0)) else 1
        wanted = form.key if operand == 0 else form.query
        return Role(operand, not is_left) if (found if is_left else found.turned) == wanted else None

    def _factor(self, value: Value, start: Value) -> float:
        """The product of all factors on the way back to the gradient of the softmax."""
        factor = 1.0
        while value is not start:
            op = value.op
            assert op is not None
            source = next(item for item in op.inputs if item is start or item in self.inside)
            factor *= 1.0 if op.name in ("cast", "reshape", "permute") else self._slope_step(op, source) or math.nan
            value = source
        return factor


def _is_at_end(at: Matrices) -> bool:
    """Whether rows and columns are the last two dims of the source."""
    rank = at.source.type.rank
    return (*at.rows, *at.columns) == (rank - 2, rank - 1)


def _has_shape(operand: Operand, shape: tuple[object, ...]) -> TypeGuard[Value]:
    return isinstance(operand, Value) and operand.shape == shape


def _hides_ahead(told: Step) -> bool:
    """A step where keys begin to be ahead of their query."""
    return told.at == 1 and bool(told.above) != bool(told.below)


def _added(kept: Value, told: Step, scale: float) -> tuple[Value, float, bool] | None:
    if told.below != 0:
        return None
    if told.is_constant:
        return kept, 1.0, False
    return (kept, 1.0, True) if told.at == 1 and told.above * scale <= _HIDDEN else None


def _multiplied(kept: Value, told: Step, name: str) -> tuple[Value, float, bool] | None:
    number = float(told.below)
    if not told.is_constant or not math.isfinite(number) or number <= 0:  # what hides would not, turned round
        return None
    return kept, number if name == "mul" else 1 / number, False


def _common_batch(found: Sequence[Matrices]) -> tuple[int, int] | None:
    """Batch and heads that all have; those that do not tell them apart may be cut so."""
    counts = {item.size(item.lead) for item in found}
    apart = {tuple(int_shape(item.source)[dim] for dim in item.lead) for item in found if len(item.lead) == 2}
    if len(counts) != 1 or len(apart) > 1 or any(len(item.lead) > 2 for item in found):
        return None
    if not apart:
        return 1, counts.pop()
    batch, heads = apart.pop()
    return batch, heads
