"""Runs a module in eager and as a graph, and compares outputs, strides and state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from graphc.frontend.capture import capture
from graphc.ir import interpreter
from graphc.ir.graph import Graph
from graphc.passes.base import PassContext
from graphc.passes.expand import ExpandComposites
from tests.ops.expansion import wide
from tests.support import assert_contract


class Call(torch.nn.Module):
    """A function as a module, so that functions and modules are checked alike."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def leaves(value: Any) -> list[torch.Tensor]:
    """Tensors of nested tuples and lists, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, (tuple, list)) else []


def externs(graph: Graph) -> set[str]:
    """ATen calls left in a graph."""
    return {op.attrs["op"] for op in graph.ops if op.name == "extern"}


@torch.no_grad()
def check(module: torch.nn.Module | Callable[..., Any], *args: Any, strides: bool = True, exact: bool = True) -> Graph:
    """Compare a graph of one call with eager: as captured, and with every composite op expanded.

    Args:
        module: a module in the mode it is to run in, or a function.
        *args: of the call.
        strides: outputs must have eager's strides.
        exact: compare with a float64 run; False for random numbers, which under numerics="eager" must be eager's own.

    Returns:
        The graph as captured.
    """
    target = module if isinstance(module, torch.nn.Module) else Call(module)
    for expand in (False, True):
        ours, theirs = copy.deepcopy(target), copy.deepcopy(target)
        torch.manual_seed(0)
        expected = leaves(theirs(*copy.deepcopy(args)))
        state = torch.get_rng_state()
        precise = expected
        if exact:
            precise = leaves(copy.deepcopy(target).double()(*(wide(a) for a in copy.deepcopy(args))))
        torch.manual_seed(0)
        captured = capture(ours, args, numerics="default" if exact else "eager")
        graph = captured.graph
        inputs = captured.match(args, {})
        assert inputs is not None, captured.explain_miss(args, {})
        if expand:
            ExpandComposites().run(graph, PassContext())
        answers = leaves(captured.rebuild(interpreter.run(graph, inputs), inputs))
        assert len(answers) == len(expected)
        for answer, eager, reference in zip(answers, expected, precise, strict=True):
            if exact:
                assert_contract(answer, eager, reference)
            else:
                torch.testing.assert_close(answer, eager, rtol=1e-5, atol=1e-6, equal_nan=True)
            assert not strides or answer.stride() == eager.stride(), f"{answer.stride()}, eager {eager.stride()}"
        for (name, mine), (_, eager) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
            torch.testing.assert_close(mine, eager, msg=lambda text, name=name: f"{name}: {text}")
        assert torch.equal(torch.get_rng_state(), state), "the generator stands elsewhere than after eager"
    return graph if not expand else capture(copy.deepcopy(target), args, numerics="default" if exact else "eager").graph
