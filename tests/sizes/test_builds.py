"""One build for many sizes, on the CPU: right for each, free of numbers that belong to one, and few."""

import pytest
import torch

import graphc
from graphc.driver import build_for_sizes
from graphc.options import Options
from graphc.settings import override
from tests.sizes.leaks import no_leaks
from tests.sizes.programs import PROGRAMS

SIZES = (17, 21, 26, 23, 19, 31, 2, 1, 40, 22)
ALONE = ("numbers", "resized_images", "recurrent_over_time")
"""Whose graphs have numbers that are no expression of sizes, or as many ops as the size says."""
BY_TRITON = ("pointwise", "reductions", "attention", "images", "recurrent")
"""Programs for both backends in `make check`; the suites have all for both."""
LEAST_REUSED = {**dict.fromkeys(ALONE, 0), "images": 1}


def close(found, expected, what):
    leaves = torch.utils._pytree.tree_leaves
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        if isinstance(other, torch.Tensor):
            wide = {} if other.dtype is torch.bfloat16 else {"rtol": 2e-4, "atol": 2e-5}
            torch.testing.assert_close(one, other, msg=lambda text: f"{what}: {text}", equal_nan=True, **wide)
        else:
            assert one == other, what


def made(name, backend="c"):
    """A program's function, compiled and eager, and its inputs."""
    make, inputs = PROGRAMS[name]
    torch.manual_seed(0)
    eager = make()
    torch.manual_seed(0)
    return graphc.compile(make(), backend=backend), eager, inputs


@pytest.mark.parametrize("name", PROGRAMS)
def test_right_for_every_size(name):
    fn, eager, inputs = made(name)
    for n in SIZES:
        compare(fn, eager, inputs, n)
    builds, reuses = fn.stats().builds, fn.stats().reuses
    assert fn.stats().eager_calls == 0
    assert reuses >= LEAST_REUSED.get(name, 3), f"{builds} builds, used again {reuses} times"


@pytest.mark.suite
@pytest.mark.parametrize("name", PROGRAMS)
def test_right_for_many_sizes(name):
    fn, eager, inputs = made(name)
    for n in (*SIZES, *range(1, 72)):
        compare(fn, eager, inputs, n)


def compare(fn, eager, inputs, n):
    """Both on equal inputs of a size, or both refuse them."""
    torch.manual_seed(n)
    given = inputs(n)
    with override(max_recompiles=1000):
        try:
            expected = eager(*(item.clone() for item in given))
        except Exception as error:
            with pytest.raises(type(error)):
                fn(*given)
        else:
            close(fn(*given), expected, f"for {n}")


@pytest.mark.parametrize(
    "backend, name",
    [
        *(("c", name) for name in PROGRAMS),
        *(pytest.param("triton", name, marks=[pytest.mark.suite] * (name not in BY_TRITON)) for name in PROGRAMS),
    ],
)
def test_nothing_belongs_to_one_size(backend, name):
    """Built for two sizes that meet the same conditions, a program is the same: its text, its steps, its outputs.

    And nobody has taken the value of one unseen.
    """
    fn, _, inputs = made(name)
    with override(cache=False):
        for n in SIZES[:3]:
            fn(*inputs(n))
    generals = [family.general for family in fn.families if family.general is not None]
    assert generals or name in ALONE
    options, compared = Options(name, backend), 0
    for general in generals:
        sizes = dict.fromkeys(general.sizes, 21)
        graph, conditions = general.graph(sizes)
        program, _ = build_for_sizes(options, backend, graph)
        near = [n for n in range(16, 32) if n != 21 and conditions.hold(dict.fromkeys(sizes, n))]
        for other in near[-1:]:
            graph, others = general.graph(dict.fromkeys(sizes, other))
            with no_leaks():
                again, _ = build_for_sizes(options, backend, graph)
            assert again.sources == program.sources
            for n in (21, other):
                values = dict.fromkeys(sizes, n)
                one, two = (p.for_sizes(c.all_sizes(values)) for p, c in ((program, conditions), (again, others)))
                assert one.steps == two.steps and one.outputs == two.outputs and one.kernels == two.kernels
            compared += 1
    assert compared or name in ALONE
