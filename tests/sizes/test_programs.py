"""The programs of the end-to-end tests for batches, and rows, of other sizes than theirs."""

from collections import Counter

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import graphc
from graphc.settings import override
from tests.e2e.programs import PROGRAMS, Program

SAMPLE = 6
OWN = ("dropout_train",)
"""Whose random numbers are graphc's own."""


def resized(args, old, new, dim):
    """Arguments with dims of one size as long as another, made of what is in them again and again."""

    def change(item):
        if not isinstance(item, torch.Tensor):
            return item
        if item.dim() > dim and item.shape[dim] == old:
            item = item.detach().index_select(dim, torch.arange(new) % old).requires_grad_(item.requires_grad)
        return item.detach().clone().requires_grad_(item.requires_grad)

    return tree_map(change, args)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, id=program.name, marks=() if number % SAMPLE == 0 else pytest.mark.suite)
        for number, program in enumerate(item for item in PROGRAMS if item.name not in OWN)
    ],
)
@pytest.mark.parametrize("dim", [0, 1])
def test_other_sizes(program: Program, dim: int) -> None:
    given = program.inputs()
    shapes = [item.shape for item in tree_leaves(given) if isinstance(item, torch.Tensor)]
    found = Counter(shape[dim] for shape in shapes if len(shape) > dim and shape[dim] > 2)
    if not found:
        pytest.skip("no dim to change")
    ((old, _),) = found.most_common(1)
    torch.manual_seed(0)
    eager = program.make()
    torch.manual_seed(0)
    compiled = graphc.compile(program.make(), backend="c")
    with override(max_recompiles=100):
        for new in (old, old + 2, old + 3, 2 * old - 1, old + 1, old + 2):
            args, same = (resized(given, old, new, dim) for _ in range(2))
            torch.manual_seed(1)
            try:
                expected = eager(*args)
            except Exception as error:  # sizes that do not fit each other
                with pytest.raises(type(error)):
                    compiled(*same)
                continue
            torch.manual_seed(1)
            results = compiled(*same)
            for one, other in zip(tree_leaves((results, same)), tree_leaves((expected, args)), strict=True):
                if isinstance(other, torch.Tensor):
                    torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4, equal_nan=True)
    assert not [reason for reason in compiled.stats().alone if "one size" not in reason]
