"""A failed call leaves things as they were: torch's random state, inputs written too early, version counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch.autograd.graph import increment_version

from graphc.program.record import Program

Before: TypeAlias = tuple[list[torch.Tensor], torch.Tensor | None]
"""Copies of inputs, and torch's random state."""


class Undo:
    """What to remember before each call of a program, and what to do when the call fails.

    Programs write to their inputs when nothing can fail any more, as far as their steps can be ordered so; see
    `graphc.passes.commits`.

    Args:
        program: the record.
    """

    def __init__(self, program: Program) -> None:
        self._copied, self._exposed, self._draws = program.copied, program.exposed, program.draws

    def remember(self, inputs: Sequence[Any]) -> Before | None:
        """Call it before anything runs."""
        if not self._copied and not self._draws:
            return None
        with torch.no_grad():
            copies = [inputs[number].clone() for number in self._copied]
        return copies, torch.get_rng_state() if self._draws else None

    def undo(self, inputs: Sequence[Any], before: Before | None) -> None:
        """A step has failed."""
        if before is not None:
            copies, state = before
            with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(self._inputs(inputs)):
                for number, copy in zip(self._copied, copies, strict=True):
                    inputs[number].copy_(copy)
            if state is not None:
                torch.set_rng_state(state)
        if self._exposed:
            increment_version([inputs[number] for number in self._exposed])

    def _inputs(self, inputs: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        return tuple(inputs[number] for number in self._copied if not inputs[number].is_inference())
