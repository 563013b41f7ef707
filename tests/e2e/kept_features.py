"""What programs keep on tensors, in containers that drop things, and outside of anything that graphc follows."""

from __future__ import annotations

import array
import os
from collections import OrderedDict, deque
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.e2e.features import Compiler, data, net, program
from tests.e2e.step_features import loop


class BinaryLinear(nn.Linear):
    """Keeps the weights that are trained on the parameter itself.

    Source: Courbariaux et al., Binarized Neural Networks, 2016, algorithm 1.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self.weight, "org"):
            self.weight.org = self.weight.data.clone()
        self.weight.data = self.weight.org.sign()
        return F.linear(x, self.weight, self.bias)


@program(compiles=2)
def case_weights_kept_on_parameters(c: Compiler) -> Any:
    m = nn.Sequential(BinaryLinear(4, 8), nn.Hardtanh(), BinaryLinear(8, 3))
    opt = torch.optim.SGD(m.parameters(), 0.1)

    @c
    def step(x):
        opt.zero_grad()
        loss = m(x).square().mean()
        loss.backward()
        kept = [p for p in m.parameters() if hasattr(p, "org")]
        for p in kept:
            p.data.copy_(p.org)
        opt.step()
        for p in kept:
            p.org.copy_(p.data.clamp_(-1, 1))
        return loss.detach()

    return loop(step), m, [m[0].weight.org, m[2].weight.org]


@program(compiles=3)
def case_numbers_kept_on_parameters(c: Compiler) -> Any:
    m, alone = net(), [nn.Parameter(torch.ones(4))]

    @c
    def f(x):
        for p in (*m.parameters(), *alone):
            p.uses = getattr(p, "uses", 0) + 1
        return x * m[0].weight.uses + alone[0].detach() * alone[0].uses

    out = loop(f, 5)
    m[0].weight.uses = 10
    return out, f(data(7)), [p.uses for p in (*m.parameters(), *alone)]


@program(compiles=2)
def case_tensors_kept_on_parameters_of_an_optimizer(c: Compiler) -> Any:
    opt = torch.optim.SGD([nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))], 0.1)

    @c
    def f(x):
        for p in opt.param_groups[0]["params"]:
            p.average = x + getattr(p, "average", 0.0) * 0.5
        return p.average.sum()

    return loop(f), [p.average for p in opt.param_groups[0]["params"]]


@program(compiles=2)
def case_attribute_of_a_tensor_from_outside(c: Compiler) -> Any:
    m = nn.Linear(4, 3)
    f = c(lambda x: (x @ m.weight.t()).detach() * getattr(m.weight, "scale", 1.0))
    out = [f(data(0)), f(data(1))]
    m.weight.scale = 0.5
    return out, f(data(0)), f(data(1))


@program(eager=4)
def case_attributes_of_arguments(c: Compiler) -> Any:
    def read(x):
        return x * getattr(x, "scale", 1.0)

    def write(x):
        x.double = x * 2
        return x.double + 1

    read, write, given = c(read), c(write), [data(i) for i in range(5)]
    given[1].scale = given[3].scale = 0.5
    return [read(x) for x in given], [write(x) for x in given[:2]], [x.double for x in given[:2]]


@program(compiles=5)
def case_last_results_in_a_deque(c: Compiler) -> Any:
    kept: deque[torch.Tensor] = deque(maxlen=3)

    @c
    def f(x):
        kept.append(x * 2)
        return torch.stack(list(kept)).mean(0)

    return loop(f, 5), list(kept)


@program(compiles=4)
def case_last_results_in_an_ordered_dict(c: Compiler) -> Any:
    kept: OrderedDict[int, torch.Tensor] = OrderedDict()

    @c
    def f(x):
        kept[next(reversed(kept), 0) + 1] = x * 2
        if len(kept) > 2:
            kept.popitem(last=False)
        return sum(kept.values())

    return loop(f, 4), list(kept.items())


@program(compiles=2)
def case_empty_slot_is_filled(c: Compiler) -> Any:
    class Holder:
        __slots__ = ("last",)

    holder = Holder()

    @c
    def f(x):
        holder.last = x * 2 if not hasattr(holder, "last") else holder.last + x
        return x + 1

    return loop(f), holder.last


@program(eager=3)
def case_environment_is_changed(c: Compiler) -> Any:
    os.environ["GRAPHC_TEST_TURN"] = "0"

    @c
    def f(x):
        turn = int(os.environ["GRAPHC_TEST_TURN"])
        os.environ["GRAPHC_TEST_TURN"] = str(turn + 1)
        return x * turn

    return loop(f, 3), os.environ.pop("GRAPHC_TEST_TURN")


@program(eager=3)
def case_array_is_changed(c: Compiler) -> Any:
    turns = array.array("i", [0])

    @c
    def f(x):
        turns[0] += 1
        return x * turns[0]

    return loop(f, 3), turns[0]
