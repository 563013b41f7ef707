"""torch.func in compiled functions: gradients per sample, ensembles, Jacobians; Python that looks at tensors there."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn
from torch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)
from torch.nn import functional as F

from tests.e2e.features import Compiler, data, net, program

LABELS = torch.tensor([0, 1, 2, 0, 1])


class Convolutions(nn.Module):
    """The network of the tutorial on gradients per sample, smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.third, self.last = nn.Linear(16, 8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.second(F.relu(self.first(x)))), 2)
        return F.log_softmax(self.last(F.relu(self.third(torch.flatten(x, 1)))), dim=1)


def detached(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters as functions of torch.func take them."""
    return {name: p.detach() for name, p in model.named_parameters()}


def loss_of(model: nn.Module) -> Any:
    """The loss of one sample, as a function of the parameters."""

    def loss(params: Any, sample: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(model, params, (sample.unsqueeze(0),)), label.unsqueeze(0))

    return loss


@program(compiles=1)
def case_per_sample_tutorial(c: Compiler) -> Any:
    model = Convolutions()

    def loss(params: Any, buffers: Any, sample: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.nll_loss(functional_call(model, (params, buffers), (sample.unsqueeze(0),)), label.unsqueeze(0))

    gradients = c(vmap(grad(loss), in_dims=(None, None, 0, 0)))
    x, y = data(0, 6, 1, 8, 8), torch.arange(6)
    return [gradients(detached(model), dict(model.named_buffers()), x + i, y) for i in range(2)], model


@program()
def case_per_sample_models(c: Compiler) -> Any:
    rows = [
        (net(), data(0)),
        (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)), data(0)),
        (nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 3)), torch.arange(15).reshape(5, 3) % 7),
        (nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).eval(), data(0)),
    ]
    return [c(vmap(grad_and_value(loss_of(m)), in_dims=(None, 0, 0)))(detached(m), x, LABELS) for m, x in rows]


@program()
def case_per_sample_in_chunks(c: Compiler) -> Any:
    m = net()
    per_sample = vmap(grad(loss_of(m)), in_dims=(None, 0, 0), chunk_size=2)
    return c(per_sample)(detached(m), data(0), LABELS), c(lambda x: per_sample(dict(m.named_parameters()), x, LABELS))(
        data(1)
    )


@program()
def case_per_sample_transformer(c: Compiler) -> Any:
    m = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    loss = lambda params, x: functional_call(m, params, (x.unsqueeze(0),)).square().mean()
    return c(vmap(grad(loss), in_dims=(None, 0)))(detached(m), data(0, 3, 5, 8))


@program()
def case_per_sample_images(c: Compiler) -> Any:
    m = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)).eval()
    loss = lambda p, b, x: functional_call(m, (p, b), (x[None],)).sum()
    return c(vmap(grad(loss), (None, None, 0)))(detached(m), dict(m.named_buffers()), data(0, 3, 1, 6, 6))


@program()
def case_functional_lstm(c: Compiler) -> Any:
    m = nn.LSTM(4, 3, batch_first=True)
    p = {key: value * 2 for key, value in detached(m).items()}
    got = c(grad(lambda p, x: functional_call(m, p, (x,))[0].sum()))(p, data(0, 2, 5, 4))
    return got, c(m)(data(0, 2, 5, 4)), m


@program()
def case_private_step(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x):
        g, losses = vmap(grad_and_value(loss_of(m)), in_dims=(None, 0, 0))(detached(m), x, LABELS)
        norms = torch.stack([v.flatten(1).norm(dim=1) for v in g.values()]).norm(dim=0)
        scale = (1 / (norms + 1e-6)).clamp(max=1)
        for key, p in m.named_parameters():
            p.grad = torch.einsum("b,b...->...", scale, g[key]) / len(x)
        opt.step()
        return losses.mean()

    return [step(data(i)) for i in range(3)], m


@program()
def case_ensemble_of_meta(c: Compiler) -> Any:
    models = [Convolutions() for _ in range(3)]
    params, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    call = lambda p, b, x: functional_call(base, (p, b), (x,))
    many, one = data(0, 3, 2, 1, 8, 8), data(1, 2, 1, 8, 8)
    return c(vmap(call))(params, buffers, many), c(vmap(call, in_dims=(0, 0, None)))(params, buffers, one)


@program()
def case_ensemble_step(c: Compiler) -> Any:
    models = [net() for _ in range(3)]
    params, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    opt = torch.optim.Adam(params.values(), 0.01)

    @c
    def step(x):
        opt.zero_grad()
        losses = vmap(lambda p, b: F.cross_entropy(functional_call(base, (p, b), (x,)), LABELS))(params, buffers)
        losses.sum().backward()
        opt.step()
        return losses.detach()

    return [step(data(i)) for i in range(3)], params, opt


@program()
def case_jacobians_of_a_module(c: Compiler) -> Any:
    m = net()
    f = lambda p, x: functional_call(m, p, (x,))
    p, x = detached(m), data(0)
    return (
        c(jacrev(f))(p, x), c(jacfwd(f, argnums=1))(p, x), c(jacrev(f, argnums=(0, 1)))(p, x),
        c(vmap(jacrev(f, argnums=1), in_dims=(None, 0)))(p, x), c(vmap(jacfwd(f, argnums=1), in_dims=(None, 0)))(p, x),
    )  # fmt: skip


@program()
def case_hessians(c: Compiler) -> Any:
    m = net()
    f = lambda x: (x.sin() * x.roll(1)).sum()
    x = data(0, 4)
    nested = [c(jacrev(jacrev(f)))(x), c(jacfwd(jacfwd(f)))(x), c(jacrev(jacfwd(f)))(x), c(vmap(hessian(f)))(data(0))]
    return nested, c(hessian(lambda p, x: F.cross_entropy(functional_call(m, p, (x,)), LABELS)))(detached(m), data(0))


@program()
def case_products_with_jacobians(c: Compiler) -> Any:
    m, x = net(), data(0)
    f = lambda p: functional_call(m, p, (x,))

    def backward(p, cotangent):
        out, back = vjp(f, p)
        return out, back(cotangent)

    p = detached(m)
    tangents = {key: torch.ones_like(value) for key, value in p.items()}
    return c(lambda p, t: jvp(f, (p,), (t,)))(p, tangents), c(backward)(p, data(1, 5, 3))


@program()
def case_products_with_hessians(c: Compiler) -> Any:
    f = lambda x: (x.sin() * x.exp()).sum()
    x, v = data(0, 4), data(1, 4)
    return (
        c(lambda x, v: jvp(grad(f), (x,), (v,))[1])(x, v), c(lambda x, v: vjp(grad(f), x)[1](v))(x, v),
        c(lambda x, v: grad(lambda x: torch.dot(grad(f)(x), v))(x))(x, v),
    )  # fmt: skip


@program()
def case_autograd_functional(c: Compiler) -> Any:
    from torch.autograd import functional as A

    f, g = (lambda x: (x.sin() * x.exp()).sum()), torch.sin
    x = data(0, 4)
    return (
        c(lambda x: A.jacobian(g, x))(x), c(lambda x: A.jacobian(g, x, vectorize=True))(x),
        c(lambda x: A.hessian(f, x))(x),
        c(lambda x: A.hvp(f, x, x))(x), c(lambda x: A.vjp(f, x))(x), c(lambda x: A.jvp(f, x, x))(x),
    )  # fmt: skip


@program()
def case_tangent_kernels(c: Compiler) -> Any:
    m = net()
    single = lambda p, x: functional_call(m, p, (x.unsqueeze(0),)).squeeze(0)

    def kernel(p, a, b):
        left, right = (vmap(jacrev(single), (None, 0))(p, x) for x in (a, b))
        parts = zip(left.values(), right.values(), strict=True)
        return sum(torch.einsum("naf,mbf->nmab", x.flatten(2), y.flatten(2)) for x, y in parts)

    def products(p, a, b):
        def pair(x, y):
            out, back = vjp(lambda p: single(p, x), p)
            push = lambda v: jvp(lambda p: single(p, y), (p,), back(v))[1]
            return vmap(push)(torch.eye(out.numel(), dtype=out.dtype))

        return vmap(vmap(pair, (None, 0)), (0, None))(a, b)

    p = detached(m)
    return c(kernel)(p, data(0), data(1, 3, 4)), c(products)(p, data(0), data(1, 3, 4))


@program()
def case_meta_learning(c: Compiler) -> Any:
    m = net()
    loss = lambda p, x: F.cross_entropy(functional_call(m, p, (x,)), LABELS)

    def adapted(p, x):
        g = grad(loss)(p, x)
        return loss({key: p[key] - 0.1 * g[key] for key in p}, x)

    return c(grad(lambda p, xs: vmap(lambda x: adapted(p, x))(xs).mean()))(detached(m), data(0, 3, 5, 4))


@program(eager=2)
def case_linearize(c: Compiler) -> Any:
    def f(x, v):
        out, push = torch.func.linearize(lambda t: torch.tanh(t @ t.T), x)
        return out, push(v), push(v * 2)

    f = c(f)
    return f(data(0), data(1)), f(data(1), data(2))


@program()
def case_gradient_inside_is_differentiated(c: Compiler) -> Any:
    m = net()
    x = data(0).requires_grad_()
    f = c(lambda x: grad(lambda t: m(t).pow(2).sum())(x).square().sum())
    f(x).backward()
    return x.grad, m


@program()
def case_in_place_under_transforms(c: Compiler) -> Any:
    def f(x):
        y = x * 2
        y.add_(1)
        y[0] = 0
        return y.sin().sum()

    return c(vmap(f))(data(0)), c(vmap(grad(f)))(data(0)), c(grad(f))(data(0, 4))


@program()
def case_out_dims_and_aux(c: Compiler) -> Any:
    f = lambda x: (x.sin().sum(), {"twice": x * 2})
    return (
        c(vmap(lambda x: (x, x.sum()), in_dims=1, out_dims=(1, 0)))(data(0)), c(grad(f, has_aux=True))(data(0)),
        c(vmap(grad(f, has_aux=True)))(data(0)),
    )  # fmt: skip


@program()
def case_module_met_in_a_transform(c: Compiler) -> Any:
    m = net()
    hidden = {"model": [m]}
    f = lambda p, x: (functional_call(hidden["model"][0], p, (x,)) + hidden["model"][0](x)).square().sum()
    p = {key: value * 2 for key, value in detached(m).items()}
    return c(grad(f))(p, data(0)), m


FACTOR = 3.0


@program(compiles=2)
def case_global_read_in_a_transform(c: Compiler) -> Any:
    global FACTOR
    g = c(vmap(grad(lambda x: (x.sin() * FACTOR).sum())))
    FACTOR = 3.0
    before = g(data(0))
    FACTOR = 5.0
    return before, g(data(0))


@program(compiles=3)
def case_partial_in_a_transform(c: Compiler) -> Any:
    m, factor = net(), [2.0]
    f = lambda m, p, x: functional_call(m, p, (x,)).sum() * factor[0]
    g = c(vmap(grad(functools.partial(f, m)), in_dims=(None, 0)))
    p = detached(m)
    before = g(p, data(0))
    factor[0] = 4.0
    then = g(p, data(0))
    m[1] = nn.ReLU()
    return before, then, g(p, data(0))


# Python that looks at tensors inside of transforms


@program()
def case_branch_in_a_transform(c: Compiler) -> Any:
    f = lambda x: x.sin().sum() if x.sum() > 0 else x.cos().sum()
    g, h = c(grad(f)), c(lambda x: jvp(f, (x,), (x,)))
    return [(g(data(i)), h(data(i))) for i in range(3)]


@program()
def case_number_in_a_transform(c: Compiler) -> Any:
    return (
        c(grad(lambda x: (x * x.sum().item()).sum()))(data(0)),
        c(grad(lambda x: (x * x.sum(0).tolist()[1]).sum()))(data(0)),
        c(grad(lambda x: x.sum() * (2 if torch.equal(x, x.clone()) else 3)))(data(0)),
        c(grad(lambda x: x.sum() * (2 if torch.allclose(x, x * 1.5) else 3)))(data(0)),
        c(grad(lambda x: (torch.tensor([2.0, x.detach()[0, 0]]) * x[0, :2]).sum()))(data(0)),
    )  # fmt: skip


@program()
def case_number_of_one_in_a_batch(c: Compiler) -> Any:
    def words(f: Any) -> str:
        try:
            c(vmap(f))(data(0))
        except RuntimeError as error:
            return str(error)[:50]
        return "none"

    c(vmap(torch.sin))(data(0))
    return words(lambda x: x.sin() if x.sum() > 0 else x), words(lambda x: x * x.sum().item())


@program()
def case_place_as_data_in_a_transform(c: Compiler) -> Any:
    def write(x, at):
        y = x * 2
        y[at] = 0
        return (y * y).sum()

    at, places = torch.tensor(2), torch.tensor([0, 1, 2, 3, 0])
    return (
        c(grad(lambda x, at: x.sin()[at].sum()))(data(0), at), c(grad(write))(data(0), at),
        c(vmap(lambda x, at: x[at]))(data(0), places), c(vmap(lambda x, at: x[at], in_dims=(0, None)))(data(0), at),
        c(vmap(lambda at, x: x[at] * 2, in_dims=(0, None)))(places, data(0)),
    )  # fmt: skip


@program(compiles=4)
def case_place_as_data_is_differentiated(c: Compiler) -> Any:
    def write(x, at):
        y = x * 2
        y[at] = 0
        y[at, 1:].add_(x[0, 1:])
        return (y * y).sum()

    def inside(at):
        y = weight.sin()[at, 1:] * 2
        y.sum().backward()
        return y.detach()

    weight, x = data(1).requires_grad_(), data(0).requires_grad_()
    read, written, stepped = c(lambda x, at: x.sin()[at] * 2), c(write), c(inside)
    out = []
    for place in (2, -1):
        at = torch.tensor(place)
        y = read(x, at)
        (y.sum() + written(x, at)).backward()
        out += [y, x.grad.clone(), stepped(at), weight.grad.clone()]
    return out
