"""Checkpointing, torch.func, functions and operators of the user's own, parametrizations: in compiled training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.e2e.features import Compiler, data, net, program
from tests.e2e.step_features import loop, make_step


@program(eager=1)
def case_checkpoint_reentrant(c: Compiler) -> Any:
    m = net()
    cm = c(lambda x: checkpoint(m, x, use_reentrant=True).sum())
    x = data(0).requires_grad_()
    cm(x).backward()
    return x.grad, m


@program()
def case_checkpoint_reentrant_step(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x):
        opt.zero_grad()
        h = m[0](x)
        loss = checkpoint(lambda t: m[2](t.tanh()), h, use_reentrant=True).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    return loop(step), m


@program()
def case_checkpoint_step(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x):
        opt.zero_grad()
        loss = checkpoint(m, x, use_reentrant=False).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    return loop(step), m


@program()
def case_checkpoint_seq(c: Compiler) -> Any:
    m = net()
    cm = c(lambda x: checkpoint_sequential(m, 2, x, use_reentrant=False).sum())
    cm(data(0)).backward()
    return m


@program()
def case_checkpoint_outside(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    x = data(0).requires_grad_()
    checkpoint(cm, x, use_reentrant=False).sum().backward()
    g = x.grad.clone()
    checkpoint(cm, x, use_reentrant=True).sum().backward()
    return g, x.grad, m


@program()
def case_func_grad(c: Compiler) -> Any:
    m = net()
    p = {k: v.detach() for k, v in m.named_parameters()}
    loss = lambda p, x, y: F.cross_entropy(torch.func.functional_call(m, p, (x,)), y)
    y = torch.tensor([0, 1, 2, 0, 1])
    return c(torch.func.grad(loss))(p, data(0), y), c(torch.func.grad_and_value(loss))(p, data(0), y)


@program()
def case_jvp(c: Compiler) -> Any:
    return c(lambda x: torch.func.jvp(lambda t: t.sin().sum(), (x,), (x,)))(data(0))


@program()
def case_vjp(c: Compiler) -> Any:
    def f(x):
        o, g = torch.func.vjp(lambda t: t.sin(), x)
        return o, g(x)

    return c(f)(data(0))


@program()
def case_jacrev(c: Compiler) -> Any:
    return c(torch.func.jacrev(lambda t: t.sin().sum(0)))(data(0)), c(torch.func.jacfwd(lambda t: t.sin().sum(0)))(
        data(0)
    )


@program()
def case_hessian(c: Compiler) -> Any:
    return c(torch.func.hessian(lambda t: t.sin().prod()))(data(0, 4))


@program(eager=1)
def case_vmap_outside(c: Compiler) -> Any:
    f = c(lambda x: x.sin().sum())
    return torch.func.vmap(f)(data(0))


@program(eager=1)
def case_grad_outside(c: Compiler) -> Any:
    f = c(lambda x: x.sin().sum())
    return torch.func.grad(f)(data(0))


@program(eager=1)
def case_forward_ad(c: Compiler) -> Any:
    import torch.autograd.forward_ad as fwAD

    f = c(lambda x: x.sin())
    with fwAD.dual_level():
        d = fwAD.make_dual(data(0), data(1))
        y = f(d)
        return fwAD.unpack_dual(y).tangent


@program()
def case_func_call_module(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    p = {k: v.detach() * 2 for k, v in m.named_parameters()}
    a = cm(data(0))
    return a, torch.func.functional_call(cm, p, (data(0),)), cm(data(0))


@program()
def case_ensemble(c: Compiler) -> Any:
    ms = [net() for _ in range(3)]
    ps, _ = torch.func.stack_module_state(ms)
    base = ms[0]
    f = c(lambda ps, x: torch.func.vmap(lambda p: torch.func.functional_call(base, p, (x,)))(ps))
    y = f(ps, data(0))
    y.sum().backward()
    return y, [p.grad for p in ps.values()]


class MyF(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, k):
        ctx.save_for_backward(x)
        ctx.k = k
        return x * k, x.argmax(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g, _):
        (x,) = ctx.saved_tensors
        return g * ctx.k * x.sign(), None


class MyN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        m = x > 0
        ctx.mark_non_differentiable(m)
        ctx.save_for_backward(m)
        return x.clamp(min=0), m

    @staticmethod
    def backward(ctx, g, _):
        (m,) = ctx.saved_tensors
        return g * m


class MyD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x.mul_(2)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx, g):
        return g * 2


class MyS(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, y):
        return x * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return g * y, g * x if ctx.needs_input_grad[1] else None


@program()
def case_fn_basic(c: Compiler) -> Any:
    x = data(0).requires_grad_()
    f = c(lambda x: MyF.apply(x, 3))
    y, i = f(x)
    y.sum().backward()
    return y, i, x.grad, i.requires_grad


@program()
def case_fn_nondiff(c: Compiler) -> Any:
    x = data(0).requires_grad_()
    f = c(lambda x: MyN.apply(x))
    y, i = f(x)
    y.sum().backward()
    return y, i, x.grad, i.requires_grad


@program()
def case_fn_dirty(c: Compiler) -> Any:
    x = data(0).requires_grad_()
    f = c(lambda x: MyD.apply(x * 1).sin())
    y = f(x)
    y.sum().backward()
    return y, x.grad


@program()
def case_fn_setup(c: Compiler) -> Any:
    x = data(0).requires_grad_()
    w = data(1).requires_grad_()
    f = c(lambda x: MyS.apply(x, w).sum())
    y = f(x)
    y.backward()
    return y, x.grad, w.grad, c(torch.func.vmap(torch.func.grad(lambda a, b: MyS.apply(a, b).sum())))(data(0), data(1))


@program()
def case_fn_step(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x):
        opt.zero_grad()
        loss = MyF.apply(m(x), 2)[0].square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    return loop(step), m


lib = torch.library.Library("gc_edges", "DEF")

lib.define("twice(Tensor x) -> Tensor")
lib.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")

lib.define("comp(Tensor x) -> Tensor")
lib.impl("comp", lambda x: x * 5, "CompositeImplicitAutograd")


@torch.library.custom_op("gc_edges::tri", mutates_args=())
def tri(x: torch.Tensor, k: float) -> torch.Tensor:
    return torch.from_numpy(x.detach().numpy() * k) if False else x * k


@tri.register_fake
def _(x, k):
    return torch.empty_like(x)


tri.register_autograd(
    lambda ctx, g: (g * ctx.k, None), setup_context=lambda ctx, inputs, output: setattr(ctx, "k", inputs[1])
)


@torch.library.custom_op("gc_edges::nofake", mutates_args=())
def nofake(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.detach().numpy() * 2)


@torch.library.custom_op("gc_edges::inpl", mutates_args={"x"})
def inpl(x: torch.Tensor, k: float) -> None:
    x.mul_(k)


@torch.library.custom_op("gc_edges::npy", mutates_args=())
def npy(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.detach().numpy() ** 2)


@npy.register_fake
def _(x):
    return torch.empty_like(x)


npy.register_autograd(
    lambda ctx, g: (2 * ctx.saved_tensors[0] * g,),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


@torch.library.custom_op("gc_edges::lst", mutates_args=())
def lst(xs: list[torch.Tensor], n: int) -> list[torch.Tensor]:
    return [x * n for x in xs]


@lst.register_fake
def _(xs, n):
    return [torch.empty_like(x) for x in xs]


@program()
def case_lib_define(c: Compiler) -> Any:
    return c(lambda x: torch.ops.gc_edges.twice(x) + 1)(data(0)), c(lambda x: torch.ops.gc_edges.comp(x))(data(0))


@program()
def case_lib_comp_grad(c: Compiler) -> Any:
    x = data(0).requires_grad_()
    c(lambda x: torch.ops.gc_edges.comp(x).sum())(x).backward()
    return x.grad


@program()
def case_custom_op(c: Compiler) -> Any:
    x = data(0).requires_grad_()
    y = c(lambda x: tri(x, 3.0).sin())(x)
    y.sum().backward()
    return y, x.grad


@program()
def case_custom_op_step(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x):
        opt.zero_grad()
        loss = npy(tri(m(x), 2.0)).mean()
        loss.backward()
        opt.step()
        return loss.detach()

    return loop(step), m


@program()
def case_custom_op_mutating(c: Compiler) -> Any:
    x = data(0)

    def f(x):
        inpl(x, 3.0)
        return x + 1

    y = c(f)(x)
    return y, x


@program()
def case_custom_op_mutating_inner(c: Compiler) -> Any:
    def f(x):
        h = x.sin()
        inpl(h[1], 3.0)
        return h

    return c(f)(data(0))


@program()
def case_custom_op_list(c: Compiler) -> Any:
    return c(lambda x: lst([x, x.sin()], 3))(data(0))


@program()
def case_weight_norm(c: Compiler) -> Any:
    m = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    opt = torch.optim.SGD(m.parameters(), 0.1)
    return loop(make_step(c, m, opt)), m


@program()
def case_weight_norm_module(c: Compiler) -> Any:
    m = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    cm = c(m)
    cm(data(0)).sum().backward()
    return m


@program()
def case_weight_norm_old(c: Compiler) -> Any:
    m = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    opt = torch.optim.SGD(m.parameters(), 0.1)
    return loop(make_step(c, m, opt)), m


@program()
def case_weight_norm_old_module(c: Compiler) -> Any:
    m = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    cm = c(m)
    out = []
    for i in range(3):
        y = cm(data(i))
        y.sum().backward()
        out.append(y)
    return out, m


@program()
def case_spectral_norm(c: Compiler) -> Any:
    m = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    opt = torch.optim.SGD(m.parameters(), 0.1)
    return loop(make_step(c, m, opt)), m


@program()
def case_spectral_norm_module(c: Compiler) -> Any:
    m = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    cm = c(m)
    a = cm(data(0))
    a.sum().backward()
    cm.eval()
    return a, cm(data(0)), m


@program()
def case_spectral_norm_old(c: Compiler) -> Any:
    m = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    opt = torch.optim.SGD(m.parameters(), 0.1)
    return loop(make_step(c, m, opt)), m


@program()
def case_orthogonal(c: Compiler) -> Any:
    m = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)))
    cm = c(m)
    y = cm(data(0))
    y.square().sum().backward()
    return y, m


@program()
def case_parametrization_cached(c: Compiler) -> Any:
    m = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))

    def f(x):
        with nn.utils.parametrize.cached():
            return m(x) + m(x * 2)

    y = c(f)(data(0))
    y.sum().backward()
    return y, m


@program()
def case_prune(c: Compiler) -> Any:
    m = nn.Linear(4, 4)
    nn.utils.prune.l1_unstructured(m, "weight", 0.5) if hasattr(nn.utils, "prune") else None
    cm = c(m)
    out = []
    for i in range(3):
        y = cm(data(i))
        y.sum().backward()
        out.append(y)
    return out, m


@program()
def case_weight_std(c: Compiler) -> Any:
    class W(nn.Conv2d):
        def forward(self, x):
            w = self.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
            return F.conv2d(x, w, self.bias, padding=1)

    m = W(2, 3, 3)
    cm = c(m)
    y = cm(data(0, 2, 2, 5, 5))
    y.square().sum().backward()
    return y, m
