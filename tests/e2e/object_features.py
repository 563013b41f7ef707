"""Compiled modules and functions as Python objects: copies, pickles, state, attributes, decorators, checkpoints."""

from __future__ import annotations

import copy
import functools
import io
import pickle
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
def case_wraps(c: Compiler) -> Any:
    def f(x):
        "doc"
        return x * 2

    g = c(f)
    return g.__name__, g.__doc__, g.__wrapped__ is f if hasattr(g, "__wrapped__") else True, g.__module__, g(data(0))


@program()
def case_forward_in_place(c: Compiler) -> Any:
    m = net()
    m.forward = c(m.forward)
    out = [m(data(i)) for i in range(2)]
    out[1].sum().backward()
    return out, m


@program()
def case_forward_in_place_keys(c: Compiler) -> Any:
    m = net()
    m.forward = c(m.forward)
    m(data(0))
    k = copy.deepcopy(m)
    with torch.no_grad():
        k[0].weight.add_(1)
    return k(data(0)), m(data(0)), list(m.state_dict())


@program()
def case_forward_in_place_pickle(c: Compiler) -> Any:
    m = nn.Linear(4, 4)
    m.forward = c(m.forward)
    m(data(0))
    k = pickle.loads(pickle.dumps(m))
    return k(data(0)), m(data(0))
    m = Sub()
    m.forward = c(m.forward)
    m(data(0))
    return pickle.loads(pickle.dumps(m))(data(0))


@program()
def case_submodule_compiled(c: Compiler) -> Any:
    m = net()
    m[0] = c(m[0])
    y = m(data(0))
    y.sum().backward()
    return y, m, list(m.state_dict())


@program()
def case_submodule_deepcopy(c: Compiler) -> Any:
    m = net()
    m[0] = c(m[0])
    k = copy.deepcopy(m)
    with torch.no_grad():
        k[0].weight.zero_()
    return m(data(0)), k(data(0)), len(list(m.modules())), len(list(m.parameters()))


@program()
def case_compiled_in_compiled(c: Compiler) -> Any:
    m = net()
    m[0] = c(m[0])
    cm = c(m)
    f = c(lambda x: cm(x) * 2)
    y = f(data(0))
    y.sum().backward()
    return y, m


@program()
def case_twice_compiled(c: Compiler) -> Any:
    cm = c(c(net()))
    y = cm(data(0))
    y.sum().backward()
    return y, cm.state_dict()


@program()
def case_staticmethod(c: Compiler) -> Any:
    class A:
        @staticmethod
        @c
        def f(x):
            return x * 2

        @c
        def g(self, x):
            return x * 3

        @classmethod
        @c
        def h(cls, x):
            return x * 4

    return A.f(data(0)), A().f(data(0)), A().g(data(0)), A.h(data(0)), A().h(data(0))


@program()
def case_staticmethod_outer(c: Compiler) -> Any:
    class A:
        f = staticmethod(c(lambda x: x * 2))

    return A.f(data(0)), A().f(data(0))


@program()
def case_partial(c: Compiler) -> Any:
    m = net()
    f = c(functools.partial(lambda k, x, s=1: m(x) * k + s, 3, s=2))
    y = f(data(0))
    y.sum().backward()
    g = functools.partial(c(lambda k, x: x * k), 3)
    return y, m, g(data(0))


@program()
def case_bound_method(c: Compiler) -> Any:
    m = Sub()
    f = c(m.loss)
    loss = f(data(0))
    loss.backward()
    return loss, m


@program()
def case_decorated_method(c: Compiler) -> Any:
    class T(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(4, 4)

        @c
        def forward(self, x):
            return self.l(x)

    m = T()
    y = m(data(0))
    y.sum().backward()
    k = T()
    z = k(data(0))
    z.sum().backward()
    return y, z, m, k


@program(compiles=0)
def case_decorated_class(c: Compiler) -> Any:
    @c
    class T(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.l = nn.Linear(4, n)

        def forward(self, x):
            return self.l(x)

    m = T(3)
    y = m(data(0))
    y.sum().backward()
    assert not c.on or m.compiled.stats().compiles == 1
    return y, m, isinstance(m, T), T.__name__, list(m.state_dict())


@program(compiles=0)
def case_decorated_class_sub(c: Compiler) -> Any:
    @c
    class T(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.l = nn.Linear(4, n)

        def forward(self, x):
            return self.l(x)

    class U(T):
        def forward(self, x):
            return super().forward(x) * 2

    m = U(3)
    y = m(data(0))
    y.sum().backward()
    assert not c.on or m.compiled.stats().compiles == 1
    return y, m


@program()
def case_callable_object(c: Compiler) -> Any:
    class F_:
        def __init__(self):
            self.m = net()

        def __call__(self, x):
            return self.m(x)

    o = F_()
    f = c(o)
    y = f(data(0))
    y.sum().backward()
    return y, o.m


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
