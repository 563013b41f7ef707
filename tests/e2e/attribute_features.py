"""Attributes, closures, globals and methods that compiled functions read, and that change between calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.e2e.features import Compiler, data, net, program


class Sub(nn.Module):
    K = 2.0

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 4)
        self.scale = 1.0

    def forward(self, x):
        return self.helper(self.l(x)) * self.scale * self.K

    def helper(self, x):
        return x.sin()

    def loss(self, x):
        return self(x).square().mean()

    @property
    def size(self):
        return self.l.in_features

    @staticmethod
    def st(x):
        return x + 1

    @classmethod
    def make(cls):
        return cls()


class SubSub(Sub):
    def helper(self, x):
        return super().helper(x) + 1


@program()
def case_attributes(c: Compiler) -> Any:
    m = SubSub()
    cm = c(m)
    a = cm(data(0))
    cm.scale = 3.0
    b = cm(data(0))
    cm.new = 5
    loss = cm.loss(data(1))
    loss.backward()
    return (
        a,
        b,
        m.scale,
        m.new,
        isinstance(cm, Sub),
        cm.size,
        cm.st(1),
        type(cm).__name__,
        loss,
        m,
        repr(cm) == repr(m),
        hasattr(cm, "nope"),
    )


@program()
def case_delattr(c: Compiler) -> Any:
    m = Sub()
    cm = c(m)
    cm.x = 1
    cm(data(0))
    del cm.x
    y = cm(data(0))
    return y, hasattr(m, "x")


@program()
def case_class_attr_shadow(c: Compiler) -> Any:
    m = Sub()
    cm = c(m)
    a = cm(data(0))
    m.K = 5.0
    return a, cm(data(0))


@program()
def case_class_attr_shadow_function(c: Compiler) -> Any:
    class Cfg:
        k = 2.0

    cfg = Cfg()
    f = c(lambda x: x * cfg.k)
    a = f(data(0))
    cfg.k = 3.0
    b = f(data(0))
    Cfg.k = 4.0
    del cfg.k
    return a, b, f(data(0))


@program()
def case_class_attr_changed(c: Compiler) -> Any:
    class Cfg:
        k = 2.0

    cfg = Cfg()
    f = c(lambda x: x * cfg.k)
    a = f(data(0))
    Cfg.k = 3.0
    return a, f(data(0))


@program()
def case_class_attr_shadow_method(c: Compiler) -> Any:
    class M(nn.Module):
        act = staticmethod(torch.sin)

        def forward(self, x):
            return self.act(x)

    m = M()
    cm = c(m)
    a = cm(data(0))
    m.act = torch.cos
    return a, cm(data(0))


@program()
def case_method_shadow(c: Compiler) -> Any:
    m = Sub()
    cm = c(m)
    a = cm(data(0))
    m.helper = torch.cos
    return a, cm(data(0))


@program()
def case_child_method_shadow(c: Compiler) -> Any:
    m = nn.Sequential(Sub())
    cm = c(m)
    a = cm(data(0))
    m[0].helper = torch.cos
    return a, cm(data(0))


@program()
def case_forward_shadow(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    a = cm(data(0))
    f = m[0].forward
    m[0].forward = lambda x: f(x) * 2
    return a, cm(data(0))


@program(compiles=2)
def case_counter(c: Compiler) -> Any:
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.n = 0
            self.l = nn.Linear(4, 4)

        def forward(self, x):
            self.n += 1
            return self.l(x) * self.n

    m = M()
    cm = c(m)
    out = [cm(data(i)) for i in range(6)]
    out[-1].sum().backward()
    return out, m.n, type(m.n), m


@program(compiles=2)
def case_counter_float(c: Compiler) -> Any:
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.t = 1.0
            self.l = nn.Linear(4, 4)

        def forward(self, x):
            self.t = self.t * 0.5
            return self.l(x) * self.t

    m = M()
    cm = c(m)
    return [cm(data(i)) for i in range(6)], m.t


@program()
def case_counter_mod(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    class St:
        n = 0

    s = St()
    s.n = 0

    @c
    def step(x):
        s.n += 1
        (m(x).square().mean() / 2).backward()
        if s.n % 2 == 0:
            opt.step()
            opt.zero_grad()

    for i in range(6):
        step(data(i))
    return m, s.n


@program()
def case_counter_arg(c: Compiler) -> Any:
    m = net()
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x, i):
        (m(x).square().mean() / 2).backward()
        if (i + 1) % 2 == 0:
            opt.step()
            opt.zero_grad()

    for i in range(6):
        step(data(i), i)
    return m


@program(compiles=2)
def case_attr_int_changed(c: Compiler) -> Any:
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.k = 1
            self.f = 1.0

        def forward(self, x):
            return x * self.k + self.f

    m = M()
    cm = c(m)
    out = []
    for i in range(6):
        m.k = i + 1
        m.f = i * 0.5
        out.append(cm(data(0)))
    return out


@program(compiles=2)
def case_attr_obj_float_changed(c: Compiler) -> Any:
    class Cfg:
        pass

    cfg = Cfg()
    cfg.beta = 0.0
    f = c(lambda x: x * cfg.beta)
    out = []
    for i in range(6):
        cfg.beta = i / 5
        out.append(f(data(0)))
    return out


@program(compiles=2)
def case_closure_float_changed(c: Compiler) -> Any:
    beta = 0.0
    f = c(lambda x: x * beta)
    out = []
    for i in range(6):
        beta = i / 5
        out.append(f(data(0)))
    return out


@program()
def case_int_arg_changed(c: Compiler) -> Any:
    f = c(lambda x, k: x * k + k)
    return [f(data(0), k) for k in range(6)]


@program()
def case_attr_function_changed(c: Compiler) -> Any:
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = torch.sin

        def forward(self, x):
            return self.act(x)

    m = M()
    cm = c(m)
    a = cm(data(0))
    m.act = torch.cos
    return a, cm(data(0))


@program()
def case_global_function_changed(c: Compiler) -> Any:
    global act
    act = torch.sin
    f = c(lambda x: act(x))
    a = f(data(0))
    act = torch.cos
    return a, f(data(0))


@program()
def case_class_method_changed(c: Compiler) -> Any:
    class A:
        def h(self, x):
            return x * 2

    o = A()
    f = c(lambda x: o.h(x))
    a = f(data(0))
    A.h = lambda self, x: x * 3
    return a, f(data(0))


@program()
def case_class_method_shadowed(c: Compiler) -> Any:
    class A:
        def h(self, x):
            return x * 2

    o = A()
    f = c(lambda x: o.h(x))
    a = f(data(0))
    o.h = lambda x: x * 3
    return a, f(data(0))


@program()
def case_sub_class_attr(c: Compiler) -> Any:
    class A:
        k = 2.0

    class B(A):
        pass

    o = B()
    f = c(lambda x: x * o.k)
    a = f(data(0))
    B.k = 3.0
    return a, f(data(0))


@program()
def case_seq_len(c: Compiler) -> Any:
    m = net()
    cm = c(m)
    a = cm(data(0))
    m.append(nn.Tanh())
    b = cm(data(0))
    m[1] = nn.ReLU()
    return a, b, cm(data(0))


@program()
def case_dropout_p(c: Compiler) -> Any:
    m = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.1))
    cm = c(m)
    a = cm(data(0))
    m[1].negative_slope = 0.5
    return a, cm(data(0))
