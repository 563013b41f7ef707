"""The backward pass of a captured function: recorded right behind the forward pass, into the same graph.

For every result that still requires grad the graph gets one more input, its cotangent (the gradient of some later loss
with respect to that result), and autograd is asked, during the capture, for the gradients of all inputs that require
grad. `graphc.passes.partition` splits the joint graph in two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from graphc.frontend import functionalize
from graphc.frontend.aten import layout
from graphc.frontend.aten.importer import tensor_type
from graphc.frontend.functionalize import TensorState, root_state
from graphc.frontend.inputs import BindingKind
from graphc.frontend.recorder import Recorder
from graphc.frontend.segments import Stop
from graphc.frontend.traced import TracedTensor
from graphc.ir.graph import Graph, Input, Op, Output, Role, Value

_SECOND_TIME = "backward through the graph a second time"


@dataclass
class Joint:
    """A graph with a backward pass in it. Its last inputs are the cotangents, its last outputs the gradients.

    Attributes:
        graph: the joint graph.
        results: outputs of the forward pass that are differentiable, by number, in the order of the cotangents.
        wanted: inputs whose gradients the last outputs are, by number, in the order of those outputs.
        views: (output, output that it is a view of): made anew from what autograd gives for the latter.
        input_views: (output, input that it is a view of).
    """

    graph: Graph
    results: list[int]
    wanted: list[int]
    views: list[tuple[int, int]] = field(default_factory=list)
    input_views: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Recorded:
    """Gradients as values, before the ends of the graph are known.

    Attributes:
        start: how many ops the forward pass has.
        cotangents: one input per differentiable result.
        leaves: the differentiable results; of those that share memory, what all are views of.
        gradients: input and gradient.
        views: differentiable results that are views of one of `leaves`.
        input_views: those that are views of an input.
    """

    start: int
    cotangents: list[Input]
    leaves: list[TracedTensor]
    gradients: list[tuple[Input, Value, tuple[int, ...]]]
    views: list[tuple[TracedTensor, TracedTensor]] = field(default_factory=list)
    input_views: list[tuple[TracedTensor, Input]] = field(default_factory=list)


def record_backward(recorder: Recorder, leaves: list[Any], given: list[Any]) -> Recorded | str | None:
    """Record the backward pass from the results of a function.

    Args:
        leaves: of the returned value.
        given: stand-ins for the arguments.

    Returns:
        The gradients, None when nothing returned can still be differentiated, or why this call must run eager.
    """
    differentiates = recorder.locator.differentiates
    try:
        return _record_backward(recorder, leaves, given)
    finally:
        recorder.locator.differentiates = differentiates


def _record_backward(recorder: Recorder, leaves: list[Any], given: list[Any]) -> Recorded | str | None:
    results = list({id(leaf): leaf for leaf in leaves if type(leaf) is TracedTensor and leaf.requires_grad}.values())
    results, views, input_views = _bases([leaf for leaf in results if leaf.grad_fn is not None])
    while results:
        mark = len(recorder.graph.ops)
        cotangents, stand_ins = _cotangents(recorder, results)
        wanted = _differentiable_inputs(recorder, given)
        tensors = [tensor for tensor, _ in wanted]
        try:
            with _without_hooks(tensors):
                found = torch.autograd.grad(results, tensors, stand_ins, retain_graph=True, allow_unused=True)
        except Stop:  # the programs of a path know nothing of cotangents
            assert recorder.decider is not None
            recorder.decider.drop_question()
            roll_back(recorder, mark)
            _drop_waiting_nodes()
            return "its backward pass decides on data"
        except RuntimeError as error:
            roll_back(recorder, mark)
            _drop_waiting_nodes()
            if _SECOND_TIME not in str(error):
                return f"its backward pass cannot be captured: {error}"
            results = [leaf for leaf in results if not _is_used_up(recorder, leaf)]
            views = [(view, base) for view, base in views if any(base is leaf for leaf in results)]
            continue
        gradients = [
            (value, functionalize.read(recorder.builder, recorder.state_of(grad)), tuple(grad.stride()))
            for (_, value), grad in zip(wanted, found, strict=True)
            if grad is not None
        ]
        del found, stand_ins
        return Recorded(mark, cotangents, results, gradients, views, input_views)
    return Recorded(len(recorder.graph.ops), [], [], [], [], input_views) if input_views else None


def _bases(
    results: list[TracedTensor],
) -> tuple[list[TracedTensor], list[tuple[TracedTensor, TracedTensor]], list[tuple[TracedTensor, Input]]]:
    """Results to be differentiated, and those that are views: of one of these, and of inputs that nothing writes.

    A function of autograd cannot give two results that share memory. So autograd is given what they are views of, and
    they are views of what it returns.
    """
    homes: dict[int, list[TracedTensor]] = {}
    for leaf in results:
        homes.setdefault(id(leaf.state.storage), []).append(leaf)
    plain: list[TracedTensor] = []
    views: list[tuple[TracedTensor, TracedTensor]] = []
    input_views: list[tuple[TracedTensor, Input]] = []
    for leaves in homes.values():
        storage, bases = leaves[0].state.storage, {id(base): base for base in map(_base, leaves)}
        (base, *others) = bases.values()
        if storage.visible and storage.version == 0 and not others and base.grad_fn is None:
            assert storage.source is not None
            input_views += [(leaf, storage.source) for leaf in leaves]
        elif storage.visible or len(leaves) == 1 or others or type(base) is not TracedTensor:
            plain += leaves
        else:
            plain.append(base)
            views += [(leaf, base) for leaf in leaves if leaf is not base]
    return plain, views, input_views


def _base(leaf: TracedTensor) -> Any:
    return leaf if leaf._base is None else leaf._base


def _is_used_up(recorder: Recorder, leaf: TracedTensor) -> bool:
    """A backward pass inside the function has freed what another one would need."""
    mark = len(recorder.graph.ops)
    _, stand_ins = _cotangents(recorder, [leaf])
    wanted = [tensor for tensor, _ in _differentiable_inputs(recorder, [])]
    try:
        with _without_hooks(wanted):
            torch.autograd.grad([leaf], wanted, stand_ins, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        _drop_waiting_nodes()
        return _SECOND_TIME in str(error)
    finally:
        roll_back(recorder, mark)
    return False


def _drop_waiting_nodes() -> None:
    """Empty autograd's queue of this thread.

    After an error the branches that were still to run stay in it, with the gradients that wait for them, until the next
    backward pass meets them. A node of the lowest priority comes last, so that all others are dropped before it.
    """
    with torch.enable_grad(), torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        leaf = torch.zeros((), requires_grad=True)
        result = leaf * 1.0
        node: Any = result.grad_fn
        node._set_sequence_nr(0)
        torch.autograd.grad(result, leaf)


def roll_back(recorder: Recorder, start: int) -> None:
    """Take a recorded backward pass out of the graph again."""
    gone = recorder.graph.ops[start:]
    del recorder.graph.ops[start:]
    del recorder.graph.inputs[len(recorder.bindings) :]
    recorder.forget(gone)


@contextlib.contextmanager
def _without_hooks(tensors: list[torch.Tensor]) -> Iterator[None]:
    """Hooks of the user's tensors stay still: autograd runs them when the compiled backward pass has run."""
    hooks = [(t._backward_hooks, dict(t._backward_hooks)) for t in tensors if t._backward_hooks]
    for table, _ in hooks:
        table.clear()
    try:
        yield
    finally:
        for table, entries in hooks:
            table.update(entries)


def _cotangents(recorder: Recorder, results: list[TracedTensor]) -> tuple[list[Input], list[TracedTensor]]:
    """One input and stand-in per result. They have no binding: the caller puts them behind all other inputs."""
    inputs, stand_ins = [], []
    for number, leaf in enumerate(results):
        type_ = tensor_type(leaf)
        value = recorder.builder.input(f"cotangent.{number}", type_, Role.ARG, f"cotangent.{number}")
        inputs.append(value)
        stand_ins.append(recorder.make(root_state(value, layout.contiguous(type_.shape))))  # type: ignore[arg-type]
    return inputs, stand_ins


def _differentiable_inputs(recorder: Recorder, given: list[Any]) -> list[tuple[torch.Tensor, Input]]:
    pairs: list[tuple[torch.Tensor, Input]] = []
    stand_ins = {id(t.state): t for t in given if type(t) is TracedTensor and t.requires_grad}
    for value, binding in zip(recorder.graph.inputs, recorder.bindings, strict=False):
        tensor = binding.tensor
        if tensor is None or not tensor.requires_grad or binding.kind is BindingKind.STORAGE:
            continue
        if binding.leaf < 0:
            pairs.append((tensor, value))
            continue
        state = recorder.state_of(tensor)
        if id(state) in stand_ins:
            pairs.append((stand_ins[id(state)], value))
    return pairs


def refusal(recorder: Recorder, recorded: Recorded) -> str:
    """Why the results cannot be handed out by one autograd function, or an empty string."""
    graph = recorder.graph
    for module in recorder.sources.modules:
        if module._backward_hooks or module._backward_pre_hooks:
            return f"the module {recorder.sources.module_paths[id(module)]!r} has backward hooks"
    written = {write.target for write in graph.writes}
    for value, binding in zip(graph.inputs, recorder.bindings, strict=False):
        if value in written and binding.tensor is not None and binding.tensor.requires_grad:
            return f"it writes to {value.path}, which requires grad"
        if binding.kind is BindingKind.STORAGE and binding.tensor is not None and binding.tensor.requires_grad:
            return f"{value.path} requires grad and shares memory with another input that is written"
    states: dict[int, TensorState] = {id(leaf): leaf.state for leaf in recorded.leaves}
    homes = [state.storage for state in states.values()]
    if any(storage.visible for storage in homes):
        return "a result that requires grad is an input or a view of one"
    if len(set(map(id, homes))) < len(homes):
        return "two results that require grad share memory"
    return ""


def close(recorder: Recorder, recorded: Recorded, numbers: dict[int, int]) -> tuple[Graph, Joint]:
    """Complete the joint graph, behind whose results the gradients are put; and the forward pass alone.

    Args:
        numbers: output of the graph that each result is, by id.
    """
    graph = recorder.graph
    cotangents = set(recorded.cotangents)
    inputs = [value for value in graph.inputs if value not in cotangents]
    forward = Graph(graph.name, inputs, _forward_ops(graph, recorded.start), list(graph.writes), list(graph.outputs))
    graph.inputs = inputs + recorded.cotangents
    positions = {value: number for number, value in enumerate(graph.inputs)}
    taken = {output.value for output in graph.outputs}
    for _, value, strides in recorded.gradients:
        value = _own(recorder, value, strides, taken)
        taken.add(value)
        graph.outputs.append(Output(value))
    return forward, Joint(
        graph,
        [numbers[id(leaf)] for leaf in recorded.leaves],
        [positions[value] for value, _, _ in recorded.gradients],
        [(numbers[id(view)], numbers[id(base)]) for view, base in recorded.views],
        [(numbers[id(view)], positions[value]) for view, value in recorded.input_views],
    )


def _forward_ops(graph: Graph, start: int) -> list[Op]:
    """The ops of the forward pass, and of those behind it the ones that complete its results."""
    live = graph.live_out()
    kept: list[Op] = []
    for op in reversed(graph.ops[start:]):
        if any(result in live for result in op.results):
            live.update(op.inputs)
            kept.append(op)
    return graph.ops[:start] + kept[::-1]


def _own(recorder: Recorder, value: Value, strides: tuple[int, ...], taken: set[Value]) -> Value:
    """A gradient in memory of its own, laid out as eager does: autograd may keep it and add to it in place."""
    shape: tuple[int, ...] = value.shape  # type: ignore[assignment]  # static by construction
    wanted = None if strides == layout.contiguous(shape) or not layout.is_dense(shape, strides) else strides
    if isinstance(value, Input) or value in taken or value.strides not in (None, wanted):
        value = recorder.builder.op("cast", value, dtype=value.dtype)
    value.strides = wanted
    return value
