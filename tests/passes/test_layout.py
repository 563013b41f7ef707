"""Strides: views without copies as torch has them, and places that index expressions cover."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.ir.dims import Dim, symbol
from graphc.passes.group import Group
from graphc.passes.layout import Layouts, view_strides
from tests.passes.planned import graph_of

SIZES = st.lists(st.sampled_from((1, 2, 3, 4)), min_size=1, max_size=4)


@given(SIZES, st.randoms(use_true_random=False), st.data())
@settings(max_examples=200, deadline=None)
def test_reshapes_are_views_where_torch_says_so(sizes: list[int], random: object, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(sizes))))
    tensor = torch.empty(sizes).permute(order)
    if tensor.dim() > 1 and data.draw(st.booleans()):
        tensor = tensor[::2]
    total = tensor.numel()
    new = data.draw(st.sampled_from([shape for shape in _shapes(total) if len(shape) <= 4]))
    found = view_strides(tuple(tensor.shape), tensor.stride(), new)
    try:
        expected = tensor.view(new).stride()
    except RuntimeError:
        assert found is None
        return
    assert found is not None
    assert all(size == 1 or a == b for size, a, b in zip(new, found, expected, strict=True))


def _shapes(total: int) -> list[tuple[int, ...]]:
    found = [(total,), (1, total), (total, 1)]
    for first in range(2, total + 1):
        if total % first == 0:
            found.append((first, total // first))
            rest = total // first
            found += [(first, second, rest // second) for second in range(1, rest + 1) if rest % second == 0]
    return found


def test_a_chain_of_views_is_one_place() -> None:
    graph = graph_of("""
graph f(%x: f32[2, 5, 12] arg "x") {
  %0: f32[2, 5, 4] = slice(%x) {dim=2, start=4, stop=8, step=1}
  %1: f32[2, 5, 2, 2] = reshape(%0) {shape=[2, 5, 2, 2]}
  %2: f32[2, 2, 5, 2] = permute(%1) {dims=[0, 2, 1, 3]}
  %3: f32[3, 2, 2, 5, 2] = expand(%2) {shape=[3, 2, 2, 5, 2]}
  return %3
}""")
    place = Layouts().place(graph.ops[-1].results[0])
    assert place.base is graph.inputs[0]
    assert place.strides == (0, 60, 2, 12, 1) and place.offset == 4


def test_it_ends_where_a_copy_is_needed() -> None:
    graph = graph_of("""
graph f(%x: f32[3, 4] arg "x") {
  %0: f32[4, 3] = permute(%x) {dims=[1, 0]}
  %1: f32[12] = reshape(%0) {shape=[12]}
  %2: f32[6] = slice(%1) {dim=0, start=3, stop=9, step=1}
  return %2
}""")
    place = Layouts().place(graph.ops[-1].results[0])
    assert place.base is graph.ops[1].results[0] and place.offset == 3


def _space(**axes: int) -> Group:
    group = Group("cpu", 0, dict(axes))
    group.ranges = {name: (0, extent - 1) for name, extent in axes.items()}
    return group


A, B = symbol("a"), symbol("b")


@pytest.mark.parametrize(
    ("axes", "index", "shape", "covered"),
    [
        ({"a": 4, "b": 6}, (A, B), (4, 6), {"a", "b"}),
        ({"a": 4, "b": 6}, (B, A), (6, 4), {"a", "b"}),
        ({"a": 24}, (A // 6, A % 6), (4, 6), {"a"}),
        ({"a": 4, "b": 6}, (A * 6 + B,), (24,), {"a", "b"}),
        ({"a": 24}, (A % 6, A // 6), (6, 4), {"a"}),
        ({"a": 4, "b": 6}, (A,), (4,), {"a"}),
        ({"a": 4}, (0, 0), (1, 1), set()),
        ({"a": 4, "b": 6}, (A, B), (4, 7), None),
        ({"a": 4, "b": 6}, (A, B + 1), (4, 7), None),
        ({"a": 4, "b": 6}, (A + B,), (24,), None),
        ({"a": 4}, (A, A), (4, 4), None),
        ({"a": 8}, (A // 2,), (4,), None),
        ({"a": 4}, (3 - A,), (4,), None),
    ],
)
def test_covered_axes(axes: dict[str, int], index: tuple[Dim, ...], shape: tuple[int, ...], covered: object) -> None:
    assert _space(**axes).covers(index, shape) == covered
