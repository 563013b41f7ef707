"""Pairs of reductions that one pass over a row computes, though the second waits for the first as written."""

from __future__ import annotations

from typing import Protocol

from graphc.codegen.triton.body import Body
from graphc.codegen.triton.moments import find_moments
from graphc.codegen.triton.running_sums import find_running_sums
from graphc.codegen.triton.tiling import TileDim
from graphc.loopir.kernel import Kernel, Reduce


class Joint(Protocol):
    """A pair, and the lines of its second reduction; the first one has those of any reduction.

    Args:
        first, second: the reductions.
        value: the id of what both are of.
    """

    @property
    def first(self) -> Reduce: ...

    @property
    def second(self) -> Reduce: ...

    @property
    def value(self) -> str: ...

    def open(self, body: Body) -> None:
        """Before the loop: what lanes keep."""

    def update(self, body: Body, row: TileDim) -> None:
        """In the loop, after the first reduction: one more element per lane."""

    def close(self, body: Body, row: TileDim, first: str) -> str:
        """After the loop: the second reduction of all that the program has walked.

        Args:
            first: the first reduction of the same elements, as text.
        """

    def combine(self, body: Body, row: TileDim, firsts: str, seconds: str) -> str:
        """The second reduction of a row from those of the programs that share it.

        Args:
            firsts, seconds: reductions of what each of them has walked, along `parts`, as text.
        """

    def result(self, body: Body, text: str) -> str:
        """What the kernel calls the second reduction, from what `close` or `combine` gave for the whole row."""


def find_joint(kernel: Kernel) -> dict[str, Joint]:
    """All pairs of a kernel, by the id of their second reduction."""
    return {**find_moments(kernel), **find_running_sums(kernel)}
