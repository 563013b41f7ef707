"""One graph for several that differ in sizes."""

import pytest

from graphc.ir import parse
from graphc.ir.generalize import generalize, outline, with_numbers
from graphc.ir.sizes import plain

TEXT = """
graph f(%x: f32[{n}, 64] arg "x", %w: f32[64, 64] param "w") {{
  %0: f32[{n}, 64] = matmul(%x, %w)
  %1: f32[{all}] = reshape(%0) {{shape=[{all}]}}
  %2: f32[{all}] = mul(%1, {all})
  return %2
}}
"""


def graph_for(n: int, text: str = TEXT, **more: int):
    return parse(text.format(n=n, all=64 * n, **more))


def test_numbers_that_differ_become_expressions():
    general = generalize([outline(graph_for(33)), outline(graph_for(43))])
    graph, conditions = general.graph({"size0": 50})
    assert str(graph).splitlines()[:-1] == [
        'graph f(%x: f32[size0, 64] arg "x", %w: f32[64, 64] param "w") {',
        "  %0: f32[size0, 64] = matmul(%x, %w)",
        "  %1: f32[(size0*64)] = reshape(%0) {shape=[(size0*64)]}",
        "  %2: f32[(size0*64)] = mul(%1, (size0*64))",
        "  return %2",
    ]
    assert with_numbers(graph, plain) == graph_for(50)
    assert conditions.hold({"size0": 63}) and not conditions.hold({"size0": 64}), "within a factor of two"


def test_a_graph_is_looked_up_with_all_its_numbers():
    general = generalize([outline(graph_for(33)), outline(graph_for(43))])
    assert general.sizes_of(outline(graph_for(7))) == {"size0": 7}
    other = parse(TEXT.format(n=7, all=448).replace("mul(%1, 448)", "mul(%1, 449)"))
    assert general.sizes_of(outline(other)) is None
    assert general.sizes_of(outline(parse(TEXT.format(n=7, all=448).replace("mul(", "add(")))) is None


STRIDED = """
graph f(%x: f32[2, {n}] arg "x") {{
  %0: f32[2, {half}] = slice(%x) {{dim=1, start=0, end={n}, step=2}}
  %1: f32[{both}] = reshape(%0) {{shape=[{both}]}}
  return %1
}}
"""


def strided(n: int):
    half = (n + 1) // 2
    return outline(parse(STRIDED.format(n=n, half=half, both=2 * half)))


def test_divisions_are_found_from_enough_graphs():
    wrong = generalize([strided(8), strided(12)])  # both even: n // 2, it seems
    assert wrong.sizes_of(strided(10)) == {"size0": 10} and wrong.sizes_of(strided(9)) is None
    right = generalize([strided(8), strided(12), strided(9)])
    assert [right.sizes_of(strided(n)) for n in (8, 9, 31, 90)] == [{"size0": n} for n in (8, 9, 31, 90)]
    graph, _ = right.graph({"size0": 31})
    assert with_numbers(graph, plain) == strided(31).graph and "size1" in str(graph)


WINDOW = """
graph f(%x: f32[{n}, {wide}] arg "x") {{
  %0: f32[{all}] = reshape(%x) {{shape=[{all}]}}
  return %0
}}
"""


def window(n: int):
    return outline(parse(WINDOW.format(n=n, wide=n + 3, all=n * (n + 3))))


def test_products_of_dims_that_grow_together():
    general = generalize([window(10), window(12), window(17)])
    assert [general.sizes_of(window(n)) for n in (9, 40)] == [{"size0": 9}, {"size0": 40}]
    assert str(general.graph({"size0": 9})[0]).splitlines()[1] == (
        "  %0: f32[(size0*3 + size0*size0)] = reshape(%x) {shape=[(size0*3 + size0*size0)]}"
    )


def test_dims_that_differ_by_themselves_are_sizes_of_their_own():
    text = 'graph f(%x: f32[{n}, {m}] arg "x", %y: f32[{m}, {k}] arg "y") {{\n  return %x, %y\n}}\n'

    def made(n, m, k):
        return outline(parse(text.format(n=n, m=m, k=k)))

    general = generalize([made(4, 8, 9), made(8, 16, 17)])  # m = 2 n and k = 2 n + 1, as far as one can see
    assert list(general.sizes) == ["size0"] and general.sizes_of(made(5, 11, 12)) is None
    general = generalize([made(4, 8, 9), made(8, 16, 17), made(5, 11, 12)])
    assert general.sizes_of(made(30, 3, 4)) == {"size0": 30, "size1": 3}
    assert general.sizes_of(made(30, 3, 5)) is None, "k is m + 1"


@pytest.mark.parametrize(
    "text",
    [
        'graph f(%w: f32[{n}] param "w") {{\n  return %w\n}}\n',
        'graph f(%x: f32[3] arg "x") {{\n  %0: f32[3] = mul(%x, {n})\n  return %0\n}}\n',
    ],
    ids=["a parameter", "no dim"],
)
def test_what_is_no_size_of_an_input(text):
    assert generalize([outline(graph_for(4, text)), outline(graph_for(6, text))]) is None


def test_what_cannot_be_found():
    text = 'graph f(%x: f32[{n}] arg "x") {{\n  %0: f32[{n}] = mul(%x, {odd})\n  return %0\n}}\n'
    found = [outline(graph_for(n, text, odd=odd)) for n, odd in ((4, 17), (6, 5), (9, 1000), (11, 3))]
    assert generalize(found) is None
