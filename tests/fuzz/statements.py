"""Statements of random programs that are no plain assignments: writes, control of gradients, loops, branches."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.fuzz import calculus, pointwise, structure
from tests.fuzz.draw import Draw
from tests.fuzz.environments import Rejected

EXPRESSIONS = (*pointwise.FAMILIES, *structure.FAMILIES, *calculus.FAMILIES)
Maker = Callable[[Draw], str]


def expression(g: Draw) -> str:
    """Any expression, its family drawn by weight."""
    return chosen(g, EXPRESSIONS)(g)


def view(g: Draw) -> str:
    """A view, more often than not."""
    return chosen(g, structure.VIEWS)(g)


def chosen(g: Draw, families: tuple[tuple[int, Maker], ...]) -> Maker:
    """One of the makers, each as often as its weight says."""
    return g.random.choices([maker for _, maker in families], [weight for weight, _ in families])[0]


def write(g: Draw) -> str:
    """An in-place operator."""
    x = g.any()
    y = g.operand(x)
    if g.chance(3):
        same = g.pick(lambda t: t.shape == g[x].shape)
        return g.one(
            f"{x}.copy_({g.beside(x)})",
            f"{x}.clamp_(-1, 2)",
            f"{x}.fill_({g.number(x)})",
            f"{x}.zero_()",
            f"{x}.neg_()",
            f"torch.add({x}, {y}, out={same})",
            f"{x}.masked_fill_({g.mask(x)}, {g.number(x)})",
            f"{x}.t_()",
            f"{x}.unsqueeze_(0)",
            f"{x}.squeeze_()",
            f"{x}.transpose_({g.dim(x)}, {g.dim(x)})",
            f"{x}.relu_()",
            f"{x}.sigmoid_()",
            f"{x}.tanh_()",
            f"{x}.abs_()",
            f"{x}.round_()",
            f"F.relu({x}, inplace=True)",
            f"{x}.bitwise_not_()",
            f"{x}.lerp_({same}, 0.5)",
            f"{x}.addcmul_({same}, {same})",
            f"{x}.cumsum_({g.dim(x)})",
            f"{x}.tril_()",
            f"{x}.index_fill_({g.dim(x)}, {g.index(1, 1)}, {g.number(x)})",
            f"{x}.clamp_min_(0)",
            f"{x}.swapaxes_(0, -1)",
            f"{x}.index_add_(0, {g.index(1, 1)}, {x}[:1])",
            f"{x}.fill_diagonal_(3)",
            f"{x}.eq_({x})",
            f"{x}.exp_()",
        )
    return g.one(
        f"{x} += {y}",
        f"{x} *= {y}",
        f"{x} -= {y}",
        f"{x}.add_({y})",
        f"{x}.mul_({y})",
        f"{x}.add_({y}, alpha=2)",
        f"{x}.sub_({y})",
        f"{x} /= {y}",
    )


def assign(g: Draw) -> str:
    """To a part of a tensor."""
    x = g.pick(lambda t: not any(size > 1 and stride == 0 for size, stride in zip(t.shape, t.stride())))
    where = structure.subscript(g, x)
    value = g.one(g.number(x), _apart(g, x, g.any()), _apart(g, x, g.beside(x)))
    if g.chance(6):
        return f"{x}[{g.mask(x)}] = {g.number(x)}"
    index = g.index(g[x].shape[0] if g[x].dim() and not g.resized else 1, 2)
    return g.one(
        f"{x}[{where}] = {value}",
        f"{x}[{where}] = {value}",
        f"{x}[{where}] {g.one('+=', '*=', '-=')} {value}",
        f"{x}[{index}] = {value}",
        f"{x}[{where}].mul_({value})",
        f"{x}[{index}] += {g.number(x)}",
        f"{x}.view(-1)[{g.one('1:', '::2', '0')}] = {g.number(x)}",
        f"{x}.data.mul_(2)",
        f"{x}.detach().add_({value})",
    )


def _apart(g: Draw, target: str, source: str) -> str:
    """A tensor to be written into another one: eager's result is nobody's where they overlap, and where it makes
    integers differentiable."""
    floats = g[target].is_floating_point() or g[target].is_complex()
    detached = f"{source}.detach()" if g[source].requires_grad and not floats else source
    overlap = g[target].untyped_storage().data_ptr() == g[source].untyped_storage().data_ptr()
    return f"{detached}.clone()" if overlap else detached


def gradient_control(g: Draw) -> str:
    """Blocks without gradients, and gradients inside the program."""
    x = g.pick(lambda t: t.requires_grad and not t.is_complex())
    name = fresh(g)
    if g.random.randrange(2):
        inner = g.one(f"{name} = {expression(g)}", write(g), f"{name} = {x} * 2")
        if re.search(r"\.(t|squeeze|unsqueeze|transpose|swapaxes)_\(", inner):
            raise Rejected  # in eager, autograd goes on with the sizes of before
        return f"with torch.{g.one('no_grad', 'no_grad', 'enable_grad')}():\n    {inner}"
    leaf = g.pick(lambda t: t.requires_grad and t.is_leaf)
    # the sum of a norm or a softmax is a constant, of whose gradient only rounding is left
    loss = f"{x}.sum()" if g.environments.exact(x) else f"{x}.cumsum(-1).sum()"
    return g.one(
        f"{name} = torch.autograd.grad({loss}, {leaf}, retain_graph=True)[0]",
        f"{name} = torch.autograd.grad({loss}, {leaf}, create_graph=True)[0]",
        f"({x} * {x}).sum().backward(retain_graph=True)",
        f"{loss}.backward(retain_graph=True)",
        f"{loss}.backward(retain_graph=True)\n{name} = {leaf}.grad.clone()",
        f"{loss}.backward(retain_graph=True)\n{leaf}.grad = None",
        f"{name} = {x}.detach().requires_grad_()\n({name} * {name}).sum().backward()",
        f"with torch.no_grad():\n    {leaf} -= 0.5",
    )


def loop(g: Draw) -> str:
    """The same again, turn by turn."""
    x, name = g.any(), fresh(g)
    y = g.beside(x)
    turns = g.one("range(2)", "range(3)", "range(5)")
    body = g.one(
        f"{name} = torch.tanh({name} + {y})",
        f"{name} = {name} * 0.5 + i",
        f"{name} = ({name} * {y}).sin()",
        f"{name} += {y}",
        f"{name} = {name}.roll(1, -1) + {y}",
        f"{name} = torch.where({name} > 0, {name} - 1, {name} + {y})",
    )
    start = f"{name} = {x}.clone()"
    if g.chance(3):
        size = f"{x}.shape[0]"
        return f"{name} = {x}[0] * 0\nfor i in range({size}):\n    {name} = torch.tanh({name} * 0.5 + {x}[i])"
    return f"{start}\nfor i in {turns}:\n    {body}"


def branch(g: Draw) -> str:
    """Python that looks at data."""
    x, y, name = g.any(exact=True), g.any(exact=True), fresh(g)
    if g[x].is_complex() or g[y].is_complex():
        raise Rejected
    condition = g.one(
        f"({x} > 0).any()",
        f"bool(({x} < 2).all())",
        f"{x}.sum().item() > 0.5",
        f"int(({x} > 0).sum()) % 2 == 0",
        f"len({x}.reshape(-1).nonzero()) > 1",
        f"{x}.amax() > {y}.amin()",
    )
    if not g.finite(x):
        raise Rejected
    return g.one(
        f"if {condition}:\n    {name} = {x} + 1\nelse:\n    {name} = {y} - 1",
        f"if {condition}:\n    {write(g)}\n{name} = {x} * 2",
        f"{name} = {x}[{x} > 0]",
        f"{name} = {x}.nonzero()",
        f"{name} = torch.masked_select({x}, {x} != 1)",
        f"{name} = {y} * {x}.sum().item()",
        f"{name} = {x} + int(({y} > 0).sum())",
        f"{name} = {x}.clone()\nfor i in range(int(({y} > 0).sum()) % 3):\n    {name} = {name} * 2 + i",
        f"{name} = torch.unique({x})",
        f"{name} = {x}[({y} > 0).sum() % {x}.shape[0]]",
        f"{name} = torch.full((int(({x} > 0).sum()),), 2.0)",
        f"{name} = {x}.reshape(-1)[: int(({y} > 0).sum())]",
    )


def failing(g: Draw) -> str:
    """What eager refuses, more often than not."""
    x, y = g.any(), g.any()
    return g.one(
        f"r = {x} @ {y}",
        f"r = {x} + {y}",
        f"r = {x}.view(7, 3)",
        f"r = torch.cat([{x}, {y}], {g.one(0, 5)})",
        f"{x} += {y}",
        f"r = {x}.sum(7)",
        f"r = {x}[9]",
        f"r = {x}.expand(2, 9)",
        f"r = {x} // 0",
        f"r = {x} & 1",
        f"r = {x} << {y}",
        f"r = {x}.squeeze(9)",
        f"r = torch.gather({x}, 0, {y})",
        f"r = {x}.index_select(0, {y})",
        f"r = F.softmax({x}, 9)",
        f"r = {x}.permute(0, 0)",
        f"r = {x}.amax(0)",
        f"r = {x}.mean()",
        f"{x}.copy_({y})",
        f"r = {x}.bitwise_not()",
        f"r = torch.where({x}, {y}, 1)",
        f"r = {x}[torch.tensor([9])]",
        f"r = F.embedding({x}, {y})",
        f"r = {x}.item()",
        f"{x}.sum().backward()",
        f"{x}[0] = {y}",
        f"r = {x}.reshape(3, -1)",
        f"r = torch.stack([{x}, {y}])",
        f"r = {x}.missing",
        f"r = F.cross_entropy({x}, {y})",
        f"r = {x}.unfold(0, 9, 1)",
        f"r = {x}.to(torch.int64) // {y}",
        f"r = {x}.T @ {y}",
        f"r = F.layer_norm({x}, (9,))",
        f"r = torch.where({x} > 0, {x}, {y})",
        f"r = {x}.chunk(0)",
        f"r = {x}.narrow(0, 1, 9)",
        f"r = {x}.clamp()",
        f"r = F.conv1d({x}, {y})",
        f"r = torch.scatter({x}, 0, {y}, 1)",
        f"{x}.resize_(3)",
        f"r = ~{x}",
    )


def fresh(g: Draw) -> str:
    """The next name."""
    return f"v{sum(name[0] == 'v' for name in g.environments.native[0].names)}"
