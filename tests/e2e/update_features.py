"""Whole steps around which parameters, optimizers and data change, or go wrong."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.e2e.features import Compiler, data, net, program
from tests.e2e.step_features import loop, make_step


@program()
def case_param_group_added(c: Compiler) -> Any:
    m = net()
    e = nn.Linear(3, 2)
    opt = torch.optim.Adam(m.parameters(), 0.01)

    @c
    def step(x):
        opt.zero_grad()
        loss = e(m(x)).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    a = loop(step, 2)
    opt.add_param_group({"params": e.parameters(), "lr": 0.1})
    return a, loop(step, 3), m, e, opt


@program()
def case_other_modules_params(c: Compiler) -> Any:
    m = net()
    o = net()
    opt = torch.optim.SGD(o.parameters(), 0.1)
    return loop(make_step(c, m, opt)), m, o, opt


@program()
def case_param_no_grad_given(c: Compiler) -> Any:
    m = net()
    u = nn.Linear(3, 3)
    opt = torch.optim.Adam([*m.parameters(), *u.parameters()], 0.01)
    return loop(make_step(c, m, opt)), m, u, opt


@program()
def case_param_replaced_step(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = make_step(c, m, opt)
    a = s(data(0))
    m[0].weight = nn.Parameter(torch.ones(8, 4))
    opt.param_groups[0]["params"][0] = m[0].weight
    return a, s(data(1)), s(data(2)), m


@program()
def case_param_data_swapped(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1, momentum=0.9)
    s = make_step(c, m, opt)
    a = s(data(0))
    s(data(3))
    m[0].weight.data = torch.ones(8, 4)
    return a, s(data(1)), s(data(2)), m


@program()
def case_batch_shape(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = make_step(c, m, opt)
    return [s(data(i, n, 4)) for i, n in enumerate((5, 3, 5, 1))], m


@program()
def case_nan_loss(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.Adam(m.parameters(), 0.1)
    s = make_step(c, m, opt)
    return s(data(0)), s(data(1) * float("nan")), s(data(2)), m, opt


@program()
def case_inf_loss(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def s(x):
        opt.zero_grad()
        loss = m(x).exp().exp().exp().sum()
        loss.backward()
        g = torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        opt.step()
        return loss.detach(), g

    return s(data(0) * 1000), m


@program(eager=1)
def case_clip_error_nonfinite(c: Compiler) -> Any:
    m = net()

    @c
    def s(x):
        m.zero_grad()
        (m(x) * float("inf")).sum().backward()
        return torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0, error_if_nonfinite=True)

    try:
        s(data(0))
        return "none"
    except RuntimeError as e:
        return "non-finite" in str(e)


@program()
def case_nan_skip(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def s(x):
        opt.zero_grad()
        loss = m(x).square().mean()
        if torch.isnan(loss):
            return None
        loss.backward()
        opt.step()
        return loss.detach()

    return s(data(0)), s(data(1) * float("nan")), s(data(2)), s(data(1) * float("nan")), m


@program()
def case_clip_value(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def s(x):
        opt.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_value_(m.parameters(), 0.01)
        opt.step()
        return loss.detach()

    return loop(s), m


@program()
def case_micro(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def s(x):
        opt.zero_grad()
        t = 0.0
        for i, part in enumerate(x.split(2)):
            loss = m(part).square().mean() / 3
            loss.backward()
            t += loss.item()
        opt.step()
        return t

    return loop(s), m


@program()
def case_grad_is_none_between(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = make_step(c, m, opt)
    a = s(data(0))
    m.zero_grad()
    b = s(data(1))
    m[0].weight.grad = torch.ones(8, 4)
    return a, b, s(data(2)), m


@program()
def case_graph_no_trace(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.Adam(m.parameters(), 0.1)
    s = make_step(c, m, opt)
    if c.on:
        s.graph(data(0))
        s.explain(data(0))
    a = len(opt.state), copy.deepcopy(opt.state_dict()), m[0].weight.grad is None
    return a, loop(s), m, opt


@program()
def case_momentum_first(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1, momentum=0.9)
    s = make_step(c, m, opt)
    return loop(s), m, opt


@program()
def case_opt_recreated(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    for i in range(2):
        opt = torch.optim.SGD(m.parameters(), 0.1)
        opt.zero_grad()
        cm(data(i)).sum().backward()
        opt.step()
    return m


@program()
def case_opt_hooks(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    n = []
    opt.register_step_post_hook(lambda o, a, k: n.append(1))

    def pre(o, a, k):
        for g in o.param_groups:
            for p in g["params"]:
                p.grad.mul_(2)

    opt.register_step_pre_hook(pre)
    s = make_step(c, m, opt)
    return loop(s), m


@program()
def case_opt_closure(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def s(x):
        def cl():
            opt.zero_grad()
            loss = m(x).square().mean()
            loss.backward()
            return loss

        return opt.step(cl).detach()

    return loop(s), m


@program(eager=4)
def case_lbfgs(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.LBFGS(m.parameters(), 0.1, max_iter=3)

    @c
    def s(x):
        def cl():
            opt.zero_grad()
            loss = m(x).square().mean()
            loss.backward()
            return loss

        return opt.step(cl).detach()

    return loop(s), m


@program()
def case_lbfgs_closure_compiled(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.LBFGS(m.parameters(), 0.1, max_iter=3)
    x = data(0)

    @c
    def cl():
        m.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        return loss.detach()

    return [opt.step(cl) for _ in range(3)], m


@program(eager=3)
def case_sparse_adam(c: Compiler) -> Any:
    e = nn.Embedding(9, 4, sparse=True)
    opt = torch.optim.SparseAdam(e.parameters(), 0.1)

    @c
    def s(i):
        opt.zero_grad()
        loss = e(i).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    return [s(torch.tensor([1, 2, k])) for k in range(3)], e.weight


@program()
def case_maximize(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.AdamW(m.parameters(), 0.01, maximize=True, amsgrad=True)
    return loop(make_step(c, m, opt)), m, opt


@program()
def case_capturable_lr_tensor(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.Adam(m.parameters(), torch.tensor(0.01))
    s = make_step(c, m, opt)
    a = loop(s, 2)
    opt.param_groups[0]["lr"].fill_(0.1)
    return a, loop(s), m


@program()
def case_bn_momentum_none(c: Compiler) -> Any:
    m = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=None))
    opt = torch.optim.SGD(m.parameters(), 0.1)
    return loop(make_step(c, m, opt)), m


@program()
def case_kd_teacher(c: Compiler) -> Any:
    t, m = net().eval().requires_grad_(False), net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def s(x):
        opt.zero_grad()
        with torch.no_grad():
            z = t(x)
        loss = F.kl_div(F.log_softmax(m(x), -1), F.softmax(z, -1), reduction="batchmean")
        loss.backward()
        opt.step()
        return loss.detach()

    return loop(s), m, t


@program()
def case_policy_gradient(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.Adam(m.parameters(), 0.01)

    @c
    def s(x, a, r):
        lp = torch.distributions.Categorical(logits=m(x)).log_prob(a)
        loss = -(lp * (r - r.mean()) / (r.std() + 1e-8)).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss.detach()

    return [s(data(i), torch.tensor([0, 1, 2, 1, 0]), data(i + 9, 5)) for i in range(3)], m


@program()
def case_tree(c: Compiler) -> Any:
    class T(nn.Module):
        def __init__(self):
            super().__init__()
            self.e = nn.Embedding(5, 4)
            self.j = nn.Linear(8, 4)

        def go(self, t):
            return (
                self.e(torch.tensor([t]))
                if isinstance(t, int)
                else self.j(torch.cat([self.go(t[0]), self.go(t[1])], -1)).tanh()
            )

        def forward(self, t):
            return self.go(t).sum()

    m = T()
    cm = c(m)
    opt = torch.optim.SGD(m.parameters(), 0.1)
    out = []
    for t in ((1, 2), ((1, 2), 3), (1, 2), ((1, 2), 3)):
        opt.zero_grad()
        loss = cm(t)
        loss.backward()
        opt.step()
        out.append(loss)
    return out, m


@program()
def case_tree_tensor(c: Compiler) -> Any:
    class T(nn.Module):
        def __init__(self):
            super().__init__()
            self.e = nn.Embedding(5, 4)
            self.j = nn.Linear(8, 4)

        def forward(self, ops):
            st = []
            for o in ops.tolist():
                if o < 5:
                    st.append(self.e.weight[o])
                else:
                    b, a = st.pop(), st.pop()
                    st.append(self.j(torch.cat([a, b], -1)).tanh())
            return st[0].sum()

    m = T()
    cm = c(m)
    opt = torch.optim.SGD(m.parameters(), 0.1)
    out = []
    for t in ([1, 2, 9], [1, 2, 9, 3, 9], [1, 2, 9]):
        opt.zero_grad()
        loss = cm(torch.tensor(t))
        loss.backward()
        opt.step()
        out.append(loss)
    return out, m


@program(compiles=1)
def case_state_attr_tensor(c: Compiler) -> Any:
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(4, 4)
            self.h = torch.zeros(5, 4)

        def forward(self, x):
            self.h = (self.l(x) + self.h * 0.5).detach()
            return self.l(x) + self.h

    m = M()
    cm = c(m)
    out = []
    for i in range(3):
        y = cm(data(i))
        y.sum().backward()
        out.append((y, m.h))
    return out, m


@program(compiles=0)
def case_exception_class(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    try:
        cm(data(0, 5, 3))
        return "none"
    except RuntimeError as e:
        return "mat1 and mat2" in str(e)
