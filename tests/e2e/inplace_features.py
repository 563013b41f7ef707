"""Tensors written in place under autograd, arguments among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.e2e.features import Compiler, data, net, program


def leaf(seed: int = 0, *shape: int) -> torch.Tensor:
    """Data that require grad."""
    return data(seed, *shape).requires_grad_()


@program()
def case_inplace_arg_nonleaf(c: Compiler) -> Any:

    def f(x):
        y = x * 2
        y.add_(1)
        y[0] = 0
        y.sum().backward()
        return y.detach()

    x = leaf()
    y = c(f)(x)
    return (y, x.grad)


@program()
def case_inplace_arg_nonleaf_ret(c: Compiler) -> Any:

    def f(x):
        y = x * 2
        y.add_(1)
        y[0] = 0
        return y

    x = leaf()
    y = c(f)(x)
    y.sum().backward()
    return (y, x.grad)


@program()
def case_inplace_relu(c: Compiler) -> Any:
    m = nn.Sequential(
        nn.Linear(4, 8),
        nn.ReLU(inplace=True),
        nn.Linear(8, 8),
        nn.Dropout(0.0, inplace=True),
        nn.LeakyReLU(inplace=True),
        nn.Linear(8, 8),
        nn.ELU(inplace=True),
        nn.Linear(8, 8),
        nn.SiLU(inplace=True),
        nn.Linear(8, 8),
        nn.Hardtanh(inplace=True),
        nn.Linear(8, 3),
    )
    x = leaf()
    f = c(m)
    f(x).square().sum().backward()
    return (x.grad, m)


@program()
def case_inplace_relu_on_arg_nonleaf(c: Compiler) -> Any:
    m = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))
    x = leaf()
    h = x * 2
    f = c(m)
    f(h).square().sum().backward()
    return (x.grad, h, m)


@program()
def case_inplace_relu_first_noreq(c: Compiler) -> Any:
    m = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))
    x = data(0)
    f = c(m)
    f(x).square().sum().backward()
    return (x, m)


@program()
def case_resnet_block(c: Compiler) -> Any:

    class B(nn.Module):
        def __init__(s):
            super().__init__()
            s.c = nn.Conv2d(2, 2, 3, padding=1)
            s.b = nn.BatchNorm2d(2)
            s.r = nn.ReLU(inplace=True)

        def forward(s, x):
            y = s.r(s.b(s.c(x)))
            y = s.b(s.c(y))
            y += x
            return s.r(y)

    m = B()
    x = leaf(0, 2, 2, 4, 4)
    f = c(m)
    f(x).square().sum().backward()
    return (x.grad, m)


@program()
def case_inplace_slices(c: Compiler) -> Any:

    def f(x):
        y = x.sin()
        y[:, 0] *= 2
        y[1:3, 1:].add_(x[1:3, 1:])
        y[2].zero_()
        y.t()[1].mul_(3)
        return (y * y).sum()

    x = leaf()
    loss = c(f)(x)
    loss.backward()
    return (loss, x.grad)


@program()
def case_inplace_slices_step(c: Compiler) -> Any:
    w = leaf(3)

    def f(x):
        y = x * w
        y[:, 0] *= 2
        y[1:3, 1:].add_(x[1:3, 1:])
        y[2].zero_()
        y.t()[1].mul_(3)
        loss = (y * y).sum()
        loss.backward()
        return loss.detach()

    return (c(f)(data(0)), w.grad)


@program()
def case_inplace_mask(c: Compiler) -> Any:

    def f(x):
        y = x.sin()
        y[x > 0] = 0
        y.masked_fill_(x < -1, 2.0)
        y.index_add_(0, torch.tensor([0, 1]), x[:2])
        y.scatter_(1, torch.zeros(5, 1, dtype=torch.long), 1.0)
        y.clamp_(-1, 1)
        return (y * y).sum()

    x = leaf()
    loss = c(f)(x)
    loss.backward()
    return (loss, x.grad)


@program()
def case_inplace_copy(c: Compiler) -> Any:

    def f(x):
        out = torch.zeros(5, 4)
        out[:3].copy_(x[:3] * 2)
        out[3:] = x[3:]
        out.div_(2)
        return (out * out).sum()

    x = leaf()
    loss = c(f)(x)
    loss.backward()
    return (loss, x.grad)


@program()
def case_inplace_loop(c: Compiler) -> Any:

    def f(x):
        out = x.new_empty(5, 4)
        h = x[0]
        for i in range(5):
            h = torch.tanh(h + x[i])
            out[i] = h
        return out

    x = leaf()
    y = c(f)(x)
    y.square().sum().backward()
    return (y, x.grad)


@program(compiles=0)
def case_inplace_leaf_error(c: Compiler) -> Any:

    def f(x):
        x.add_(1)
        return x

    x = leaf()
    try:
        c(f)(x)
        return "none"
    except RuntimeError as e:
        return str(e).split("\n")[0][:60]


@program(compiles=0)
def case_inplace_saved_error(c: Compiler) -> Any:

    def f(x):
        y = x.exp()
        y.add_(1)
        y.sum().backward()
        return 1

    x = leaf()
    try:
        c(f)(x)
        return "none"
    except RuntimeError as e:
        return "modified by an inplace" in str(e)


@program(eager=1)
def case_inplace_saved_error_out(c: Compiler) -> Any:

    def f(x):
        y = x.exp()
        y.add_(1)
        return y.sum()

    x = leaf()
    try:
        c(f)(x).backward()
        return "none"
    except RuntimeError as e:
        return "modified by an inplace" in str(e)


@program()
def case_detach_inplace(c: Compiler) -> Any:

    def f(x):
        y = x * 2
        y.detach().add_(1)
        return (y * 3).sum()

    x = leaf()
    loss = c(f)(x)
    loss.backward()
    return (loss, x.grad)


@program()
def case_nograd_inplace(c: Compiler) -> Any:
    m = net()

    def f(x):
        with torch.no_grad():
            for p in m.parameters():
                p.mul_(0.9)
        return m(x).sum()

    x = leaf()
    loss = c(f)(x)
    loss.backward()
    return (loss, x.grad, m)


@program()
def case_data_inplace(c: Compiler) -> Any:

    def f(x):
        y = x * 2
        y.data.mul_(2)
        return (y * y).sum()

    x = leaf()
    loss = c(f)(x)
    loss.backward()
    return (loss, x.grad)


@program()
def case_gradient_penalty(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x):
        opt.zero_grad()
        x = x.clone().requires_grad_()
        out = m(x).sum()
        (g,) = torch.autograd.grad(out, x, create_graph=True)
        loss = (g.norm(dim=1) - 1).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    return ([step(data(i)) for i in range(3)], m)


@program()
def case_arg_written_nonleaf(c: Compiler) -> Any:
    f = c(lambda h: h.mul_(2))
    x = leaf()
    h = x * 1
    y = f(h)
    y.sum().backward()
    return (y, h, x.grad, y is h)


@program()
def case_arg_written_nonleaf2(c: Compiler) -> Any:

    def f(h, z):
        h[0] = z.sum()
        h[:, 1].mul_(2)
        return h.sum()

    x = leaf()
    z = leaf(1)
    h = x * 1
    loss = c(f)(h, z)
    loss.backward()
    return (loss, h, x.grad, z.grad)


@program()
def case_arg_written_by_grad(c: Compiler) -> Any:

    def f(buf, x):
        buf.copy_(x * 2)
        return (x * x).sum()

    x = leaf()
    buf = torch.zeros(5, 4)
    loss = c(f)(buf, x)
    (loss + buf.sum()).backward()
    return (loss, buf, buf.requires_grad, x.grad)


@program()
def case_arg_written_by_grad_none(c: Compiler) -> Any:

    def f(buf, x):
        buf[1] = x[1] * 2

    x = leaf()
    buf = torch.zeros(5, 4)
    loss = c(f)(buf, x)
    buf.sum().backward()
    return (loss, buf, buf.requires_grad, x.grad)


class Buf(nn.Module):
    def __init__(s):
        super().__init__()
        s.w = nn.Parameter(torch.ones(4))
        s.register_buffer("h", torch.zeros(4))

    def forward(s, x):
        s.h.copy_(x.mean(0) * s.w)
        return (s.h * x).sum()


@program(eager=1)
def case_buffer_written_by_grad(c: Compiler) -> Any:
    m = Buf()
    f = c(m)
    loss = f(data(0))
    loss.backward()
    return (loss, m, m.h.requires_grad)


@program()
def case_buffer_written_nograd(c: Compiler) -> Any:

    class B(Buf):
        def forward(s, x):
            with torch.no_grad():
                s.h.copy_(x.mean(0) * s.w)
            return (s.h * x * s.w).sum()

    m = B()
    f = c(m)
    loss = f(data(0))
    loss.backward()
    return (loss, m, m.h.requires_grad)


@program(eager=1)
def case_closure_nonleaf_written(c: Compiler) -> Any:
    a = leaf()
    h = a * 2
    f = c(lambda x: h.add_(x).sum())
    loss = f(data(1))
    loss.backward()
    return (loss, h, a.grad)


@program()
def case_closure_nonleaf_read(c: Compiler) -> Any:
    a = leaf()
    h = a * 2
    f = c(lambda x: (h * x).sum())
    loss = f(data(1))
    loss.backward()
    return (loss, h, a.grad)


@program()
def case_step_arg_written_inside_backward(c: Compiler) -> Any:

    def f(h, x):
        h.mul_(x)
        loss = h.sum()
        return loss

    f = c(f)
    a = leaf()
    outs = []
    for i in range(3):
        h = a * 1.5
        loss = f(h, leaf(i + 5))
        loss.backward()
        outs.append((loss, h))
    return (outs, a.grad)


@program(eager=1)
def case_two_args_alias(c: Compiler) -> Any:

    def f(u, v):
        u.mul_(2)
        return (u * v).sum()

    f = c(f)
    a = leaf()
    b = a * 1
    loss = f(b[0], b[1])
    loss.backward()
    return (loss, b, a.grad)


@program(eager=1)
def case_two_args_overlap(c: Compiler) -> Any:

    def f(u, v):
        u.mul_(2)
        return (u * v).sum()

    f = c(f)
    a = leaf()
    b = a * 1
    loss = f(b, b[1])
    loss.backward()
    return (loss, b, a.grad)


@program()
def case_leaf_or_not(c: Compiler) -> Any:

    def f(h):
        return h.mul_(2).sum()

    f = c(f)
    a = leaf()
    h = a * 1
    loss = f(h)
    loss.backward()
    try:
        f(a)
        s = "none"
    except RuntimeError as e:
        s = str(e).split("\n")[0][:50]
    return (loss, a.grad, s)


@program(compiles=None)
def case_branch_and_write(c: Compiler) -> Any:

    def f(h):
        if h.sum() > 0:
            h.mul_(2)
        return h.sum()

    f = c(f)
    a = leaf()
    h = a * 1
    b = leaf(3)
    k = b * 1
    (f(h) + f(k)).backward()
    return (h, k, a.grad, b.grad)


@program()
def case_under_no_grad(c: Compiler) -> Any:
    f = c(lambda h: h.mul_(2))
    x = leaf()
    h = x * 1
    with torch.no_grad():
        y = f(h)
    return (y, h, h.requires_grad)


@program()
def case_module_list_arg(c: Compiler) -> Any:

    def f(hs):
        for h in hs:
            h.relu_()
        return sum(h.sum() for h in hs)

    f = c(f)
    x = leaf()
    hs = [x * 1, x * 2, x * -1]
    loss = f(hs)
    loss.backward()
    return (loss, hs, x.grad)


@program()
def case_saved_input_overwritten(c: Compiler) -> Any:

    def f(h):
        s = (h * h).sum()
        return s

    f = c(f)
    x = leaf()
    h = x * 1
    loss = f(h)
    try:
        h.add_(1)
        loss.backward()
        return "none"
    except RuntimeError as e:
        return "inplace" in str(e)


@program()
def case_needs_old_value(c: Compiler) -> Any:

    def f(h, x):
        y = torch.tanh(h)
        h.mul_(0).add_(x)
        return (y * y).sum() + h.sum()

    f = c(f)
    a = leaf()
    h = a * 1
    loss = f(h, leaf(2))
    loss.backward()
    return (loss, h, a.grad)


@program()
def case_kv_cache(c: Compiler) -> Any:
    m = nn.Linear(4, 4)

    def f(cache, x, i):
        cache[:, i] = m(x)
        return (cache.sum(1) * x).sum()

    f = c(f)
    cache = torch.zeros(5, 3, 4)
    ls = [f(cache, data(i), i) for i in range(3)]
    sum(ls[-1:]).backward()
    return (ls, cache, cache.requires_grad, m)


@program(eager=1)
def case_buffer_mul_grad_closure(c: Compiler) -> Any:
    a = leaf()
    h = a * 2
    f = c(lambda x: (h.mul_(x) * h.detach()).sum())
    loss = f(data(1))
    loss.backward()
    return (loss, h, a.grad)
