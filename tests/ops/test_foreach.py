"""`foreach`: its text form, its type rule, what it means, and the kernels that come of it."""

from __future__ import annotations

import pytest
import torch

import graphc
from graphc.errors import InvalidGraphError
from graphc.ir import parse, run, verify
from graphc.passes.base import PassContext, Rewriter
from graphc.passes.foreach import ExpandForeach, expand, stages_of
from graphc.passes.pipeline import run_pass

TEXT = """graph g(
    %p: f32[9] param "p",
    %q: f32[2, 3] param "q",
    %p.grad: f32[9] arg "p.grad",
    %q.grad: f32[2, 3] arg "q.grad",
    %p.step: f32[] state "p.step",
    %q.step: f32[] state "q.step",
    %lr: f64[]@host scalar "lr"
) {
  %0: f32[9], %1: f32[2, 3], %2: f32[9], %3: f32[2, 3], %4: f32[], %5: f32[] = OP  # train.py:7
    body graph body(%x: f32[] arg "x", %g: f32[] arg "g", %step: f32[] arg "step", %lr: f64[]@host arg "lr") {
      %0: f32[] = add(%step, 1.0)  # train.py:7
      %1: f64[]@host = item(%0)
      %2: f64[]@host = div(%lr, %1)
      %3: f32[] = mul(%g, %2)
      %4: f32[] = sub(%x, %3)
      %5: f32[] = exp(%g)
      return %5, %4, %0
    }
  write %p <- %2
  write %q <- %3
  write %p.step <- %4
  write %q.step <- %5
  return %0, %1
}""".replace("OP", "foreach(%p, %q, %p.grad, %q.grad, %p.step, %q.step, %lr) {count=2, mutates=[0, 2], like=[1]}")


def _inputs() -> list[torch.Tensor | float]:
    torch.manual_seed(0)
    shapes = ((9,), (2, 3), (9,), (2, 3))
    return [*(torch.randn(shape) for shape in shapes), torch.tensor(1.0), torch.tensor(4.0), 0.5]


def _expected(inputs: list[torch.Tensor | float]) -> list[torch.Tensor]:
    p, q, gp, gq, sp, sq, lr = inputs
    return [gp.exp(), gq.exp(), p - gp * (lr / (sp + 1)), q - gq * (lr / (sq + 1)), sp + 1, sq + 1]  # type: ignore


def test_text() -> None:
    graph = parse(TEXT)
    verify(graph)
    assert str(graph) == TEXT
    assert graph.copy() == graph


@pytest.mark.parametrize("backend", ["interpret", "c"])
def test_meaning(backend: str) -> None:
    expected, inputs = _expected(_inputs()), _inputs()
    found = graphc.run(parse(TEXT), *inputs, backend=backend)
    torch.testing.assert_close([*found, *inputs[:2], *inputs[4:6]], expected)


def test_expansion_means_the_same() -> None:
    graph = parse(TEXT)
    Rewriter(graph, PassContext()).run(lambda rewriter, op: expand(rewriter.builder, op), ("foreach",))
    assert not any(op.name == "foreach" for op in graph.ops)
    verify(graph)
    expected, inputs = _expected(_inputs()), _inputs()
    found = run(graph, inputs)
    torch.testing.assert_close([*found, *inputs[:2], *inputs[4:6]], expected)


def test_kernels_are_of_any_size() -> None:
    """Kernels for the counters of all rows and what is checked of them, and one for the elements of all rows."""
    graph = parse(TEXT)
    for target in ("cpu", "gpu"):
        assert not run_pass(ExpandForeach(), graph, PassContext(target=target)).modified
    stages = stages_of(graph.ops[0], "default", "cpu")
    assert stages is not None
    *counters, elements = stages.kernels
    assert counters and not any(kernel.axes for kernel in counters)
    assert [str(axis.extent) for axis in elements.axes] == ["elements"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count=2", "count=3", "no lists of 3"),
        ("count=2", "count=1", "no lists of 1"),
        ("mutates=[0, 2]", "mutates=[0, 0]", "name no lists, or one twice"),
        ("mutates=[0, 2]", "mutates=[0, 3]", "name no lists, or one twice"),
        ("like=[1]", "like=[]", "the body gives 3 values, 2 are named"),
        ("foreach(%p, %q, %p.grad, %q.grad", "foreach(%p, %q, %q.grad, %p.grad", "different shapes"),
        ("%p.step, %q.step, %lr)", "%p.step, %q.step, %q.step)", "is given for lr"),
        ("return %5, %4, %0\n", "return %5, %4, %1\n", "foreach"),
    ],
)
def test_refusals(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(InvalidGraphError, match=message):
        verify(parse(TEXT.replace(old, new, 1)))
