"""`Graph.copy`: equal, and of its own values and ops."""

from __future__ import annotations

from hypothesis import given

from graphc.ir import Graph
from tests.strategies import graphs


@given(graphs())
def test_copy_is_equal_and_shares_nothing(graph: Graph) -> None:
    twin = graph.copy()
    assert twin == graph
    assert str(twin) == str(graph)
    assert not set(map(id, graph.values())) & set(map(id, twin.values()))
    assert not set(map(id, graph.ops)) & set(map(id, twin.ops))
    own = {id(value) for value in twin.values()}
    ends = [o.value for o in twin.outputs] + [w.value for w in twin.writes] + [w.target for w in twin.writes]
    assert all(id(value) in own for op in twin.ops for value in op.inputs)
    assert all(id(value) in own for value in ends)
    assert all(result.op is op for op in twin.ops for result in op.results)
