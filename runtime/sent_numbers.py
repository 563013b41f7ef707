"""Numbers of the CPU where recordings read them: all of them in one block of memory per device, sent by one copy.

They are copied to one block of the CPU as soon as they are known, for their memory may serve something else later.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from graphc.program.plan import INPUT
from graphc.runtime.frame import Frame, cell_dtype
from graphc.runtime.host_list import HostRun
from graphc.runtime.recordable import Stage
from graphc.runtime.recordings import ReadyStage
from graphc.runtime.tensors import staged_bytes, torch_dtype

if TYPE_CHECKING:
    from graphc.runtime.triton_program import TritonProgram

_SLOT = 16
"""Bytes from one number to the next: kernels take pointers to be aligned so."""


@dataclass
class Sent:
    """Numbers on one device, for one set of recordings.

    Attributes:
        block: all of them, as bytes.
        data: what is in it.
        kept: the numbers by buffer: views of the block.
    """

    block: torch.Tensor
    data: bytes
    kept: dict[int, torch.Tensor] = field(default_factory=dict)

    def read_by(self, frame: Frame) -> None:
        """Have kernels of a call find the numbers there."""
        frame.kept = self.kept
        for number, tensor in self.kept.items():
            frame.table[number] = tensor.data_ptr()


class Numbers:
    """What the CPU knows and kernels on devices read.

    Args:
        program: ready to be launched step by step.
    """

    def __init__(self, program: TritonProgram) -> None:
        self._program, self._buffers = program, program.memory.buffers
        single = [i for i in program.brought if self._buffers[i].host or math.prod(self._buffers[i].shape) == 1]
        self._slots = {number: _SLOT * at for at, number in enumerate(sorted(single))}
        self._block = (ctypes.c_char * (_SLOT * max(len(self._slots), 1)))()
        start = ctypes.addressof(self._block)
        self._places = {number: (start + at, self._dtype(number).itemsize) for number, at in self._slots.items()}

    def on(self, place: torch.device) -> Sent:
        """Memory for them on a device."""
        sent = Sent(torch.zeros(len(self._block), dtype=torch.uint8, device=place), bytes(len(self._block)))
        for number, start in self._slots.items():
            dtype = self._dtype(number)
            sent.kept[number] = sent.block[start : start + dtype.itemsize].view(dtype)
        return sent

    def send(self, sent: Sent) -> None:
        """Have them on a device, all of them by one copy where one has changed."""
        data = self._block.raw
        if sent.data != data:
            sent.block.copy_(staged_bytes(self._block, sent.block.device), True)
            sent.data = data

    def ready(self, stages: Sequence[Stage]) -> list[ReadyStage]:
        """The stages, with what the CPU does in them, in order; numbers that kernels read end in the block."""
        program = self._program
        known = {number for number in self._slots if self._buffers[number].kind == INPUT}
        found = []
        for stage in stages:
            here = self._copied(sorted(known))
            before: list[Callable[[Frame], None]] = [here]
            for part in (program.parts[number] for number in stage.before):
                if isinstance(part.run, HostRun):
                    here.extend(part.run, self._places)
                    continue
                here = self._copied(part.writes)
                before += [part.run, here]
            known = stage.finds & set(self._slots)
            found.append(
                ReadyStage(
                    [run for run in before if not isinstance(run, HostRun) or run.items],
                    {number: program.parts[number] for number in stage.parts},
                    not stage.reason,
                    [number for number in stage.steps if number in program.tables],
                    sorted(stage.handed_on),
                    stage.launches,
                    stage.device,
                )
            )
        return found

    def _copied(self, numbers: Iterable[int]) -> HostRun:
        here = HostRun(self._program.memory, self._program.library)
        for number in numbers:
            if number in self._places:
                here.add_copy(number, *self._places[number])
        return here

    def _dtype(self, number: int) -> torch.dtype:
        spec = self._buffers[number]
        return cell_dtype(spec) if spec.host else torch_dtype(spec.dtype)
