"""What kernels with several products compute for each score, in as few instructions as their precision asks for.

There are many more scores than elements of any operand. So positions are compared as 32-bit numbers; next to products
of bf16 and f16, which round at 2^-9, exponentials are the fast ones (about 2^-22), and what is divided by one number
per row is multiplied with its inverse. Kernels in f32 compute as all others do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from graphc.codegen.triton.body import Body
from graphc.codegen.triton.chain_parts import ChainParts
from graphc.codegen.triton.indexing import index_text
from graphc.codegen.triton.ops import Operand, literal
from graphc.codegen.triton.tiling import TileDim
from graphc.errors import CodegenError
from graphc.ir.types import f32
from graphc.loopir.kernel import Compute, Const, Define, Index, Reduce

_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_SAFE = 2.0**100
"""Numbers from the inverse of this up to it have inverses that lose nothing."""


@dataclass
class ScoresBody(Body):
    """Lines that compute scores.

    Args:
        parts: of the kernel.
        exact: products are in f32, and so is everything else.
    """

    parts: ChainParts = field(kw_only=True)
    exact: bool = field(kw_only=True)
    inverses: set[str] = field(default_factory=set)

    def define(self, s: Define) -> None:
        """Write one pure statement."""
        text = None
        if isinstance(s, Compute):
            if s.op in _COMPARISONS:
                text = self._comparison(s)
            elif not self.exact and s.dtype == f32 and s.op == "exp":
                text = f"tl.exp({self.operand(s.args[0]).typed})"
            elif not self.exact and s.dtype == f32 and s.op == "div":
                text = self._quotient(s)
        if text is None or not isinstance(s, Compute):
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

    def _quotient(self, s: Compute) -> str | None:
        """A product with an inverse, when there is one per row, or one at all."""
        (left, right), divisor = map(self.operand, s.args), self.parts.by_id[s.args[1]]
        if left.is_literal:
            return None
        if isinstance(divisor, Const):
            if not 1 / _SAFE <= abs(divisor.value) <= _SAFE:
                return None
            return f"{left.text} * {literal(1 / divisor.value, f32)}"
        if not self.shapes[s.args[1]] < self.shapes[s.args[0]]:
            return None
        if right.text not in self.inverses:
            self.inverses.add(right.text)
            self.line(f"{right.text}_unit, {right.text}_inverse = {self.context.helper('_inverse', right.text)}")
        return f"{left.text} * {right.text}_unit * {right.text}_inverse"


class RunningSoftmax:
    """A softmax over the outer product's sum, computed as the loop goes along.

    Attributes:
        peak, total: its maximum and its sum.
        values: the statistics and all that is made of them.
    """

    def __init__(self, parts: ChainParts, peak: Reduce, total: Reduce) -> None:
        self.parts, self.peak, self.total = parts, peak, total
        exponential = parts.by_id[total.arg]
        shift = parts.by_id[exponential.args[0]] if isinstance(exponential, Compute) else None
        if not isinstance(shift, Compute) or shift.op != "sub" or shift.args[0] != peak.arg or len(parts.outers) > 1:
            raise CodegenError(f"kernel {parts.kernel.name}: a sum along with a product that is no softmax")
        self.exponential, self.shift, self.scores = exponential, shift, peak.arg
        self.values = frozenset(s.id for s in parts.made_of((peak.id, total.id)))
        self.empty: tuple[str, bool] | None = None  # a condition on rows, and whether zeros are where it holds

    @staticmethod
    def of(parts: ChainParts) -> RunningSoftmax | None:
        """The softmax of a kernel, if it has one."""
        found = {s.op: s for s in parts.kernel.defines if isinstance(s, Reduce)}
        if not found:
            return None
        if sorted(found) != ["max", "sum"]:
            raise CodegenError(f"kernel {parts.kernel.name}: reductions along with a product that are no softmax")
        return RunningSoftmax(parts, found["max"], found["sum"])

    def open(self, body: ScoresBody) -> None:
        """Running numbers before the loop."""
        body.line('peak = tl.full([MBLOCK, 1], float("-inf"), tl.float32)')
        body.line("total = tl.zeros([MBLOCK, 1], tl.float32)")

    def step(self, body: ScoresBody, j: TileDim) -> None:
        """Take a block of scores in: the running maximum and sum, and `acc` in the new scale."""
        scores = body.expanded(self.scores, body.full)
        if not j.is_exact:
            scores = f'tl.where(in_{j.name}, {scores}, float("-inf"))'
        body.line(f"scores = {scores}")
        body.line("new_peak = tl.maximum(peak, tl.max(scores, 1, keep_dims=True))")
        # rows without a score so far: nothing but zeros, and no NaN from the difference of infinities
        body.line('base = tl.where(new_peak == float("-inf"), 0.0, new_peak)')
        exp = "libdevice.exp" if body.exact else "tl.exp"
        body.context.libdevice |= body.exact
        body.line(f"scale = {exp}(peak - base)")
        body.line("peak = new_peak")
        body.bind(self.exponential, f"{exp}(scores - base)", body.full)
        body.line(f"total = total * scale + tl.sum({self.exponential.id}, 1, keep_dims=True)")
        body.line("acc = acc * scale")
        for s in self.parts.closure(self.parts.chained):
            self._after(body, s)

    def _after(self, body: ScoresBody, s: Define) -> None:
        """A statement between the exponential and the outer product, as if the sum were 1."""
        if s.id in body.values or s.id in (self.peak.id, self.total.id, self.shift.id):
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
        body.values[name], body.shapes[name] = body.values[source], body.shapes[source]

    def finish(self, body: Body, exact: bool) -> None:
        """The division by the sum, and zeros for rows that are masked whole where the program asks for them."""
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
