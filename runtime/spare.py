"""Outputs of a program stored in memory that the caller has no more use for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from graphc.program.lifetimes import step_buffers
from graphc.program.plan import BufferSpec, OutputSpec, Step
from graphc.runtime.tensors import empty_strided


class SpareOutputs:
    """Which of the tensors made in every call may be given by the caller.

    Args:
        outputs: of the program.
        made: the buffers that are fresh memory in every call, in the order in which it is made.
        steps: of the program.
    """

    def __init__(self, outputs: Sequence[OutputSpec], made: Sequence[BufferSpec], steps: Sequence[Step]) -> None:
        places = {spec.index: place for place, spec in enumerate(made)}
        counts = Counter(output.buffer for output in outputs)
        self._places = {
            number: places[output.buffer]
            for number, output in enumerate(outputs)
            if output.whole and counts[output.buffer] == 1 and output.buffer in places
        }
        first: dict[int, int] = {}
        for number, step in enumerate(steps):
            for index in step_buffers(step):
                first.setdefault(index, number)
        self._first = {places[index]: number for index, number in first.items() if index in places}

    def make(
        self,
        layouts: Sequence[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]],
        spare: dict[int, torch.Tensor],
    ) -> list[torch.Tensor]:
        """Memory for every buffer: spare, where it lies as the buffer does, else fresh.

        Args:
            layouts: shape, strides and dtype of each buffer.
            spare: per number of an output a tensor that nobody else holds; what does not fit is taken out and so freed.
        """
        found: dict[int, torch.Tensor] = {}
        for number, tensor in list(spare.items()):
            place = self._places.get(number)
            if place is not None and (tensor.shape, tensor.stride(), tensor.dtype) == layouts[place]:
                found[place] = tensor
            else:
                del spare[number]
        del tensor
        return [found[place] if place in found else empty_strided(*layout) for place, layout in enumerate(layouts)]

    def keep_intact(self, spare: dict[int, torch.Tensor], reached: int) -> None:
        """After a failure: leave in `spare` what is as it was given.

        Args:
            reached: the last step that may have run; -1 for none.
        """
        for number in list(spare):
            if self._first.get(self._places[number], 0) <= reached:
                del spare[number]
