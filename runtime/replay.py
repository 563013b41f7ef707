"""A program's launches, recorded once and made again in one go.

    call 1   launched step by step: libraries and kernels are loaded
    call 2   recorded (nothing runs), then replayed
    call 3.. replayed

A recording holds addresses. Inputs are bound as they lie: parameters and the state of optimizers stay where they are.
Inputs that lie elsewhere in every call, such as a batch, are copied to memory of the recording, if they are small and
not written to. Python numbers and tables of rows are put into such memory too, when they have changed; what the CPU
computes for them, it computes before each replay, in the order of the program.

Results belong to whoever holds them. Small ones are copied; of large ones the recording hands out its own memory, and
is not replayed while anybody holds that: another recording is made, with results of its own, or the program is launched
step by step. What cannot be recorded is launched so in every call, and `explain` says why.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from graphc.program.plan import (
    INPUT,
    OUTPUT,
    BufferSpec,
)
from graphc.runtime.device import find_device
from graphc.runtime.frame import Frame, Working, cell_dtype
from graphc.runtime.recordable import why_not
from graphc.runtime.tensors import torch_dtype

if TYPE_CHECKING:
    from graphc.runtime.device import Recording
    from graphc.runtime.triton_program import TritonProgram

SMALL_RESULT = 64 << 10
"""Bytes of a result up to which it is copied."""
LARGEST_COPY = 32 << 20
"""Bytes of an input up to which it is copied rather than bound where it lies."""
MOST_RECORDINGS = 3
"""For one set of addresses: results of so many earlier calls may be held."""
MOST_BINDINGS = 4
"""Sets of addresses that recordings are kept for."""
MOST_REBINDINGS = 12
"""Recordings thrown away for new addresses after which the program is not recorded any more."""

_storage_use_count = torch._C._storage_Use_Count
Key = tuple[int, ...]


@dataclass
class _Recorded:
    """A recording with what it reads and writes.

    Attributes:
        recording: to be replayed.
        results: buffers that are returned, as tensors of its own, by buffer.
        lent: the large ones among them.
        numbers: Python numbers as they are on the device, by buffer; None before the first time.
        kept: where they are, by buffer.
        words: per step over a table of rows the words with the addresses.
        tables: the tables on the device.
        sent: what is in them.
    """

    recording: Recording | None = None
    results: dict[int, torch.Tensor] = field(default_factory=dict)
    lent: list[_Lent] = field(default_factory=list)
    numbers: dict[int, bytes] = field(default_factory=dict)
    kept: dict[int, torch.Tensor] = field(default_factory=dict)
    words: dict[int, Any] = field(default_factory=dict)
    tables: dict[int, torch.Tensor] = field(default_factory=dict)
    sent: dict[int, bytes] = field(default_factory=dict)

    def is_free(self) -> bool:
        """Whether nobody holds results of an earlier replay."""
        return all(item.is_free() for item in self.lent)

    def is_intact(self) -> bool:
        """Whether the memory of the results is where it was: users may resize storages."""
        return all(item.storage.data_ptr() == item.address for item in self.lent)

    def tensors(self) -> list[torch.Tensor]:
        """All memory of its own."""
        return [*self.results.values(), *self.kept.values(), *self.tables.values()]


class _Lent:
    """A result that the user may hold: the tensor, a view of it, or its storage."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.storage = tensor.untyped_storage()
        self.address = self.storage.data_ptr()
        self._alone = self._references()

    def is_free(self) -> bool:
        """Whether nobody holds it."""
        return self._references() == self._alone

    def _references(self) -> tuple[int, int]:
        return _storage_use_count(self.storage._cdata), sys.getrefcount(self.storage)


@dataclass
class _Binding:
    """What is known of one set of addresses."""

    calls: int = 0
    recordings: list[_Recorded] = field(default_factory=list)


class Replay:
    """Records a program, and replays it.

    Args:
        program: ready to be launched step by step. It owns this, so a weak proxy of it is enough.

    Attributes:
        reason: why the program is not recorded; "" when it is.
    """

    def __init__(self, program: TritonProgram) -> None:
        self.program, self.device, self.index = program, program.device, program.index
        self._memory, self._buffers = program.memory, program.memory.buffers
        self.reason = why_not(program)
        self._lock = threading.Lock()
        self._replays = self._made = self._plain = self._held = self._rebound = 0
        self._bindings: dict[Key, _Binding] = {}
        self._mark: Any = None
        self._last_stream = -1
        self._working: Working | None = None
        if self.reason:
            return
        self._before = [part for part in program.parts if part.on_host]
        self._recorded = [part for part in program.parts if not part.on_host]
        self._inputs = self._device_inputs()
        self._written = set(program.program.written)
        self._copies: dict[int, torch.Tensor] = {}
        self._previous: list[int] = []
        self._newest: _Binding | None = None
        self._moves: dict[int, int] = {}
        self._returned = self._returned_buffers()
        made = [spec for spec in self._buffers if spec.kind == OUTPUT and not spec.host]
        self._cpu_outputs = [spec for spec in made if find_device(spec.device) is None]

    def __call__(self, inputs: Sequence[Any]) -> list[Any] | None:
        """Answer a call by a replay; None when it is to be launched step by step."""
        if self.reason:
            return None
        assert self.device is not None
        if self.device.is_recording(self.index):  # somebody else's: the launches become part of that
            return None
        with self._lock, self.device.guard(self.index):
            stream = self.device.stream(self.index)
            if self._mark is not None and stream != self._last_stream:
                self.device.wait(self.index, self._mark)  # recordings share working memory
            outputs = self._answer(inputs)
            if outputs is not None:
                if self._mark is not None and stream != self._last_stream:
                    self._note_stream()
                self._mark, self._last_stream = self.device.mark(self.index, self._mark), stream
            return outputs

    def _note_stream(self) -> None:
        """Tell torch's allocator that another stream works in memory which calls on several streams share."""
        assert self.device is not None
        for tensor in self._all_memory():
            self.device.note_used(self.index, tensor)

    def _all_memory(self) -> list[torch.Tensor]:
        found = list(self._copies.values())
        if self._working is not None:
            found += self._working.tensors()
        for binding in self._bindings.values():
            for item in binding.recordings:
                found += item.tensors()
        return found

    def report(self) -> str:
        """What has been done so far, in words."""
        if self.reason:
            return f"none: {self.reason}"
        held = f", {self._held} of them because earlier results were held" if self._held else ""
        copied = f"; inputs copied: {len(self._copies)}" if self._copies else ""
        return (
            f"{self._made} recordings of {self.program.launch_count} launches, {self._replays} replays, "
            f"{self._plain} calls launch by launch{held}{copied}"
        )

    # ------------------------------------------------------------------------------------------------------ binding

    def _device_inputs(self) -> list[int]:
        """Numbers of the inputs that lie on the device."""
        used = [spec for spec in self._buffers if spec.kind == INPUT and not spec.host]
        return sorted({spec.source for spec in used if find_device(spec.device) is not None})

    def _answer(self, inputs: Sequence[Any]) -> list[Any] | None:
        addresses = [inputs[number].data_ptr() for number in self._inputs]
        binding = self._newest
        if binding is None or addresses != self._previous:
            binding = self._newest = self._find(inputs, addresses)
            if binding is None:
                return None
        binding.calls += 1
        bound = self._bound(inputs)
        if binding.calls == 1:
            return self._launch(bound, inputs)
        recorded = self._free_recording(binding, bound)
        if recorded is None:
            return self._launch(bound, inputs)
        return self._replayed(recorded, bound, inputs)

    def _find(self, inputs: Sequence[Any], addresses: list[int]) -> _Binding | None:
        """What is known of a call's addresses, which are not those of the call before; None to give up, or for now."""
        assert self.device is not None
        kind = self.device.place(self.index).type
        if any(inputs[number].device.type != kind for number in self._inputs):
            return None  # attention leaves its seeds with the CPU unless it is recorded: they would be constants
        self._note_moved(inputs, addresses)
        copies = self._copies
        key = tuple(0 if number in copies else at for number, at in zip(self._inputs, addresses, strict=True))
        binding = self._binding(key)
        return None if self.reason else binding

    def _launch(self, bound: Sequence[Any], inputs: Sequence[Any]) -> list[Any] | None:
        """Step by step, on inputs as a recording would find them: variants of kernels for these are loaded then."""
        self._plain += 1
        if bound is inputs:
            return None
        return self._as_given(self.program.launch(bound), bound, inputs)

    def _note_moved(self, inputs: Sequence[Any], addresses: list[int]) -> None:
        """Copy from now on what lies elsewhere than in the call before, where that can be done and costs little."""
        if self._previous:
            moved = [
                number
                for number, old, new in zip(self._inputs, self._previous, addresses, strict=True)
                if old != new and number not in self._copies
            ]
            written = {inputs[number].untyped_storage().data_ptr() for number in self._written} if moved else set()
            for number in moved:
                tensor = inputs[number]
                self._moves[number] = self._moves.get(number, 0) + 1
                if (
                    self._moves[number] > 1
                    and _can_be_copied(tensor)
                    and tensor.untyped_storage().data_ptr() not in written
                ):
                    self._copies[number] = _like(tensor)
            if any(number in self._copies for number in moved):
                self._bindings.clear()  # recordings that read these where they lay
        self._previous = addresses

    def _binding(self, key: Key) -> _Binding:
        found = self._bindings.pop(key, None)
        if found is None:
            found = _Binding()
            if len(self._bindings) >= MOST_BINDINGS:
                oldest = self._bindings.pop(next(iter(self._bindings)))
                self._rebound += bool(oldest.recordings) or oldest.calls == 1
            if self._rebound > MOST_REBINDINGS:
                self._give_up("inputs that cannot be copied lie elsewhere in nearly every call")
                return found
        self._bindings[key] = found  # the newest is the last
        return found

    def _bound(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """The inputs, with copies in the place of those that are copied."""
        if not self._copies:
            return inputs
        found, targets, sources = list(inputs), list(self._copies.values()), [inputs[n] for n in self._copies]
        torch._foreach_copy_(targets, sources)
        for number, copy in self._copies.items():
            found[number] = copy
        return found

    def _as_given(self, outputs: list[Any], bound: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Outputs that are inputs are the user's own tensors, not copies."""
        if bound is inputs:
            return outputs
        found = []
        for output, value in zip(self.program.program.outputs, outputs, strict=True):
            spec = self._buffers[output.buffer]
            if spec.kind == INPUT and spec.source in self._copies:
                given = inputs[spec.source]
                value = given if output.whole else given.as_strided(
                    output.shape, output.strides, given.storage_offset() + output.offset
                )  # fmt: skip
            found.append(value)
        return found

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._bindings.clear()
        self._copies.clear()
        self._newest = self._working = None

    # ---------------------------------------------------------------------------------------------------- recording

    def _returned_buffers(self) -> list[BufferSpec]:
        """Buffers on the device that belong to the user after a call."""
        found = {output.buffer for output in self.program.program.outputs}
        return [
            spec for spec in (self._buffers[index] for index in sorted(found))
            if spec.kind != INPUT and not spec.host and find_device(spec.device) is not None
        ]  # fmt: skip

    def _free_recording(self, binding: _Binding, bound: Sequence[Any]) -> _Recorded | None:
        binding.recordings = [item for item in binding.recordings if item.is_intact()]
        for item in binding.recordings:
            if item.is_free():
                return item
        if len(binding.recordings) >= MOST_RECORDINGS:
            self._held += 1
            return None
        try:
            made = self._record(bound)
        except Exception as error:  # torch, the driver or a library, each with classes of its own
            first = str(error).partition("\n")[0]
            self._give_up(f"it could not be recorded: {type(error).__name__}: {first}")
            return None
        self._made += 1
        binding.recordings.append(made)
        return made

    def _record(self, bound: Sequence[Any]) -> _Recorded:
        assert self.device is not None
        with torch.inference_mode(False), torch.no_grad():
            made, frame = self._own_memory(bound)

        def run() -> None:
            self.program.run(frame, self._recorded)

        # Memory for what library calls return is of this recording alone: it holds results, and other recordings of
        # the program must not work in it.
        made.recording = self.device.record(self.index, self.device.pool(), run)
        made.results = {spec.index: frame.made[spec.index] for spec in self._returned}
        frame.made.clear()
        made.lent = [_Lent(made.results[spec.index]) for spec in self._returned if spec.nbytes > SMALL_RESULT]
        return made

    def _own_memory(self, bound: Sequence[Any]) -> tuple[_Recorded, Frame]:
        """Where a recording reads and writes: working memory that all recordings share, and results of its own."""
        assert self.device is not None
        made, place = _Recorded(), self.device.place(self.index)
        for number in self.program.brought:
            spec = self._buffers[number]
            dtype = cell_dtype(spec) if spec.host else torch_dtype(spec.dtype)
            made.kept[number] = torch.zeros(1, dtype=dtype, device=place)
        for number, table in self.program.tables.items():
            made.words[number] = table.plain.copy()
            made.tables[number] = torch.from_numpy(table.plain).to(place)
        frame = self._memory.begin(bound)
        self._memory.allocate_outputs(frame)
        if self._working is None:
            self._working = self._memory.working()
        self._memory.use_working(frame, self._working)
        frame.kept, frame.sent, frame.words = made.kept, made.tables, made.words
        for number, tensor in made.kept.items():
            frame.table[number] = tensor.data_ptr()
        return made, frame

    # --------------------------------------------------------------------------------------------------- replaying

    def _replayed(self, recorded: _Recorded, bound: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        program, memory = self.program, self._memory
        frame = Frame(bound, memory.places)
        for spec in self._cpu_outputs:
            memory.put(frame, spec.index, memory.empty(spec))
        assert self._working is not None
        memory.use_working(frame, self._working)
        self._send_numbers(self._compute(frame, recorded), recorded)
        self._send_tables(frame, recorded)
        assert recorded.recording is not None
        recorded.recording.replay()
        self._replays += 1
        program.fetch()
        self._hand_out(frame, recorded)
        return self._as_given(program.outputs(frame), bound, inputs)

    def _compute(self, frame: Frame, recorded: _Recorded) -> dict[int, Any]:
        """Do what the CPU does in the program; the numbers that kernels on the device read, by buffer."""
        found = {index: self._value(frame, index) for index in recorded.kept if self._buffers[index].kind == INPUT}
        for part in self._before:
            self.program.run(frame, (part,))
            for index in part.writes:
                if index in recorded.kept:  # now, for its memory may be used for something else
                    found[index] = self._value(frame, index)
        return found

    def _value(self, frame: Frame, index: int) -> Any:
        spec = self._buffers[index]
        return self._memory.number(frame, spec) if spec.host else self._memory.whole(frame, spec).item()

    def _send_numbers(self, numbers: dict[int, Any], recorded: _Recorded) -> None:
        """Have numbers in the recording's memory, where they have changed."""
        for index, value in numbers.items():
            seen = _bits(value)
            if recorded.numbers.get(index) != seen:
                recorded.kept[index].fill_(value)
                recorded.numbers[index] = seen

    def _send_tables(self, frame: Frame, recorded: _Recorded) -> None:
        for number, table in self.program.tables.items():
            words = frame.words[number]
            words[:, table.columns] = recorded.words[number][:, table.columns]
            data = words.tobytes()
            if recorded.sent.get(number) != data:
                recorded.tables[number].copy_(table.host_tensor(words), non_blocking=True)
                recorded.sent[number] = data

    def _hand_out(self, frame: Frame, recorded: _Recorded) -> None:
        """Results that the user may hold: copies of the small ones, the recording's own memory of the others."""
        fresh, own = [], []
        for spec in self._returned:
            result = recorded.results[spec.index]
            if spec.nbytes <= SMALL_RESULT:
                copy = torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device=result.device)
                fresh.append(copy)
                own.append(result)
                frame.made[spec.index] = copy
            else:
                alias = torch.empty(0, dtype=result.dtype, device=result.device)
                alias.set_(result.untyped_storage(), result.storage_offset(), result.shape, result.stride())
                frame.made[spec.index] = alias
        if fresh:
            torch._foreach_copy_(fresh, own)


def _can_be_copied(tensor: torch.Tensor) -> bool:
    """Whether an input is small, and no two of its elements are at one place."""
    if tensor.numel() * tensor.element_size() > LARGEST_COPY or tensor.numel() == 0:
        return False
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return False
            reach = stride * size
    return reach * tensor.element_size() <= 2 * LARGEST_COPY


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """Memory for a copy, of no kind that torch forbids to write to later."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _bits(value: Any) -> bytes:
    """A number so that equal bytes are equal numbers, signs of zeros and NaN included."""
    return struct.pack("d", value) if isinstance(value, float) else repr(value).encode()
