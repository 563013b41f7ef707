"""Ways of asking for gradients of what is compiled: several results, several calls, twice, of some tensors only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.e2e.features import Compiler, data, net, program


class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.register_buffer("b", torch.ones(4))

    def forward(self, x, flag=True):
        h = self.l(x)
        return {
            "h": h,
            "n": 3,
            "s": "text",
            "none": None,
            "pair": (h.sin(), h.detach().cos()),
            "i": x.argmax(-1),
            "flag": flag,
            "loss": [h.mean(), 2.5],
        }


@program()
def case_many_outputs(c: Compiler) -> Any:
    m = Many()
    cm = c(m)
    r = cm(data(0))
    (r["pair"][0].sum() + r["loss"][0]).backward()
    return r, m


@program()
def case_one_output_unused(c: Compiler) -> Any:
    m = Many()
    cm = c(m)
    x = data(0).requires_grad_()
    r = cm(x)
    r["h"].sum().backward()
    g = x.grad.clone()
    x.grad = None
    r = cm(x)
    (r["pair"][0] * r["h"]).sum().backward()
    return g, x.grad, m


@program()
def case_retain_graph(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    loss = cm(data(0)).square().sum()
    loss.backward(retain_graph=True)
    a = m[0].weight.grad.clone()
    loss.backward()
    try:
        loss.backward()
        e = ""
    except RuntimeError as err:
        e = "second time" in str(err)
    return a, m, e


@program()
def case_accumulation(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    for i in range(3):
        cm(data(i)).square().mean().backward()
    return m


@program()
def case_inputs_requiring_grad(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    x = data(0).requires_grad_()
    cm(x).sum().backward()
    h = data(1).requires_grad_()
    cm(h * 2).sum().backward()
    return x.grad, h.grad, m


@program()
def case_double_backward_in_step(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
        p = (g.norm(2, 1) - 1).square().mean()
        p.backward()
        return p.detach()

    return f(data(0)), m


@program()
def case_double_backward_returned(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
        return (g.norm(2, 1) - 1).square().mean()

    loss = f(data(0))
    loss.backward()
    return loss, m


@program()
def case_autograd_grad(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    return torch.autograd.grad(cm(data(0)).square().sum(), list(m.parameters())), m


@program()
def case_autograd_grad_unused(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    z = torch.zeros(3, requires_grad=True)
    return torch.autograd.grad(cm(data(0)).square().sum(), [m[0].weight, z], allow_unused=True)


@program()
def case_several_roots(c: Compiler) -> Any:
    m = Many()
    cm = c(m)
    r = cm(data(0))
    torch.autograd.backward([r["h"], r["loss"][0]], [torch.ones_like(r["h"]), None])
    return m


@program()
def case_several_roots_in_step(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        h = m[0](x)
        y = m(x)
        torch.autograd.backward([h, y.sum()], [torch.ones_like(h), None])
        return y.detach()

    return f(data(0)), m


@program()
def case_backward_inputs_arg(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    cm(data(0)).sum().backward(inputs=[m[0].weight])

    @c
    def f(x):
        m(x).sum().backward(inputs=[m[0].weight, m[2].bias])

    f(data(1))
    return m


@program()
def case_gradient_arg(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    y = cm(data(0))
    y.backward(data(3, 5, 3))
    y = cm(data(0))
    y.backward(data(3, 5, 1).expand(5, 3))
    return m


@program(eager=1)
def case_detect_anomaly(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    with torch.autograd.set_detect_anomaly(True):
        cm(data(0)).sum().backward()
    return m


@program(eager=1)
def case_detect_anomaly_nan(c: Compiler) -> Any:
    f = c(lambda x: (x * 0).sqrt().sum() * float("nan"))
    x = data(0).requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        try:
            f(x).backward()
            return "none"
        except RuntimeError as e:
            return "nan" in str(e)


@program(eager=1)
def case_detect_anomaly_step(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        loss = m(x).sum()
        loss.backward()
        return loss.detach()

    with torch.autograd.set_detect_anomaly(True):
        return f(data(0)), m
