"""`scan`: its text form, its type rule, and what it means, against a loop written out in torch."""

from __future__ import annotations

import pytest
import torch

from graphc.errors import InvalidGraphError, ParseError
from graphc.ir import parse, run, verify

TEXT = """graph g(%h0: f32[2, 3] arg "h0", %x: f32[5, 2, 3] arg "x", %w: f32[3, 3] param "w") {
  %0: f32[2, 3], %1: f32[5, 2, 3] = scan(%h0, %x, %w) {carries=1, sequences=1, length=5, reverse=False}  # rnn.py:7
    body graph step(%h: f32[2, 3] arg "h", %x: f32[2, 3] arg "x", %w: f32[3, 3] arg "w") {
      %0: f32[2, 3] = matmul(%h, %w)  # rnn.py:8
      %1: f32[2, 3] = add(%0, %x)
      %2: f32[2, 3] = tanh(%1)
      return %2, %1
    }
  %2: f32[2, 3] = tanh(%0)
  return %2, %1
}"""


def test_text() -> None:
    graph = parse(TEXT)
    assert str(graph) == TEXT
    verify(graph)
    twin = graph.copy()
    assert twin == graph
    twin.ops[0].attrs["body"].ops[2].name = "exp"
    assert twin != graph
    assert str(graph) == TEXT


@pytest.mark.parametrize("reverse", [False, True])
def test_meaning(reverse: bool) -> None:
    graph = parse(TEXT.replace("reverse=False", f"reverse={reverse}"))
    h, x, w = torch.randn(2, 3), torch.randn(5, 2, 3), torch.randn(3, 3)
    last, stack = run(graph, [h, x, w])
    sums = [torch.empty(0)] * 5
    for t in reversed(range(5)) if reverse else range(5):
        sums[t] = h @ w + x[t]
        h = sums[t].tanh()
    assert isinstance(last, torch.Tensor) and torch.equal(last, h.tanh())
    assert isinstance(stack, torch.Tensor) and torch.equal(stack, torch.stack(sums))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("length=5", "length=4", "operand 1 is f32.5, 2, 3., the body needs f32.4, 2, 3."),
        ("return %2, %1\n    }", "return %w, %1\n    }", "the carry h is"),
        ("matmul(%h, %w)", "matmul(%w, %h)", "region body of scan"),
        ("sequences=1", "sequences=3", "operands for a body of"),
        ("carries=1, ", "", "scan"),
    ],
)
def test_refusals(old: str, new: str, message: str) -> None:
    with pytest.raises(InvalidGraphError, match=message):
        verify(parse(TEXT.replace(old, new, 1)))


def test_a_region_sees_no_value_outside_it() -> None:
    with pytest.raises(ParseError, match="%h0 is not defined"):
        parse(TEXT.replace("matmul(%h, %w)", "matmul(%h0, %w)"))


def test_a_fault_behind_a_region_is_shown_on_its_line() -> None:
    broken = TEXT.replace("%2: f32[2, 3] = tanh(%0)", "%2: f32[3, 2] = tanh(%0)")
    with pytest.raises(InvalidGraphError) as raised:
        verify(parse(broken))
    assert ">>>     9 |   %2: f32[3, 2] = tanh(%0)" in str(raised.value)
