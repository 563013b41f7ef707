"""Gradients that a function leaves in its arguments, hooks of modules, and hooks of what autograd saves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.e2e.features import Compiler, data, net, program


def leaf(seed: int = 0, *shape: int) -> torch.Tensor:
    """Data that require grad."""
    return data(seed, *shape).requires_grad_()


@program()
def case_save_on_cpu(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x):
        opt.zero_grad()
        with torch.autograd.graph.save_on_cpu():
            loss = m(x).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    return ([step(data(i)) for i in range(3)], m)


@program()
def case_save_on_cpu_module(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        with torch.autograd.graph.save_on_cpu(pin_memory=False):
            return m(x).square().mean()

    x = leaf()
    f(x).backward()
    return (x.grad, m)


@program()
def case_hooks_identity(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            return m(x).square().mean()

    x = leaf()
    f(x).backward()
    return (x.grad, m)


@program()
def case_hooks_half(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.bfloat16(), lambda t: t.double()):
            loss = m(x).square().mean()
        loss.backward()
        return loss.detach()

    return (f(data(0)), m)


@program()
def case_hooks_half_out(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t / 2):
            return m(x).square().mean()

    x = leaf()
    f(x).backward()
    return (x.grad, m)


@program()
def case_hooks_outside(c: Compiler) -> Any:
    m = net()
    f = c(m)
    x = leaf()
    with torch.autograd.graph.save_on_cpu():
        f(x).sum().backward()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t / 2):
        loss = f(x).sum()
    loss.backward()
    return (x.grad, m)


@program()
def case_hooks_tuple(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (t.shape, t.flatten()), lambda p: p[1].view(p[0])):
            loss = m(x).square().mean()
        loss.backward()
        return loss.detach()

    return (f(data(0)), m)


@program()
def case_disable_hooks(c: Compiler) -> Any:
    m = net()

    @c
    def f(x):
        with torch.autograd.graph.disable_saved_tensors_hooks("no"):
            return m(x).square().mean()

    x = leaf()
    f(x).backward()
    return (x.grad, m)


@program()
def case_requires_grad_inside(c: Compiler) -> Any:

    def f(x):
        y = x.detach().requires_grad_()
        z = (y * y).sum()
        z.backward()
        return y.grad

    return c(f)(data(0))


@program()
def case_grad_arg_in_function(c: Compiler) -> Any:

    def f(x):
        (g,) = torch.autograd.grad((x * x).sum(), x)
        return g

    x = leaf()
    return (c(f)(x), x.grad)


@program()
def case_arg_grad_left(c: Compiler) -> Any:

    def f(x):
        (x * x).sum().backward()
        return x.detach() * 2

    x = leaf()
    y = c(f)(x)
    y2 = c(f)(x)
    return (y, y2, x.grad)


@program()
def case_arg_grad_left_twice(c: Compiler) -> Any:
    f = c(lambda x: (x * x).sum().backward())
    x = leaf()
    f(x)
    f(x)
    f(x)
    return x.grad


@program()
def case_arg_grad_zero(c: Compiler) -> Any:

    def f(x):
        if x.grad is not None:
            x.grad.zero_()
        loss = (x * x).sum()
        loss.backward()
        return loss.detach()

    f = c(f)
    x = leaf()
    return (f(x), f(x), x.grad)


@program()
def case_arg_grad_read(c: Compiler) -> Any:

    def f(x):
        loss = (x * x).sum()
        loss.backward()
        return x.grad * 2

    f = c(f)
    x = leaf()
    return (f(x), x.grad)


@program()
def case_arg_grad_none(c: Compiler) -> Any:

    def f(x):
        x.grad = None
        loss = (x * x).sum()
        loss.backward()
        return loss.detach()

    f = c(f)
    x = leaf()
    return (f(x), x.grad, f(x), x.grad)


@program()
def case_arg_attack_loop(c: Compiler) -> Any:
    m = net()

    def step(x, y):
        loss = F.cross_entropy(m(x), y)
        loss.backward()
        with torch.no_grad():
            x += 0.1 * x.grad.sign()
            x.grad.zero_()
        return loss.detach()

    f = c(step)
    x = leaf()
    return ([f(x, torch.tensor([0, 1, 2, 0, 1])) for _ in range(3)], x, m)


@program()
def case_arg_sgd(c: Compiler) -> Any:

    def step(w, x):
        loss = (x @ w).square().mean()
        loss.backward()
        with torch.no_grad():
            w -= 0.1 * w.grad
            w.grad = None
        return loss.detach()

    f = c(step)
    w = leaf(1, 4, 3)
    return ([f(w, data(i)) for i in range(3)], w, w.grad)


@program(eager=1)
def case_arg_grad_nonleaf(c: Compiler) -> Any:
    f = c(lambda x: (x * x).sum().backward())
    a = leaf()
    f(a * 2)
    return a.grad


@program()
def case_arg_retain_grad(c: Compiler) -> Any:

    def f(x):
        y = x * 2
        y.retain_grad()
        (y * y).sum().backward()
        return y.grad

    x = leaf()
    return (c(f)(x), x.grad)


@program(eager=2)
def case_module_full_backward_hook(c: Compiler) -> Any:
    m = net()
    m[0].register_full_backward_hook(lambda mod, gi, go: (gi[0] * 2,) if gi[0] is not None else None)
    f = c(m)
    x = leaf()
    for i in range(2):
        f(x).sum().backward()
    return (x.grad, m)


@program(eager=1)
def case_module_full_backward_hook_top(c: Compiler) -> Any:
    m = net()
    seen = []
    f = c(m)
    f.register_full_backward_hook(lambda mod, gi, go: seen.append((gi, go)))
    x = leaf()
    f(x).sum().backward()
    return (x.grad, m, len(seen))


@program(eager=1)
def case_module_pre_backward_hook(c: Compiler) -> Any:
    m = net()
    m[1].register_full_backward_pre_hook(lambda mod, go: (go[0] * 3,))
    f = c(m)
    x = leaf()
    f(x).sum().backward()
    return (x.grad, m)


@program(eager=2)
def case_module_hook_seen(c: Compiler) -> Any:
    m = net()
    seen = []
    m[1].register_full_backward_hook(lambda mod, gi, go: seen.append(float(go[0].sum())))
    f = c(m)
    x = leaf()
    f(x).sum().backward()
    f(x).sum().backward()
    return (x.grad, m, seen)


@program()
def case_tensor_hook_inside(c: Compiler) -> Any:
    m = net()

    def f(x):
        h = m[0](x)
        h.register_hook(lambda g: g * 2)
        return m[2](h.tanh())

    f = c(f)
    x = leaf()
    f(x).sum().backward()
    return (x.grad, m)


@program()
def case_grad_of_compiled_args_ng(c: Compiler) -> Any:
    m = net()
    f = c(m)
    x = leaf()
    (g,) = torch.autograd.grad(f(x).sum(), x)
    return (g, x.grad)


@program(eager=1)
def case_grad_of_arg_leaf_or_not(c: Compiler) -> Any:
    f = c(lambda x: (x * x).sum().backward())
    a = leaf()
    f(a)
    f(a * 2)
    f(a)
    return a.grad


@program(eager=2)
def case_grad_arg_hooks(c: Compiler) -> Any:
    f = c(lambda x: (x * x).sum().backward())
    a = leaf()
    f(a)
    a.register_hook(lambda g: g * 3)
    f(a)
    b = leaf(1)
    b.register_post_accumulate_grad_hook(lambda t: t.grad.mul_(2) and None if False else (t.grad.mul_(2), None)[1])
    f(b)
    return (a.grad, b.grad)


@program()
def case_grad_two_args(c: Compiler) -> Any:

    def f(x, y):
        (x * y).sum().backward()
        (x * x).sum().backward()
        return (x.grad is None, y.grad.sum())

    f = c(f)
    a = leaf()
    b = leaf(1)
    r = [f(a, b) for _ in range(3)]
    return (r, a.grad, b.grad)


@program()
def case_grad_same_arg_twice(c: Compiler) -> Any:
    f = c(lambda x, y: (x * y).sum().backward())
    a = leaf()
    f(a, a)
    return a.grad


@program(eager=2)
def case_grad_param_as_arg(c: Compiler) -> Any:
    m = net()
    f = c(lambda w, x: (m(x).sum() + w.square().sum()).backward())
    f(m[0].weight, data(0))
    f(m[0].weight, data(0))
    return m


@program()
def case_grad_set(c: Compiler) -> Any:

    def f(x):
        x.grad = torch.ones_like(x) * 3
        (x * x).sum().backward()
        return x.grad.sum()

    f = c(f)
    a = leaf()
    return (f(a), f(a), a.grad)


@program()
def case_grad_zero_inplace(c: Compiler) -> Any:

    def f(x):
        x.grad.zero_()
        (x * x).sum().backward()

    f = c(f)
    a = leaf()
    a.grad = torch.ones(5, 4)
    g = a.grad
    f(a)
    f(a)
    return (a.grad, g is a.grad, g)


@program()
def case_grad_read_then_none(c: Compiler) -> Any:

    def f(x):
        loss = (x * x).sum()
        loss.backward()
        g = x.grad.clone()
        x.grad = None
        return g

    f = c(f)
    a = leaf()
    r = [f(a) for _ in range(2)]
    a.grad = torch.ones(5, 4)
    r.append(f(a))
    return (r, a.grad)


@program()
def case_grad_identity_kept(c: Compiler) -> Any:
    f = c(lambda x: (x * x).sum().backward())
    a = leaf()
    f(a)
    g = a.grad
    f(a)
    return (g is a.grad, g, a.grad)


@program(eager=2)
def case_grad_optimizer_over_arg(c: Compiler) -> Any:
    a = leaf()
    opt = torch.optim.SGD([a], 0.1, momentum=0.9)

    @c
    def f(x):
        opt.zero_grad()
        loss = (x * x).sum()
        loss.backward()
        opt.step()
        return loss.detach()

    return (f(a), f(a), a, a.grad)


@program(compiles=None)
def case_branch_and_argument_grad(c: Compiler) -> Any:

    def f(x):
        if x.sum() > 0:
            (x * x).sum().backward()
        else:
            (x * 3).sum().backward()

    f = c(f)
    a = leaf()
    b = leaf(3)
    f(a)
    f(b)
    f(a)
    return (a.grad, b.grad)


@program()
def case_flag_of_an_argument(c: Compiler) -> Any:
    def f(x):
        x.requires_grad_()
        (x * x).sum().backward()
        return x.grad * 2

    x = data(0)
    f = c(f)
    return f(x), x.requires_grad, x.grad, f(x), x.grad, f(data(1))


@program(compiles=1)
def case_flag_of_an_argument_and_result(c: Compiler) -> Any:
    def f(x):
        return (x.requires_grad_() * 2).sin()

    f, x, y = c(f), data(0), data(1)
    (f(x).sum() + f(y).sum()).backward()
    return x.grad, y.grad


@program(compiles=2)
def case_derivatives_of_an_argument(c: Compiler) -> Any:
    m = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    opt = torch.optim.Adam(m.parameters(), 0.01)

    @c
    def step(x):
        opt.zero_grad()
        x.requires_grad_()
        (slope,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
        loss = (slope + m(x)).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    x = data(0, 6, 1)
    return [step(x), step(x), step(x)], m, x.grad, x.requires_grad
