"""The state of a captured function at a decision: equal states go on equally, so a loop over data closes on itself.

The state is what Python holds (`python_state`), where in it traced tensors lie, how they share memory, what their
values are computed from, and which answers are known already. Two decisions of one run with equal states differ in
the numbers in tensors alone: the programs behind the first are the programs behind the second.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from types import CodeType
from typing import TYPE_CHECKING, Any

from graphc.frontend import host
from graphc.frontend.functionalize import Link, TensorState
from graphc.frontend.python_state import PythonState, UnclearError, frames_to
from graphc.frontend.selected import Selected
from graphc.frontend.traced import OWN_ATTRIBUTES, TracedTensor
from graphc.ir.graph import Input, Op, Value

if TYPE_CHECKING:
    from graphc.frontend.functionalize import Storage
    from graphc.frontend.recorder import Recorder

_DEPTH = 64


@dataclass(frozen=True)
class LoopState:
    """A state.

    Args:
        key: the same for equal states.
        names: of all values handed over, in an order that is the same for equal states.
    """

    key: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """What a run knows at a decision.

    Args:
        handed_over: values that later programs take from earlier ones, with their names.
        numbers: values of tensors of one element that Python has looked at.
        answers: host values that Python has looked at, with what it saw.
        question: what is asked now, and of which values.
        recent: ops since the decision before.
    """

    handed_over: Mapping[Value, str]
    numbers: Mapping[Value, bool | int | float]
    answers: Iterable[tuple[Value, Any]]
    question: tuple[Any, tuple[Value, ...]]
    recent: frozenset[Op]


def loop_state(recorder: Recorder, known: Known, outermost: CodeType) -> LoopState | None:
    """The state at the decision that is being made.

    Args:
        outermost: code of the frame that has called the function.

    Returns:
        None where it cannot be told: gradients are recorded, or Python holds what cannot be looked into.
    """
    reader = _Reader(recorder, known)
    try:
        return reader.read(outermost)
    except UnclearError:
        return None
    finally:
        reader.release()


class _Reader:
    def __init__(self, recorder: Recorder, known: Known) -> None:
        self._recorder, self._known = recorder, known
        self._inputs = {value: number for number, value in enumerate(recorder.graph.inputs)}
        self._order: dict[str, int] = {}  # names of values handed over, as met
        self._storages: dict[Storage, int] = {}
        self._met: set[int] = set()
        self._seen: set[Value] = set()
        self._python = PythonState(self._traced)

    def read(self, outermost: CodeType) -> LoopState:
        recorder, known, tokens = self._recorder, self._known, self._python.tokens
        if recorder.gradients.changed() or recorder.optimizers.stored() or recorder.locator.differentiates:
            raise UnclearError("gradients are recorded")
        if recorder.moves:
            raise UnclearError("a tensor of the user's has other memory or another geometry")
        tokens.append(len(recorder.bindings))
        self._python.frames(frames_to(sys._getframe(), outermost))
        tokens += [self._storage(storage) for storage in recorder.storages]
        tokens += [self._value(value) for value in recorder.imp.keys.live()]
        self._hidden()
        text, operands = known.question
        tokens += ["question", text, *map(self._value, operands)]
        tokens += self._answers()
        names = set(known.handed_over.values())
        if names != set(self._order):
            raise UnclearError("values are handed over that Python does not show")
        digest = hashlib.sha256("\n".join(map(repr, tokens)).encode()).hexdigest()
        return LoopState(digest, tuple(self._order))

    def release(self) -> None:
        """Let go of what was looked at: it must not live on in a cycle of references."""
        self._python.release()

    def _hidden(self) -> None:
        """Tensors and numbers that nothing above shows: operands of the call that asks, and stand-ins of arguments."""
        for ref in self._recorder.made:
            tensor = ref()
            if tensor is None or id(tensor) in self._met:
                continue
            base = tensor.state.storage.base
            if base.op not in self._known.recent and not tensor.state.storage.visible:
                raise UnclearError("Python holds a tensor where it does not show")
            self._python.tokens.append(self._tensor(tensor))
        for number in self._recorder.numbers:
            node = number()
            if node is not None and id(node) not in self._met:
                if node.value.op not in self._known.recent and node.hint is None:
                    raise UnclearError("Python holds a number where it does not show")
                self._python.tokens.append(self._number(node))

    def _answers(self) -> list[Any]:
        """What is known of values that can be asked for again."""
        alive = [(value, answer) for value, answer in self._known.answers if self._is_held(value)]
        return sorted(((self._value(value), repr(answer)) for value, answer in alive), key=repr)

    def _is_held(self, value: Value) -> bool:
        """Python holds what a number is computed from, so that it can compute it again."""
        if isinstance(value, Input) or value in self._seen:
            return True
        again = value.op is not None and (value.op.name in ("item", "reshape") or value.type.is_host)
        return again and value.op is not None and all(map(self._is_held, value.op.inputs))

    def _traced(self, item: Any) -> Any:
        if type(item) is TracedTensor:
            return self._tensor(item)
        if type(item) is Selected:
            raise UnclearError("rows wait for their selection")
        node = host.node_of(item)
        return None if node is None else self._number(node)

    def _number(self, node: host.HostNode) -> Any:
        self._met.add(id(node))
        return ("number", node.kind.__name__, repr(node.hint), self._value(node.value))

    def _tensor(self, tensor: TracedTensor) -> Any:
        self._met.add(id(tensor))
        if tensor.requires_grad:
            raise UnclearError("a tensor requires grad")
        if not OWN_ATTRIBUTES.issuperset(vars(tensor)):
            raise UnclearError("a tensor with attributes of the user's")
        return (
            "tensor",
            tensor.is_inference(),
            id(tensor.state) in self._recorder.very_tensors,
            self._view(tensor.state),
        )

    def _view(self, state: TensorState) -> Any:
        if state.parent is None:
            above: Any = self._storage(state.storage)
        else:
            above = self._view(state.parent), self._link(state.link)
        current = state.cached is not None and state.version == state.storage.version
        cached = self._value(state.cached) if current and state.cached is not None else None
        return (above, state.shape, state.strides, state.offset, str(state.dtype), str(state.location), cached)

    def _link(self, link: Link) -> Any:
        parts = [getattr(link, field.name) for field in fields(link)]
        if type(link).__module__ != TensorState.__module__:
            raise UnclearError("a view that graphs have no form for")
        return (type(link).__name__, *(self._value(p) if isinstance(p, Value) else repr(p) for p in parts))

    def _storage(self, storage: Storage) -> Any:
        if storage in self._storages:
            return ("storage", self._storages[storage])
        number = self._storages[storage] = len(self._storages)
        source = None if storage.source is None else self._inputs[storage.source]
        return ("storage", number, source, storage.version > 0, self._value(storage.base))

    def _value(self, value: Value, depth: int = 0) -> Any:
        """How a value is computed from inputs and from what earlier programs hand over."""
        self._seen.add(value)
        if isinstance(value, Input):
            return ("input", self._inputs[value])
        name = self._known.handed_over.get(value)
        if name is not None:
            return ("carried", self._order.setdefault(name, len(self._order)), str(value.type), value.strides)
        if value in self._known.numbers:
            return ("known", str(value.type), repr(self._known.numbers[value]))
        if value.op is None or depth > _DEPTH:
            raise UnclearError("a value that is computed from too much")
        operands = [self._value(o, depth + 1) if isinstance(o, Value) else repr(o) for o in value.op.operands]
        return (value.op.name, repr(value.op.attrs), value.op.results.index(value), str(value.type), *operands)
