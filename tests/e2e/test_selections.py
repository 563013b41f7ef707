"""Losses of rows that a mask selects: one program for all masks, as right as eager whatever is in the other rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphc
from graphc.errors import DataDependentError
from tests.e2e.selection_programs import BAD, LOSSES, OTHER_ROWS, Given, check, given
from tests.support import assert_contract

Tensor = torch.Tensor


@pytest.mark.parametrize("name", list(LOSSES))
def test_one_program(name: str) -> None:
    f = LOSSES[name]
    compiled = graphc.compile(f, backend="interpret")
    for seed, selected in enumerate((4, 1, 6, 0, 3)):
        check(f, compiled, given(seed, selected, name not in OTHER_ROWS))
    stats = compiled.stats()
    assert (stats.compiles, stats.paths, stats.eager_calls) == (1, 0, 0)


@pytest.mark.parametrize("backend", ["interpret", "c"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(backend: str, dtype: torch.dtype) -> None:
    def f(g: Given) -> Tensor:
        return LOSSES["mse"](g) + LOSSES["mean"](g) + LOSSES["bce of logits"](g)

    compiled = graphc.compile(f, backend=backend)
    check(f, compiled, given(1, 4), dtype)
    assert compiled.stats().paths == 0


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_modes(around: Callable[[], Any]) -> None:
    def f(g: Given) -> Tensor:
        scores = torch.einsum("nk,k->n", g.x, g.w)
        return F.mse_loss((g.x @ torch.ones(4, 3, dtype=g.x.dtype))[g.m], g.y[g.m, :3]) + scores[g.m].sum()

    compiled = graphc.compile(f)
    for seed in range(2):
        args = given(seed, 3)
        with around():
            ours, eager = compiled(args), f(args)
        assert_contract(ours.detach(), eager.detach(), f(args.to(torch.float64)).detach())
        assert ours.requires_grad == eager.requires_grad
    assert compiled.stats().compiles == 1


def test_masks_of_more_dims() -> None:
    def f(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        of_class = y != BAD
        x = x.permute(0, 2, 3, 1)
        return (
            F.cross_entropy(x[of_class], y[of_class]), x[of_class].mean(0), x[of_class].sum(), y[of_class].sum(),
            x[..., :2][of_class].exp().mean((0, 1), keepdim=True),
        )  # fmt: skip

    compiled = graphc.compile(f)
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(2, 5, 3, 4, generator=g)
        y = torch.randint(0, 5, (2, 3, 4), generator=g)
        y[torch.rand(y.shape, generator=g) > 0.5] = BAD
        for mine, eager, exact in zip(compiled(x, y), f(x, y), f(x.double(), y), strict=True):
            assert_contract(mine, eager, exact if eager.is_floating_point() else None)
    assert (compiled.stats().compiles, compiled.stats().paths) == (1, 0)


class Yolo(nn.Module):
    """A loss as it is written for grids of anchors: boxes, objects, places of none, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 16, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        p = self.net(x).view(len(x), 2, 8, *x.shape[2:]).permute(0, 1, 3, 4, 2)
        obj, none = t[..., 0] == 1, t[..., 0] == 0
        nothing = F.binary_cross_entropy_with_logits(p[..., 0:1][none], t[..., 0:1][none])
        boxes = torch.cat([torch.sigmoid(p[..., 1:3]), torch.exp(p[..., 3:5])], -1)
        objects = F.mse_loss(torch.sigmoid(p[..., 0:1][obj]), t[..., 0:1][obj])
        places = F.mse_loss(boxes[obj], t[..., 1:5][obj])
        return 10 * places + objects + 10 * nothing + F.cross_entropy(p[..., 5:][obj], t[..., 5][obj].long())


def test_a_training_step() -> None:
    def trainer(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        optimizer = torch.optim.SGD(net.parameters(), 0.01)

        def step(x: Tensor, t: Tensor) -> Tensor:
            loss = net(x, t)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    torch.manual_seed(0)
    nets = [Yolo()]
    nets += [copy.deepcopy(nets[0]), copy.deepcopy(nets[0]).double()]
    steps = [trainer(net) for net in nets]
    compiled = graphc.compile(steps[0])
    for _ in range(4):
        x, t = torch.randn(2, 3, 4, 4), torch.randn(2, 2, 4, 4, 6).abs()
        t[..., 0], t[..., 5] = torch.randint(-1, 2, t.shape[:-1]), torch.randint(0, 3, t.shape[:-1])
        assert_contract(compiled(x, t), steps[1](x, t), steps[2](x.double(), t.double()))
    for mine, eager, exact in zip(*(net.parameters() for net in nets), strict=True):
        assert_contract(mine.detach(), eager.detach(), exact.detach())
    assert (compiled.stats().compiles, compiled.stats().paths) == (1, 0)


@pytest.mark.parametrize(
    "f",
    [
        lambda x, z, m: F.cross_entropy(x[m], z[m]),
        lambda x, z, m: x[m].gather(1, z[m][:, None]).sum(),
        lambda x, z, m: F.binary_cross_entropy(x[m] * 3, x[m].sigmoid()),
        lambda x, z, m: x[m].max() + x[m].min(),
    ],
)
def test_bad_data(f: Callable[..., Tensor]) -> None:
    """Of selected rows eager's errors; others may be anything."""
    compiled, x = graphc.compile(f, backend="interpret"), torch.rand(4, 3) / 4
    z, m = torch.tensor([0, 7, 2, 1]), torch.tensor([True, False, True, False])
    x[1] = 8
    assert_contract(compiled(x, z, m), f(x, z, m), f(x.double(), z, m))
    bad = torch.zeros(4, dtype=torch.bool) if "max" in f.__code__.co_names else ~m
    for _ in range(2):
        with pytest.raises((RuntimeError, IndexError)) as eager:
            f(x, z, bad)
        with pytest.raises(eager.type):
            compiled(x, z, bad)
    assert compiled.stats().paths == 0
    assert_contract(compiled(x, z, m), f(x, z, m), f(x.double(), z, m))


# what needs the rows themselves


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 5


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return (x * 2).mean()


@torch.jit.script
def count(x: Tensor) -> int:
    return x.size(0) + x.dim()


def views_in_place(x: Tensor, m: Tensor) -> Tensor:
    rows = x[m]
    column = rows[:, 0]
    column += 1
    return rows.mean() + column.sum()


def behind_a_view(x: Tensor, m: Tensor) -> Tensor:
    rows = x[m]
    column = rows[:, 0]
    pairs = rows.reshape(2, -1)
    pairs.mul_(3)
    return column.sum() + rows.mean()


def hooked(x: Tensor, m: Tensor) -> Tensor:
    rows = x[m]
    mean = rows.mean()
    rows.register_hook(lambda grad: grad * 2)
    return mean + rows.sum()


def in_the_middle(x: Tensor, m: Tensor) -> Tensor:
    rows = x[m]
    (gradient,) = torch.autograd.grad((rows**2).sum(), rows, create_graph=True)
    return (gradient * rows).mean()


def looked_at_without_gradient(x: Tensor, m: Tensor) -> Tensor:
    rows = x[m]
    half = rows / 2
    with torch.no_grad():
        size = len(half)
    return half.sum() * size


def kept(x: Tensor, m: Tensor) -> Tensor:
    rows = x[m]
    kept.rows = rows * 2  # type: ignore[attr-defined]
    return rows.mean()


HISTORY: list[Tensor] = []


def noted(x: Tensor, m: Tensor) -> Tensor:
    HISTORY.append(x[m].detach())
    return x[m].mean()


REAL: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "returned": lambda x, m: x[m] * 2,
    "in a container": lambda x, m: [x[m], {"rows": x[m].sum(1)}],
    "product": lambda x, m: (x[m].relu() @ torch.ones(4, 2, dtype=x.dtype)).mean(),
    "order": lambda x, m: torch.sort(x[m][:, 0])[0].cumsum(0).mean(),
    "deviation": lambda x, m: x[m].std(),
    "length": lambda x, m: x[m].sum() / len(x[m]),
    "loop": lambda x, m: sum(row.exp().sum() for row in x[m]),
    "other mask": lambda x, m: (x[m].sum(0) * x[~m].sum(0) * (x[m] - x[m.flip(0).flip(0)])[0]).sum(),
    "branch": lambda x, m: x[m].mean() if x[m].numel() > 8 else x[m].sum(),
    "script": lambda x, m: scripted(x[m]) + x.sum() * count(x[m]),
    "script of a module": lambda x, m: torch.jit.script(nn.ReLU())(x[m]).mean(),
    "own function": lambda x, m: Doubled.apply(x[m]).mean(),
    "views in place": views_in_place,
    "behind a view": behind_a_view,
    "hook": hooked,
    "in the middle": in_the_middle,
    "without gradient": looked_at_without_gradient,
    "kept": kept,
    "noted": noted,
}


@pytest.mark.parametrize("name", list(REAL))
def test_real_rows(name: str) -> None:
    f = REAL[name]
    compiled = graphc.compile(f, backend="interpret")
    for seed, selected in enumerate((4, 2, 4)):
        args, found = given(seed, selected, False), []
        for call, dtype in ((compiled, torch.float32), (f, torch.float32), (f, torch.float64)):
            x = args.x.to(dtype).requires_grad_()
            leaves = torch.utils._pytree.tree_leaves(call(x, args.m))
            (grad,) = torch.autograd.grad([leaf.sum() for leaf in leaves], x)
            extra = [kept.rows.detach()] if name == "kept" else HISTORY[-1:] if name == "noted" else []  # type: ignore[attr-defined]
            found.append([*(leaf.detach() for leaf in leaves), grad, *extra])
        for mine, eager, exact in zip(*found, strict=True):
            assert_contract(mine, eager, exact)
    assert compiled.stats().eager_calls == 0


def test_one_graph() -> None:
    """What needs no decision has one; what does is refused at the line that selects."""
    args = given(0, 3)
    f = LOSSES["mse"]
    graph = graphc.trace(f, args)
    assert_contract(*graphc.run(graph, *args), f(args))
    with pytest.raises(DataDependentError, match="shape depends"):
        graphc.trace(lambda g: g.x[g.m] * 2, args)
