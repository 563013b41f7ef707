"""Tensors made on the CPU and sent to another device are made there, where they depend on positions alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from graphc.frontend.aten.creation import fill, to_copy
from graphc.frontend.aten.elsewhere import made_on, moved
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.registry import Decline
from graphc.frontend.capture import capture
from graphc.ir.graph import Builder, Graph, Role, Value
from graphc.ir.interpreter import run
from graphc.ir.types import TensorType, f32, i64
from graphc.ops import infer
from graphc.passes.base import PassContext
from graphc.passes.dce import EliminateDeadCode

MADE: dict[str, Callable[[], torch.Tensor]] = {
    "causal": lambda: nn.Transformer.generate_square_subsequent_mask(6),
    "tril": lambda: torch.tril(torch.ones(5, 5, dtype=torch.bool), diagonal=-1),
    "window": lambda: (torch.arange(7)[:, None] - torch.arange(7)).abs() <= 2,
    "slopes": lambda: torch.cat([torch.arange(4.0) * 0.5, torch.full((3,), math.pi)]).half(),
    "eye": lambda: torch.eye(4),
    "zeros": lambda: torch.zeros(2, 3, dtype=torch.int32),
}


def sent(fn: Callable[..., torch.Tensor], *args: torch.Tensor) -> tuple[Value, torch.Tensor]:
    """What the rule of `.to(device)` makes of a result; and that, made on the CPU again, with its contents."""
    graph = capture(fn, args).graph
    imp, (output,) = Importer(Builder(graph, infer)), graph.outputs
    assert isinstance(output.value, Value)
    value = to_copy(imp, output.value, device=torch.device("cuda", 0))
    graph.outputs = [replace(output, value=value)]
    EliminateDeadCode().run(graph, PassContext())
    assert {op.results[0].device for op in graph.ops} == {"cuda:0"}  # nothing is left on the CPU
    graph.outputs = [replace(output, value=made_on(imp, value, "cpu"))]
    EliminateDeadCode().run(graph, PassContext())
    return value, run(graph, [])[0]


@pytest.mark.parametrize("name", MADE)
def test_made_there(name: str) -> None:
    value, back = sent(MADE[name])
    wanted = MADE[name]()
    assert value.device == "cuda:0" and value.shape == wanted.shape
    assert back.dtype == wanted.dtype and torch.equal(back, wanted)


@pytest.mark.parametrize(
    "fn",
    [lambda: torch.rand(3), lambda: torch.arange(3.0).exp(), lambda: torch.arange(3.0).long()],
    ids=["drawn", "inexact", "out of range"],
)
def test_what_differs_from_device_to_device_is_copied(fn: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(Decline, match="a copy between devices"):
        sent(fn)


def test_what_an_input_decides_is_copied() -> None:
    x = torch.ones(3)
    with pytest.raises(Decline, match="a copy between devices"):
        sent(lambda x: torch.arange(3.0) + x, x)


def test_a_number_put_into_a_tensor_elsewhere_is_no_copy() -> None:
    """`x[0] = 3` is a fill by a tensor of the CPU, wherever x is."""
    builder = Builder(Graph("fill"), infer)
    x = builder.input("x", TensorType(f32, (4, 5), "cuda:0"), Role.ARG, "x")
    number = builder.op("full", shape=(), dtype=i64, value=3, device="cpu")
    found = fill(Importer(builder), x, number)
    assert (found.device, found.shape, found.dtype) == ("cuda:0", (4, 5), f32)
    assert "extern" not in {op.name for op in builder.graph.ops}


def test_other_tensors_are_copied_alone() -> None:
    """So that what is written fuses with what follows."""
    builder = Builder(Graph("fill"), infer)
    s = builder.input("s", TensorType(f32, (), "cpu"), Role.ARG, "s")
    found = moved(Importer(builder), s, "meta")
    assert found.op is not None and found.op.attrs["op"] == "aten._to_copy.default" and found.device == "meta"
    assert moved(Importer(builder), s, "cpu") is s
