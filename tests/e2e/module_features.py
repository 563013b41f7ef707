"""Compiled modules in the user's own training loop: what requires gradients, modes of autograd, updates by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.e2e.features import Compiler, data, net, program


def train(c, m, opt=None, steps=3, f=None):
    opt = opt or torch.optim.SGD(m.parameters(), 0.1)
    out = []
    for i in range(steps):
        opt.zero_grad()
        y = (f or m)(data(i))
        loss = y.square().mean()
        loss.backward()
        opt.step()
        out.append(loss)
    return out


@program()
def case_partial_requires_grad(c: Compiler) -> Any:
    m = net()
    m[0].weight.requires_grad_(False)
    cm = c(m)
    return train(c, cm, torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 0.1)), m


@program()
def case_requires_grad_toggled(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    out = []
    for i in range(4):
        m[0].requires_grad_(i % 2 == 0)
        m.zero_grad()
        cm(data(i)).square().mean().backward()
        out.append([None if p.grad is None else p.grad.clone() for p in m.parameters()])
    return out


@program()
def case_modes(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    out = []
    for r in range(2):
        with torch.no_grad():
            o = cm(data(0))
            out += [o, o.requires_grad]
        o = cm(data(1))
        out += [o, o.requires_grad]
        o.sum().backward()
        with torch.inference_mode():
            o = cm(data(2))
            out += [o.clone(), o.is_inference(), o.requires_grad]
    return out, m


@program()
def case_inference_inputs(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    with torch.inference_mode():
        x = data(0) * 1
        y = cm(x)
        i = y.is_inference()
        y = y.clone()
    with torch.no_grad():
        z = cm(x)
        j = z.is_inference()
    return y, i, z, j


@program()
def case_inference_inputs_grad(c: Compiler) -> Any:
    f = c(lambda x: x * 2)
    with torch.inference_mode():
        x = data(0) * 1
    y = f(x)
    return y, y.is_inference(), y.requires_grad


@program()
def case_inference_saved_error(c: Compiler) -> Any:
    m = nn.Linear(4, 3)
    cm = c(m)
    with torch.inference_mode():
        x = data(0) * 1
    try:
        cm(x)
        return "none"
    except RuntimeError as e:
        return type(e).__name__, "nference" in str(e)


@program()
def case_no_grad_inside(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        with torch.no_grad():
            t = m(x)
        return m(x) * t, t

    a, b = f(data(0))
    a.sum().backward()
    return a, b, b.requires_grad, m


@program()
def case_no_grad_decorator(c: Compiler) -> Any:
    m = net()
    f = c(torch.no_grad()(lambda x: m(x)))
    y = f(data(0))
    g = torch.no_grad()(c(lambda x: m(x)))
    z = g(data(0))
    return y, y.requires_grad, z, z.requires_grad


@program()
def case_enable_grad_inside_no_grad(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        with torch.enable_grad():
            return m(x).sum()

    with torch.no_grad():
        y = f(data(0))
    y.backward()
    return y, m


@program()
def case_tied(c: Compiler) -> Any:
    class T(nn.Module):
        def __init__(self):
            super().__init__()
            self.e = nn.Embedding(7, 4)
            self.o = nn.Linear(4, 7, bias=False)
            self.o.weight = self.e.weight

        def forward(self, i):
            return self.o(self.e(i).tanh())

    m = T()
    cm = c(m)
    opt = torch.optim.Adam(m.parameters(), 0.01)
    for i in range(3):
        opt.zero_grad()
        cm(torch.tensor([[1, 2], [i, 6]])).square().mean().backward()
        opt.step()
    return m, opt


@program()
def case_tied_later(c: Compiler) -> Any:
    m = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    cm = c(m)
    cm(data(0)).sum().backward()
    m[2].weight = m[0].weight
    m.zero_grad()
    cm(data(0)).square().sum().backward()
    return [p.grad for p in m.parameters()]


@program()
def case_set_to_none_false(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.Adam(m.parameters(), 0.01)

    @c
    def step(x):
        opt.zero_grad(set_to_none=False)
        loss = m(x).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    return [step(data(i)) for i in range(3)], m, opt


@program()
def case_leaf_inplace_no_grad(c: Compiler) -> Any:
    m = net()

    @c
    def f():
        with torch.no_grad():
            for p in m.parameters():
                p.sub_(0.1 * p)
                p.grad = torch.zeros_like(p)

    f()
    f()
    return m


@program()
def case_manual_sgd(c: Compiler) -> Any:
    m = net()

    @c
    def step(x):
        loss = m(x).square().mean()
        m.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in m.parameters():
                p -= 0.1 * p.grad
        return loss.detach()

    return [step(data(i)) for i in range(3)], m


@program()
def case_manual_sgd_data(c: Compiler) -> Any:
    m = net()

    @c
    def step(x):
        loss = m(x).square().mean()
        m.zero_grad()
        loss.backward()
        for p in m.parameters():
            p.data.sub_(p.grad.data, alpha=0.1)
            p.grad.data.zero_()
        return loss.item()

    return [step(data(i)) for i in range(3)], m


@program()
def case_closure_item_loss(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x):
        opt.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        opt.step()
        return loss.item()

    return [step(data(i)) for i in range(3)], m


@program()
def case_ema_buffer(c: Compiler) -> Any:

    class M(nn.Module):
        def __init__(s):
            super().__init__()
            s.l = nn.Linear(4, 4)
            s.register_buffer("m", torch.zeros(4))

        def forward(s, x):
            y = s.l(x)
            s.m.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
            return (y - s.m).square().sum()

    m = M()
    f = c(m)
    for i in range(3):
        f(data(i)).backward()
    return m
