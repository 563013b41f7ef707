"""One build for many sizes, on the CPU: right for each, free of numbers that belong to one, and few."""

import pytest
import torch

import graphc
from graphc.driver import build_for_sizes
from graphc.options import Options
from graphc.settings import override
from tests.sizes.programs import PROGRAMS

FIRST, SECOND = 17, 21
FURTHER = (26, 23, 31, 19, 9, 12, 2, 3, 1, 40, 33, 47, 64, 21)


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


def families_of(fn):
    return list(fn.families._families.values())


@pytest.mark.parametrize("name", PROGRAMS)
def test_right_for_every_size(name):
    fn, eager, inputs = made(name)
    with override(max_recompiles=1000):
        for n in (FIRST, SECOND, *FURTHER):
            torch.manual_seed(n)
            given = inputs(n)
            try:
                expected = eager(*(item.clone() for item in given))
            except Exception as error:
                with pytest.raises(type(error)):
                    fn(*given)
                continue
            close(fn(*given), expected, f"{name} for {n}")
    assert fn.stats().eager_calls == 0
    print(name, fn.families.builds, fn.families.reuses, [f.refusal[:300] for f in families_of(fn)])


@pytest.mark.parametrize("backend", ["c", "triton"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_belongs_to_one_size(name, backend):
    """Built for two sizes that meet the same conditions, a program is the same: text, records, and where things lie."""
    fn, _, inputs = made(name)
    for n in (FIRST, SECOND):
        fn(*inputs(n))
    compared = 0
    for family in families_of(fn):
        general = family.general
        if general is None:
            continue
        for start in (SECOND, 41):
            sizes = dict.fromkeys(general.sizes, start)
            graph, conditions = general.graph(sizes)
            program, _ = build_for_sizes(Options(name, backend), backend, graph)
            near = [n for n in range(start // 2, 2 * start) if conditions.hold(dict.fromkeys(sizes, n)) and n != start]
            for other in near[:1] + near[-1:]:
                graph, others = general.graph(dict.fromkeys(sizes, other))
                again, _ = build_for_sizes(Options(name, backend), backend, graph)
                assert again.sources == program.sources, (start, other)
                for n in (start, other):
                    values = dict.fromkeys(sizes, n)
                    one, two = (p.for_sizes(c.all_sizes(values)) for p, c in ((program, conditions), (again, others)))
                    assert one.steps == two.steps and one.outputs == two.outputs, (start, other, n)
                compared += 1
    print(name, backend, compared)
