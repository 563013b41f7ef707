"""Outputs of a program stored in memory that the caller has no more use for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from graphc.program.plan import BufferSpec, OutputSpec
from graphc.runtime.tensors import empty_strided


class SpareOutputs:
    """Which of the tensors made in every call may be given by the caller.

    Args:
        outputs: of the program.
        made: the buffers that are fresh memory in every call, in the order in which it is made.
    """

    def __init__(self, outputs: Sequence[OutputSpec], made: Sequence[BufferSpec]) -> None:
        places = {spec.index: place for place, spec in enumerate(made)}
        counts = Counter(output.buffer for output in outputs)
        self._places = {
            number: places[output.buffer]
            for number, output in enumerate(outputs)
            if output.whole and counts[output.buffer] == 1 and output.buffer in places
        }

    def make(
        self,
        layouts: Sequence[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]],
        spare: dict[int, torch.Tensor],
    ) -> list[torch.Tensor]:
        """Memory for every buffer: spare, where it lies as the buffer does, else fresh.

        Args:
            layouts: shape, strides and dtype of each buffer.
            spare: per number of an output a tensor that nobody else holds; emptied, so that what does not fit is freed.
        """
        found: dict[int, torch.Tensor] = {}
        for number, tensor in spare.items():
            place = self._places.get(number)
            if place is not None and (tensor.shape, tensor.stride(), tensor.dtype) == layouts[place]:
                found[place] = tensor
        spare.clear()
        return [found[place] if place in found else empty_strided(*layout) for place, layout in enumerate(layouts)]
