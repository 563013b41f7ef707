"""The random draws of a capture, for code that rewinds torch's generator: activation checkpointing.

Draws are ops in the graph, or the keys that they are made from. Saving the generator's state notes a place among
them; setting a state saved in this capture goes back to that place, and the draws from there on are not made again
but are the very ones made before, as in eager the same state gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graphc.errors import UnsupportedError
from graphc.ir.graph import Attr, Op, Value

_OTHER = (
    "the state of the random generator is set back, and other random numbers are drawn from it than before, which a "
    "compiled program cannot"
)


class RandomTape:
    """Draws in order, and where among them the generator is.

    Attributes:
        place: how many draws lie before the next one; less than all of them after going back.
    """

    def __init__(self) -> None:
        self._draws: list[Op | Value] = []
        self.place = 0
        self._saved: dict[int, tuple[torch.Tensor, int]] = {}

    def save(self, state: torch.Tensor) -> torch.Tensor:
        """The state of the generator has been read: it stands for this place."""
        self._saved[id(state)] = state, self.place
        return state

    def knows(self, state: object) -> bool:
        """The state was read in this capture."""
        return id(state) in self._saved

    def rewind(self, state: torch.Tensor) -> None:
        """Go to the place that a saved state stands for."""
        self.place = self._saved[id(state)][1]

    def record(self, draw: Op | Value) -> None:
        """A draw has been made, or got its key."""
        self._draws.append(draw)
        self.place += 1

    def key_again(self) -> Value | None:
        """The key of the draw made before in this place, or None when there is none yet.

        Raises:
            UnsupportedError: that draw had none.
        """
        if self.place == len(self._draws):
            return None
        draw = self._draws[self.place]
        if not isinstance(draw, Value):
            raise UnsupportedError(_OTHER)
        self.place += 1
        return draw

    def again(self, operands: Sequence[Value], attrs: dict[str, Attr]) -> Op | None:
        """The draw made before in this place, or None when there is none yet.

        Raises:
            UnsupportedError: another one is wanted.
        """
        if self.place == len(self._draws):
            return None
        draw = self._draws[self.place]
        if isinstance(draw, Value):
            raise UnsupportedError(_OTHER)
        same_call = all(draw.attrs.get(key) == attrs.get(key) for key in ("op", "args", "kwargs"))
        if not same_call or [v.type for v in draw.inputs] != [v.type for v in operands]:
            raise UnsupportedError(_OTHER)
        self.place += 1
        return draw

    def check_end(self) -> None:
        """Raises:
        UnsupportedError: the generator is left set back.
        """
        if self.place != len(self._draws):
            raise UnsupportedError(
                "the function leaves the random generator in an earlier state than it brought it to, which a compiled "
                "program cannot"
            )
