"""A sum and the sum of squared distances from its mean, in one pass over a row that is not held whole.

    v2 = reduce sum x;  v4 = v2 / n;  v5 = x - v4;  v6 = v5 * v5;  v7 = reduce sum v6

As written, v7 waits for v2 and takes a pass of its own. Here each lane adds up the distances from its own first
element, and their squares: an element of the row is never further from the mean than the result is large, so nothing is
lost however far from zero the numbers are. Lanes are combined at the end; so are programs that share a row. Sums are
those of the plain form; squared distances differ from it in rounding only.

Source: T. Chan, G. Golub, R. LeVeque, Algorithms for computing the sample variance, The American Statistician 37, 1983.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from graphc.codegen.triton.body import Body
from graphc.codegen.triton.joined_axes import int_extent
from graphc.codegen.triton.ops import tl_dtype
from graphc.codegen.triton.tiling import TileDim
from graphc.ir.types import f32, f64
from graphc.loopir.kernel import Compute, Const, Define, Kernel, Reduce


@dataclass(frozen=True)
class Moments:
    """A pair of reductions.

    Args:
        first: the sum.
        second: the sum of squared distances from the mean.
        value: the id of what is summed.
        count: elements of the row.
    """

    first: Reduce
    second: Reduce
    value: str
    count: int

    @property
    def names(self) -> tuple[str, str, str]:
        """Variables of the lanes: their first elements, and the sums of distances from that and of their squares."""
        return f"{self.second.id}_first", f"{self.second.id}_far", f"{self.second.id}_acc"

    def open(self, body: Body) -> None:
        for name in self.names:
            body.line(f"{name} = tl.full({body.shape_text(body.full)}, 0.0, {tl_dtype(self.second.dtype)})")

    def update(self, body: Body, row: TileDim) -> None:
        first, far, squares = self.names
        distance = f"{self.second.id}_distance"
        value = body.expanded(self.value, body.full)
        inside = "" if row.is_exact else f"in_{row.name}"
        body.line(f"{first} = tl.where(row_start == 0, {value}, {first})")
        body.line(f"{distance} = {_inside(f'{value} - {first}', inside)}")
        body.line(f"{far} += {distance}")
        body.line(f"{squares} += {distance} * {distance}")

    def close(self, body: Body, row: TileDim, first: str) -> str:
        kind, name = tl_dtype(self.second.dtype), self.second.id
        pivot, far, squares = self.names
        length = part_length(row)
        counts: str | float
        whole: str | float
        if row.is_exact:
            body.line(f"{name}_count = {float(length // row.block)}", "elements of a lane")
            counts, whole, pivots = float(length // row.block), float(length), pivot
        else:
            left = f"{row.extent}" if row.parts == 1 else f"({row.extent} - part * {length})"
            body.line(f"{name}_left = tl.minimum(tl.maximum({left} + tl.full([], 0, tl.int32), 0), {length})")
            within = f"({name}_left - {body.lanes(row)} + {row.block - 1}) // {row.block}"
            body.line(f"{name}_count = tl.maximum({within}, 0).to({kind})", "elements of a lane")
            counts, whole = f"tl.maximum({name}_count, 1.0)", f"tl.maximum({name}_left, 1).to({kind})"
            pivots = f'tl.where({name}_count > 0.0, {pivot}, float("-inf"))'
        # all relative to the first element of one of the lanes
        body.line(f"{name}_mean = {pivot} - {body.reduced_text('max', pivots, self.second.dtype)}")
        body.line(f"{name}_mean += {self._divided(far, counts)}", "of a lane")
        if not row.is_exact:  # a part behind the end of the row has no lane to be relative to
            body.line(f"{name}_mean = tl.where({name}_count > 0.0, {name}_mean, 0.0)")
        total = body.reduced_text("sum", f"{name}_count * {name}_mean", self.second.dtype)
        body.line(f"{name}_apart = {name}_mean - {self._divided(f'({total})', whole)}")
        own = f"{squares} - {far} * ({self._divided(far, counts)})"
        text = f"{own} + {name}_count * {name}_apart * {name}_apart"
        return body.reduced_text("sum", text, self.second.dtype)

    def combine(self, body: Body, row: TileDim, firsts: str, seconds: str) -> str:
        kind, length, name = tl_dtype(self.second.dtype), part_length(row), self.second.id
        body.line(f"{name}_counts = tl.minimum(tl.maximum({row.extent} - parts * {length}, 0), {length}).to({kind})")
        own = self._divided(firsts, f"tl.maximum({name}_counts, 1.0)")
        body.line(f"{name}_apart = {own} - {self._divided(self.first.id, float(self.count))}")
        text = f"{seconds} + {name}_counts * {name}_apart * {name}_apart"
        return body.reduced_text("sum", text, self.second.dtype)

    def result(self, body: Body, text: str) -> str:
        return text

    def _divided(self, left: str, right: str | float) -> str:
        """A quotient on the way, where rounding to the nearest number would take eight times as many instructions."""
        if isinstance(right, float) and self.second.dtype == f32:
            return f"{left} * {1 / right}"
        return f"{left} / {right}"


def find_moments(kernel: Kernel) -> dict[str, Moments]:
    """All pairs, by the id of their second reduction."""
    by_id = {s.id: s for s in kernel.defines}
    count = prod(int_extent(axis) for axis in kernel.row_axes)
    found: dict[str, Moments] = {}
    for s in kernel.defines:
        if isinstance(s, Reduce) and s.op == "sum" and s.dtype in (f32, f64):
            total = _total_of(s, by_id, count)
            if total is not None:
                found[s.id] = Moments(total, s, total.arg, count)
    return found


def _total_of(s: Reduce, by_id: dict[str, Define], count: int) -> Reduce | None:
    square = by_id[s.arg]
    if not isinstance(square, Compute) or square.op != "mul" or square.args[0] != square.args[1]:
        return None
    distance = by_id[square.args[0]]
    if not isinstance(distance, Compute) or distance.op != "sub":
        return None
    mean = by_id[distance.args[1]]
    if not isinstance(mean, Compute) or mean.op not in ("div", "mul"):
        return None
    total, factor = (by_id[name] for name in mean.args)
    is_mean = isinstance(factor, Const) and factor.value == (count if mean.op == "div" else 1 / count)
    if not is_mean or not isinstance(total, Reduce) or total.op != "sum" or total.dtype != s.dtype:
        return None
    return total if total.arg == distance.args[0] else None


def _inside(text: str, mask: str) -> str:
    return f"tl.where({mask}, {text}, 0.0)" if mask else text


def part_length(row: TileDim) -> int:
    """Elements of a row that one program walks, those outside of the row included."""
    steps = -(-row.extent // row.block)
    return -(-steps // row.parts) * row.block
