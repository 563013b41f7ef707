"""Hypothesis strategies: random well-typed graphs, and inputs for them.

`graphs()` draws graphs of pointwise, reduction, view, broadcast and mutation (writes) ops. Every graph passes the
verifier and runs without error: divisions and powers that could raise are left out, sizes are small, and 0, 1 and odd
ones are among them. `random_inputs` makes tensors with the dtypes, shapes and strides that a graph promises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from graphc import ops
from graphc.ir.graph import Builder, Graph, Input, Output, Role, StridedView, Value, Write
from graphc.ir.types import DType, Location, TensorType, bool_, contiguous_strides, f32, f64, i64

SIZES = (0, 1, 1, 2, 3, 5)
UNARY = ("neg", "abs", "sin", "tanh", "exp", "floor", "sqrt", "sign", "reciprocal", "log1p")
INTEGER_UNARY = ("neg", "abs", "sign", "bitwise_not")
BINARY = ("add", "sub", "mul", "maximum", "minimum")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
LOGICAL = ("logical_and", "logical_or", "logical_xor")
FLOAT_LITERALS = (0.0, -0.0, 1.0, -1.0, 2.0, 0.5, 3.25)
INTEGER_LITERALS = (0, 1, -1, 2, 7)
DTYPES = (f32, f32, f64, i64, bool_)


@st.composite
def graphs(
    draw: st.DrawFn,
    max_ops: int = 10,
    dtypes: Sequence[DType] = DTYPES,
    unary: Sequence[str] = UNARY,
    writes: bool = True,
    aliases: bool = True,
    strided_inputs: bool = True,
    products: bool = False,
) -> Graph:
    """A random well-typed graph.

    Args:
        max_ops: most ops in the graph, those that adapt shapes left out.
        dtypes: dtypes of inputs and casts; repeat one to draw it more often.
        unary: float functions to draw from.
        writes: let inputs be written.
        aliases: let outputs be inputs or views of other values.
        strided_inputs: let inputs be non-contiguous.
        products: have products of f32 matrices in it, and softmax before some of them.
    """
    graph = Graph("random")
    maker = _Maker(draw, Builder(graph, ops.infer), tuple(dtypes), tuple(unary))
    shape = tuple(draw(st.lists(st.sampled_from(SIZES), max_size=3)))
    for number in range(draw(st.integers(1, 3))):
        maker.input(f"x{number}", shape, strided_inputs)
    for number in range(draw(st.integers(1, max_ops))):
        maker.builder.location = Location("random.py", number + 1, "f", draw(st.sampled_from(("", "block.0"))))
        steps = maker.steps()
        draw(
            st.sampled_from([*steps, *([maker.product, maker.attention] * (len(steps) // 5))] if products else steps)
        )()
    if writes:
        maker.writes()
    maker.outputs(aliases)
    return graph


def random_inputs(graph: Graph, seed: int = 0, specials: bool = False) -> list[torch.Tensor]:
    """Tensors for the inputs of a graph.

    Args:
        graph: with static shapes and no host scalars.
        seed: of the generator.
        specials: put NaN, infinities and both zeros among the floats.
    """
    generator = torch.Generator().manual_seed(seed)
    return [_random_tensor(item, generator, specials) for item in graph.inputs]


def _random_tensor(item: Input, generator: torch.Generator, specials: bool) -> torch.Tensor:
    dtype, shape = getattr(torch, item.dtype.torch_name), item.shape
    if item.dtype == bool_:
        data = torch.rand(shape, generator=generator) < 0.5
    elif item.dtype.is_float:
        data = (torch.randn(shape, generator=generator, dtype=torch.float64) * 2).to(dtype)
        if specials:
            values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0], dtype=dtype)
            chosen = values[torch.randint(0, len(values), shape, generator=generator)]
            data = torch.where(torch.rand(shape, generator=generator) < 0.4, chosen, data)
    else:
        low = 0 if item.dtype.kind == "uint" else -9
        data = torch.randint(low, 10, shape, generator=generator).to(dtype)
    if item.strides is None:
        return data.contiguous()
    return torch.empty_strided(shape, item.strides, dtype=dtype).copy_(data)


class _Maker:
    """Draws steps over a pool of values."""

    def __init__(self, draw: st.DrawFn, builder: Builder, dtypes: tuple[DType, ...], unary: tuple[str, ...]) -> None:
        self.draw, self.builder, self.dtypes, self.unary_ops = draw, builder, dtypes, unary
        self.pool: list[Value] = []

    def steps(self) -> list[Callable[[], None]]:
        pointwise = [self.unary, self.binary, self.binary, self.literal, self.compare, self.where, self.cast]
        views = [self.reshape, self.permute, self.expand, self.slice, self.flip, self.pad, self.concat, self.update]
        return [*pointwise, self.reduce, self.reduce, self.keepdim, *views]

    def add(self, name: str, *operands: Any, **attrs: Any) -> Value:
        value = self.builder.op(name, *operands, **attrs)
        self.pool.append(value)
        return value

    def pick(self, accept: Callable[[Value], bool] = lambda value: True) -> Value:
        """A value of the pool, a late one more often; when none is accepted, the last one cast to f32."""
        accepted = [value for value in self.pool if accept(value)]
        if not accepted:
            return self.add("cast", self.pool[-1], dtype=f32)
        return self.draw(st.sampled_from(accepted + accepted[-3:]))

    def partner(self, value: Value) -> Value:
        """A value that can stand beside `value` in a pointwise op; at worst itself."""
        fitting = [item for item in self.pool if item.dtype == value.dtype and _broadcasts(item.shape, value.shape)]
        return self.draw(st.sampled_from(fitting))

    def input(self, name: str, shape: tuple[int, ...], strided: bool) -> None:
        sizes = [size if self.draw(st.integers(0, 3)) else 1 for size in shape]
        lead = self.draw(st.integers(0, max(0, len(sizes) - 1))) if self.draw(st.booleans()) else 0
        own = tuple(sizes[lead:])
        type_ = TensorType(self.draw(st.sampled_from(self.dtypes)), own)
        strides = None
        if strided and len(own) > 1 and self.draw(st.booleans()):
            order = self.draw(st.permutations(range(len(own))))
            strides = _strides_in_order(own, order)
        self.pool.append(self.builder.input(name, type_, Role.ARG, name, strides))

    # pointwise

    def unary(self) -> None:
        value = self.pick(lambda item: item.dtype != bool_)
        names = self.unary_ops if value.dtype.is_float else INTEGER_UNARY
        self.add(self.draw(st.sampled_from(names)), value)

    def binary(self) -> None:
        value = self.pick()
        names = LOGICAL if value.dtype == bool_ else BINARY
        self.add(self.draw(st.sampled_from(names)), value, self.partner(value))

    def literal(self) -> None:
        value = self.pick(lambda item: item.dtype != bool_)
        number = self.draw(st.sampled_from(FLOAT_LITERALS if value.dtype.is_float else INTEGER_LITERALS))
        operands = [value, number] if self.draw(st.integers(0, 3)) else [number, value]
        self.add(self.draw(st.sampled_from(BINARY)), *operands)

    def compare(self) -> None:
        value = self.pick()
        self.add(self.draw(st.sampled_from(COMPARISONS)), value, self.partner(value))

    def where(self) -> None:
        value = self.pick()
        conditions = [item for item in self.pool if item.dtype == bool_ and _broadcasts(item.shape, value.shape)]
        condition = self.draw(st.sampled_from(conditions)) if conditions else self.add("eq", value, self.partner(value))
        other = self.partner(value)
        if _broadcasts(condition.shape, other.shape):
            self.add("where", condition, value, other)

    def cast(self) -> None:
        target = self.draw(st.sampled_from(self.dtypes))
        any_source = target.is_float or target == bool_
        # a float out of an integer's range has no defined cast
        sources = [value for value in self.pool if any_source or value.dtype.is_integral]
        if sources:
            self.add("cast", self.draw(st.sampled_from(sources)), dtype=target)

    # reductions

    def reduce(self) -> None:
        value = self.pick()
        names = ("any", "all") if value.dtype == bool_ else ("sum", "amax", "amin")
        dims = self.some_dims(value)
        if any(value.shape[dim] == 0 for dim in dims):
            names = names if value.dtype == bool_ else ("sum",)
        self.add(self.draw(st.sampled_from(names)), value, dims=dims, keepdim=self.draw(st.booleans()))

    def keepdim(self) -> None:
        """The start of a softmax: a row reduction that meets its own operand."""
        value = self.pick(lambda item: item.dtype.is_float)
        dims = self.some_dims(value)
        reduced = self.add("sum", value, dims=dims, keepdim=True)
        self.add("sub", value, reduced)

    def some_dims(self, value: Value) -> tuple[int, ...]:
        return tuple(dim for dim in range(len(value.shape)) if self.draw(st.booleans()))

    # products

    def product(self) -> Value:
        """A matrix times the transpose of another one with rows as long, or of itself."""
        left = self.pick(lambda item: item.dtype == f32 and item.type.rank >= 2)
        if left.type.rank < 2:
            left = self.add("reshape", left, shape=(1, left.type.numel) if left.type.rank else (1, 1))
        fitting = [
            item
            for item in self.pool
            if item.dtype == f32 and item.shape[:-2] == left.shape[:-2] and item.shape[-1:] == left.shape[-1:]
            and item.type.rank == left.type.rank
        ]  # fmt: skip
        right = self.draw(st.sampled_from(fitting))
        rank = left.type.rank
        turned = self.add("permute", right, dims=(*range(rank - 2), rank - 1, rank - 2))
        # small numbers, so that chains of products stay in range
        return self.add("sin", self.add("matmul", left, turned))

    def attention(self) -> None:
        """A product whose rows become weights of the rows of another matrix."""
        scores = self.product()
        if 0 in scores.shape:
            return
        last = scores.type.rank - 1
        shifted = self.add("sub", scores, self.add("amax", scores, dims=(last,), keepdim=True))
        grown = self.add("exp", shifted)
        weights = self.add("div", grown, self.add("sum", grown, dims=(last,), keepdim=True))
        values = [
            item
            for item in self.pool
            if item.dtype == f32 and item.type.rank == last + 1 and item.shape[:-2] == weights.shape[:-2]
            and item.shape[-2] == weights.shape[-1]
        ]  # fmt: skip
        if values:
            self.add("matmul", weights, self.draw(st.sampled_from(values)))

    # views

    def reshape(self) -> None:
        value = self.pick()
        shape, count = value.shape, value.type.numel
        choices = [(count,), (1, *shape), (*shape, 1), tuple(size for size in shape if size != 1)]
        if len(shape) > 1 and shape[0] != 0:
            choices.append((shape[0], count // shape[0]))
        self.add("reshape", value, shape=self.draw(st.sampled_from(choices)))

    def permute(self) -> None:
        value = self.pick()
        self.add("permute", value, dims=tuple(self.draw(st.permutations(range(len(value.shape))))))

    def expand(self) -> None:
        value = self.pick(lambda item: len(item.shape) < 4)
        lead = (self.draw(st.sampled_from((1, 2, 3))),) if self.draw(st.booleans()) else ()
        body = tuple(self.draw(st.sampled_from((1, 3))) if size == 1 else size for size in value.shape)
        if len(value.shape) + len(lead) <= 4:
            self.add("expand", value, shape=(*lead, *body))

    def slice(self) -> None:
        value = self.pick()
        if value.shape:
            dim = self.draw(st.integers(0, len(value.shape) - 1))
            start = self.draw(st.integers(0, value.shape[dim]))
            stop = self.draw(st.integers(start, value.shape[dim]))
            self.add("slice", value, dim=dim, start=start, stop=stop, step=self.draw(st.integers(1, 2)))

    def flip(self) -> None:
        value = self.pick()
        self.add("flip", value, dims=self.some_dims(value))

    def pad(self) -> None:
        value = self.pick(lambda item: item.dtype.is_float)
        low = tuple(self.draw(st.integers(0, 2)) for _ in value.shape)
        high = tuple(self.draw(st.integers(0, 1)) for _ in value.shape)
        if value.type.numel <= 200:
            self.add("pad", value, low=low, high=high, value=self.draw(st.sampled_from((0.0, -1.5))))

    def concat(self) -> None:
        value = self.pick()
        if value.shape:
            dim = self.draw(st.integers(0, len(value.shape) - 1))
            self.add("concat", value, self.pick_like(value), dim=dim)

    def pick_like(self, value: Value) -> Value:
        return self.pick(lambda item: item.type == value.type)

    def update(self) -> None:
        """`base[1::1] = part`, as functionalized assignment to a slice leaves it."""
        base = self.pick(lambda item: len(item.shape) > 0 and item.shape[0] > 1)
        if base.shape and base.shape[0] > 1:
            part = self.builder.op("slice", base, dim=0, start=0, stop=base.shape[0] - 1, step=1)
            starts = (1, *(0 for _ in base.shape[1:]))
            self.add("update_slice", base, part, starts=starts, steps=tuple(1 for _ in base.shape))

    # ends

    def writes(self) -> None:
        for target in self.builder.graph.inputs:
            if not self.draw(st.booleans()):
                continue
            fitting = [value for value in self.pool if value.type == target.type]
            self.builder.graph.writes.append(Write(target, self.draw(st.sampled_from(fitting[-3:]))))

    def outputs(self, aliases: bool) -> None:
        graph = self.builder.graph
        results = [result for op in graph.ops for result in op.results]
        for _ in range(self.draw(st.integers(1, 3))):
            choices: list[Value] = [*graph.inputs, *results] if aliases or not results else results
            value = self.draw(st.sampled_from(choices + results[-2:]))
            if not aliases and (isinstance(value, Input) or any(o.value is value for o in graph.outputs)):
                continue
            view = None
            if aliases and value.type.numel and value.strides is None and not self.draw(st.integers(0, 3)):
                offset = self.draw(st.integers(0, value.type.numel - 1))
                view = StridedView((value.type.numel - offset,), (1,), offset)
            graph.outputs.append(Output(value, view))


def _broadcasts(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return all(a in (b, 1) or b == 1 for a, b in zip(reversed(left), reversed(right), strict=False))


def _strides_in_order(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...] | None:
    """Dense strides with dims outermost first as `order` says; None when they are the contiguous ones."""
    strides = [0] * len(shape)
    step = 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return None if tuple(strides) == contiguous_strides(tuple(shape)) else tuple(strides)
