"""The plan that a program would have on a GPU that need not be there.

A function is captured on CPU tensors; then its graph is put on the device, as if its tensors had been there, and goes
through the same passes as any graph of that device. Step counters of optimizers stay on the CPU, where torch.optim
makes them. Library calls are those that torch makes on a CPU: attention, for one, is another overload on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from graphc import driver
from graphc.ir.graph import Graph, Input, Op, Value, regions
from graphc.ir.types import TensorType
from graphc.ops import infer
from graphc.ops.foreach import rows_of
from graphc.options import make_options
from graphc.program.plan import Plan

DEVICE = "cuda:0"


def placed_plan(fn: Callable[..., Any], args: tuple[Any, ...], device: str = DEVICE) -> Plan:
    """The plan of `fn` on a device.

    Args:
        fn: any function or module; it is captured, not run.
        args: for it, on the CPU.

    Raises:
        What a capture of `fn` raises.
    """
    options = make_options(fn, backend="triton")
    graph = driver.capture(fn, args, {}, options, frozenset()).graph
    place(graph, device)
    return driver.plan_for(graph, options, "triton")


def place(graph: Graph, device: str) -> None:
    """Put a graph that was captured on the CPU on a device, in place."""
    for item in graph.inputs:
        if not _stays(item):
            item.type = _moved(item.type, device)
    _place(graph, device)


def _stays(item: Input) -> bool:
    return not item.type.shape and item.path.endswith(".step")


def _moved(type: TensorType, device: str) -> TensorType:
    return replace(type, device=device) if type.device == "cpu" else type


def _place(graph: Graph, device: str) -> None:
    """Give all values of a graph, whose inputs have been placed, the devices that follow."""
    for op in graph.ops:
        if op.attrs.get("device") == "cpu":
            op.attrs["device"] = device
        for body in regions(op):
            _place_inputs(op, body, device)
            _place(body, device)
        if op.name == "extern":
            for result in op.results:
                result.type = _moved(result.type, device)
            continue
        for result, type in zip(op.results, infer(op.name, op.operands, op.attrs), strict=True):
            result.type = type


def _place_inputs(op: Op, body: Graph, device: str) -> None:
    if op.name == "foreach":
        rows = rows_of(op)
        given = [*(values[0] for values in rows.lists), *rows.shared]
        for item, value in zip(body.inputs, given, strict=True):
            assert isinstance(value, Value)
            item.type = replace(item.type, device=value.device)
        return
    for item in body.inputs:
        item.type = _moved(item.type, device)
