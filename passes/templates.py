"""Which products of matrices become kernels with slots, and which stay library calls with kernels around them.

    y = gelu(x @ w + b)      library:   gemm writes p; a kernel reads p and b, writes y
                             template:  one kernel; the product never leaves registers

The one place where this is decided. The library is taken to be as fast as the chip on the product itself, a template
somewhat slower; what a template saves is the memory traffic of everything that it takes in, and launches. In f32
without tf32 there is nothing for matrix units to do, and the library is better at the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from graphc.ir.dims import static
from graphc.ir.graph import Op, Value
from graphc.ir.sizes import typical
from graphc.ir.types import DType, bf16
from graphc.ops import attention, grouped, scaled
from graphc.ops.registry import get
from graphc.passes.chips import ATTENTION_RATES, DEFAULT_TARGET, Chip, chip_of, worth_in_bf16
from graphc.passes.layout import int_shape

LAUNCH = 2.0
"""us that a kernel costs besides its work, inside a recording or with a full queue."""
EFFICIENCY = 0.92
"""Rate of a template as a part of the library's. An assumption until it has been measured; `choices` overrides it."""
PROLOGUE_EFFICIENCY = 0.75
"""The same when an operand is computed on its way to the matrix units, through registers."""
PROLOGUE_WORK = 8
"""Cost of an element, in additions, above which it is not computed again for every tile."""
SMALL = 1 << 16
"""Elements of a product below which a kernel of its own is not worth compiling."""
CHAIN_ROWS = 1 << 12
"""Rows of a product of products from which on there are programs enough to fill a chip."""
CHAIN_EFFICIENCY = 0.4
"""Rate of products of products as a part of the library's: a softmax is computed in between. See `ATTENTION_RATES`."""
MASKED_SHARE = 0.5
"""Share of the scores that a mask in memory is taken to hide; what it holds is not known when kernels are chosen."""
MASK_BYTES = 4
"""Of an element of a mask, which is read once more."""
TILE = 128
"""Rows and columns per program, for counting how often operands are read."""

AUTO, ALWAYS, NEVER = "auto", "always", "never"
Runs: TypeAlias = Callable[[str, DType, Sequence[int], int, bool, bool], bool]
"""Whether a library runs on this very machine: library, dtype, (B, H, S, D), keys, causal, with a gradient."""


@dataclass(frozen=True)
class Templates:
    """The policy of one compilation for a GPU.

    Args:
        target: a chip as `graphc.passes.chips` names it; others are treated as the default one.
        tf32: products in f32 may use tf32.
        policy: `auto` = by the model; `always` and `never` for tests and for measuring.
        deterministic: floats are not added by atomic additions, whose order differs from run to run.
        libraries: for attention, that torch has switched on, per kind of device.
        choices: per `site` whether it is a template, as measured; overrides the model.
        asked: what the model has said so far, per site.
        runs: of libraries for attention, what sizes alone do not tell.
    """

    target: str = DEFAULT_TARGET
    tf32: bool = False
    policy: str = AUTO
    deterministic: bool = False
    libraries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    choices: Mapping[str, bool] = field(default_factory=dict)
    asked: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    runs: Runs | None = field(default=None, compare=False, repr=False)

    @property
    def chip(self) -> Chip:
        return chip_of(self.target)

    def can_hold(self, op: Op) -> bool:
        """Whether there is a template for the op at all."""
        if not op.results:  # a call that only checks
            return False
        dtype = op.results[0].dtype
        if op.name == grouped.NAME and op.results[0].type.rank == 2 and len(op.operands) == 3:
            return False  # `NameGroupsOfRows` has left it to the library
        if op.name == scaled.NAME and not self._multiplies_float8:
            return False
        return get(op.name).contract is not None and dtype.name in ("bf16", "f16", "f32", "i32")

    def may_take_groups(self, op: Op) -> bool:
        """Whether rows that are multiplied group by group may become a template, once what is around them is known."""
        return self.policy == ALWAYS or (self.policy == AUTO and self._rate_of(op) > 0)

    def takes_product(self, op: Op, saved: int, launches: int, work: int = 0) -> bool:
        """Whether a product becomes a template.

        Args:
            op: the product, for which there is one.
            saved: bytes that are then neither written nor read.
            launches: kernels that are then not launched.
            work: additions per element of the result that are done behind the product. Matrix units wait for them; in a
                kernel of their own they are done while memory is waited for.
        """
        if self.policy != AUTO:
            return self.choices.get(site(op), self.policy == ALWAYS)
        if _narrow(op) or _reads_windows(op):
            return True  # no library call takes these operands as they are
        rate = self._rate_of(op)
        if op.name == grouped.NAME and op.results[0].dtype != bf16:
            return rate > 0  # the library waits for the ends of groups on the host, but for bf16
        if not rate:
            return self._decide(site(op), False)
        elements, saved = typical(math.prod(int_shape(op.results[0]))), typical(saved)
        behind = elements * work / (self.chip.flops / 2e6)
        library = self._time(op, rate) + max(saved / self._bandwidth, behind) + launches * LAUNCH
        is_worth_it = launches > 0 and elements >= SMALL
        return self._decide(site(op), is_worth_it and self._time(op, rate * EFFICIENCY) + behind < library)

    def _decide(self, place: str, by_model: bool) -> bool:
        """What the model says of a site, unless it was measured."""
        self.asked[place] = by_model
        return self.choices.get(place, by_model)

    def takes_convolution(self, op: Op, flops: int, moved: int, is_wide: bool) -> bool:
        """Whether a convolution is a product of matrices with windows of the image as an operand.

        The library is at least as fast where operations are what takes the time; where it is bytes, a kernel that takes
        in what comes before and behind saves some.

        Args:
            op: the convolution, or the call for its gradients.
            moved: bytes of operands and results.
            is_wide: the channels of a pixel are whole accesses of 16 bytes.
        """
        dtype = op.results[0].dtype
        if self.policy != AUTO:
            return self.policy == ALWAYS and dtype.name in ("bf16", "f16", "f32")
        rate = self._rate(dtype) if dtype.is_float else 0.0
        if not rate:
            return False
        by_model = is_wide and typical(flops) / (rate * PROLOGUE_EFFICIENCY) <= typical(moved) / self._bandwidth
        return self._decide(f"{site(op)}, {flops} operations", by_model)

    def takes_chain(self, scores: int, rows: int, dtype: DType) -> bool:
        """Whether a product around other products is a kernel of its own; never storing the scores is what it is for.

        Args:
            scores: elements of what is then never stored.
            rows: of the result, which are what programs share out among them.
            dtype: of the products.
        """
        if self.policy != AUTO:
            return self.policy == ALWAYS
        by_model = scores >= SMALL and rows >= CHAIN_ROWS and self._rate(dtype) > 0
        return self._decide(f"product of products {dtype.name}, {scores} scores, {rows} rows", by_model)

    def takes_mask_edges(self, scores: int, width: int, dtype: DType, masked: int, read: int) -> bool:
        """Whether edges of masks are found ahead of a product of products, whose kernels then skip what is hidden.

        Args:
            scores: elements of what lies between the products.
            width: elements of a row of the result.
            dtype: of the products.
            masked: elements of the largest mask.
            read: bytes of operands that are looked at, too, for how large scores are.
        """
        if self.policy != AUTO:
            return self.policy == ALWAYS
        rate = self._rate(dtype) * CHAIN_EFFICIENCY
        if not rate:
            return False
        scores, width, masked, read = map(typical, (scores, width, masked, read))
        skipped = MASKED_SHARE * 4 * scores * width / rate
        launches = 2 if not read else 8
        return skipped > (MASK_BYTES * masked + read) / self._bandwidth + launches * LAUNCH

    def library_for_attention(
        self, device: str, dtype: DType, query: Sequence[int], keys: int, causal: bool, trains: bool
    ) -> str:
        """The library that computes attention written by hand; "" where it stays what it is, perhaps a template.

        Args:
            device: of the tensors.
            dtype: of the operands.
            query: (B, H, S, D).
            keys: how many there are.
            causal: what is ahead is hidden.
            trains: its gradient is computed too.
        """
        there = self.libraries.get(device.partition(":")[0], ())
        fitting = [name for name in there if attention.library_takes(name, dtype, query, keys, causal)]
        if self.runs is not None:
            fitting = [name for name in fitting if self.runs(name, dtype, query, keys, causal, trains)]
        scores = math.prod(query[:3]) * keys
        if trains and self.deterministic:
            fitting = []  # they add the gradient of queries up in any order
        if not fitting or self.policy == ALWAYS or (self.policy == AUTO and scores < SMALL):
            return ""
        if self.policy == NEVER:
            return fitting[0]
        rates = ATTENTION_RATES.get(self.target or DEFAULT_TARGET, {})
        best = max(fitting, key=lambda name: rates.get(name, 1.0))
        mask = ", causal" if causal else ""
        place = f"attention {dtype.name} {list(query)}, {keys} keys{mask}"
        return "" if self._decide(place, rates.get(best, 1.0) <= 1.0) else best

    def takes_call(self, op: Op) -> bool:
        """Whether attention that is a library call, or its gradient, is written out for a template instead."""
        if self.policy != AUTO:
            return self.policy == ALWAYS
        return self._decide(site(op), False)  # whoever made it a call had a reason

    def takes_operand(self, op: Op, value: Value, leaves: int, work: int) -> bool:
        """Whether an operand of a template is computed in it, once for each tile that reads it.

        Args:
            op: the product.
            value: what would be stored else.
            leaves: bytes of what it is computed from.
            work: cost of one element, in additions.
        """
        if self.policy == ALWAYS:
            return True
        rate = self._rate_of(op)
        if not rate or work > PROLOGUE_WORK:
            return False
        size, leaves = typical(_bytes(value)), typical(leaves)
        rows, columns = map(typical, int_shape(op.results[0])[-2:])
        again = -(-(columns if value is op.operands[0] else rows) // TILE)
        # what is read again comes from the cache in part; the model counts a quarter of it
        fused = self._time(op, rate * PROLOGUE_EFFICIENCY) + (leaves - size) * (3 + again) / 4 / self._bandwidth
        apart = self._time(op, rate * EFFICIENCY) + (leaves + size) / self._bandwidth + LAUNCH
        return fused < apart

    @property
    def _multiplies_float8(self) -> bool:
        """Known of this very chip."""
        return self.chip.multiplies_float8 and self.chip.target == (self.target or DEFAULT_TARGET)

    @property
    def _bandwidth(self) -> float:
        """Bytes per us."""
        return self.chip.bandwidth / 1e6

    def _rate_of(self, op: Op) -> float:
        """Operations of a product per us."""
        left = op.operands[0]
        assert isinstance(left, Value)
        return self._rate(left.dtype if left.dtype.itemsize == 1 else op.results[0].dtype)

    def _rate(self, dtype: DType) -> float:
        """Operations per us; 0 = nothing for matrix units."""
        worth = worth_in_bf16(dtype, self.tf32)
        return self.chip.tensor_flops / 1e6 / worth if worth else 0.0

    def _time(self, op: Op, rate: float) -> float:
        """The product alone, in us: as long as its operations or its bytes take, whichever is more."""
        flops = get(op.name).flops
        assert flops is not None
        moved = typical(sum(_bytes(value) for value in (*op.inputs, *op.results)))
        return max(typical(static(flops(op))) / rate, moved / self._bandwidth)


def site(op: Op) -> str:
    """What is decided on at once: all ops of one name, on operands of the same shapes and dtype."""
    name = op.attrs["op"] if op.name == "extern" else op.name
    return f"{name} {op.results[0].dtype.name} {' '.join(str(list(int_shape(value))) for value in op.inputs)}"


def _narrow(op: Op) -> bool:
    """Bytes widened to i32 right before the product, whose sums are exact."""
    sources = [value.op for value in op.inputs]
    return op.results[0].dtype.name == "i32" and all(
        source is not None and source.name == "cast" and next(iter(source.inputs)).dtype.itemsize == 1
        for source in sources
    )


def _reads_windows(op: Op) -> bool:
    """An operand is windows of an image, which overlap."""
    for value in op.inputs:
        while value.op is not None and value.op.name in ("reshape", "permute", "pad"):
            value = next(iter(value.op.inputs))
        if value.op is not None and value.op.name == "as_strided":
            return True
    return False


def _bytes(value: Value) -> int:
    return math.prod(int_shape(value)) * value.dtype.itemsize
