"""A maximum and the sum of exponentials below it, in one pass over a row that is not held whole.

    v2 = reduce max x;  v3 = x - v2;  v4 = exp v3;  v5 = reduce sum v4

As written, v5 waits for v2 and takes a pass of its own. Here each lane sums relative to the largest of its elements so
far, and scales its sum down when a larger one comes. A thread that loads neighbours at once has one lane for these: it
looks for their maximum, and scales once. Where they come one by one that takes one exponential, of minus the distance,
either way. Lanes are brought to one maximum at the end; so are programs that share a row. What sums are relative to is
never below the lowest finite number, so that nothing is taken from -inf.
The form of `logsumexp` is found too:

    v3 = isinf v2;  v5 = where v3 0.0 v2;  v6 = x - v5;  v7 = exp v6;  v8 = reduce sum v7

The two differ in rows whose maximum is infinite: there the plain form is NaN, and this one 0 or inf. Sums differ from
those of two passes in rounding only: the largest element counts 1, and the chip's own power of two is off by 2^-22 of
what the others count, each of them by as much again as 2^-24 times its distance, while its part falls exponentially.

Source: M. Milakov, N. Gimelshein, Online normalizer calculation for softmax, arXiv:1805.02867, 2018.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from graphc.codegen.triton.body import Body, needed
from graphc.codegen.triton.ops import Operand, render, tl_dtype
from graphc.codegen.triton.tiling import TileDim, Tiling
from graphc.codegen.triton.widths import width_along
from graphc.ir.types import f32, f64
from graphc.loopir.kernel import Compute, Const, Define, Kernel, Load, Reduce
from graphc.loopir.numpy_ops import NUMPY_DTYPES

_LOG2_E = repr(math.log2(math.e))
_FEWEST_TOGETHER = 4
"""Neighbours of which a lane of their own takes less: the lane is scaled once for all of them."""


@dataclass(frozen=True)
class RunningSum:
    """A pair of reductions.

    Args:
        first: the maximum.
        second: the sum of exponentials of what lies below it.
        value: the id of what the maximum is of.
        is_finite: what is subtracted is 0 where the maximum is infinite.
    """

    first: Reduce
    second: Reduce
    value: str
    is_finite: bool

    def open(self, body: Body) -> None:
        name, shape, kind = self.second.id, body.lane_shape(self.second.id), tl_dtype(self.second.dtype)
        body.line(f"{name}_acc = tl.full({shape}, 0.0, {kind})")
        body.line(f"{name}_base = tl.full({shape}, {self._lowest}, {kind})")

    def update(self, body: Body, row: TileDim) -> None:
        name = self.second.id
        value, base = body.inside(self.value, "max"), self._finite(body, f"{self.first.id}_acc")
        if body.together.get(name, 1) > 1:
            body.line(f"{name}_top = {base}")
            apart = f"{body.in_lanes(name, value)} - tl.expand_dims({name}_top, {body.row_axis + 1})"
            fresh = f"tl.sum({self._exp(body, apart)}, {body.row_axis + 1})"
            body.line(f"{name}_acc = {name}_acc * {self._exp(body, f'{name}_base - {name}_top')} + {fresh}")
            body.line(f"{name}_base = {name}_top")
            return
        body.line(f"{name}_apart = {value} - {name}_base")
        body.line(f"{name}_less = {self._exp(body, f'-tl.abs({name}_apart)')}")
        larger, smaller = f"{name}_acc * {name}_less + 1.0", f"{name}_acc + {name}_less"
        body.line(f"{name}_acc = tl.where({name}_apart > 0.0, {larger}, {smaller})")
        body.line(f"{name}_base = {base}")

    def close(self, body: Body, row: TileDim, first: str) -> str:
        name = self.second.id
        scale = self._exp(body, f"{name}_base - {self._finite(body, first)}")
        return body.reduced_text("sum", f"({name}_acc * {scale})", self.second.dtype)

    def combine(self, body: Body, row: TileDim, firsts: str, seconds: str) -> str:
        bases = self._finite(body, firsts), self._finite(body, self.first.id)
        scale = self._exp(body, f"{bases[0]} - {bases[1]}")
        return body.reduced_text("sum", f"({seconds} * {scale})", self.second.dtype)

    def result(self, body: Body, text: str) -> str:
        odd, there = ("inf", "inf") if self.is_finite else ("-inf", "nan")
        return f'tl.where({self.first.id} == float("{odd}"), float("{there}"), {text})'

    @property
    def _lowest(self) -> str:
        return repr(float(np.finfo(NUMPY_DTYPES[self.second.dtype.name]).min))

    def _finite(self, body: Body, text: str) -> str:
        kind = tl_dtype(self.second.dtype)
        return body.combined("max", text, f"tl.full([], {self._lowest}, {kind})", self.second.dtype)

    def _exp(self, body: Body, text: str) -> str:
        if self.second.dtype == f64:
            return render(body.context, "exp", f64, [Operand(f"({text})", f64)])
        return f"{body.context.exp2()}(({text}) * {_LOG2_E})"


def lanes_together(tiling: Tiling, pairs: Iterable[RunningSum]) -> dict[str, int]:
    """Of reductions of pairs, how many neighbours of a row one lane takes: those that a thread loads at once."""
    if tiling.row is None:
        return {}
    by_id = {s.id: s for s in tiling.kernel.defines}
    buffers = {buffer.name: buffer for buffer in tiling.kernel.buffers}
    found: dict[str, int] = {}
    for pair in pairs:
        loads = [s for s in needed(by_id.values(), {pair.value}) if isinstance(s, Load) and _is_along(s, tiling)]
        widths = [
            width_along(tiling, s, buffers[s.buffer], tiling.row) // buffers[s.buffer].dtype.itemsize for s in loads
        ]
        if min(widths, default=1) >= _FEWEST_TOGETHER:
            found |= dict.fromkeys((pair.first.id, pair.second.id), min(widths))
    return found


def _is_along(s: Load, tiling: Tiling) -> bool:
    assert tiling.row is not None
    return not tiling.kernel.domains[s.id].isdisjoint(axis.name for axis in tiling.row.axes)


def find_running_sums(kernel: Kernel) -> dict[str, RunningSum]:
    """All pairs, by the id of their second reduction."""
    by_id = {s.id: s for s in kernel.defines}
    found: dict[str, RunningSum] = {}
    for s in kernel.defines:
        if isinstance(s, Reduce) and s.op == "sum" and s.dtype in (f32, f64):
            pair = _pair(s, by_id)
            if pair is not None:
                found[s.id] = pair
    return found


def _pair(s: Reduce, by_id: dict[str, Define]) -> RunningSum | None:
    power = by_id[s.arg]
    below = by_id[power.args[0]] if isinstance(power, Compute) and power.op == "exp" else None
    if not isinstance(below, Compute) or below.op != "sub":
        return None
    value, base = below.args
    first = by_id[base]
    is_finite = isinstance(first, Compute)
    if isinstance(first, Compute):
        inner = _guarded(first, by_id)
        if inner is None:
            return None
        first = inner
    if not isinstance(first, Reduce) or first.op != "max" or first.arg != value or first.dtype != s.dtype:
        return None
    return RunningSum(first, s, value, is_finite)


def _guarded(s: Compute, by_id: dict[str, Define]) -> Define | None:
    """x of `where (isinf x) 0 x`."""
    if s.op != "where":
        return None
    condition, zero, other = (by_id[name] for name in s.args)
    is_guard = isinstance(condition, Compute) and condition.op == "isinf" and condition.args[0] == other.id
    return other if is_guard and isinstance(zero, Const) and zero.value == 0 else None
