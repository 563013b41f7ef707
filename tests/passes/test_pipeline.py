"""The pipeline as a whole: same meaning, same aliases, locations kept, records, settings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from graphc.errors import InvalidGraphError
from graphc.ir import Graph, Op, TensorType, parse, run, verify
from graphc.ir.types import f32
from graphc.passes.base import PassContext, PassResult, Rewriter, literal_as
from graphc.passes.expand import ExpandComposites
from graphc.passes.pipeline import CLEAN_UP, PREPARE, optimize, run_pass
from graphc.settings import Settings
from tests.strategies import graphs, random_inputs

CHECKED = PassContext(settings=Settings(verify_passes=True))


def _key(tensor: torch.Tensor) -> tuple[object, ...]:
    numbers = [repr(item) for item in tensor.double().flatten().tolist()]
    return tensor.dtype, tensor.stride(), tuple(tensor.shape), numbers


def _sharing(tensors: list[torch.Tensor]) -> list[int]:
    pointers = [item.untyped_storage().data_ptr() for item in tensors]
    return [pointers.index(pointer) if pointer else -1 for pointer in pointers]


@settings(max_examples=150, deadline=None)
@given(graphs(max_ops=14))
def test_random_graphs_keep_their_meaning_bit_for_bit(graph: Graph) -> None:
    before = parse(str(graph))
    inputs = random_inputs(graph, specials=True)
    ours, theirs = [item.clone() for item in inputs], [item.clone() for item in inputs]
    optimize(graph, CHECKED)
    actual, expected = [*run(graph, ours), *ours], [*run(before, theirs), *theirs]
    assert list(map(_key, actual)) == list(map(_key, expected)), f"{before}\n{graph}"
    assert _sharing(actual) == _sharing(expected)


@settings(max_examples=60, deadline=None)
@given(graphs(max_ops=14))
def test_no_pass_drops_locations(graph: Graph) -> None:
    known = {op.location for op in graph.ops}
    for item in (*PREPARE, *CLEAN_UP):
        run_pass(item, graph, CHECKED)
        assert {op.location for op in graph.ops} <= known, item.name


@settings(max_examples=60, deadline=None)
@given(graphs(max_ops=14))
def test_the_result_is_a_fixpoint(graph: Graph) -> None:
    optimize(graph)
    text = str(graph)
    records = optimize(graph)
    assert str(graph) == text
    assert not any(record.modified for record in records)


TEXT = """graph f(%x: f32[4, 8] arg "x") {
  %0: f32[4, 8] = softmax(%x) {dim=1}  # model.py:3
  %1: f32[4, 8] = mul(1.0, %0)  # model.py:4
  return %1
}"""


def test_records_and_hook() -> None:
    graph, seen = parse(TEXT), []
    records = optimize(graph, PassContext(on_pass=lambda name, g: seen.append((name, len(g.ops)))))
    assert [record.name for record in records[: len(PREPARE)]] == [item.name for item in PREPARE]
    assert [(record.name, record.ops_after) for record in records] == seen
    expand = next(record for record in records if record.name == "expand-composites")
    assert expand.modified and (expand.ops_before, expand.ops_after) == (1, 5)
    assert all(record.seconds >= 0 for record in records)


def test_kept_composites_stay_whole() -> None:
    graph = parse(TEXT)
    optimize(graph, PassContext(keep=frozenset({"softmax"})))
    assert [op.name for op in graph.ops] == ["softmax"]


def test_print_after(capsys: pytest.CaptureFixture[str]) -> None:
    optimize(parse(TEXT), PassContext(settings=Settings(print_after=("dce",))))
    printed = capsys.readouterr().err
    assert printed.count("# after dce\ngraph f(") == 2
    assert "canonicalize" not in printed


class _Breaks:
    name = "breaks"

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        graph.ops[0].result.type = TensorType(f32, (1,))
        return PassResult(True)


def test_verify_passes_names_the_pass() -> None:
    with pytest.raises(InvalidGraphError, match="pass breaks broke the graph: graph f: %0 is stated as"):
        run_pass(_Breaks(), parse(TEXT), CHECKED)
    run_pass(_Breaks(), parse(TEXT), PassContext())


def test_an_expansion_that_returns_its_operand_gives_a_copy() -> None:
    text = """graph f(%x: f32[4] arg "x") {
      %0: f32[4] = dropless(%x)
      return %0, %x
    }"""
    from dataclasses import replace

    from graphc import ops

    passing = replace(ops.get("sigmoid"), name="dropless", expand=lambda builder, op: [op.operands[0]])
    context = PassContext(get_def=lambda name: passing if name == "dropless" else ops.get(name))
    graph = parse(text)
    assert ExpandComposites().run(graph, context).modified
    assert [op.name for op in graph.ops] == ["reshape"]
    verify(graph)


def test_a_replacement_of_another_type_is_refused() -> None:
    graph = parse('graph f(%x: f32[4] arg "x", %y: f32[1] arg "y") {\n %0: f32[4] = mul(%x, %y)\n return %0\n}')

    def wrong(rewriter: Rewriter, op: Op) -> list:
        return [op.operands[1]]

    result = Rewriter(graph, PassContext()).run(wrong)
    assert not result.modified and [op.name for op in graph.ops] == ["mul"]


def test_a_rewrite_that_never_settles_ends() -> None:
    graph = parse('graph f(%x: f32[4] arg "x") {\n %0: f32[4] = exp(%x)\n return %0\n}')
    Rewriter(graph, PassContext()).run(lambda rewriter, op: [rewriter.op("exp", op.operands[0])])
    assert [op.name for op in graph.ops] == ["exp"]
    Rewriter(graph, PassContext()).run(lambda rewriter, op: op.results)
    assert [op.name for op in graph.ops] == ["exp"]
    verify(graph)


def test_literal_as() -> None:
    from graphc.ir.types import bool_, i8, u8

    assert literal_as(200, i8) == -56 and literal_as(-1, u8) == 255 and literal_as(3, f32) == 3.0
    assert literal_as(0.5, bool_) is True
