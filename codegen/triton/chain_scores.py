"""What kernels with several products compute for each score, in as few instructions as their precision asks for.

    t = where(mask, -inf, dot(q, k) * c);  p = exp(t - peak) / total            scores and weights of loop IR
    t = where(mask, -inf, dot(q, k));  p = exp2(fma(t, c * log2(e), -peak * log2(e))) * inverse

    ds = (dp - delta) * counts * p * c;  ds = fma(dp, counts * c, -delta * counts * c) * p

There are many more scores than elements of any operand. So positions are compared as 32-bit numbers; next to products
of bf16 and f16, which round at 2^-9 and 2^-12, exponentials are the fast ones of base 2 (about 2^-22, nothing below
2^-126), multiplications are fused with additions, and what is divided by one number per row is multiplied with its
inverse. Kernels in f32 compute as all others do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from graphc.codegen.triton.body import Body
from graphc.codegen.triton.chain_parts import ChainParts
from graphc.codegen.triton.indexing import index_text
from graphc.codegen.triton.ops import Operand, literal
from graphc.codegen.triton.tiling import TileDim
from graphc.errors import CodegenError
from graphc.ir.types import bool_, f32
from graphc.loopir.kernel import Compute, Const, Contract, Define, Index, Reduce

_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_SAFE = 2.0**100
"""Numbers from the inverse of this up to it have inverses that lose nothing."""
_LOG2_E = math.log2(math.e)
_LARGEST = 2.0**24
"""Exponents of base 2 from which on rounding one is worth more than a factor of 2."""


@dataclass
class ScoresBody(Body):
    """Lines that compute scores.

    Args:
        parts: of the kernel.
        exact: products are in f32, and so is everything else.

    Attributes:
        waiting: statements that are written when somebody reads them, as exponentials may do without them.
    """

    parts: ChainParts = field(kw_only=True)
    exact: bool = field(kw_only=True)
    inverses: set[str] = field(default_factory=set)
    waiting: dict[str, Compute] = field(default_factory=dict)

    def define(self, s: Define) -> None:
        """Write one pure statement, at once or when it is read."""
        if not isinstance(s, Compute):
            super().define(s)
        elif self._may_wait(s):
            self.waiting[s.id] = s
            self.shapes[s.id] = frozenset[str]().union(*(self.shapes[arg] for arg in s.args))
        else:
            self._write(s)

    def operand(self, name: str) -> Operand:
        s = self.waiting.pop(name, None)
        if s is not None:
            self._write(s)
        return super().operand(name)

    def _may_wait(self, s: Compute) -> bool:
        """Whether it may become a part of an exponential."""
        if self.exact or s.dtype != f32 or not self.parts.changes(s):
            return False
        return s.op == "sub" or scale_of(self.parts, s.id) != 1 or self._difference(s) is not None

    def _difference(self, s: Compute) -> tuple[Compute, list[str]] | None:
        """What a product is that has a difference with one number per row or column in it: that, and other factors."""
        if s.op != "mul":
            return None
        for arg, other in (s.args, s.args[::-1]):
            inside = self.waiting.get(arg)
            if inside is None or other in self.waiting:
                continue
            if inside.op == "sub" and self.shapes[inside.args[1]] < self.shapes[inside.args[0]] == self.full:
                return inside, [other]
            found = self._difference(inside)
            if found is not None:
                return found[0], [*found[1], other]
        return None

    def _write(self, s: Compute) -> None:
        text = None
        if s.op in _COMPARISONS:
            text = self._comparison(s)
        elif not self.exact and s.dtype == f32 and s.op == "exp":
            text = self._exponential(s.args[0])
        elif not self.exact and s.dtype == f32 and s.op == "div":
            text = self._quotient(s)
        elif not self.exact and s.dtype == f32 and s.op == "add":
            text = self._sum(s)
        elif s.op == "mul" and not self.exact and s.dtype == f32:
            text = self._product(s)
        if text is None:
            super().define(s)
        else:
            self.bind(s, text, frozenset().union(*(self.shapes[arg] for arg in s.args)))

    def _comparison(self, s: Compute) -> str | None:
        """Two positions compared."""
        sides = [self.parts.by_id[arg] for arg in s.args]
        texts = [index_text(self.context, side.expr, self.ranges) for side in sides if isinstance(side, Index)]
        if self.tiling.wide or len(texts) != 2:
            return None
        return f"({texts[0]}) {_COMPARISONS[s.op]} ({texts[1]})"

    # what an exponential is made of

    def unscaled(self, name: str, factor: float) -> str:
        """A score as a tensor over the whole block, short of the factor that `scale_of` found."""
        s = self.parts.by_id[name]
        if factor == 1 or not isinstance(s, Compute):
            return self.expanded(name, self.full)
        if s.op == "mul":
            return self.expanded(next(arg for arg in s.args if isinstance(self.parts.by_id[arg], Contract)), self.full)
        inside = _unmasked(self.parts, s)
        assert inside is not None
        text = self.unscaled(inside, factor)
        arms = [text if arg == inside else self.operand(arg).argument for arg in s.args[1:]]
        self.line(f"{s.id}_unscaled = tl.where({self.operand(s.args[0]).typed}, {', '.join(arms)})")
        return f"{s.id}_unscaled"

    def _exponential(self, name: str) -> str:
        """Of a difference with one number per row or column, as far as the difference is not needed itself."""
        s = self.waiting.get(name)
        if s is None or s.op != "sub" or not self.shapes[s.args[1]] < self.shapes[s.args[0]] == self.full:
            return f"tl.exp2({self.operand(name).typed} * {_LOG2_E})"
        factor, peak = scale_of(self.parts, s.args[0]), self.operand(s.args[1]).typed
        scores = self.unscaled(s.args[0], factor)
        if factor != 1:
            return f"tl.exp2(tl.fma({scores}, {factor * _LOG2_E}, {peak} * {-_LOG2_E}))"
        if self.parts.changes(self.parts.by_id[s.args[1]]):
            return f"tl.exp2(({scores} - {peak}) * {_LOG2_E})"
        self.line(f"{s.id}_slope = {slope_text(peak, 1.0)}")
        return f"tl.exp2(tl.fma({scores}, {s.id}_slope, {peak} * {s.id}_slope * -1.0))"

    def _sum(self, s: Compute) -> str | None:
        """A scaled product and something else."""
        for arg, other in (s.args, s.args[::-1]):
            factor = scale_of(self.parts, arg) if arg in self.waiting and self.waiting[arg].op == "mul" else 1.0
            if factor != 1:
                return f"tl.fma({self.unscaled(arg, factor)}, {factor}, {self.operand(other).argument})"
        return None

    def _product(self, s: Compute) -> str | None:
        """Of a difference and other factors: those that are the same for a row or column go into the difference."""
        found = self._difference(s)
        if found is None:
            return None
        (left, right), factors = found[0].args, found[1]
        few = [name for name in factors if self.shapes[name] != self.full]
        if not few:
            return None
        self.line(f"{s.id}_factor = {self._factor(few)}")
        text = f"tl.fma({self.operand(left).text}, {s.id}_factor, {self.operand(right).typed} * {s.id}_factor * -1.0)"
        return " * ".join([text, *(self.operand(name).text for name in factors if name not in few)])

    def _factor(self, names: list[str]) -> str:
        """The product of numbers, of which a choice between 0 and 1 may be one."""
        found = [self.parts.by_id[name] for name in names]
        constants = [s.value for s in found if isinstance(s, Const)]
        choices = [s for s in found if isinstance(s, Compute) and s.op == "cast"]
        choices = [s for s in choices if self.parts.by_id[s.args[0]].dtype == bool_]
        if len(choices) != 1 or len(constants) != len(names) - 1:
            return " * ".join(self.operand(name).typed for name in names)
        one = literal(math.prod(map(float, constants)), f32)
        return f"tl.where({self.operand(choices[0].args[0]).typed}, {one}, 0.0)"

    def _quotient(self, s: Compute) -> str | None:
        """A product with an inverse, when there is one per row, or one at all."""
        of_exponential = self.parts.by_id[s.args[0]]
        (left, right), divisor = map(self.operand, s.args), self.parts.by_id[s.args[1]]
        if left.is_literal:
            return None
        if isinstance(divisor, Const):
            if not 1 / _SAFE <= abs(divisor.value) <= _SAFE:
                return None
            return f"{left.text} * {literal(1 / divisor.value, f32)}"
        if not self.shapes[s.args[1]] < self.shapes[s.args[0]]:
            return None
        is_weight = isinstance(of_exponential, Compute) and of_exponential.op == "exp"
        if right.text not in self.inverses:
            self.inverses.add(right.text)
            if is_weight:  # of a sum of exponentials, the largest of which is 1
                inverse = self.context.device("fast_dividef", "1.0", right.text)
                self.line(f"{right.text}_inverse = {inverse}")
            else:
                self.line(f"{right.text}_unit, {right.text}_inverse = {self.context.helper('_inverse', right.text)}")
        return (
            f"{left.text} * {right.text}_inverse"
            if is_weight
            else f"{left.text} * {right.text}_unit * {right.text}_inverse"
        )


def scale_of(parts: ChainParts, name: str) -> float:
    """The positive factor of scores that are multiples of a product, perhaps masked; 1 for all others."""
    s = parts.by_id[name]
    if not isinstance(s, Compute) or s.dtype != f32:
        return 1.0
    if s.op == "mul":
        found = sorted((parts.by_id[arg] for arg in s.args), key=lambda item: isinstance(item, Contract))
        constant, product = found
        is_scaled = (
            isinstance(constant, Const) and isinstance(product, Contract) and 1 / _SAFE <= constant.value <= _SAFE
        )
        return float(constant.value) if is_scaled and isinstance(constant, Const) else 1.0
    inside = _unmasked(parts, s)
    return 1.0 if inside is None else scale_of(parts, inside)


def _unmasked(parts: ChainParts, s: Compute) -> str | None:
    """What a choice between it and minus infinity is."""
    if s.op != "where":
        return None
    for arg, other in (s.args[1:], s.args[:0:-1]):
        constant = parts.by_id[other]
        if isinstance(constant, Const) and constant.value == -math.inf:
            return arg
    return None


def slope_text(peak: str, factor: float) -> str:
    """What scores, and the peaks of their rows, are multiplied with for exponents of base 2.

    Where products of that size are rounded by more than 1, as of masks that are the least number there is, it is a
    power of 2: then the difference of a score and its peak is exact.
    """
    slope = factor * _LOG2_E
    return f"tl.where(tl.abs({peak}) < {_LARGEST / slope}, {slope}, {2.0 ** math.floor(math.log2(slope))})"


def _reductions(parts: ChainParts) -> dict[str, Reduce]:
    return {s.op: s for s in parts.kernel.defines if isinstance(s, Reduce)}


class RunningSoftmax:
    """A softmax over the outer product's sum, computed as the loop goes along.

    Attributes:
        peak, total: its maximum and its sum.
        factor: of scores, without which they and their peaks are held in the loop.
        values: the statistics and all that is made of them.
    """

    def __init__(self, parts: ChainParts, peak: Reduce, total: Reduce, factor: float) -> None:
        self.parts, self.peak, self.total, self.factor = parts, peak, total, factor
        exponential = parts.by_id[total.arg]
        shift = parts.by_id[exponential.args[0]] if isinstance(exponential, Compute) else None
        if not isinstance(shift, Compute) or shift.op != "sub" or shift.args[0] != peak.arg or len(parts.outers) > 1:
            raise CodegenError(f"kernel {parts.kernel.name}: a sum along with a product that is no softmax")
        self.exponential, self.scores = exponential, peak.arg
        self.values = frozenset(s.id for s in parts.made_of((peak.id, total.id)))
        self.empty: tuple[str, bool] | None = None  # a condition on rows, and whether zeros are where it holds

    @staticmethod
    def of(parts: ChainParts, whole: ChainParts | None = None) -> RunningSoftmax | None:
        """The softmax of a kernel, if it has one.

        Args:
            whole: the kernel itself, when `parts` are what is left of it where some conditions are known.
        """
        found = _reductions(parts)
        if not found:
            return None
        if sorted(found) != ["max", "sum"]:
            raise CodegenError(f"kernel {parts.kernel.name}: reductions along with a product that are no softmax")
        factor = scale_of(parts, found["max"].arg) if whole is None else scale_of(whole, _reductions(whole)["max"].arg)
        return RunningSoftmax(parts, found["max"], found["sum"], factor)

    def open(self, body: ScoresBody) -> None:
        """Running numbers before the loop."""
        body.line('peak = tl.full([MBLOCK, 1], float("-inf"), tl.float32)')
        if not body.exact:
            body.line("base = peak")
        body.line("total = tl.zeros([MBLOCK, 1], tl.float32)")

    def step(self, body: ScoresBody, j: TileDim) -> None:
        """Take a block of scores in: the running maximum and sum, and `acc` in the new scale."""
        scores = body.expanded(self.scores, body.full) if body.exact else body.unscaled(self.scores, self.factor)
        if not j.is_exact:
            scores = f'tl.where(in_{j.name}, {scores}, float("-inf"))'
        body.line(f"scores = {scores}")
        body.line("new_peak = tl.maximum(peak, tl.max(scores, 1, keep_dims=True))")
        # rows without a score so far: nothing but zeros, and no NaN from the difference of infinities
        if body.exact:
            body.context.libdevice = True
            body.line('shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)')
            body.line("scale = libdevice.exp(peak - shift)")
            weights = "libdevice.exp(scores - shift)"
        else:
            body.line(f"slope = {slope_text('new_peak', self.factor)}")
            body.line("new_base = new_peak * slope")
            body.line('shift = tl.where(new_peak == float("-inf"), 0.0, new_base)')
            body.line("scale = tl.exp2(base - shift)")
            body.line("base = new_base")
            weights = "tl.exp2(tl.fma(scores, slope, shift * -1.0))"
        body.line("peak = new_peak")
        body.bind(self.exponential, weights, body.full)
        body.line(f"total = total * scale + tl.sum({self.exponential.id}, 1, keep_dims=True)")
        body.line("acc = acc * scale")
        # what the exponential is made of is done, a shift that is 0 for rows without a score included
        for s in self.parts.closure(
            self.parts.chained, stop=frozenset((self.exponential.id, self.peak.id, self.total.id))
        ):
            self._after(body, s)

    def _after(self, body: ScoresBody, s: Define) -> None:
        """A statement between the exponential and the outer product, as if the sum were 1."""
        if s.id in body.values:
            return
        if isinstance(s, Compute) and s.op == "div" and s.args == (self.exponential.id, self.total.id):
            self._alias(body, s.id, self.exponential.id)
        elif isinstance(s, Compute) and s.op == "where" and self._is_of_row(s.args[0]):
            is_zero_where_true = self._is_zero(s.args[1])
            self.empty = s.args[0], is_zero_where_true
            self._alias(body, s.id, s.args[2 if is_zero_where_true else 1])
        elif self.parts.changes(s):
            body.define(s)

    def _is_of_row(self, name: str) -> bool:
        return name in self.values and not self.parts.changes(self.parts.by_id[name])

    def _is_zero(self, name: str) -> bool:
        s = self.parts.by_id[name]
        return isinstance(s, Const) and s.value == 0

    def _alias(self, body: ScoresBody, name: str, source: str) -> None:
        body.values[name], body.shapes[name] = body.operand(source), body.shapes[source]

    def finish(self, body: Body, exact: bool) -> None:
        """The division by the sum, and zeros for rows that are masked whole where the program asks for them."""
        body.line("peak = tl.where(total != total, total, peak)", "NaN, which the maximum passes over")
        if not exact and self.factor != 1:
            body.line(f"peak = peak * {literal(self.factor, f32)}")
        for reduce, name in ((self.peak, "peak"), (self.total, "total")):
            body.values[reduce.id], body.shapes[reduce.id] = Operand(name, f32), body.full & {body.tiling.dims[0].name}
        body.line("acc = tl.div_rn(acc, total)" if exact else "acc = acc / total")
        if self.empty is None:
            return
        name, is_zero_where_true = self.empty
        for s in self.parts.closure((name,), stop=frozenset((self.peak.id, self.total.id))):
            body.define(s)
        condition = body.operand(name).typed
        body.line(f"acc = tl.where({condition}, {'0.0, acc' if is_zero_where_true else 'acc, 0.0'})")
