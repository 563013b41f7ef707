"""Data that eager refuses, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

import graphc
from graphc.settings import override
from tests.e2e.bad_data import LOWERED, check

torch.set_num_threads(1)


@pytest.mark.parametrize("name", LOWERED)
def test_refused_as_in_eager(name: str) -> None:
    check(LOWERED[name], graphc.compile(LOWERED[name][0], backend="triton"))


def test_divisors_are_looked_at_in_front_of_a_product_that_has_quotients_for_operands() -> None:
    """The kernel of the product would look at those of one step of its loop alone."""

    def divided(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        quotient = torch.tanh(b + torch.div(b, a, rounding_mode="floor"))
        return quotient @ quotient.mT + 1

    a, b = torch.randint(1, 5, (4, 7, 70)), torch.randint(-6, 6, (4, 1, 70))
    with override(templates="always", cache=False):
        compiled = graphc.compile(divided, backend="triton")
        torch.testing.assert_close(compiled(a, b), divided(a, b))
        a[1, 2, 3] = 0
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            divided(a, b)
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            compiled(a, b)
