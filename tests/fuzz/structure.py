"""Expressions of random programs: views, indexing, joining, creation."""

from __future__ import annotations

import torch

from tests.fuzz.draw import Draw
from tests.fuzz.environments import Rejected


def reshape(g: Draw) -> str:
    x = g.any()
    shape, count = list(g[x].shape), g[x].numel()
    if g.resized or g.chance(3):
        return g.one(
            f"{x}.reshape(-1)",
            f"{x}.flatten()",
            f"{x}.unsqueeze({g.dim(x, 1)})",
            f"{x}.squeeze()",
            f"{x}[None]",
            f"{x}.flatten({g.dim(x)})",
            f"{x}.ravel()",
            f"{x}[..., None]",
            f"{x}.squeeze({g.dim(x)})",
            f"{x}.reshape({x}.shape[0], -1)",
        )
    divisors = [d for d in range(1, count + 1) if count % d == 0] or [1]
    first = g.random.choice(divisors)
    choices = [[count], [1, *shape], [*shape, 1], [s for s in shape if s != 1], [first, count // first], [-1, first]]
    return f"{x}.{g.one('reshape', 'view')}({tuple(g.random.choice(choices))})"


def turn(g: Draw) -> str:
    x = g.any()
    order = list(range(g[x].dim()))
    g.random.shuffle(order)
    return g.one(
        f"{x}.transpose({g.dim(x)}, {g.dim(x)})",
        f"{x}.permute({order})",
        f"{x}.mT",
        f"{x}.movedim({g.dim(x)}, {g.dim(x)})",
        f"{x}.flip({g.dims(x)})",
        f"torch.roll({x}, {g.one(1, -2, 3)}, {g.dim(x)})",
        f"torch.rot90({x})",
        f"{x}.contiguous()",
        f"{x}.clone()",
        f"{x}.transpose({g.dim(x)}, {g.dim(x)}).contiguous()",
        f"{x}.t()",
    )


def spread(g: Draw) -> str:
    x = g.any()
    wider = [size if size != 1 or g.chance(2) else g.one(1, 3) for size in g[x].shape]
    lead = [g.one(1, 2, 3)] if g.chance(2) else []
    return g.one(
        f"{x}.expand({tuple(lead + (wider if not g.resized else [-1] * len(wider)))})",
        f"{x}.expand_as({g.beside(x)})",
        f"{x}.repeat({(*lead, *(g.one(1, 1, 2) for _ in wider))})",
        f"{x}.repeat_interleave(2, {g.dim(x)})",
        f"torch.broadcast_to({x}, {g.shape(g.beside(x))})",
        f"{x}.tile((2,))",
    )


def _span(g: Draw, size: int) -> str:
    if g.resized:
        return g.one("1:", ":-1", "::2", "-2:", "1:3", ":")
    start, stop = g.random.randint(-size - 1, size), g.random.randint(-size - 1, size + 1)
    return g.one(f"{start}:", f":{stop}", f"{start}:{stop}", f"{abs(start)}::{g.one(1, 2, 3)}", ":", "::2")


def subscript(g: Draw, x: str) -> str:
    """What stands in the brackets of a basic index."""
    shape = g[x].shape
    if not shape:
        return g.one("None", "...")
    parts = []
    for size in shape[: g.random.randint(1, len(shape))]:
        if size and g.chance(4):
            parts.append(str(g.random.randrange(-size, size) if not g.resized else g.one(0, -1)))
        else:
            parts.append(_span(g, size))
    if g.chance(6):
        parts.insert(g.random.randrange(len(parts) + 1), "None")
    if g.chance(5):
        parts.insert(0, "...")
        parts = parts[: len(shape)]
    return ", ".join(parts)


def cut(g: Draw) -> str:
    x = g.any()
    dim = g.dim(x)
    size = g[x].shape[dim] if g[x].dim() else 1
    start = g.random.randint(0, size) if not g.resized else 0
    return g.one(
        f"{x}[{subscript(g, x)}]",
        f"{x}[{subscript(g, x)}]",
        f"{x}[{subscript(g, x)}]",
        f"{x}.select({dim}, {g.one(0, -1)})",
        f"{x}.narrow({dim}, {start}, {g.random.randint(0, max(size - start, 0))})",
        f"{x}.diagonal({g.one(0, 1, -1)})",
        f"{x}.chunk(2, {dim})[0]",
        f"{x}.unbind({dim})[-1]",
        f"{x}.unfold({dim}, {g.one(1, 2)}, {g.one(1, 2)})",
        f"torch.split({x}, 2, {dim})[0]",
        f"torch.tril({x})",
        f"torch.triu({x}, {g.one(0, 1, -1)})",
        f"torch.diag_embed({x})",
        f"{x}.as_strided({x}.shape, {x}.stride())",
        f"torch.diag({x})",
        f"torch.tensor_split({x}, 2, {dim})[1]",
        f"{x}.view_as({x})",
    )


def read(g: Draw) -> str:
    """At places that are data."""
    x = g.any()
    rank = g[x].dim()
    dim = g.dim(x)
    size = g[x].shape[dim] if rank else 1
    if g.resized:
        size = min(size, 2)
    index = g.index(size, g.one(0, 1, 2, 3))
    full = ", ".join([":"] * (dim % rank if rank else 0))
    return g.one(
        f"{x}.index_select({dim}, {index})",
        f"{x}[{full}{', ' if full else ''}{index}]",
        f"{x}[{index}, {index}]",
        f"torch.gather({x}, {dim}, {index}.reshape({(-1, *[1] * (rank - 1))}))",
        f"torch.take({x}, {index})",
        f"torch.gather({x}, {dim}, ({_indices(g)}).abs() % {max(size, 1)})",
        f"F.embedding({g.index(max(size, 1), 3)}.abs(), {x})",
        f"{x}[..., {index}]",
        f"{x}[{index}.reshape(-1, 1), {index}]",
        f"{x}[{index}[:1], ..., 0]",
        f"torch.take_along_dim({x}, {index}.reshape({(-1, *[1] * (rank - 1))}), {dim})",
        f"{x}[{g.mask(x)}.to(torch.int64)]",
        f"F.one_hot({index}.abs(), {g.one(8, 9)})",
        f"torch.bucketize({x}, torch.tensor([-1.0, 0.0, 2.0]))",
    )


def _indices(g: Draw) -> str:
    return g.maybe(lambda t: t.dtype == torch.int64, "torch.arange(3)")


def scattered(g: Draw) -> str:
    """New tensors with something put at places that are data."""
    x = g.any()
    rank = g[x].dim()
    if not rank:
        raise Rejected
    dim = g.dim(x)
    size = g[x].shape[dim] if not g.resized else min(g[x].shape[dim], 2)
    index = g.index(size, g.one(1, 2, 3))
    y = g.pick(lambda t: t.dtype == g[x].dtype)
    grown = f"{index}.reshape({tuple(-1 if d == dim % rank else 1 for d in range(rank))})"
    number = g.number(x)
    return g.one(
        f"{x}.index_add({dim}, {index}, {y})",
        f"{x}.index_fill({dim}, {index}, {number})",
        f"{x}.index_add({dim}, {index}, {x}.index_select({dim}, {index}), alpha=2)",
        f"{x}.scatter({dim}, ({grown}) % {size}, {number})",
        f"{x}.scatter_add({dim}, ({grown}) % {size}, {y})",
        f'{x}.scatter_reduce({dim}, ({grown}) % {size}, {y}, reduce="{g.one("sum", "amax", "mean", "prod")}")',
        f"{x}.index_put(({index},), {y}, accumulate=True)",
        f"{x}.masked_scatter({x} != {x}, {y})",
        f"torch.select_scatter({x}, {y}, {dim}, 0)",
        f"torch.slice_scatter({x}, {y}, {dim}, 1)",
        f"torch.diagonal_scatter({x}, {y})",
        f"{x}.index_copy({dim}, {g.index(size, 1)}, {x}.narrow({dim}, 0, 1))",
    )


def join(g: Draw) -> str:
    x = g.any()
    dim = g.dim(x)
    alike = lambda t: (
        t.dim() == g[x].dim()
        and all(a == b for d, (a, b) in enumerate(zip(t.shape, g[x].shape)) if d != dim % max(t.dim(), 1))
    )
    y = g.pick(alike)
    same = g.maybe(lambda t: t.shape == g[x].shape, x)
    return g.one(
        f"torch.cat([{x}, {y}], {dim})",
        f"torch.cat([{x}, {y}, {x}], {dim})",
        f"torch.stack([{x}, {same}], {g.dim(x, 1)})",
        f"torch.hstack([{x}, {y}])",
        f"torch.vstack([{x}, {same}])",
        f"torch.cat([{x}.reshape(-1), {g.any()}.reshape(-1)])",
        f"torch.block_diag({x}, {y})",
        f"torch.column_stack([{x}, {same}])",
        f"torch.dstack([{x}, {same}])",
    )


def pad(g: Draw) -> str:
    x = g.any()
    rank = g[x].dim()
    amounts = [g.one(0, 1, 2, -1) for _ in range(2 * g.random.randint(0, rank))]
    few = [g.one(0, 1) for _ in range(2 * max(rank - 1, 1))][: 2 * g.one(1, 2)]
    return g.one(
        f"F.pad({x}, {amounts})",
        f"F.pad({x}, {amounts}, value={g.number(x)})",
        f'F.pad({x}, {few}, mode="{g.one("reflect", "replicate", "circular")}")',
    )


def create(g: Draw) -> str:
    x = g.any()
    shape = g.shape(x)
    dtype = g.one(g.float_dtype(), g.int_dtype(), "torch.bool")
    return g.one(
        f"torch.zeros_like({x})",
        f"torch.ones_like({x}, dtype={dtype})",
        f"torch.full_like({x}, {g.number(x)})",
        f"torch.zeros({shape}, dtype={dtype})",
        f"torch.arange({g.one('5', f'{x}.numel()', f'len({x})')}, dtype={dtype})",
        f"torch.arange(0, 1, 0.25, dtype={g.float_dtype()})",
        f"torch.eye({g.one(2, 3)}, dtype={g.float_dtype()})",
        f"torch.full({shape}, {g.number(x)}, dtype={dtype})",
        f"{x}.new_zeros({shape})",
        f"{x}.new_ones(3)",
        f"torch.linspace(-1, 1, 5, dtype={g.float_dtype()})",
        f"torch.tensor([1, 0, 2], dtype={dtype})",
        f"torch.empty_like({x}).fill_(2)",
        f"{x}.new_full((2,), 3)",
        f"torch.ones(3, dtype={dtype})",
        f"torch.tensor({g.one(0.5, -2.0, 3)})",
        "torch.tril_indices(3, 3)",
        f"torch.arange(6, dtype={g.float_dtype()}).reshape(2, 3)",
    )


def detach(g: Draw) -> str:
    return f"{g.any()}.detach()"


def shapes_as_numbers(g: Draw) -> str:
    x = g.any()
    return g.one(f"{x} * {x}.numel()", f"{x} + {x}.dim()", f"{x} * {g.any()}.shape[0]", f"{x} / ({x}.numel() + 1)")


FAMILIES = (
    (6, reshape),
    (7, turn),
    (4, spread),
    (10, cut),
    (5, read),
    (4, scattered),
    (5, join),
    (3, pad),
    (5, create),
    (1, detach),
    (1, shapes_as_numbers),
)
VIEWS = ((4, reshape), (4, turn), (1, spread), (8, cut), (1, detach))
