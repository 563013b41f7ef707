"""Cutting a function at its decisions on data: what each program takes, computes and hands over."""

from __future__ import annotations

import linecache
from contextvars import ContextVar
from typing import Any

import pytest
import torch

from graphc.errors import CaptureError, DataDependentError
from graphc.frontend.capture import capture
from graphc.frontend.captured import Captured
from graphc.frontend.segments import PathRaises, Regrow, Segment, Step, TensorSpec
from graphc.ir.parser import parse
from graphc.ir.verifier import verify


def cut(fn: Any, *args: Any, answers: tuple[Any, ...] = ()) -> tuple[Captured, Segment]:
    """The program after these answers."""
    steps: list[Step] = []
    for answer in answers:
        _, segment = cut(fn, *args, answers=tuple(step.answer for step in steps))
        steps.append(Step(segment, answer))
    captured = capture(fn, args, steps=steps)
    assert captured.segment is not None
    graph = captured.segment.graph
    verify(graph)
    assert parse(str(graph)) == graph
    return captured, captured.segment


def fail(error: Exception) -> None:
    raise error


def ops(segment: Segment) -> list[str]:
    return [op.name for op in segment.graph.ops]


def branch(x):
    y = x * 2
    if y.sum() > 3:  # decision
        return y + 1
    x.add_(1)
    return y


def test_a_branch_is_cut_in_three() -> None:
    x = torch.ones(3)
    _, prefix = cut(branch, x)
    assert ops(prefix) == ["mul", "sum", "gt", "item"]
    assert prefix.question is not None
    assert (prefix.question.kind, prefix.question.python) == ("number", bool)
    assert linecache.getline(__file__, prefix.question.location.line).rstrip().endswith("# decision")
    assert len(prefix.outputs) == 2 and not prefix.graph.writes  # the answer, and y
    _, then = cut(branch, x, answers=(True,))
    assert ops(then) == ["add"] and then.question is None and not then.graph.writes
    _, otherwise = cut(branch, x, answers=(False,))
    assert ops(otherwise) == ["add"] and len(otherwise.graph.writes) == 1
    assert otherwise.feeds == (0, prefix.outputs[1])
    assert torch.equal(x, torch.ones(3))


def test_what_nothing_can_reach_is_not_handed_over() -> None:
    def fn(x):
        big = torch.exp(x) + 1
        small = big[:1].clone()
        del big
        kept = small * 2
        if kept.sum() > 0:
            return kept
        return x

    _, prefix = cut(fn, torch.ones(100))
    assert [tuple(output.value.shape) for output in prefix.graph.outputs] == [(), (1,), (1,)]


def test_views_of_inputs_and_constants_are_made_again() -> None:
    def fn(x):
        row, ones = x.t()[1], torch.ones(3)
        if x.sum() > 0:
            return row + ones
        return ones

    _, prefix = cut(fn, torch.ones(3, 3))
    assert len(prefix.outputs) == 1
    _, leaf = cut(fn, torch.ones(3, 3), answers=(True,))
    assert set(ops(leaf)) == {"permute", "slice", "reshape", "full", "add"}


def test_a_number_looked_at_is_a_constant_afterwards() -> None:
    def fn(x):
        total = x.sum()
        if int(total) == 3:
            return x * total
        return x

    integers = torch.tensor([1, 2])
    _, leaf = cut(fn, integers, answers=(3,))
    assert "sum" not in ops(leaf) and "full" in ops(leaf)


def test_pending_writes_are_done_once_at_the_end() -> None:
    def fn(x):
        x.mul_(2)
        if x.sum() > 0:
            x.add_(1)
        if x.max() > 5:
            x.sub_(1)
        return x.sum()

    for answers in ((), (True,), (False,)):
        _, segment = cut(fn, torch.ones(3), answers=answers)
        assert segment.question is not None and not segment.graph.writes
    _, leaf = cut(fn, torch.ones(3), answers=(True, True))
    assert len(leaf.graph.writes) == 1


def test_random_numbers_are_drawn_in_one_program_only() -> None:
    def fn(x):
        noise = torch.rand(3)
        if (x + noise).sum() > 0:
            return noise + torch.rand(3)
        return noise

    _, prefix = cut(fn, torch.ones(3))
    _, leaf = cut(fn, torch.ones(3), answers=(True,))
    assert prefix.random and leaf.random
    assert [ops(prefix).count("extern"), ops(leaf).count("extern")] == [1, 1]


def test_a_shape_is_the_answer_and_its_tensor_an_input() -> None:
    def fn(x):
        return x[x > 0].flip(0)

    x = torch.ones(3)
    _, prefix = cut(fn, x)
    assert prefix.question is not None
    assert (prefix.question.kind, prefix.question.op) == ("shape", "aten.index.Tensor")
    assert ops(prefix) == ["gt"]
    spec = TensorSpec((2,), (1,), torch.float32, torch.device("cpu"))
    _, leaf = cut(fn, x, answers=(spec,))
    assert ops(leaf) == ["flip"]
    assert leaf.feeds == ("answer0.0",)
    assert leaf.graph.inputs[0].shape == (2,)


def test_lists_of_numbers() -> None:
    def fn(x, sizes):
        return x.split(sizes.tolist()), [v * 2 for v in x.tolist()]

    _, prefix = cut(fn, torch.ones(3), torch.tensor([1, 2]))
    assert prefix.question is not None
    assert (prefix.question.kind, prefix.question.operands) == ("list", (1,))
    _, leaf = cut(fn, torch.ones(3), torch.tensor([1, 2]), answers=([1, 2],))
    assert leaf.question is None


def test_turns_of_a_loop_are_the_same_text() -> None:
    def fn(x):
        while x.max() > 1:
            x = x / 2
        return x

    second, third = (cut(fn, torch.ones(3), answers=(True,) * turns)[1] for turns in (2, 3))
    assert str(second.graph) == str(third.graph)


def test_a_replay_that_differs_is_refused() -> None:
    turn = ContextVar("turn", default=2.0)

    def fn(x):
        y = x * turn.get()
        turn.set(turn.get() + 1)
        return y if y.sum() > 0 else -y

    x = torch.ones(3)
    prefix = capture(fn, (x,), steps=())
    assert prefix.segment is not None
    with pytest.raises(CaptureError, match="not deterministic") as caught:
        capture(fn, (x,), steps=(Step(prefix.segment, True),))
    assert __file__ in str(caught.value)


def test_python_data_that_differs_is_refused() -> None:
    turn = ContextVar("turn", default=2.0)

    def fn(x):
        y = x * torch.tensor([1.0, 2.0, turn.get()])
        turn.set(turn.get() + 1)
        return y if y.sum() > 0 else -y

    x = torch.ones(3)
    prefix = capture(fn, (x,), steps=())
    assert prefix.segment is not None
    with pytest.raises(CaptureError, match="a tensor made from Python data"):
        capture(fn, (x,), steps=(Step(prefix.segment, True),))


def test_what_the_function_raises_after_a_decision() -> None:
    def fn(x):
        if x.sum() > 0:
            fail(KeyError("positive"))  # a branch that plainly raises is no decision
        return x

    _, prefix = cut(fn, torch.ones(3))
    with pytest.raises(PathRaises, match="positive") as caught:
        capture(fn, (torch.ones(3),), steps=(Step(prefix, True),))
    assert isinstance(caught.value.error, KeyError)


def test_overlap_found_after_a_decision_asks_to_begin_again() -> None:
    def fn(x, y):
        if x.sum() > 0:
            x.add_(1)
        return y * 2

    base = torch.ones(5)
    args = (base[:4], base[1:])
    prefix = capture(fn, args, steps=())
    assert prefix.segment is not None
    with pytest.raises(Regrow) as caught:
        capture(fn, args, steps=(Step(prefix.segment, True),))
    assert caught.value.merged == {base.untyped_storage()._cdata}
    again = capture(fn, args, steps=(), merged=caught.value.merged)
    assert again.merged_storages(args, {}) == caught.value.merged


def test_modules_and_gradients_are_as_before_after_a_cut() -> None:
    class Counts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = torch.zeros(3)

        def forward(self, x):
            self.last = x * 2
            return x if self.last.sum() > 0 else -x

    module = Counts()
    last = module.last
    assert capture(module, (torch.ones(3),), steps=()).segment is not None
    assert module.last is last


def test_user_handlers_do_not_catch_a_cut() -> None:
    def fn(x):
        try:
            positive = bool(x.sum() > 0)
        except Exception:
            return x * 100
        return x if positive else -x

    _, prefix = cut(fn, torch.ones(3))
    assert ops(prefix) == ["sum", "gt", "item"]


def test_indices_that_are_tensors_need_no_decision() -> None:
    def fn(x, place):
        x[place, 1:] = 0.0
        y = x * 2
        y[place] += 1
        return y, x[place] + 1

    captured = capture(fn, (torch.ones(2, 3), torch.tensor(1)))
    verify(captured.graph)
    used = {operand for op in captured.graph.ops for operand in op.inputs}
    names = [op.name for op in captured.graph.ops if op.results[0] in used]
    assert "put" in names and "take" in names and "item" not in names


@pytest.mark.parametrize(
    ("fn", "error"),
    [
        (lambda x: bool(x), "Boolean value of Tensor with more than one value is ambiguous"),
        (lambda x: bool(x[:0]), "Boolean value of Tensor with no values is ambiguous"),
        (lambda x: int(x), "only one element tensors can be converted to Python scalars"),
        (lambda x: [1, 2][x[0]], "only integer tensors of a single element can be converted to an index"),
    ],
)
def test_numbers_that_tensors_are_not(fn: Any, error: str) -> None:
    with pytest.raises((RuntimeError, TypeError, ValueError), match=error) as eager:
        fn(torch.ones(3))
    with pytest.raises(type(eager.value), match=error):
        capture(fn, (torch.ones(3),), steps=())


def test_without_steps_decisions_are_refused() -> None:
    with pytest.raises(DataDependentError, match="a program per path"):
        capture(branch, (torch.ones(3),))
    with pytest.raises(DataDependentError, match="a program per shape"):
        capture(lambda x: x.nonzero(), (torch.ones(3),))
