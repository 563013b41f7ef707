"""Hooks of parameters, tensors and modules, and hooks of what autograd saves, around compiled code and in it."""

from __future__ import annotations

from typing import Any

import torch

from tests.e2e.backward_features import Many
from tests.e2e.features import Compiler, data, net, program


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
def case_saved_tensors_hooks(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        y = cm(data(0)).sum()
    y.backward()
    return m
