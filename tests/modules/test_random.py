"""Random numbers with numerics="eager": eager's very numbers in its order, the generator where eager leaves it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from graphc.errors import UnsupportedError
from graphc.frontend.capture import capture
from tests.modules.checks import check, externs
from tests.ops.expansion import ordinary

X = ordinary(2, 4, 6, 5)
CL = torch.channels_last

DRAWS = {
    "dropout": F.dropout,
    "dropout of channels_last": lambda x: F.dropout(x.to(memory_format=CL)),
    "dropout in place": lambda x: F.dropout(x.clone(), inplace=True),
    "dropout2d": F.dropout2d,
    "alpha_dropout": lambda x: F.alpha_dropout(x, training=True),
    "native_dropout": lambda x: torch.native_dropout(x, 0.5, True),
    "native_dropout off": lambda x: torch.native_dropout(x, 0.5, False),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli p": lambda x: torch.bernoulli(x, 0.3),
    "bernoulli_": lambda x: x.clone().bernoulli_(),
    "rand": lambda x: torch.rand(3, 4) + x[0, 0, 0, 0],
    "randn": lambda x: torch.randn(20, dtype=torch.float64) * x.sum(),
    "randint": lambda x: (torch.randint(5, (3,)), torch.randint(-2, 5, (3,), dtype=torch.int32), x + 0),
    "randperm": lambda x: (torch.randperm(7), x + 0),
    "rand_like": torch.rand_like,
    "rand_like of channels_last": lambda x: torch.rand_like(x.to(memory_format=CL)),
    "rand_like made channels_last": lambda x: torch.rand_like(x, memory_format=CL),
    "randn_like of a transpose": lambda x: torch.randn_like(x.transpose(1, 2), dtype=torch.float64),
    "randint_like": lambda x: (torch.randint_like(x, 5), torch.randint_like(x, 2, 9)),
    "uniform_": lambda x: x.clone().uniform_(-1, 2),
    "uniform_ of a transpose": lambda x: x.clone().transpose(2, 3).uniform_(),
    "uniform_ of a slice": lambda x: (y := x.clone(), y[:, 1].uniform_()),
    "normal_": lambda x: x.clone().normal_(1.0, 2.0),
    "normal": lambda x: (torch.normal(x, x.abs()), torch.normal(x, 1.0), torch.normal(0.0, 1.0, (3,))),
    "exponential_": lambda x: x.clone().exponential_(2.0),
    "geometric_": lambda x: x.clone().geometric_(0.5),
    "random_": lambda x: (x.clone().random_(), x.clone().random_(2, 5)),
    "poisson": lambda x: torch.poisson(x.abs()),
    "multinomial": lambda x: torch.multinomial(x[0, 0].abs(), 2),
    "gumbel_softmax": F.gumbel_softmax,
    "rrelu": lambda x: F.rrelu(x, training=True),
    "unused": lambda x: (torch.rand(5), x + 1)[1],
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws(name):
    graph = check(DRAWS[name], X, exact=False)
    effects = {op.attrs.get("effect", "") for op in graph.ops if op.name == "extern"}
    assert effects == (set() if name == "native_dropout off" else {"random"}), "every draw is an effect"


def test_order_of_draws():
    check(lambda x: (torch.rand(3), torch.randn(3), F.dropout(x), torch.rand(3))[::-1], X, exact=False)


def test_inference_dropout_is_nothing():
    assert not externs(check(lambda x: F.dropout(x, training=False) + 1, X))


def test_own_generator_is_refused():
    generator = torch.Generator()
    with pytest.raises(UnsupportedError, match="Generator"):
        capture(lambda x: x.clone().bernoulli_(0.5, generator=generator), (X,))
