"""The path that one call takes through a function that branches on data, as one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from graphc import driver
from graphc.errors import UnsupportedError
from graphc.frontend.captured import Captured
from graphc.frontend.segments import PathRaises, Step
from graphc.ir.graph import Graph
from graphc.ir.interpreter import run as interpret
from graphc.options import Options
from graphc.path_nodes import Walk, ask


def capture_whole(
    target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
) -> Captured:
    """Capture a call; decisions on data are taken as these arguments have them, the programs before run op by op.

    Returns:
        The capture. Its `graph`, or its joint graph, is all of the path, without checks of the decisions.

    Raises:
        Exception: what the function itself raises on this path.
    """
    walk = Walk(args, kwargs, [])
    while True:
        try:
            captured = driver.capture(target, args, kwargs, options, frozenset(), walk.steps)
        except PathRaises as raised:
            raise raised.error from None
        segment = captured.segment
        if segment is None or segment.question is None:
            break
        found = captured.match(args, kwargs)
        captured.withdraw()
        if found is None:
            raise UnsupportedError(f"{options.name} changes, while it runs, what its own compilation depends on")
        walk.inputs = found
        with torch.no_grad():
            outputs = interpret(segment.graph, [walk.find(feed) for feed in segment.feeds])
        kept = {name: walk.values[name] for name in segment.keep}
        walk.values = {**dict(zip(segment.outputs, outputs, strict=True)), **kept}
        _, answer = ask(segment.question, walk)
        walk.steps.append(Step(segment, answer))
    if segment is not None:
        _drop_checks(captured)
    return captured


def _drop_checks(captured: Captured) -> None:
    """Take out what checks the decisions: the arguments of this call are all that the graph is run on."""
    assert captured.path is not None
    graph = captured.path if captured.joint is None else captured.joint.graph
    gradients = 0 if captured.joint is None else len(captured.joint.wanted)
    stop = len(graph.outputs) - gradients
    del graph.outputs[stop - captured.checks : stop]
    _drop_unused(graph)
    if captured.joint is None:
        captured.graph = graph


def _drop_unused(graph: Graph) -> None:
    live = graph.live_out()
    kept = []
    for op in reversed(graph.ops):
        if op.name != "checked" or any(result in live for result in op.results):
            live.update(op.inputs)
            kept.append(op)
    graph.ops = kept[::-1]
