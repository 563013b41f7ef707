"""Compiled modules and functions in the user's own training loop: programs that run eager and compiled."""

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
def case_inputs_requiring_grad(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    x = data(0).requires_grad_()
    cm(x).sum().backward()
    h = data(1).requires_grad_()
    cm(h * 2).sum().backward()
    return x.grad, h.grad, m


@program()
def case_param_hooks(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    seen = []
    m[0].weight.register_hook(lambda g: seen.append(g.clone()))
    m[2].bias.register_hook(lambda g: g * 2)
    for i in range(2):
        cm(data(i)).square().mean().backward()
    return seen, m


@program()
def case_post_accumulate_hook(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    opts = {p: torch.optim.SGD([p], 0.1) for p in m.parameters()}

    def hook(p):
        opts[p].step()
        opts[p].zero_grad()

    for p in m.parameters():
        p.register_post_accumulate_grad_hook(hook)
    for i in range(3):
        cm(data(i)).square().mean().backward()
    return m


@program()
def case_post_accumulate_hook_in_step(c: Compiler) -> Any:
    m = net()
    opts = {p: torch.optim.SGD([p], 0.1, momentum=0.9) for p in m.parameters()}

    def hook(p):
        opts[p].step()
        opts[p].zero_grad()

    for p in m.parameters():
        p.register_post_accumulate_grad_hook(hook)

    @c
    def step(x):
        loss = m(x).square().mean()
        loss.backward()
        return loss.detach()

    return [step(data(i)) for i in range(3)], m


@program()
def case_param_hook_in_step(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    m[0].weight.register_hook(lambda g: g.clamp(-0.01, 0.01))

    @c
    def step(x):
        opt.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    return [step(data(i)) for i in range(3)], m


@program(compiles=2)
def case_hook_added_between(c: Compiler) -> Any:
    m = net()
    c(m)
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x):
        opt.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    out = [step(data(0))]
    h = m[0].weight.register_hook(lambda g: g * 3)
    out.append(step(data(1)))
    h.remove()
    out.append(step(data(2)))
    return out, m


@program()
def case_tensor_hook_inside(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        h = m[0](x)
        h.register_hook(lambda g: g * 2)
        return m[2](h.tanh()).sum()

    f(data(0)).backward()
    return m


@program()
def case_tensor_hook_output(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    y = cm(data(0))
    y.register_hook(lambda g: g * 2)
    y.sum().backward()
    return m


@program()
def case_retain_grad(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    y = cm(data(0))
    y.retain_grad()
    y.square().sum().backward()
    return y.grad, m


@program()
def case_retain_grad_inside(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        h = m[0](x)
        h.retain_grad()
        h.square().sum().backward()
        return h.grad

    return f(data(0)), m


@program(eager=1)
def case_full_backward_hook_changes(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    m[2].register_full_backward_hook(lambda mod, gi, go: (gi[0] * 2,))
    cm(data(0).requires_grad_()).sum().backward()
    return m


@program()
def case_full_backward_hook_in_step(c: Compiler) -> Any:
    m = net()
    m[2].register_full_backward_hook(lambda mod, gi, go: (gi[0] * 2,))
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x):
        opt.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    return [step(data(i)) for i in range(2)], m


@program(eager=1)
def case_full_backward_pre_hook(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    m[2].register_full_backward_pre_hook(lambda mod, go: (go[0] * 3,))
    cm(data(0)).sum().backward()
    return m


@program()
def case_forward_hooks(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    m[0].register_forward_hook(lambda mod, a, o: o * 2)
    m[2].register_forward_pre_hook(lambda mod, a: (a[0] + 1,))
    m.register_forward_hook(lambda mod, a, o: o - 1)
    cm(data(0)).sum().backward()
    return cm(data(1)), m


@program()
def case_forward_hook_kwargs(c: Compiler) -> Any:
    m = Many()
    cm = c(m)
    m.register_forward_pre_hook(lambda mod, a, k: (a, {**k, "flag": False}), with_kwargs=True)
    return cm(data(0), flag=True)


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
def case_saved_tensors_hooks(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        y = cm(data(0)).sum()
    y.backward()
    return m


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
