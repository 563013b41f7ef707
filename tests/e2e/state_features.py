"""Compiled modules that are saved, loaded, copied and converted, and trainings that are resumed."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
from torch import nn

from tests.e2e.features import Compiler, data, net, program
from tests.e2e.step_features import loop, make_step


@program()
def case_torch_save_whole(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    cm(data(0))
    b = io.BytesIO()
    torch.save(cm, b)
    b.seek(0)
    k = torch.load(b, weights_only=False)
    y = k(data(1))
    y.sum().backward()
    return y, k.state_dict(), list(k.state_dict())


@program()
def case_deepcopy(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    cm(data(0)).sum().backward()
    k = copy.deepcopy(cm)
    with torch.no_grad():
        k[0].weight.add_(1)
    return cm(data(1)), k(data(1)), m, k


@program()
def case_state_dict_keys(c: Compiler) -> Any:
    m = net()
    a = list(m.state_dict())
    cm = c(m)
    b = list(cm.state_dict())
    cm(data(0))
    return (
        a,
        b,
        list(cm.state_dict()),
        [n for n, _ in cm.named_parameters()],
        [type(x).__name__ for x in cm.children()],
        len(list(cm.modules())),
    )


@program()
def case_load_state_dict(c: Compiler) -> Any:
    m = net()
    o = net()
    cm = c(m)
    a = cm(data(0))
    cm.load_state_dict(o.state_dict())
    b = cm(data(0))
    r = net()
    cm.load_state_dict(r.state_dict(), assign=True)
    d = cm(data(0))
    d.sum().backward()
    return a, b, d, m


@program()
def case_load_assign_step(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = make_step(c, m, opt)
    s(data(0))
    m.load_state_dict(net().state_dict(), assign=True)
    s(data(1))
    loss = s(data(2))
    return loss, m


@program()
def case_to_half_double(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    out = [cm(data(0))]
    cm.float()
    out.append(cm(data(0).float()))
    cm.to(torch.bfloat16)
    out.append(cm(data(0).bfloat16()))
    cm.double()
    out.append(cm(data(0)))
    cm(data(0)).sum().backward()
    r = cm.to("cpu")
    return out, m, r is cm


@program()
def case_train_eval(c: Compiler) -> Any:
    m = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    cm = c(m)
    a = cm(data(0))
    cm.eval()
    b = cm(data(0))
    cm.train()
    d = cm(data(1))
    return a, b, d, m, cm.training, m.training, cm.eval() is cm


@program()
def case_apply(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    cm(data(0))

    def init(loss):
        if isinstance(loss, nn.Linear):
            nn.init.constant_(loss.weight, 0.1)

    r = cm.apply(init)
    return cm(data(0)), r is cm


@program()
def case_resume(c: Compiler) -> Any:
    def run(stop):
        torch.manual_seed(1)
        m = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3))
        opt = torch.optim.Adam(m.parameters(), 0.01)
        sc = torch.optim.lr_scheduler.StepLR(opt, 2)
        step = make_step(lambda f: c(f, numerics="eager") if c.on else f, m, opt)
        out = []
        for i in range(6):
            if i == stop:
                b = io.BytesIO()
                torch.save(
                    {"m": m.state_dict(), "o": opt.state_dict(), "s": sc.state_dict(), "r": torch.get_rng_state()}, b
                )
                b.seek(0)
                k = torch.load(b)
                torch.manual_seed(99)
                m = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3))
                opt = torch.optim.Adam(m.parameters(), 0.01)
                sc = torch.optim.lr_scheduler.StepLR(opt, 2)
                step = make_step(lambda f: c(f, numerics="eager") if c.on else f, m, opt)
                m.load_state_dict(k["m"])
                opt.load_state_dict(k["o"])
                sc.load_state_dict(k["s"])
                torch.set_rng_state(k["r"])
            out.append(step(data(i)))
            sc.step()
        return out, dict(m.state_dict())

    (a, x), (b, y) = run(-1), run(3)
    return all(torch.equal(p, q) for p, q in zip(a, b)), all(torch.equal(x[k], y[k]) for k in x), x


@program()
def case_load_opt_same(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.Adam(m.parameters(), 0.01)
    step = make_step(c, m, opt)
    loop(step, 2)
    k = copy.deepcopy((m.state_dict(), opt.state_dict()))
    loop(step, 3)
    m.load_state_dict(k[0])
    opt.load_state_dict(k[1])
    return loop(step, 3), m, opt
