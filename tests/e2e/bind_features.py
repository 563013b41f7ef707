"""Tensors that programs put into places of their own: state of optimizers, other memory, new parameters, own leaves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.e2e.features import Compiler, data, net, program
from tests.e2e.step_features import loop, make_step


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization: weights are put aside, the base optimizer shares the parameter groups.

    Source: Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, 2021, algorithm 1.
    """

    def __init__(self, params: Any, base: Any, rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups
        self.defaults.update(self.base.defaults)

    @torch.no_grad()
    def first_step(self) -> None:
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.norm(torch.stack([p.grad.norm() for p in params]))
        for group in self.param_groups:
            scale = group["rho"] / (norm + 1e-12)
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old_p"] = p.data.clone()
                    p.add_(p.grad * scale)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old_p"]
        self.base.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


@program(compiles=2)
def case_sam(c: Compiler) -> Any:
    m = net()
    opt = SAM(m.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)

    @c
    def step(x):
        m(x).square().mean().backward()
        opt.first_step()
        loss = m(x).square().mean()
        loss.backward()
        opt.second_step()
        return loss.detach()

    return loop(step), m, [dict(opt.state[p]) for p in m.parameters()], opt.base


@program(compiles=2)
def case_sam_with_a_closure(c: Compiler) -> Any:
    m = net()
    opt = SAM(m.parameters(), torch.optim.Adam, lr=0.01)

    @c
    def step(x):
        def closure():
            loss = m(x).square().mean()
            loss.backward()
            return loss

        loss = closure()
        opt.step(closure)
        return loss.detach()

    losses = loop(step, 2)
    opt.param_groups[0]["lr"] = 0.1  # of both
    return losses, loop(step), m, opt.base


class Lookahead(torch.optim.Optimizer):
    """Slow weights follow fast ones. Source: Zhang et al., Lookahead Optimizer: k steps forward, 1 step back, 2019."""

    def __init__(self, base: Any, alpha: float = 0.5, k: int = 2) -> None:
        super().__init__(base.param_groups, {})
        self.base, self.alpha, self.k, self.turn = base, alpha, k, 0
        self.param_groups = base.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.base.step()
        self.turn += 1
        if self.turn % self.k == 0:
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    if "slow" not in state:
                        state["slow"] = torch.zeros_like(p).copy_(p)
                    state["slow"].add_(p - state["slow"], alpha=self.alpha)
                    p.copy_(state["slow"])


@program()
def case_lookahead(c: Compiler) -> Any:
    m = net()
    opt = Lookahead(torch.optim.SGD(m.parameters(), 0.1, momentum=0.9))
    return loop(make_step(c, m, opt), 6), m, [dict(opt.state[p]) for p in m.parameters()]


def _own(body: Any, **attributes: Any) -> Any:
    """An optimizer whose step does `body` to itself and each parameter."""

    class Own(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})
            for name, value in attributes.items():
                setattr(self, name, value)

        @torch.no_grad()
        def update(self):
            for p in self.param_groups[0]["params"]:
                body(self, p)

    return Own


def _trained(c: Compiler, kind: Any, kept: Any) -> Any:
    m = net()
    opt = kind(m.parameters())

    @c
    def step(x):
        opt.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        opt.update()
        return loss.detach()

    return loop(step), m, kept(opt)


@program(compiles=2)
def case_own_method_replaces_state(c: Compiler) -> Any:
    def body(opt, p):
        state = opt.state[p]
        change = p.grad if "last" not in state else p.grad - state["last"]
        state["last"] = p.grad.clone()
        p.sub_(change, alpha=0.1)

    return _trained(c, _own(body), lambda opt: [state["last"] for state in opt.state.values()])


@program(compiles=2)
def case_own_state_is_a_tensor(c: Compiler) -> Any:
    def body(opt, p):
        opt.state[p] = p.grad.clone() if p not in opt.state else opt.state[p] * 0.9 + p.grad
        opt.state["count"] = opt.state.get("count", 0) + 1
        p.sub_(opt.state[p] / opt.state["count"], alpha=0.1)

    return _trained(c, _own(body), lambda opt: list(opt.state.values()))


@program(compiles=2)
def case_own_table_of_parameters(c: Compiler) -> Any:
    """Keys of a dict that are tensors; others are put there in each call."""

    def body(opt, p):
        opt.kept[p] = opt.kept.get(p, 0.0) * 0.9 + p.grad
        p.sub_(opt.kept[p], alpha=0.1)

    return _trained(c, _own(body, kept={}), lambda opt: list(opt.kept.values()))


@program(eager=1)
def case_state_is_looked_for_before_it_is_made(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.Adam(m.parameters(), 0.01)

    @c
    def step(x):
        opt.zero_grad()
        m(x).square().mean().backward()
        norms = [opt.state[p]["exp_avg"].norm() for p in m.parameters() if "exp_avg" in opt.state[p]]
        opt.step()
        return sum(norms)

    return loop(step), m, opt


class Average:
    """Weights averaged in a dict, and put into the model by `data`, as in tutorials."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.shadow = {name: p.data.clone() for name, p in model.named_parameters()}
        self.backup: dict[str, torch.Tensor] = {}

    def update(self) -> None:
        for name, p in self.model.named_parameters():
            self.shadow[name] = ((1 - self.decay) * p.data + self.decay * self.shadow[name]).clone()

    def apply_shadow(self) -> None:
        for name, p in self.model.named_parameters():
            self.backup[name] = p.data
            p.data = self.shadow[name]

    def restore(self) -> None:
        for name, p in self.model.named_parameters():
            p.data = self.backup[name]


@program()
def case_averaged_weights(c: Compiler) -> Any:
    m = net()
    average = Average(m, 0.9)
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x):
        opt.zero_grad()
        m(x).square().mean().backward()
        opt.step()
        average.update()

    @c
    def evaluate(x):
        average.apply_shadow()
        with torch.no_grad():
            loss = m(x).square().mean()
        average.restore()
        return loss

    return [(step(data(i)), evaluate(data(9))) for i in range(4)], m, average.shadow


@program()
def case_shadow_stays(c: Compiler) -> Any:
    m = net()
    average = Average(m, 0.9)
    average.shadow = {name: value * 0.5 for name, value in average.shadow.items()}
    apply = c(average.apply_shadow)
    apply()
    kept = dict(average.backup)
    apply()
    return kept, average.backup, m, [p.data_ptr() == average.shadow[n].data_ptr() for n, p in m.named_parameters()]


@program(compiles=1)
def case_swapped_weights(c: Compiler) -> Any:
    m, o = net(), net()

    @c
    def swap(x):
        for p, q in zip(m.parameters(), o.parameters(), strict=True):
            p.data, q.data = q.data, p.data
        with torch.no_grad():
            return m(x) - o(x)

    return loop(swap), m, o


@program()
def case_queue_of_keys(c: Compiler) -> Any:
    """MoCo: a second encoder follows by `data`, and keys go into a ring at a place that is data.

    Source: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2020, algorithm 1.
    """
    q, k = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)
    opt = torch.optim.SGD(q.parameters(), 0.1)
    queue, place = F.normalize(data(7, 3, 10), dim=0), torch.zeros(1, dtype=torch.long)

    @c
    def step(x):
        with torch.no_grad():
            for p, r in zip(q.parameters(), k.parameters(), strict=True):
                r.data = r.data * 0.9 + p.data * 0.1
            keys = F.normalize(k(x), dim=1)
        query = F.normalize(q(x), dim=1)
        logits = torch.cat([(query * keys).sum(1, keepdim=True), query @ queue.clone()], 1)
        start = int(place)
        queue[:, start : start + len(x)] = keys.t()
        place[0] = (start + len(x)) % queue.shape[1]
        loss = F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.detach()

    return loop(step, 7), q, k, queue, place


@program()
def case_moved_behind_a_branch(c: Compiler) -> Any:
    @c
    def flip(x):
        if x.sum() > 0:
            return x.t_()
        return x + 1

    given = [torch.full((2, 3), float(sign)) * (1 + i) for i, sign in enumerate((1, 1, -1, 1, 1, -1))]
    return [flip(x) for x in given], given


@program()
def case_moved_in_a_loop_over_data(c: Compiler) -> Any:
    weight = torch.ones(3)

    @c
    def halve(x):
        while (x * weight).sum() > 1:
            weight.data = weight.data * 0.5
        return x * weight

    return [halve(data(i, 3).abs() * 5) for i in range(4)], weight


class Quantizer(nn.Module):
    """Vectors that follow what is quantized, bound as new parameters in each call.

    Source: van den Oord et al., Neural Discrete Representation Learning, 2017, appendix A.1.
    """

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(count, size)
        self.register_buffer("sizes", torch.zeros(count))
        self.means = nn.Parameter(torch.randn(count, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.embedding.weight
        distances = x.square().sum(1, keepdim=True) + weight.square().sum(1) - 2 * x @ weight.t()
        chosen = F.one_hot(distances.argmin(1), len(weight)).to(x.dtype)
        found = chosen @ weight
        if self.training:
            self.sizes = self.sizes * 0.9 + 0.1 * chosen.sum(0)
            self.means = nn.Parameter(self.means * 0.9 + 0.1 * chosen.t() @ x)
            self.embedding.weight = nn.Parameter(self.means / (self.sizes + 1e-5).unsqueeze(1))
        return x + (found - x).detach()


@program(compiles=1)
def case_parameters_bound_in_each_step(c: Compiler) -> Any:
    m = nn.Sequential(nn.Linear(4, 3), Quantizer(6, 3), nn.Linear(3, 4))
    opt = torch.optim.Adam(m.parameters(), 0.01)
    first = m[1].means

    @c
    def step(x):
        opt.zero_grad()
        loss = F.mse_loss(m(x), x)
        loss.backward()
        opt.step()
        return loss.detach()

    losses = loop(step)
    means = m[1].means
    facts = type(means) is nn.Parameter, means.is_leaf, means.requires_grad, means is first
    return losses, m, facts, any(p is first for p in opt.param_groups[0]["params"]), first


@program(compiles=1)
def case_parameters_bound_by_a_module(c: Compiler) -> Any:
    m = nn.Sequential(nn.Linear(4, 3), Quantizer(6, 3))
    fast = c(m)
    for i in range(3):
        fast(data(i)).sum().backward()
    return m


@program(compiles=2)
def case_frozen_parameter_bound(c: Compiler) -> Any:
    m = nn.Linear(4, 3)

    @c
    def shrink(x):
        m.weight = nn.Parameter(m.weight * 0.9, requires_grad=False)
        return (m.weight @ x.t()).detach()

    return loop(shrink), m, type(m.weight) is nn.Parameter, m.weight.requires_grad


@program(compiles=1)
def case_bound_parameter_is_trained(c: Compiler) -> Any:
    m = nn.Linear(4, 3)

    @c
    def step(x):
        m.weight = nn.Parameter(m.weight * 0.9)
        m(x).square().mean().backward()
        with torch.no_grad():
            for p in m.parameters():
                p.sub_(p.grad, alpha=0.1)
        m.zero_grad()

    return loop(step), m


@program(eager=4)
def case_bound_parameter_is_differentiated_by(c: Compiler) -> Any:
    """The results' graph ends in a leaf that the caller has."""
    m = nn.Linear(4, 3)

    @c
    def step(x):
        m.weight = nn.Parameter(m.weight * 0.9)
        return m(x)

    out = []
    for i in range(4):
        step(data(i)).sum().backward()
        out.append(m.weight.grad)
        m.zero_grad()
    return out, m


@program(compiles=2)
def case_metrics_in_an_attribute(c: Compiler) -> Any:
    """Another dict in each call; what was in the one before plays no part."""
    m = net()

    class Trainer:
        def __init__(self):
            self.metrics, self.parts = {}, []

        def step(self, x):
            self.parts = []
            out = m(x)
            self.parts.append(out.detach())
            self.metrics = {"loss": out.square().mean().detach(), "norm": self.parts[0].norm()}
            return self.metrics

    trainer = Trainer()
    return loop(c(trainer.step)), trainer.metrics, trainer.parts


def _attack(m: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    F.cross_entropy(m(x), target).backward()
    return torch.clamp(x + 0.1 * x.grad.sign(), -1, 1)


@program()
def case_attack_on_a_copy(c: Compiler) -> Any:
    """What is returned can be differentiated by a leaf that nobody has: as in eager, to no effect."""
    m = net()

    @c
    def attack(x, target):
        x = x.clone()
        x.requires_grad = True
        m.zero_grad()
        found = _attack(m, x, target)
        if m(found).argmax(1) == target:
            return None
        return found, found[0]

    out = [attack(data(i, 1, 4), torch.tensor([i % 3])) for i in range(6)]
    flags = [(part.requires_grad, part.is_leaf) for found in out if found is not None for part in found]
    m.zero_grad()
    for found in out:
        if found is not None:
            (found[0].square().sum() + found[1].sum()).backward()
    return out, flags, m


@program(compiles=1)
def case_argument_is_let_go_by_autograd(c: Compiler) -> Any:
    """Results that have been computed from it have a graph, which gives it no gradient."""
    w = nn.Parameter(torch.ones(4))

    @c
    def f(x, y):
        first = (x * 2).sin()
        x.requires_grad_(False)
        return first, (x * y * w).sum(1)

    given = [(data(i).requires_grad_(), data(9).requires_grad_()) for i in range(3)]
    out = [f(x, y) for x, y in given]
    for first, second in out:
        (first.sum() + second.sum()).backward()
    return out, [(first.requires_grad, x.requires_grad, x.grad, y.grad) for (first, _), (x, y) in zip(out, given)], w


@program()
def case_attack_on_an_argument(c: Compiler) -> Any:
    """The FGSM tutorial sets `requires_grad` of the batch itself, by which results can be differentiated."""
    m = net()

    @c
    def attack(x, target):
        x.requires_grad = True
        m.zero_grad()
        found = _attack(m, x, target)
        if m(found).argmax(1) == target:
            return None
        return found

    given = [data(i, 1, 4) for i in range(6)]
    out = [attack(x, torch.tensor([i % 3])) for i, x in enumerate(given)]
    for found in out:
        if found is not None:
            found.square().sum().backward()
    return out, [(x.requires_grad, x.grad) for x in given], m
