"""Tensors that get another geometry or other memory: `t_()`, `unsqueeze_()`, `resize_()`, `set_()`, `x.data = y`.

In a capture, such a tensor becomes a view of whatever memory it is given. What the function does so to the caller's own
tensors is done to them behind each run, by one eager call: the program's result is a view of the right memory already.

    x.t_().add_(1)     # x, an argument, is read and written through permute(%x); after the run, x.set_(that view)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from graphc.errors import EagerOnlyError
from graphc.frontend.functionalize import TensorState
from graphc.frontend.inputs import BindingKind
from graphc.frontend.traced import TracedTensor

if TYPE_CHECKING:
    from graphc.frontend.recorder import Recorder


@dataclass(frozen=True)
class MoveAgain:
    """One of the caller's tensors gets the memory and geometry of a result.

    Args:
        place: which input of the program the tensor is.
        number: the output.
        by_data: as `x.data = y` does, of which autograd is not told.
    """

    place: int
    number: int
    by_data: bool

    def move(self, tensor: torch.Tensor, memory: torch.Tensor) -> None:
        """Move it."""
        if self.by_data:
            tensor.data = memory
        else:
            tensor.set_(memory)  # type: ignore[call-overload]


@dataclass(frozen=True)
class MovesAgain:
    """All moves behind one run."""

    moves: Sequence[MoveAgain]

    def replay(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Make them; who gets one of the outputs gets the very tensor.

        One tensor may get the memory that another one has had: `a.data, b.data = b.data, a.data`.
        """
        memories = [outputs[move.number].detach() for move in self.moves]
        with torch.no_grad():
            for move, memory in zip(self.moves, memories, strict=True):
                move.move(inputs[move.place], memory)
                outputs[move.number] = inputs[move.place]


class Moves:
    """The caller's tensors that one capture has given another geometry or other memory.

    Args:
        recorder: the capture.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._moved: dict[int, tuple[torch.Tensor, bool]] = {}
        self._left: list[TensorState] = []  # what ids in `very_tensors` were of

    def __bool__(self) -> bool:
        return bool(self._moved)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter([tensor for tensor, _ in self._moved.values()])

    def move(self, tensor: torch.Tensor, state: TensorState, what: str, by_data: bool = False) -> None:
        """Give a tensor another state.

        Args:
            state: of its dtype and device, and of no other tensor.
            what: names the call in errors.

        Raises:
            EagerOnlyError: a tensor that is no argument would get another geometry.
        """
        recorder = self._recorder
        old = recorder.state_of(tensor)
        if type(tensor) is TracedTensor:
            stand_in = TracedTensor.make(state, recorder)
            with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
                tensor.data = stand_in
            tensor.state = state
            if recorder.arguments.find(tensor) is None:
                return
        else:
            if (state.shape, state.strides) != (old.shape, old.strides):
                raise refusal(recorder, f"{what} changes the geometry of a tensor that is no argument")
            recorder.replace_state(tensor, state)
        self._left.append(old)
        self._moved[id(tensor)] = tensor, by_data

    def replays(self, numbers: dict[int, int]) -> list[MovesAgain]:
        """What is to be done behind each run.

        Args:
            numbers: of outputs, by the id of the tensor.
        """
        found = []
        bindings = self._recorder.bindings
        for tensor, by_data in self._moved.values():
            argument = self._recorder.arguments.find(tensor)
            place = next(
                place
                for place, binding in enumerate(bindings)
                if binding.kind is not BindingKind.STORAGE
                and (binding.tensor is tensor if argument is None else binding.leaf == argument.number)
            )
            found.append(MoveAgain(place, numbers[id(tensor)], by_data))
        return [MovesAgain(found)] if found else []

    def release(self) -> None:
        """Let go of all tensors."""
        self._moved.clear()

    def refusal(self) -> str:
        """Why calls that need gradients must run eager; empty when they need not."""
        for argument in self._recorder.arguments:
            tensor, by_data = self._moved.get(id(argument.stand_in), (None, False))
            if tensor is None or not tensor.requires_grad:
                continue
            if not by_data or tensor.shape != argument.tensor.shape:
                return f"it changes the geometry or the memory of {argument.name}, which requires grad"
        return ""

    def refusal_of_graph(self) -> str:
        """The same where results can be differentiated: what is saved of an argument would seem to have changed."""
        for argument in self._recorder.arguments:
            tensor, by_data = self._moved.get(id(argument.stand_in), (None, True))
            if tensor is not None and not by_data:
                return f"it changes the geometry or the memory of {argument.name}"
        return ""


def refusal(recorder: Recorder, reason: str) -> EagerOnlyError:
    """The error for what only eager does to the memory of a tensor."""
    return EagerOnlyError(f"{reason}; make a new tensor instead", recorder.locator.here())
