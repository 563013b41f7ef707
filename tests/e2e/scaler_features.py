"""Gradient scalers in compiled steps: skipped steps, several optimizers, and what is left in the scaler."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.e2e.features import Compiler, data, net, program


def scaler_of(**options: Any) -> Any:
    """A scaler that soon grows and backs off, by factors that are no powers of two."""
    return torch.amp.GradScaler(
        "cpu", **{"init_scale": 100.0, "growth_interval": 2, "growth_factor": 1.7, "backoff_factor": 0.3, **options}
    )


def batches(count: int, bad: tuple[int, ...] = (), what: float = float("inf")) -> list[torch.Tensor]:
    """Float32 inputs, some of them not finite."""
    return [data(i).float() * (what if i in bad else 1.0) for i in range(count)]


def deep(layers: int = 6) -> nn.Sequential:
    """More parameters than are updated one by one."""
    return nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(layers))).float()


def rounded(m: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters as far as steps in half precision agree: compiled code rounds fewer intermediate results."""
    return {name: p.bfloat16() for name, p in m.named_parameters()}


def whole(c: Compiler, m: nn.Module, opt: torch.optim.Optimizer, s: Any, dtype: Any = None, clip: bool = False) -> Any:
    """A whole step."""

    @c
    def step(x):
        opt.zero_grad()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            out = m(x)
        loss = out.float().square().mean()
        s.scale(loss).backward()
        if clip:
            s.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        s.step(opt)
        s.update()
        return loss.detach()

    return step


def tables(s: Any) -> Any:
    """What a scaler knows of optimizers, in order."""
    return [
        (str(state["stage"]), list(state["found_inf_per_device"].values()))
        for state in s._per_optimizer_states.values()
    ]


@program(compiles=4)  # two paths, and that of skipped steps as a whole
def case_scaler_skips_steps(c: Compiler) -> Any:
    m = net().float()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = scaler_of()
    step = whole(c, m, opt, s)
    return [(step(x), s.state_dict()) for x in batches(9, bad=(3, 4))], m, opt, tables(s)


@program()
def case_scaler_skips_the_first_step(c: Compiler) -> Any:
    m = deep()
    opt = torch.optim.Adam(m.parameters(), 0.01)
    s = scaler_of()
    step = whole(c, m, opt, s, clip=True)
    found = [(step(x), s.state_dict(), len(opt.state)) for x in batches(6, bad=(0, 4), what=float("nan"))]
    return found, m, opt


@program()
def case_scaler_float16(c: Compiler) -> Any:
    m = deep()
    opt = torch.optim.AdamW(m.parameters(), 0.01)
    s = scaler_of(init_scale=2.0**15, growth_factor=2.0, backoff_factor=0.5)
    step = whole(c, m, opt, s, torch.float16, clip=True)
    return [step(x).bfloat16() for x in batches(4)], rounded(m), s.state_dict()


@program()
def case_scaler_momentum(c: Compiler) -> Any:
    m = net().float()
    opt = torch.optim.SGD(m.parameters(), 0.1, momentum=0.9)
    s = scaler_of()
    step = whole(c, m, opt, s)
    return [step(x) for x in batches(6, bad=(0, 3))], m, opt, s.state_dict()


@program()
def case_scaler_of_two_optimizers(c: Compiler) -> Any:
    a, b = net().float(), deep(2)
    first, second = torch.optim.SGD(a.parameters(), 0.1), torch.optim.Adam(b.parameters(), 0.01)
    s = scaler_of()

    @c
    def step(x, y):
        first.zero_grad()
        second.zero_grad()
        losses = [a(x).square().mean(), b(y).square().mean()]
        for loss in s.scale(losses):
            loss.backward()
        s.step(first)
        s.step(second)
        s.update()

    xs, ys = batches(6, bad=(2, 4)), batches(6, bad=(3, 4))
    out = []
    for x, y in zip(xs, ys, strict=True):
        step(x, y)
        out.append(s.state_dict())
    return out, a, b, first, second


@program()
def case_scaler_accumulates(c: Compiler) -> Any:
    m = net().float()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = scaler_of()

    @c
    def step(x, last):
        loss = m(x).square().mean() / 2
        s.scale(loss).backward()
        if last:
            s.step(opt)
            s.update()
            opt.zero_grad()
        return loss.detach()

    return [step(x, i % 2 == 1) for i, x in enumerate(batches(8, bad=(4,)))], m, s.state_dict()


@program()
def case_scaler_scales_alone(c: Compiler) -> Any:
    m = net().float()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = scaler_of()

    @c
    def forward_backward(x):
        s.scale(m(x).square().mean()).backward()
        return s.get_scale()

    out = []
    for x in batches(5, bad=(2,)):
        opt.zero_grad()
        out.append(forward_backward(x))
        s.step(opt)
        s.update()
    return out, m, s.state_dict()


@program(compiles=1)
def case_scaler_left_unscaled(c: Compiler) -> Any:
    m = net().float()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = scaler_of()

    @c
    def forward_backward(x):
        opt.zero_grad()
        s.scale(m(x).square().mean()).backward()
        s.unscale_(opt)

    out = []
    for x in batches(5, bad=(2,)):
        forward_backward(x)
        out.append(tables(s))
        s.step(opt)
        s.update()
    return out, m, s.state_dict()


@program(eager=2)
def case_scaler_comes_unscaled(c: Compiler) -> Any:
    m = net().float()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = scaler_of()

    @c
    def update():
        s.step(opt)
        s.update()

    for x in batches(2):
        opt.zero_grad()
        s.scale(m(x).square().mean()).backward()
        s.unscale_(opt)
        update()
    return m, s.state_dict()


@program(compiles=4)
def case_scaler_changed_between(c: Compiler) -> Any:
    m = net().float()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = scaler_of()
    step = whole(c, m, opt, s)
    a, b, *rest = batches(6)
    out = [step(a), s.state_dict(), step(b)]
    s.set_growth_factor(3.0)
    out += [step(rest[0]), step(rest[1]), s.state_dict()]
    s.load_state_dict({**s.state_dict(), "scale": 7.0, "_growth_tracker": 1})
    out += [step(rest[2]), s.state_dict()]
    s.update(11.0)
    return out, step(rest[3]), s.state_dict(), m


@program()
def case_scaler_new_scale(c: Compiler) -> Any:
    m = net().float()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = scaler_of()

    @c
    def step(x):
        opt.zero_grad()
        s.scale(m(x).square().mean()).backward()
        s.step(opt)
        s.update(50.0)

    for x in batches(3):
        step(x)
    return m, s.state_dict()


@program()
def case_scaler_fused(c: Compiler) -> Any:
    m = deep()
    opt = torch.optim.Adam(m.parameters(), 0.01, fused=True)
    s = scaler_of()
    step = whole(c, m, opt, s)
    return [step(x) for x in batches(5, bad=(2,))], m, opt, s.state_dict()


@program(eager=1)
def case_scaler_steps_twice(c: Compiler) -> Any:
    m = net().float()
    opt = torch.optim.SGD(m.parameters(), 0.1)
    s = scaler_of()

    @c
    def step(x, twice):
        opt.zero_grad()
        s.scale(m(x).square().mean()).backward()
        s.step(opt)
        if twice:
            s.step(opt)
        s.update()

    out = []
    for x, twice in zip(batches(3), (False, True, False), strict=True):
        try:
            step(x, twice)
        except RuntimeError as error:
            out.append("step() has already been called" in str(error))
            s._per_optimizer_states.clear()  # where eager leaves what it had done until then
            opt.zero_grad()
    return out, s.state_dict()
