"""Whole training steps compiled, with everything people put into them: programs that run eager and compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.e2e.features import CASES, Case, Compiler, data, net, program


def make_step(c, m, opt, sched=None):
    @c
    def step(x):
        opt.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        opt.step()
        if sched is not None:
            sched.step()
        return loss.detach()

    return step


def loop(step, n=4):
    return [step(data(i)) for i in range(n)]


@program()
def case_gradscaler_disabled(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = torch.amp.GradScaler("cpu", enabled=False)

    @c
    def step(x):
        opt.zero_grad()
        loss = m(x).square().mean()
        s.scale(loss).backward()
        s.unscale_(opt)
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        s.step(opt)
        s.update()
        return loss.detach()

    return loop(step), m, s.get_scale()


@program(compiles=2)
def case_gradscaler(c: Compiler) -> Any:
    m = net().float()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)

    @c
    def step(x):
        opt.zero_grad()
        loss = m(x.float()).square().mean()
        s.scale(loss).backward()
        s.step(opt)
        s.update()
        return loss.detach()

    return loop(step), m, s.get_scale(), s.state_dict()


@program()
def case_gradscaler_inf(c: Compiler) -> Any:
    m = net().float()
    opt = torch.optim.Adam(m.parameters(), 0.01)
    s = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)

    @c
    def step(x):
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = m(x.float()).float().square().mean()
        s.scale(loss).backward()
        s.unscale_(opt)
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        s.step(opt)
        s.update()
        return loss.detach()

    out = [(step(data(i) * (float("inf") if i == 2 else 1)).bfloat16(), s.get_scale()) for i in range(6)]
    return out, m.bfloat16(), s.state_dict()


@program()
def case_swa(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    a = torch.optim.swa_utils.AveragedModel(m)
    sw = torch.optim.swa_utils.SWALR(opt, 0.05)
    step = make_step(c, m, opt)
    for i in range(4):
        step(data(i))
        a.update_parameters(m)
        sw.step()
    return m, a.state_dict()


@program()
def case_swa_inside(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    a = torch.optim.swa_utils.AveragedModel(m)

    @c
    def step(x):
        opt.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        opt.step()
        a.update_parameters(m)
        return loss.detach()

    return loop(step), m, a.state_dict()


@program()
def case_ema_inside(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    a = torch.optim.swa_utils.AveragedModel(
        m, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )

    @c
    def step(x):
        opt.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        opt.step()
        a.update_parameters(m)
        return loss.detach()

    return loop(step), m, a.state_dict()


def _sched(c, make, inside, **kw):
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, **kw)
    sc = make(opt)
    out = []
    step = make_step(c, m, opt, sc if inside else None)
    for i in range(6):
        out.append(step(data(i)))
        if not inside:
            sc.step()
        out.append(opt.param_groups[0]["lr"])
    return out, m, opt


L = torch.optim.lr_scheduler

SCHED = {
    "step": lambda o: L.StepLR(o, 2),
    "multistep": lambda o: L.MultiStepLR(o, [2, 4]),
    "exp": lambda o: L.ExponentialLR(o, 0.9),
    "cos": lambda o: L.CosineAnnealingLR(o, 5),
    "onecycle": lambda o: L.OneCycleLR(o, 0.3, total_steps=10),
    "cyclic": lambda o: L.CyclicLR(o, 0.01, 0.1, 3),
    "lam": lambda o: L.LambdaLR(o, lambda e: 0.9**e),
    "mult": lambda o: L.MultiplicativeLR(o, lambda e: 0.9),
    "lin": lambda o: L.LinearLR(o, total_iters=4),
    "const": lambda o: L.ConstantLR(o, total_iters=3),
    "warm": lambda o: L.CosineAnnealingWarmRestarts(o, 3),
    "seq": lambda o: L.SequentialLR(o, [L.ConstantLR(o, 0.1, 2), L.ExponentialLR(o, 0.9)], [2]),
    "chained": lambda o: L.ChainedScheduler([L.ConstantLR(o, 0.1, 2), L.ExponentialLR(o, 0.9)]),
    "poly": lambda o: L.PolynomialLR(o, 5),
}


def _scheduled(make, inside):
    return lambda c: _sched(c, make, inside)


for _name, _make in SCHED.items():
    for _where in ("in", "out"):
        CASES[f"schedule_{_name}_{_where}side"] = Case(_scheduled(_make, _where == "in"))


@program()
def case_plateau(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    sc = L.ReduceLROnPlateau(opt, patience=0, threshold=0.5)
    step = make_step(c, m, opt)
    out = []
    for i in range(5):
        loss = step(data(i))
        sc.step(loss)
        out.append((loss, opt.param_groups[0]["lr"]))
    return out, m


@program(compiles=1)
def case_plateau_inside(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    sc = L.ReduceLROnPlateau(opt, patience=0, threshold=0.5)

    @c
    def step(x):
        opt.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        opt.step()
        sc.step(loss)
        return loss.detach()

    out = [(step(data(i)), opt.param_groups[0]["lr"]) for i in range(5)]
    return out, m, sc.state_dict()


@program()
def case_warmup_by_hand(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.Adam(m.parameters(), 0.1)

    @c
    def step(x, it):
        for g in opt.param_groups:
            g["lr"] = 0.1 * (it + 1) / 10
        opt.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        opt.step()
        return loss.detach()

    return [step(data(i), i) for i in range(5)], m, opt


@program()
def case_momentum_sched(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.Adam(m.parameters(), 0.01)
    step = make_step(c, m, opt)
    out = []
    for i in range(5):
        opt.param_groups[0]["betas"] = (0.9 - i * 0.01, 0.999)
        opt.param_groups[0]["weight_decay"] = i * 0.01
        out.append(step(data(i)))
    return out, m


@program()
def case_gan(c: Compiler) -> Any:
    g = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4))
    d = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.2), nn.Linear(4, 1))
    og, od = torch.optim.Adam(g.parameters(), 0.01, (0.5, 0.9)), torch.optim.Adam(d.parameters(), 0.01)
    bce = nn.BCEWithLogitsLoss()

    @c
    def step(x, z):
        od.zero_grad()
        f = g(z)
        ld = bce(d(x), torch.ones(5, 1)) + bce(d(f.detach()), torch.zeros(5, 1))
        ld.backward()
        od.step()
        og.zero_grad()
        lg = bce(d(f), torch.ones(5, 1))
        lg.backward()
        og.step()
        return ld.item(), lg.item()

    return [step(data(i), data(i + 50, 5, 2)) for i in range(4)], g, d, og, od


@program()
def case_several_losses(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x):
        opt.zero_grad()
        y = m(x)
        a = y.square().mean()
        b = y.abs().sum()
        a.backward(retain_graph=True)
        b.backward()
        opt.step()
        return a.detach(), b.item()

    return loop(step), m
