"""The end of a capture: what was written to the user's tensors, and how each result lives in memory."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from graphc.frontend import functionalize, host
from graphc.frontend.aten import layout
from graphc.frontend.aten.extern import copied, kernels_hold
from graphc.frontend.dynamic_index import true_offset
from graphc.frontend.foreign_views import is_foreign
from graphc.frontend.functionalize import Storage, TensorState
from graphc.frontend.leaves import OutputLeaf
from graphc.frontend.recorder import Recorder
from graphc.ir.graph import Input, Output, StridedView, Value, Write


def finish(recorder: Recorder, leaves: list[Any], written: Collection[Storage] = ()) -> list[OutputLeaf]:
    """Complete the graph with its writes and outputs.

    Args:
        leaves: of the value the function returned.
        written: what is written to these is an output, and carried out after the run.

    Returns:
        What each leaf is.
    """
    return _Finisher(recorder, leaves).run(written)


def ask_places(recorder: Recorder, leaves: list[Any]) -> None:
    """Take the decisions on data that say where in memory results lie.

    They come before the recording of a backward pass, which no program of a path knows of.

    Raises:
        Stop: a decision has no answer yet.
    """
    _Finisher(recorder, leaves).ask_places()


class _Finisher:
    def __init__(self, recorder: Recorder, leaves: list[Any]) -> None:
        self.recorder, self.leaves = recorder, leaves
        self.states: dict[int, TensorState] = {
            id(leaf): recorder.state_of(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)
        }
        self.homes: dict[Storage, Value] = {}  # the value whose memory each fresh storage is
        self.taken: set[Value] = set()

    def run(self, written: Collection[Storage]) -> list[OutputLeaf]:
        recorder, graph = self.recorder, self.recorder.graph
        numbers: dict[int, int] = {}
        result: list[OutputLeaf] = []
        for leaf in self.leaves:
            node = host.node_of(leaf)
            if node is None and id(leaf) not in self.states:
                result.append(OutputLeaf(constant=host.known(leaf)))
                continue
            if id(leaf) not in numbers:
                numbers[id(leaf)] = len(graph.outputs)
                graph.outputs.append(Output(node.value) if node is not None else self._output(self.states[id(leaf)]))
            result.append(OutputLeaf(numbers[id(leaf)], host=None if node is None else node.kind))
        for storage in recorder.storages:
            if storage.visible and storage.base is not storage.source and storage not in written:
                assert storage.source is not None
                graph.writes.append(Write(storage.source, storage.base))
        return result

    def ask_places(self) -> None:
        for state in self.states.values():
            if not (self._is_handed_out(state) or self._is_reinterpreted(state) or self._is_alone(state)):
                true_offset(self.recorder, state)

    def _is_handed_out(self, state: TensorState) -> bool:
        return id(state) in self.recorder.very_tensors

    def _is_reinterpreted(self, state: TensorState) -> bool:
        return state.dtype != state.storage.root.dtype or is_foreign(state)

    def _output(self, state: TensorState) -> Output:
        storage = state.storage
        if self._is_handed_out(state):
            return Output(self.recorder.very_tensors[id(state)])
        if self._is_reinterpreted(state):
            return self._reinterpreted(state)
        if self._is_alone(state):
            return Output(self._fresh(functionalize.read(self.recorder.builder, state), state.strides))
        home = storage.source if storage.visible else self._home(storage)
        assert home is not None
        if state.parent is None and home.shape == state.shape:
            return Output(home)
        offset = true_offset(self.recorder, state) - storage.root.offset
        return Output(home, StridedView(state.shape, state.strides, offset))

    def _is_alone(self, state: TensorState) -> bool:
        """A part of a storage that nothing else returned shares gets memory of its own, when eager's strides fit."""
        if state.parent is None or state.storage.visible:
            return False
        sharers = {id(other) for other in self.states.values() if other.storage is state.storage}
        smaller = _numel(state.shape) < _numel(state.storage.root.shape)
        return len(sharers) == 1 and smaller and layout.is_dense(state.shape, state.strides)

    def _reinterpreted(self, state: TensorState) -> Output:
        """A result that sees memory as another dtype or conjugated: a copy, as graphs cannot say so, laid out alike."""
        if state.storage.visible or any(
            other.storage is state.storage for other in self.states.values() if other is not state
        ):
            self.recorder.warnings.append(
                "a result reads memory of another tensor as another dtype or conjugated; the compiled program returns "
                "a copy of it"
            )
        value = functionalize.read(self.recorder.builder, state)
        if not _is_packed(state.shape, state.strides):
            return Output(self._spread(value, state), StridedView(state.shape, state.strides, 0))
        dense = layout.is_dense(state.shape, state.strides)
        return Output(self._fresh(value, state.strides if dense else layout.contiguous(state.shape)))

    def _home(self, storage: Storage) -> Value:
        """The value whose memory a storage made by the function is."""
        if storage not in self.homes:
            root, value = storage.root, storage.base
            with_gaps = value.op is not None and not _is_packed(root.shape, root.strides)
            self.homes[storage] = self._spread(value, root) if with_gaps else self._fresh(value, root.strides)
        return self.homes[storage]

    def _spread(self, value: Value, state: TensorState) -> Value:
        """A value in memory with gaps: eager gives a part of something bigger that the graph does not hold."""
        builder, size = self.recorder.builder, layout.span(state.shape, state.strides)
        memory = self.recorder.imp.full((size,), 0, value.dtype, value.device)
        memory = builder.op("update_strided", memory, value, shape=state.shape, strides=state.strides, offset=0)
        self.taken.add(memory)
        return memory

    def _fresh(self, value: Value, strides: tuple[int, ...]) -> Value:
        """A value no other output is, laid out as eager lays it out; a copy when need be."""
        shape: tuple[int, ...] = value.shape  # type: ignore[assignment]  # static by construction
        wanted = None if strides == layout.contiguous(shape) else strides
        decider = self.recorder.decider
        if decider is not None and value in decider.names and decider.names[value][1] != wanted:
            value = self._copied(value, strides)  # handed over in another layout
        elif isinstance(value, Input) or value in self.taken or value.strides not in (None, wanted):
            value = self._copied(value, strides)
        value.strides = wanted
        self.taken.add(value)
        return value

    def _copied(self, value: Value, strides: tuple[int, ...]) -> Value:
        builder = self.recorder.builder
        if kernels_hold(value.dtype):  # which write it in any layout
            result: Value = builder.op("cast", value, dtype=value.dtype)
            return result
        return copied(builder, value, strides)


def _is_packed(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Dense, or of no elements, or of several in one place, which no memory of its own can have."""
    return layout.is_dense(shape, strides) or layout.span(shape, strides) < _numel(shape) or 0 in shape


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
