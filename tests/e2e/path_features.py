"""Compiled modules and functions whose results share memory, or which branch on data, in the user's own loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.e2e.features import Compiler, data, net, program


@program()
def case_view_of_arg(c: Compiler) -> Any:
    f = c(lambda x: x.view(-1))
    x = data(0).requires_grad_()
    y = f(x)
    y.square().sum().backward()
    return x.grad, y


@program()
def case_view_of_arg_and_more(c: Compiler) -> Any:
    f = c(lambda x: (x[1:], x.sin()))
    x = data(0).requires_grad_()
    y, z = f(x)
    (y.sum() + z.sum()).backward()
    return x.grad


@program()
def case_identity(c: Compiler) -> Any:
    f = c(lambda x: x)
    x = data(0).requires_grad_()
    y = f(x)
    y.sum().backward()
    return x.grad, y is x


@program()
def case_flatten_module(c: Compiler) -> Any:
    m = nn.Sequential(nn.Flatten())
    cm = c(m)
    x = data(0).requires_grad_()
    y = cm(x * 2)
    y.square().sum().backward()
    return x.grad


@program()
def case_two_views_shared(c: Compiler) -> Any:
    @c
    def f(x):
        h = x.sin()
        return h, h[0]

    x = data(0).requires_grad_()
    a, b = f(x)
    (a.sum() + b.sum()).backward()
    return x.grad


@program()
def case_chunk_outputs(c: Compiler) -> Any:
    m = nn.Linear(4, 6)

    @c
    def f(x):
        return m(x).chunk(2, -1)

    a, b = f(data(0))
    (a * b).sum().backward()
    return a, b, m


@program()
def case_views_after_a_write(c: Compiler) -> Any:
    m = nn.Linear(4, 6)

    @c
    def f(x):
        h = m(x)
        h[:, :2].mul_(2)
        return h.t(), h.detach(), *h.unbind(0)[:2], h[1:, 1:]

    rows = f(data(0))
    sum(row.square().sum() * (i + 1) for i, row in enumerate(rows)).backward()
    return rows, [row.requires_grad for row in rows], m


@program()
def case_logits_both_ways(c: Compiler) -> Any:
    m = nn.Linear(4, 4)

    @c
    def f(x):
        logits = m(x) @ x.t()
        return {"per_image": logits, "per_text": logits.t(), "loss": F.cross_entropy(logits, torch.arange(len(x)))}

    out = f(data(0))
    out["loss"].backward(retain_graph=True)
    first = m.weight.grad.clone()
    out["per_text"].softmax(-1)[0, 1].backward()
    return out, first, m


@program()
def case_lstm_outputs(c: Compiler) -> Any:
    m = nn.LSTM(4, 3, batch_first=True)
    cm = c(m)
    o, (h, k) = cm(data(0, 2, 5, 4))
    (o.sum() + k.sum()).backward()
    return o, h, m


@program()
def case_param_returned(c: Compiler) -> Any:
    class T(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.w, self.w.view(3, 1), x * self.w

    m = T()
    cm = c(m)
    a, b, d = cm(data(0, 2, 3))
    (a.sum() + b.sum() + d.sum()).backward()
    return m, a is m.w


@program(compiles=3)
def case_branch_on_data(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        h = m[0](x)
        if h.sum() > 0:
            h = h * 2
        else:
            h = h.sin()
        return m[2](h).square().mean()

    out = []
    for i in range(6):
        loss = f(data(i))
        loss.backward()
        out.append(loss)
    return out, m


@program()
def case_early_exit(c: Compiler) -> Any:
    m = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    @c
    def f(x):
        for loss in m:
            x = loss(x).tanh()
            if x.abs().max() > 0.9:
                break
        return x.sum()

    out = []
    for i in range(6):
        loss = f(data(i) * (i + 1) / 3)
        loss.backward()
        out.append(loss)
    return out, m


class _Halving(torch.autograd.Function):
    """Large gradients are halved, which its backward pass decides."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> torch.Tensor:
        return cotangent / 2 if cotangent.abs().sum() > 5 else cotangent


@program(eager=2)
def case_backward_decides(c: Compiler) -> Any:
    f = c(lambda x: _Halving.apply(x))
    x = data(0).requires_grad_()
    f(x).sum().backward()
    (f(x) / 1000).sum().backward()
    return x.grad


@program(compiles=None)
def case_masked(c: Compiler) -> Any:
    m = nn.Linear(4, 1)

    @c
    def f(x):
        y = m(x)[:, 0]
        return y[y > 0].sum()

    out = []
    for i in range(4):
        loss = f(data(i))
        loss.backward()
        out.append(loss)
    return out, m


@program()
def case_branch_dropout(c: Compiler) -> Any:
    m = net()

    @c(numerics="eager") if c.on else (lambda f: f)
    def f(x):
        h = F.dropout(m[0](x), 0.5)
        if h.sum() > 0:
            h = F.dropout(h, 0.3)
        return m[2](h).square().mean()

    out = []
    for i in range(6):
        loss = f(data(i))
        loss.backward()
        out.append(loss)
    return out, m, torch.rand(3)


@program()
def case_branch_buffer(c: Compiler) -> Any:
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(4, 4)
            self.register_buffer("n", torch.zeros(()))
            self.h = torch.zeros(5, 4)
            self.k = 0

        def forward(self, x):
            y = self.l(x) + self.h
            if y.mean() > 0:
                self.n += 1
                y = y * 2
            self.k += 1
            self.h = y.detach()
            return y * self.k

    m = M()
    cm = c(m)
    out = []
    for i in range(8):
        loss = cm(data(i)).square().sum()
        loss.backward()
        out.append((loss, m.k, m.h))
    return out, m


@program()
def case_branch_input_grad(c: Compiler) -> Any:
    @c
    def f(x, y):
        if (x * y).sum() > 0:
            return x.sin() * y, x.detach()
        return x * y.cos(), y.detach() + 1

    out = []
    for i in range(4):
        x, y = data(i).requires_grad_(), data(i + 9).requires_grad_()
        a, b = f(x, y)
        a.sum().backward()
        out.append((a, b, x.grad, y.grad))
    with torch.no_grad():
        out.append(f(x, y))
    return out


@program()
def case_loop(c: Compiler) -> Any:
    w = nn.Parameter(torch.eye(4) * 0.5)

    @c
    def f(x):
        n = 0
        while x.norm() > 1:
            x = x @ w
            n += 1
        return x.sum(), n

    out = []
    for i in range(5):
        loss, n = f(data(i))
        out.append((loss, n))
        loss.backward() if loss.requires_grad else None
    return out, w.grad


@program()
def case_int_branch_grad(c: Compiler) -> Any:
    m = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    class N(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = m
            self.step = 0

        def forward(self, x):
            self.step += 1
            if self.step > 3:
                x = self.m[0](x)
            return self.m[1](x).sum()

    n = N()
    cn = c(n)
    out = []
    for i in range(6):
        loss = cn(data(i))
        loss.backward()
        out.append(loss)
    return out, n


@program(compiles=None)
def case_branch_then_views(c: Compiler) -> Any:
    @c
    def f(x, y):
        h = x.sin()
        if h.sum() > 0:
            h = h * 2
            return x.t(), h, h[0], h.t()
        y[1:].mul_(x[1:])
        return x[1:], h, h[0], y

    out = []
    for i in range(4):
        x, y = data(i).requires_grad_(), data(i + 9).requires_grad_() * 2
        results = f(x, y)
        sum((k + 1) * t.square().sum() for k, t in enumerate(results)).backward()
        out.append((results, x.grad, y, [t._is_view() for t in results]))
    return out


@program(compiles=None)
def case_branch_on_a_gradient_of_an_argument(c: Compiler) -> Any:
    @c
    def f(x, y):
        if x.grad is not None and x.grad.sum() > 0:
            x.grad.zero_()
        (x * y).sum().backward()
        if x.grad.abs().max() > 1:
            x.grad.mul_(0.5)
        return x.grad * 1

    x = data(0).requires_grad_()
    return [(f(x, data(i)), x.grad.clone()) for i in range(5)]


@program()
def case_sizes_from_data(c: Compiler) -> Any:
    """Sizes that are tensors, where C++ wants numbers."""

    @c
    def f(x, mask):
        rows, columns = mask.sum(1)[:, 0], mask.sum(2)[:, 0]
        return [F.interpolate(x, size=(a, b), mode="bilinear") for a, b in zip(rows, columns, strict=True)]

    x = data(0, 1, 2, 4, 4)
    masks = torch.arange(20).reshape(1, 4, 5) >= 0, torch.arange(12).reshape(1, 3, 4) >= 0
    return [f(x, mask.long()) for mask in (*masks, *masks)]
