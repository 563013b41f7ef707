"""Equal composites are expanded once and copied: the copies are what expanding each by itself gives."""

from __future__ import annotations

from graphc.ir.graph import Builder, Graph, Output, Role
from graphc.ir.types import Location, TensorType, f32
from graphc.ops import infer
from graphc.passes.base import PassContext
from graphc.passes.expand import ExpandComposites


def _graph(times: int) -> Graph:
    graph = Graph("f")
    builder = Builder(graph, infer)
    value = builder.input("x", TensorType(f32, (4, 8)), Role.ARG, "x")
    for number in range(times):
        builder.location = Location("model.py", number + 1, "forward")
        value = builder.op("softmax", value, dim=1)
    graph.outputs.append(Output(value))
    return graph


def test_copies_are_as_the_first() -> None:
    one, three = _graph(1), _graph(3)
    for graph in (one, three):
        ExpandComposites().run(graph, PassContext())
    size = len(one.ops)
    assert len(three.ops) == 3 * size
    for number, op in enumerate(three.ops):
        model = one.ops[number % size]
        assert (op.name, op.attrs, [r.type for r in op.results]) == (
            model.name,
            model.attrs,
            [r.type for r in model.results],
        )
        assert op.location.line == number // size + 1
    assert len({result.name for op in three.ops for result in op.results}) == len(three.ops)
