"""Compiled modules and functions as Python objects: wrapped, decorated, bound, and one inside of another."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import torch
from torch import nn

from tests.e2e.attribute_features import Sub
from tests.e2e.features import Compiler, data, net, program


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
