"""What is told of values by positions alone, against the values themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import graphc
from graphc.ir.graph import Graph, Operand
from graphc.passes.positions import Line, Step, tell

SIZE = 9
Make = Callable[[torch.Tensor], torch.Tensor]


def _ones() -> torch.Tensor:
    return torch.ones(SIZE, SIZE)


TOLD: dict[str, Make] = {
    "triu": lambda i: _ones().triu(1).bool(),
    "tril == 0": lambda i: _ones().tril() == 0,
    "not tril": lambda i: ~_ones().bool().tril(-2),
    "arange": lambda i: i > i[:, None],
    "arange, turned": lambda i: i[:, None] < i,
    "of a difference": lambda i: i[:, None] - i - 3 >= 0,
    "negated": lambda i: -i[:, None] + i > 2,
    "infinities": lambda i: torch.full((SIZE, SIZE), -torch.inf).triu(1),
    "filled": lambda i: torch.zeros(SIZE, SIZE).masked_fill(_ones().triu(2).bool(), -5.0),
    "arithmetic": lambda i: (1 - _ones().tril()) * -1e9,
    "cut from larger": lambda i: torch.ones(1, 1, 20, 20).tril()[:, :, :SIZE, :SIZE] == 0,
    "cut from the middle": lambda i: torch.ones(20, 20).tril()[3 : 3 + SIZE, 1 : 1 + SIZE],
    "in more dims": lambda i: torch.triu(torch.ones(1, 1, SIZE, SIZE), diagonal=1).bool(),
    "expanded": lambda i: i.view(1, -1).expand(SIZE, SIZE) > i.view(-1, 1),
    "the same everywhere": lambda i: _ones().bool() & True,
    "both steps at one place": lambda i: (i > i[:, None]) & _ones().triu(1).bool(),
}  # fmt: skip
NOT_TOLD: dict[str, Make] = {
    "window": lambda i: (i > i[:, None]) | (i < i[:, None] - 4),
    "blocks": lambda i: i // 3 > i[:, None] // 3,
    "along one dim": lambda i: (i > 4).expand(SIZE, SIZE),
    "of slopes": lambda i: 2 * i > i[:, None],
    "flipped": lambda i: (i > i[:, None]).flip(0),
    "transposed": lambda i: (i > i[:, None]).t(),
    "data": lambda i: torch.eye(SIZE).cumsum(0) > 0,
}


def _last(make: Make) -> Graph:
    def program(x: torch.Tensor) -> torch.Tensor:
        found = make(torch.arange(SIZE))
        return x + found.to(torch.float32)

    return graphc.trace(program, torch.zeros(SIZE, SIZE))


def _operand(graph: Graph) -> Operand:
    op = graph.outputs[0].value.op
    assert op is not None
    return next(item for item in op.operands if item is not graph.inputs[0])


@pytest.mark.parametrize("name", TOLD)
def test_told(name: str) -> None:
    found = tell(_operand(_last(TOLD[name])), {})
    assert isinstance(found, Step)
    expected = TOLD[name](torch.arange(SIZE)).float().reshape(-1, SIZE, SIZE)[0]
    row, column = torch.arange(SIZE)[:, None], torch.arange(SIZE)
    ahead = torch.zeros(SIZE, SIZE, dtype=torch.bool) if found.at is None else column - row >= found.at
    assert torch.equal(torch.where(ahead, float(found.above), float(found.below)), expected)


@pytest.mark.parametrize("name", NOT_TOLD)
def test_not_told(name: str) -> None:
    assert not isinstance(tell(_operand(_last(NOT_TOLD[name])), {}), Step)


def test_lines() -> None:
    graph = graphc.trace(lambda x: x + (3 - torch.arange(4)[1:])[:, None], torch.zeros(3, 2, dtype=torch.int64))
    found = tell(_operand(graph), {})
    assert isinstance(found, Line) and found.start == 2
    assert {dim: step for dim, step in found.steps.items() if step} == {-2: -1}
