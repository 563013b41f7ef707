"""A program's launches, recorded once and made again in one go.

    call 1   launched step by step: libraries and kernels are loaded
    call 2   recorded (nothing runs), then replayed
    call 3.. replayed

Where a call looks at data or works with the CPU's memory, there are several recordings, one per stage of the program,
and in each call what lies in between is launched: see `graphc.runtime.recordable`. So it is with a program on several
devices: recordings on each, made on the caller's current stream of that device, copies from one to another in between.

A recording holds addresses. Inputs are bound as they lie: parameters and the state of optimizers stay where they are.
Inputs that lie elsewhere in every call, such as a batch, are copied to memory of the recording, if they are small and
not written to. Python numbers, all in one copy, and tables of rows are put into such memory too, when they have
changed; what the CPU computes for them, it computes before each replay, in the order of the program. So is what calls
between two recordings return.

Results belong to whoever holds them. Small ones are copied; of large ones the recording hands out its own memory, and
is not replayed while anybody holds that: another recording is made, with results of its own, or the program is launched
step by step. So it does of small ones that take the place of gradients which are dropped, unless they turn out to be
held. What cannot be recorded is launched so in every call, and `explain` says why.

Memory of recordings stays with the program for its next call. Where another program of this process finds too little,
all that are not running give theirs back, and record anew.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from graphc.program.lifetimes import step_buffers
from graphc.program.plan import INPUT, OUTPUT, AtenStep, BufferSpec
from graphc.runtime.device import find_device
from graphc.runtime.frame import Frame, Working
from graphc.runtime.recordable import stages_of
from graphc.runtime.recordings import Lent, ReadyStage, Recorded, Recorder
from graphc.runtime.sent_numbers import Numbers
from graphc.runtime.tensors import copy_all, staged

if TYPE_CHECKING:
    from graphc.runtime.triton_program import TritonProgram

SMALL_RESULT = 64 << 10
"""Bytes of a result up to which it is copied."""
LARGEST_COPY = 32 << 20
"""Bytes of an input up to which it is copied rather than bound where it lies."""
COPIED_PART = 64
"""Larger ones are copied as well when they are at most one in so many of the bytes that the program moves: a recording
per address would hold what library calls return once more."""
MOST_RECORDINGS = 3
"""For one set of addresses: results of so many earlier calls may be held."""
MOST_BINDINGS = 4
"""Sets of addresses that recordings are kept for."""
MOST_REFUSED = 8
"""Library calls that could not be recorded, after which the program is not recorded any more."""
MOST_REBINDINGS = 12
"""Recordings thrown away for new addresses after which the program is not recorded any more."""

Key = tuple[int, ...]


@dataclass
class _Binding:
    """What is known of one set of addresses."""

    calls: int = 0
    recordings: list[Recorded] = field(default_factory=list)


class Replay:
    """Records a program, and replays it.

    Args:
        program: ready to be launched step by step. It owns this, so a weak proxy of it is enough.

    Attributes:
        reason: why the program is not recorded; "" when it is.
    """

    def __init__(self, program: TritonProgram) -> None:
        self.program, self.device, self.indices = program, program.device, program.indices
        self._memory, self._buffers = program.memory, program.memory.buffers
        self._lock = threading.Lock()
        self._replays = self._made = self._plain = self._held = self._rebound = 0
        self._bindings: dict[Key, _Binding] = {}
        self._marks: dict[int, Any] = {}
        self._streams: dict[int, int] = {}
        self._working: Working | None = None
        self._inputs = self._device_inputs()
        self._written = set(program.program.written)
        self._copies: dict[int, torch.Tensor] = {}
        self._previous: list[int] = []
        self._newest: _Binding | None = None
        self._moves: dict[int, int] = {}
        self._watched = self._inputs  # those that recordings read where they lie
        self._dropped: set[int] = set()
        self._returned = self._returned_buffers()
        made = [spec for spec in self._buffers if spec.kind == OUTPUT and not spec.host]
        self._cpu_outputs = [spec for spec in made if find_device(spec.device) is None]
        moved = sum(program.program.stats.get(name, 0) for name in ("bytes_read", "bytes_written"))
        self._largest_copy = max(LARGEST_COPY, moved // COPIED_PART)
        self._refused: dict[int, str] = {}
        self._lost: dict[int, str] = {}
        self._numbers = Numbers(program)
        self._lay_out()
        _ALL.add(self)

    def _lay_out(self) -> None:
        """Cut the program into stages."""
        program = self.program
        stages, self.reason = stages_of(program, self._refused, self._lost)
        if self.reason:
            return
        self._why = list(dict.fromkeys(stage.reason for stage in stages if stage.reason and stage.launches))
        self._stages = self._numbers.ready(stages)
        launched = {n for stage in stages if stage.reason for n in stage.steps}
        self._needed = {i for n in launched for i in step_buffers(program.steps[n])}

    def lend(self, numbers: Sequence[int]) -> None:
        """Users drop these outputs before they call again: hand out memory of the recording even if it is little."""
        outputs = self.program.program.outputs
        kept = {output.buffer for number, output in enumerate(outputs) if number not in numbers}
        self._dropped = {outputs[number].buffer for number in numbers} - kept

    def __call__(self, inputs: Sequence[Any]) -> list[Any] | None:
        """Answer a call by a replay; None when it is to be launched step by step."""
        if self.reason:
            return None
        device = self.device
        assert device is not None
        if any(map(device.is_recording, self.indices)):  # somebody else's: the launches become part of that
            return None
        with self._lock, device.guard(self.indices[0]):
            streams = {index: device.stream(index) for index in self.indices}
            moved = [index for index in self._marks if streams[index] != self._streams[index]]
            for index in moved:
                device.wait(index, self._marks[index])  # recordings share working memory
            outputs = self._answer(inputs)
            if outputs is not None:
                for index in moved:
                    self._note_stream(index)
                self._streams = streams
                self._marks = {index: device.mark(index, self._marks.get(index)) for index in self.indices}
            return outputs

    def release(self) -> bool:
        """Give back the memory of recordings, unless the program is running; whether there was any."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            kept = self._working is not None or bool(self._copies)
            self._forget()
            self._moves.clear()
            return kept
        finally:
            self._lock.release()

    def _note_stream(self, index: int) -> None:
        """Tell torch's allocator that another stream works in memory which calls on several streams share."""
        assert self.device is not None
        place = self.device.place(index)
        for tensor in self._all_memory():
            if tensor.device == place:
                self.device.note_used(index, tensor)

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
        stages = [stage for stage in self._stages if stage.is_recorded]
        count = sum(stage.launches for stage in stages)
        parts = f" in {len(stages)} parts" if len(stages) > 1 else ""
        if len(self.indices) > 1:
            parts += f" ({self._launches_by_device(stages)})"
        others = self.program.launch_count - count
        apart = f"; {others} launched in every call: {'; '.join(self._why)}" if others else ""
        return (
            f"{self._made} recordings of {count} launches{parts}, {self._replays} replays, "
            f"{self._plain} calls launch by launch{held}{copied}{apart}"
        )

    def _launches_by_device(self, stages: Sequence[ReadyStage]) -> str:
        found = dict.fromkeys(self.indices, 0)
        for stage in stages:
            assert stage.device is not None
            found[stage.device] += stage.launches
        return ", ".join(f"{count} on {self._named(index)}" for index, count in found.items())

    def _named(self, index: int) -> str:
        assert self.device is not None
        return f"{self.device.kind}:{index}"

    # ------------------------------------------------------------------------------------------------------ binding

    def _device_inputs(self) -> list[int]:
        """Numbers of the inputs that lie on the device."""
        used = [spec for spec in self._buffers if spec.kind == INPUT and not spec.host]
        return sorted({spec.source for spec in used if find_device(spec.device) is not None})

    def _answer(self, inputs: Sequence[Any]) -> list[Any] | None:
        addresses = [inputs[number].data_ptr() for number in self._watched]
        binding = self._newest
        if binding is None or addresses != self._previous:
            binding = self._newest = self._find(inputs, addresses)
            if binding is None:
                return None
        if any(inputs[number].device.type != copy.device.type for number, copy in self._copies.items()):
            return None
        binding.calls += 1
        given = self._copied_in(inputs)
        if binding.calls == 1:
            return self._launch(given, inputs)
        for item in list(binding.recordings):
            if item.is_free():
                if item.is_intact():
                    return self._replayed(item, given, inputs)
                binding.recordings.remove(item)
        if len(binding.recordings) < MOST_RECORDINGS:
            return self._recorded(binding, given, inputs)
        self._held += 1
        if self._dropped and any(item.keeps_what_is_dropped() for item in binding.recordings):
            self._dropped.clear()  # from now on the user gets copies of these
            binding.recordings.clear()
        return self._launch(given, inputs)

    def _find(self, inputs: Sequence[Any], addresses: list[int]) -> _Binding | None:
        """What is known of a call's addresses, which are not those of the call before; None to give up, or for now."""
        assert self.device is not None
        kind = self.device.place(self.indices[0]).type
        if any(inputs[number].device.type != kind for number in self._inputs):
            return None  # attention leaves its seeds with the CPU unless it is recorded: they would be constants
        self._note_moved(inputs, addresses)
        key = tuple([0 if number in self._copies else inputs[number].data_ptr() for number in self._inputs])
        binding = self._binding(key)
        return None if self.reason else binding

    def _launch(self, given: Sequence[Any], inputs: Sequence[Any]) -> list[Any] | None:
        """Step by step, on inputs as a recording would find them: variants of kernels for these are loaded then."""
        self._plain += 1
        if given is inputs:
            return None
        return self._as_given(self.program.launch(given), given, inputs)

    def _note_moved(self, inputs: Sequence[Any], addresses: list[int]) -> None:
        """Copy from now on what lies elsewhere than in the call before, where that can be done and costs little."""
        if self._previous:
            places = zip(self._watched, self._previous, addresses, strict=True)
            moved = [number for number, old, new in places if old != new]
            written = {inputs[number].untyped_storage().data_ptr() for number in self._written} if moved else set()
            for number in moved:
                tensor = inputs[number]
                self._moves[number] = self._moves.get(number, 0) + 1
                if (
                    self._moves[number] > 1
                    and _can_be_copied(tensor, self._largest_copy)
                    and tensor.untyped_storage().data_ptr() not in written
                ):
                    self._copies[number] = _like(tensor)
            if any(number in self._copies for number in moved):
                self._bindings.clear()  # recordings that read these where they lay
                self._watched = [number for number in self._inputs if number not in self._copies]
                addresses = [inputs[number].data_ptr() for number in self._watched]
        self._previous = addresses

    def _forget(self) -> None:
        """Keep no memory."""
        self._bindings.clear()
        self._copies.clear()
        self._watched, self._previous = self._inputs, []
        self._newest = self._working = None

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

    def _copied_in(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """The inputs, with copies in the place of those that are copied."""
        if not self._copies:
            return inputs
        found, targets, sources = list(inputs), list(self._copies.values()), [inputs[n] for n in self._copies]
        copy_all(targets, sources)
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
        self._forget()

    # ---------------------------------------------------------------------------------------------------- recording

    def _returned_buffers(self) -> list[BufferSpec]:
        """Buffers on the device that belong to the user after a call."""
        found = {output.buffer for output in self.program.program.outputs}
        return [
            spec for spec in (self._buffers[index] for index in sorted(found))
            if spec.kind != INPUT and not spec.host and find_device(spec.device) is not None
        ]  # fmt: skip

    def _recorded(self, binding: _Binding, bound: Sequence[Any], inputs: Sequence[Any]) -> list[Any] | None:
        """A call in which each stage is recorded before it is replayed."""
        assert self.device is not None
        try:
            with torch.inference_mode(False), torch.no_grad():
                made, frame = self._memory.with_room(lambda: self._own_memory(bound))
        except torch.OutOfMemoryError as error:
            self._give_up(_failure(error))
            return self._launch(bound, inputs)
        # Memory for what library calls return is of this recording alone: it holds results, and other recordings of
        # the program must not work in it.
        recorder = Recorder(self.device, frame)
        outputs = self._run(made, bound, inputs, recorder)
        if recorder.failure is not None:
            self._plain += 1
            if not recorder.has_room:
                self._refuse(recorder)
            return outputs
        self._made += 1
        self._replays += 1
        binding.recordings.append(made)
        return outputs

    def _record(self, made: Recorded, number: int, recorder: Recorder) -> None:
        """Record a stage; nothing of it runs."""
        frame, stage = recorder.frame, self._stages[number]
        assert stage.device is not None
        made.numbers[stage.device].read_by(frame)
        made.recordings[number] = recorder.record(
            stage.device, stage.parts, lambda part: self.program.run(frame, [part])
        )
        made.made[number] = self._shared(frame)

    def _shared(self, frame: Frame) -> dict[int, torch.Tensor]:
        """What of a recorded call stages that are launched read and write."""
        return {i: tensor for i, tensor in frame.made.items() if i in self._needed and self._is_there(i)}

    def _refuse(self, recorder: Recorder) -> None:
        """Launch what could not be recorded in every call from now on, and record what lies around it.

        That is a library call, or else all that one of several devices does; or else there are no more recordings.
        """
        assert recorder.failure is not None
        reason = _failure(recorder.failure)
        steps = [self.program.steps[n] for n, parts in enumerate(self.program.parts_of) if recorder.part in parts]
        calls = [step for step in steps if isinstance(step, AtenStep)]
        if calls and len(self._refused) < MOST_REFUSED:
            self._refused[recorder.part] = f"{calls[0].op}: {reason}"
        elif len(self.indices) > 1:
            self._lost[recorder.index] = f"{self._named(recorder.index)}: {reason}"
        else:
            self._give_up(reason)
            return
        self._bindings.clear()
        self._newest = None
        self._lay_out()
        if self.reason:
            self._give_up(self.reason)

    def _own_memory(self, bound: Sequence[Any]) -> tuple[Recorded, Frame]:
        """Where a recording reads and writes: working memory that all recordings share, and results of its own."""
        assert self.device is not None
        count = len(self._stages)
        made = Recorded([None] * count, made=[{} for _ in range(count)])
        made.numbers = {index: self._numbers.on(self.device.place(index)) for index in self.indices}
        for number, table in self.program.tables.items():
            made.words[number] = table.plain.copy()
            made.tables[number] = torch.from_numpy(table.plain).to(table.device)
        frame = self._memory.begin(bound)
        self._memory.allocate_outputs(frame)
        made.given = self._shared(frame)
        if self._working is None:
            self._working = self._memory.working()
        self._memory.use_working(frame, self._working)
        frame.sent, frame.words = made.tables, made.words
        return made, frame

    # --------------------------------------------------------------------------------------------------- replaying

    def _replayed(self, recorded: Recorded, bound: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        outputs = self._run(recorded, bound, inputs)
        self._replays += 1
        return outputs

    def _run(
        self, recorded: Recorded, bound: Sequence[Any], inputs: Sequence[Any], recorder: Recorder | None = None
    ) -> list[Any]:
        """A call, stage by stage.

        Args:
            recorder: with it stages are recorded first.
        """
        program, memory = self.program, self._memory
        launches = recorder is not None or self._needed  # recordings hold the addresses of what they read
        frame = memory.begin(bound) if launches else Frame(bound, memory.places)
        for spec in self._cpu_outputs:
            memory.put(frame, spec.index, memory.empty(spec))
        assert self._working is not None
        memory.use_working(frame, self._working)
        for index, tensor in recorded.given.items():
            memory.put(frame, index, tensor)
        for number, stage in enumerate(self._stages):
            if recorder is not None and stage.is_recorded and recorder.failure is None:
                known = dict(recorder.frame.made)
                try:
                    self._record(recorded, number, recorder)
                except Exception as error:  # torch, the driver or a library, each with classes of its own
                    recorder.failure = error
                    recorder.has_room = isinstance(error, torch.OutOfMemoryError) and self._memory.make_room()
                    for index, tensor in known.items():
                        if self._is_there(index):
                            memory.put(frame, index, tensor)
            for run in stage.before:
                run(frame)
            if stage.device is not None:
                self._numbers.send(recorded.numbers[stage.device])
            recording = recorded.recordings[number]
            if recording is None:
                self._launch_stage(stage, recorded, frame, recorder)
                continue
            self._send_tables(stage, frame, recorded)
            recording.replay()
            for index, tensor in recorded.made[number].items():
                memory.put(frame, index, tensor)
        program.fetch()
        if recorder is not None and recorder.failure is None:
            self._keep_results(recorded, recorder)
        self._hand_out(frame, recorded)
        return self._as_given(program.outputs(frame), bound, inputs)

    def _is_there(self, index: int) -> bool:
        """Whether the frame of a call holds a buffer on the device under this number, and not something of its own."""
        return index >= 0 and find_device(self._buffers[index].device) is not None

    def _launch_stage(self, stage: ReadyStage, recorded: Recorded, frame: Frame, recorder: Recorder | None) -> None:
        """Launch a stage, and have what its calls return where recordings read it."""
        if stage.device is not None:
            recorded.numbers[stage.device].read_by(frame)
        if recorder is not None:
            for index in stage.handed_on:
                with torch.inference_mode(False), torch.no_grad():
                    recorded.fixed[index] = self._memory.empty(self._buffers[index])
                self._memory.put(recorder.frame, index, recorded.fixed[index])
        frame.fixed = {index: recorded.fixed[index] for index in stage.handed_on}
        self.program.run(frame, list(stage.parts.values()))
        frame.kept, frame.fixed = {}, {}
        for index in stage.handed_on:
            own = recorded.fixed[index]
            if frame.made[index] is not own:
                own.copy_(frame.made[index])
                self._memory.put(frame, index, own)

    def _keep_results(self, made: Recorded, recorder: Recorder) -> None:
        """Results that the recordings have memory for; what calls between them return is new in every call."""
        found = dict(recorder.frame.made)
        recorder.frame.made.clear()
        made.results = {spec.index: found[spec.index] for spec in self._returned if spec.index in found}
        places = Counter(tensor.untyped_storage()._cdata for tensor in made.results.values())
        for index, result in made.results.items():
            is_dropped = index in self._dropped and places[result.untyped_storage()._cdata] == 1
            if is_dropped or self._buffers[index].nbytes > SMALL_RESULT:
                made.lent.append(Lent(index, result, is_dropped))
            else:
                made.copied[index] = result

    def _send_tables(self, stage: ReadyStage, frame: Frame, recorded: Recorded) -> None:
        for number in stage.tables:
            table, words = self.program.tables[number], recorded.words[number]
            if table.has_numbers:
                addresses, words = words, frame.words[number]
                words[:, table.columns] = addresses[:, table.columns]
            elif number in recorded.sent:
                continue  # recordings find the same addresses in every call
            data = words.tobytes()
            if recorded.sent.get(number) != data:
                recorded.tables[number].copy_(staged(words, table.device), True)
                recorded.sent[number] = data

    def _hand_out(self, frame: Frame, recorded: Recorded) -> None:
        """Results that the user may hold: copies of the small ones, the recording's own memory of the others."""
        for item in recorded.lent:
            frame.made[item.index] = item.tensor()
        if recorded.copied:
            own = list(recorded.copied.values())
            fresh = [result.new_empty_strided(result.shape, result.stride()) for result in own]
            copy_all(fresh, own)
            frame.made.update(zip(recorded.copied, fresh, strict=True))


_ALL: weakref.WeakSet[Replay] = weakref.WeakSet()


def make_room(found: weakref.ref[Replay]) -> bool:
    """Have other programs give back memory on a device; whether any did.

    Args:
        found: the program that needs it.
    """
    mine = found()
    if mine is None or mine.device is None:
        return False
    if any(map(mine.device.is_recording, mine.indices)):  # which nothing may wait within
        return False
    there = [other for other in list(_ALL) if other.device is mine.device and set(other.indices) & set(mine.indices)]
    released = [other.release() for other in there if other is not mine]
    if not any(released):
        return False
    for index in mine.indices:
        mine.device.give_back(index)
    return True


def _failure(error: Exception) -> str:
    return f"it could not be recorded: {type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _can_be_copied(tensor: torch.Tensor, largest: int) -> bool:
    """Whether an input has few enough bytes, and no two of its elements are at one place."""
    if tensor.numel() * tensor.element_size() > largest or tensor.numel() == 0:
        return False
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < reach:
                return False
            reach = stride * size
    return reach * tensor.element_size() <= 2 * largest


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """Memory for a copy, of no kind that torch forbids to write to later."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
