"""One build for many sizes, as Triton kernels: right for each."""

import pytest

from tests.sizes.programs import PROGRAMS
from tests.sizes.test_builds import compare, made

IN_SUITE = ("images", "classifier", "language_model", "recurrent", "norms", "numbers")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.suite if name in IN_SUITE else ()) for name in PROGRAMS]
)
def test_right_for_every_size(name):
    fn, eager, inputs = made(name, "triton")
    for n in (17, 21, 26, 23, 2, 1, 40):
        compare(fn, eager, inputs, n)
    assert fn.stats().eager_calls == 0
