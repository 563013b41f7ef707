"""Products of products: what lies between two products of matrices and is never stored, as the scores of attention.

    s = q @ k^T;  t = mask(scale * s);  p = softmax(t);  o = dropout(p) @ v        forward: one chain, around o
    dv = p^T @ do;  ds = p * (do @ v^T - delta);  dq = ds @ k;  dk = ds^T @ q       backward: a chain each

A chain is a product one of whose operands is made of pointwise work on other products, of the same size. Its kernel
computes that operand block by block, so nothing of the size of the scores is ever in memory. Values that several chains
need are computed by each of them. The maxima and sums of a softmax belong to the chain that contracts along its rows;
they are stored only for the chains that divide by them again, in a backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from graphc.ir.graph import Op, Operand, Value
from graphc.ir.types import DType
from graphc.ops.checks import may_refuse
from graphc.ops.registry import Kind, get
from graphc.passes.group import Group, group_of
from graphc.passes.layout import int_shape

_GLANCE = 16
"""Values that are looked at from one product."""
WIDEST = 256
"""Elements of the inner sums, and columns of the result: a program holds them whole."""


@dataclass(eq=False)
class Chain:
    """One kernel to be.

    Attributes:
        outer: the product that ends it.
        operand: which of its operands is computed inside.
        values: all that is computed inside, results of inner products and statistics of a softmax included.
        products: the inner ones.
        statistics: maxima and sums over rows that it computes.
    """

    outer: Op
    operand: int
    values: set[Value] = field(default_factory=set)
    products: list[Op] = field(default_factory=list)
    statistics: list[Value] = field(default_factory=list)


def find_chains(ops: Sequence[Op], kept: set[Value], takes: Callable[[int, int, DType], bool]) -> list[Chain]:
    """All chains of a graph.

    Args:
        ops: in program order.
        kept: values that are stored in any case.
        takes: of the numbers of scores and of rows of the result, and its dtype, whether it is to be one.

    Returns:
        Chains of which nothing inside is needed outside of chains, statistics left aside.
    """
    users: dict[Value, list[Op]] = {}
    found: list[Chain] = []
    for op in ops:
        for operand in dict.fromkeys(op.inputs):
            users.setdefault(operand, []).append(op)
    owned: set[Value] = set()
    products = [op for op in ops if op.name == "matmul" and op.results[0].dtype.name in ("bf16", "f16", "f32")]
    for op in products:
        chain = _forward(op, users)
        if chain is not None:
            found.append(chain)
            owned.update(chain.statistics)
    for op in products:
        if all(chain.outer is not op for chain in found):
            chain = _plain(op, owned)
            if chain is not None:
                found.append(chain)
    return _closed(_apart([chain for chain in found if takes(*_size(chain))]), users, kept)


def may_be_weighted(product: Op) -> bool:
    """Whether an operand of a product seems to be made of a softmax, as captured: at a glance."""
    stack, left = list(product.inputs), _GLANCE
    while stack and left:
        op, left = stack.pop().op, left - 1
        if op is None or len(op.results) != 1:
            continue
        if op.name == "softmax":
            return True
        if get(op.name).kind in (Kind.POINTWISE, Kind.VIEW):
            stack += [item for item in op.inputs if _count(item) == _count(op.result)]
    return False


def _apart(found: list[Chain]) -> list[Chain]:
    """Chains without those around a product that ends another one: of a product of a product of a product the first."""
    left: list[Chain] = []
    ends: set[Op] = set()
    for chain in found:
        if ends.isdisjoint(chain.products):
            left.append(chain)
            ends.add(chain.outer)
    inner = {product for chain in left for product in chain.products}
    return [chain for chain in left if chain.outer not in inner]


def _closed(found: list[Chain], users: Mapping[Value, list[Op]], kept: set[Value]) -> list[Chain]:
    """Chains whose values nobody else reads; dropping one may expose the values of another."""
    while True:
        inside = {value for chain in found for value in chain.values}
        owners = {value for chain in found for value in chain.statistics}
        ends = {chain.outer for chain in found}
        left, changed = list[Chain](), False
        for chain in found:
            hidden = chain.values - owners
            seen = hidden & kept | {
                value
                for value in hidden
                if any(user not in ends and inside.isdisjoint(user.results) for user in users.get(value, ()))
            }
            free = {value for value in seen if not _is_inside(value, chain)}  # may as well be read from memory
            if seen == free and _known(chain.values, owners):
                chain.values -= free
                changed |= bool(free)
                left.append(chain)
        if len(left) == len(found) and not changed:
            return left
        found = left


def _known(values: set[Value], owners: set[Value]) -> bool:
    """Whether all statistics that values are made of are computed by some chain."""
    return all(value in owners for value in values if _is_reduction(value))


def _count(value: Value) -> int:
    return math.prod(int_shape(value))


def _size(chain: Chain) -> tuple[int, int, DType]:
    """Scores, rows of the result, and its dtype."""
    result = chain.outer.results[0]
    columns = int_shape(result)[-1 if chain.operand == 0 else -2]
    return _count(chain.products[0].results[0]), _count(result) // max(1, columns), result.dtype


def _is_reduction(value: Value) -> bool:
    return value.op is not None and get(value.op.name).kind is Kind.REDUCTION


def _plain(outer: Op, owned: set[Value]) -> Chain | None:
    """A chain without statistics of its own."""
    for number in (0, 1):
        chain = _walk(outer, number, owned)
        if chain is not None and not chain.statistics and _fits(chain):
            return chain
    return None


def _walk(outer: Op, number: int, given: set[Value]) -> Chain | None:
    """Everything of the size of the operand that it is made of, down to products; `given`: statistics that are read."""
    start = outer.operands[number]
    assert isinstance(start, Value)
    chain, size = Chain(outer, number), _count(start)
    if size == 0 or 1 in int_shape(start)[-2:]:
        return None
    stack = [start]
    while stack:
        value = stack.pop()
        op = value.op
        if op is None or value in chain.values or value in given:
            continue
        kind = get(op.name).kind
        if kind is Kind.REDUCTION and op.name in ("amax", "sum"):
            (source,) = op.inputs
            rank = source.type.rank
            if _count(source) != size or tuple(op.attrs["dims"]) != (rank - 1,) or not op.attrs["keepdim"]:
                continue
            chain.statistics.append(value)
        elif op.name == "matmul":
            if _count(value) != size:
                continue
            chain.products.append(op)
            chain.values.add(value)
            continue
        elif not _is_element(value, size):
            continue
        chain.values.add(value)
        stack.extend(op.inputs)
    return chain if chain.products else None


def _is_element(value: Value, size: int) -> bool:
    """Whether a value is one for each score, or made of statistics of their rows, and can be computed anywhere."""
    op = value.op
    assert op is not None
    kind = get(op.name).kind
    if _count(value) != size and not _leads_to_statistic(value, size):
        return False
    if kind is Kind.VIEW:
        return len(op.operands) == 1 and op.name not in ("pad", "as_strided", "slice")
    # data are checked behind loops, where those of the last step alone are at hand
    return kind in (Kind.POINTWISE, Kind.RANDOM) and len(op.results) == 1 and not may_refuse(op)


def _leads_to_statistic(value: Value, size: int) -> bool:
    """Whether a number per row is made of maxima or sums of rows, such as the test for a row that is masked whole."""
    for _ in range(8):
        op = value.op
        if op is None:
            return False
        if _is_reduction(value):
            return _count(next(iter(op.inputs))) == size
        inputs = [item for item in op.inputs if item.type.rank]
        if get(op.name).kind not in (Kind.POINTWISE, Kind.VIEW) or not inputs:
            return False
        value = inputs[0]
    return False


# the softmax of a forward pass


def _forward(outer: Op, users: Mapping[Value, list[Op]]) -> Chain | None:
    """A chain that ends with weights of a softmax times something."""
    for number in (0, 1):
        chain = _walk(outer, number, set())
        if chain is not None and _is_softmax(chain, users) and _fits(chain):
            return chain
    return None


def _is_softmax(chain: Chain, users: Mapping[Value, list[Op]]) -> bool:
    """Whether the operand is the weights of one softmax times factors, perhaps 0 in rows that are masked whole."""
    if len(chain.products) != 1 or sorted(_op(v).name for v in chain.statistics) != ["amax", "sum"]:
        return False
    peak, total = sorted(chain.statistics, key=lambda value: _op(value).name)
    exponential = _op(total).operands[0]
    if not isinstance(exponential, Value) or _op(exponential).name != "exp":
        return False
    shifted = _op(exponential).operands[0]
    if not isinstance(shifted, Value) or shifted.op is None or shifted.op.name != "sub":
        return False
    scores, base = shifted.op.operands
    if _op(peak).operands[0] is not scores or not (base is peak or _is_safe(base, peak)):
        return False
    start = chain.outer.operands[chain.operand]
    assert isinstance(start, Value)
    weights = _linear_source(start, chain, peak)
    if weights is None or _op(weights).name != "div" or _op(weights).operands[:2] != [exponential, total]:
        return False
    return all(
        user in (_op(total), _op(weights)) for user in users.get(exponential, ())
    )  # nothing else sees the numbers before they are divided


def _op(value: Value) -> Op:
    assert value.op is not None
    return value.op


def is_peak_of(base: object, scores: object) -> bool:
    """Whether it is the maximum of rows of scores, perhaps 0 in rows that are masked whole."""
    op = base.op if isinstance(base, Value) else None
    if op is not None and op.name == "where" and isinstance(op.operands[2], Value):
        return _is_safe(base, op.operands[2]) and is_peak_of(op.operands[2], scores)
    return op is not None and op.name == "amax" and op.operands[0] is scores


def _is_safe(base: object, peak: Value) -> bool:
    """`where(peak == -inf, 0, peak)`."""
    if not isinstance(base, Value) or base.op is None or base.op.name != "where":
        return False
    condition, zero, other = base.op.operands
    return zero == 0 and other is peak and _is_empty_test(condition, peak)


def _is_empty_test(condition: object, peak: Value) -> bool:
    if not isinstance(condition, Value) or condition.op is None or condition.op.name != "eq":
        return False
    return condition.op.operands[0] is peak and condition.op.operands[1] == -math.inf


def _linear_source(value: Value, chain: Chain, peak: Value) -> Value | None:
    """What a value is a multiple of, going back through factors, masks, casts and views, to a division by a sum."""
    while True:
        op = _op(value)
        following: Operand | None
        if op.name == "div" and isinstance(op.operands[1], Value) and op.operands[1] in chain.statistics:
            return value
        if op.name in ("cast", "reshape", "permute", "expand", "copy"):
            following = op.operands[0]
        elif op.name == "mul":
            inside = [item for item in op.operands if isinstance(item, Value) and _is_inside(item, chain)]
            following = inside[0] if len(inside) == 1 else None
        elif op.name == "div":
            following = op.operands[0] if not _is_inside(op.operands[1], chain) else None
        elif op.name == "where":
            condition, first, second = op.operands
            following = second if first == 0 else first if second == 0 else None
            if _is_inside(condition, chain) and not _is_empty_test(condition, peak):
                return None
        else:
            return None
        if not isinstance(following, Value) or following.op is None or following not in chain.values:
            return None
        value = following


def _is_inside(item: object, chain: Chain) -> bool:
    """Whether a value is made of the inner product."""
    stack, seen = [item], set[Value]()
    while stack:
        value = stack.pop()
        if not isinstance(value, Value) or value in seen or value not in chain.values:
            continue
        if value.op in chain.products or value in chain.statistics:
            return True
        seen.add(value)
        stack.extend(_op(value).inputs)
    return False


# whether a kernel can hold it


def _fits(chain: Chain) -> bool:
    """Whether everything in a chain is needed at one point of the kernel's space only, and blocks are small enough."""
    group = open_group(group_of(chain.outer.results[0], 0), chain)
    if group is None or not all(group.sums.values()):
        return False
    inner = [group.axes[name] for names in group.sums.values() for name in names]
    columns = int_shape(chain.outer.results[0])[-1 if chain.operand == 0 else -2]
    return max((*inner, columns)) <= WIDEST


def open_group(group: Group, chain: Chain) -> Group | None:
    """A group with everything of a chain computed in it, for a look at it; None when that cannot be.

    Args:
        group: one that has just been made, for the outer product.
    """
    (place,) = group.visits[chain.outer.results[0]]
    if not group.admit_contraction(chain.outer, place):
        return None
    group.expand(chain.outer.results[0], place)
    start = chain.outer.operands[chain.operand]
    assert isinstance(start, Value)
    other = chain.outer.operands[1 - chain.operand]
    if other is start or (isinstance(other, Value) and other in chain.values):
        return None
    stack = [start]
    done: set[Value] = set()
    while stack:
        value = stack.pop()
        if value not in chain.values or value in done:
            continue
        done.add(value)
        for at in list(group.visits[value]):
            if value.op in chain.products and not group.admit_inner(value.op, at):
                return None
            stack.extend(group.expand(value, at))
    if any(len(group.visits.get(value, ())) != 1 for value in chain.values):
        return None
    for value in chain.values:
        ((at, visit),) = group.visits[value].items()
        if visit.masked:
            return None
        along = group.axes_of(at)
        if value in chain.statistics and not along.isdisjoint(group.rows):
            return None
    return group
