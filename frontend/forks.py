"""Decisions on data in code that is captured for one parameter and stands for many.

RAdam asks of every parameter's own step count whether it has warmed up. Each answer for itself would be a path of its
own. Here the code is run once per combination of answers, and what it leaves is chosen between by values: both sides
of a branch are computed, one is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graphc.ir.graph import Value
from graphc.ir.types import bool_

if TYPE_CHECKING:
    from graphc.frontend.host import HostNode
    from graphc.frontend.recorder import Recorder

LIMIT = 8
"""Combinations of answers up to which both sides of branches are computed."""


class Unforked(BaseException):
    """Python asks for more than the answer to a condition, after answers that were made up.

    Not an Exception, so that the user's own handlers let it pass.
    """


@dataclass
class Forks:
    """The answers of one run.

    Attributes:
        answers: to the decisions in order; those not given are made up: true.
        conditions: what was decided on.
        closed: decisions are real ones from here on.
    """

    answers: list[bool]
    conditions: list[Value] = field(default_factory=list)
    closed: bool = False

    def answer(self, node: HostNode) -> bool:
        """The answer to the next decision."""
        place = len(self.conditions)
        self.conditions.append(node.value)
        if place == len(self.answers):
            self.answers.append(True)
        return self.answers[place]

    def give_up(self) -> None:
        """Python asks for a number, elements or a shape.

        Raises:
            Unforked: there have been answers already.
        """
        if self.conditions:
            raise Unforked
        self.closed = True

    def following(self) -> list[bool] | None:
        """The answers of the next run; None after the last."""
        answers = list(self.answers)
        while answers and not answers[-1]:
            answers.pop()
        return [*answers[:-1], False] if answers else None


@dataclass(frozen=True)
class Run:
    """What one run has come to: a value per result."""

    forks: Forks
    results: list[Value]


@contextlib.contextmanager
def forking(recorder: Recorder, forks: Forks) -> Iterator[None]:
    """For the block: decisions on data are answered by `forks`."""
    outer, recorder.forks = recorder.forks, forks
    try:
        yield
    finally:
        recorder.forks = outer


def chosen(recorder: Recorder, runs: Sequence[Run], depth: int = 0) -> list[Value] | None:
    """The results of all runs as one list of values; None where they do not go together."""
    if len(runs) == 1:
        return runs[0].results
    condition = runs[0].forks.conditions[depth]
    sides = [chosen(recorder, [r for r in runs if r.forks.answers[depth] is side], depth + 1) for side in (True, False)]
    if sides[0] is None or sides[1] is None:
        return None
    found: list[Value] = []
    for a, b in zip(*sides, strict=True):
        if (a.type.dtype, a.shape, a.device) != (b.type.dtype, b.shape, b.device):
            return None
        test = recorder.imp.tensor(condition, bool_, a.device)
        found.append(a if a is b else recorder.builder.op("where", test, a, b))
    return found
