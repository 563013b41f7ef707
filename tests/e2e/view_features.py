"""Results that are views, of arguments or of each other, under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.e2e.features import Compiler, data, program


def leaf(seed: int = 0, *shape: int) -> torch.Tensor:
    """Data that require grad."""
    return data(seed, *shape).requires_grad_()


@program()
def case_view_result(c: Compiler) -> Any:
    x = leaf()
    f = c(lambda x: x.view(-1))
    y = f(x)
    (y * y).sum().backward()
    return (y, x.grad)


@program()
def case_view_results_many(c: Compiler) -> Any:
    out = []
    programs = [
        lambda x: x.t(),
        lambda x: x[0],
        lambda x: x[1:3, ::2],
        lambda x: x.unsqueeze(0).expand(3, 5, 4),
        lambda x: x,
        lambda x: (x, x * 2),
        lambda x: x.reshape(4, 5),
        lambda x: (x[0], x[1]),
        lambda x: x.chunk(2, 1),
        lambda x: x.detach(),
        lambda x: (x.detach(), x * 2),
        lambda x: (x * 2, x.view(-1)),
        lambda x: x.unbind(0),
        lambda x: torch.squeeze(x),
        lambda x: x.contiguous(),
        lambda x: x.to(torch.float64),
        lambda x: x.diagonal(),
        lambda x: x.as_strided((2, 2), (1, 2)),
        lambda x: x.transpose(0, 1).flatten(),
        lambda x: x.T,
    ]
    for g in programs:
        x = leaf()
        y = c(g)(x)
        ys = y if isinstance(y, (tuple, list)) else [y]
        loss = sum(((i + 1) * (t * t).sum() for i, t in enumerate(ys) if t.requires_grad))
        if isinstance(loss, torch.Tensor):
            loss.backward()
        places = [t.data_ptr() - x.data_ptr() if t._is_view() and t._base is x else 0 for t in ys]
        out.append((y, x.grad, [(t.requires_grad, t is x) for t in ys], places))
    return out


@program()
def case_view_written_after(c: Compiler) -> Any:
    x = leaf()
    h = x * 1
    f = c(lambda h: h[0])
    y = f(h)
    y.mul_(2)
    (h * h).sum().backward()
    return (h, y, x.grad)


@program()
def case_view_of_result(c: Compiler) -> Any:
    f = c(lambda x: (lambda y: (y, y[0], y.t()))(x.sin()))
    x = leaf()
    a, b, d = f(x)
    b.mul_(2)
    (a.sum() + d.square().sum()).backward()
    return (a, b, d, x.grad, b._is_view())


@program()
def case_same_result_twice(c: Compiler) -> Any:
    f = c(lambda x: (lambda y: (y, y))(x.sin()))
    x = leaf()
    a, b = f(x)
    (a.sum() + b.square().sum()).backward()
    return (a, b, x.grad, a is b)


@program()
def case_param_view(c: Compiler) -> Any:
    m = nn.Linear(4, 3)
    f = c(lambda: m.weight.t())
    y = f()
    (y * y).sum().backward()
    return (y, m)


@program()
def case_param_itself(c: Compiler) -> Any:
    m = nn.Linear(4, 3)
    f = c(lambda x: (m.weight, m(x)))
    y, z = f(data(0))
    (y.sum() + z.sum()).backward()
    return (y, z, m, y is m.weight)


@program()
def case_written_view_arg(c: Compiler) -> Any:
    f = c(lambda v, x: v.mul_(x).sum())
    a = leaf()
    b = a * 2
    v = b[1:3]
    loss = f(v, leaf(4, 2, 4))
    (loss + b.sum()).backward()
    return (loss, b, v, a.grad)


@program()
def case_written_returned_with_view(c: Compiler) -> Any:

    def f(h, x):
        h.add_(x)
        return (h, h[0], h.sum(), h.detach())

    f = c(f)
    a = leaf()
    h = a * 1
    r = f(h, leaf(1))
    (r[0].sum() + r[1].square().sum() + r[2]).backward()
    return (r, h, a.grad, r[0] is h, r[3].requires_grad)


@program(compiles=None)
def case_branch_and_view(c: Compiler) -> Any:
    f = c(lambda x: x.view(-1) if x.sum() > 0 else x.t())
    a = leaf()
    b = leaf(3)
    (f(a).square().sum() + f(b).square().sum()).backward()
    return (a.grad, b.grad)


@program()
def case_view_double_backward(c: Compiler) -> Any:
    f = c(lambda x: x.t())
    x = leaf()
    y = f(x)
    (g,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    g.square().sum().backward()
    return x.grad


@program()
def case_chunk_results(c: Compiler) -> Any:
    m = nn.Linear(4, 6)
    f = c(lambda x: m(x).chunk(3, -1))
    a, b, d = f(leaf())
    (a * b + d).sum().backward()
    return (a, b, d, m)


@program()
def case_chunk_results2(c: Compiler) -> Any:
    m = nn.Linear(4, 6)

    def f(x):
        h = m(x)
        q, k, v = h.split(2, -1)
        return {"q": q, "kv": (k, v.t()), "n": h.shape[0]}

    f = c(f)
    r = f(leaf())
    (r["q"] * r["kv"][0]).sum().backward()
    return (r, m)


@program()
def case_unbind_results(c: Compiler) -> Any:
    f = c(lambda x: torch.unbind(x.sin(), 0))
    x = leaf()
    r = f(x)
    sum((i * t.sum() for i, t in enumerate(r))).backward()
    return (r, x.grad)


@program()
def case_view_after_inplace(c: Compiler) -> Any:

    def f(x):
        y = x.sin()
        v = y[0]
        v.mul_(3)
        y[1] = v
        return (y, v)

    f = c(f)
    x = leaf()
    y, v = f(x)
    (y.square().sum() + v.sum()).backward()
    return (y, v, x.grad)


@program(eager=2)
def case_custom_fn_view(c: Compiler) -> Any:

    class V(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view(-1)

        @staticmethod
        def backward(ctx, g):
            return (g * 7).view(5, 4)

    f = c(lambda x: V.apply(x))
    x = leaf()
    f(x).sum().backward()
    f2 = c(lambda x: (lambda y: (y, V.apply(y)))(x.sin()))
    x2 = leaf()
    a, b = f2(x2)
    (a.sum() + b.sum()).backward()
    return (x.grad, x2.grad)


@program(eager=1)
def case_hook_view(c: Compiler) -> Any:

    def f(x):
        y = x.view(-1)
        y.register_hook(lambda g: g * 5)
        return y

    f = c(f)
    x = leaf()
    f(x).sum().backward()
    return x.grad


@program()
def case_nograd_view(c: Compiler) -> Any:

    def f(x):
        with torch.no_grad():
            return (x.view(-1), x * 2)

    f = c(f)
    x = leaf()
    r = f(x)
    return (r, [t.requires_grad for t in r])


@program()
def case_result_inplace_after(c: Compiler) -> Any:
    f = c(lambda x: x.transpose(0, 1).flatten())
    x = leaf()
    y = f(x)
    y.add_(1)
    y.mul_(3)
    y.sum().backward()
    g = c(lambda x: x.sin()[1:3])
    x2 = leaf()
    z = g(x2)
    z.mul_(2)
    z.sum().backward()
    h = c(lambda x: (x * 2).t())
    x3 = leaf()
    w = h(x3)
    w.mul_(2)
    w.sum().backward()
    return (y, z, w, x.grad, x2.grad, x3.grad)
