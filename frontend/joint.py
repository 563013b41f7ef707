"""The backward pass of a captured function: recorded right behind the forward pass, into the same graph.

For every result that still requires grad the graph gets one more input, its cotangent (the gradient of some later loss
with respect to that result), and autograd is asked, during the capture, for the gradients of all inputs that require
grad. `graphc.passes.partition` splits the joint graph in two.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graphc.frontend import functionalize
from graphc.frontend.aten import layout
from graphc.frontend.cotangents import Question, own_gradient, usual, without_hooks
from graphc.frontend.functionalize import Storage, root_state
from graphc.frontend.inputs import BindingKind
from graphc.frontend.recorder import Recorder
from graphc.frontend.replays import Replays
from graphc.frontend.segments import Stop
from graphc.frontend.traced import TracedTensor, geometry
from graphc.ir.graph import Graph, Input, Op, Role, Value
from graphc.ir.types import TensorType

_SECOND_TIME = "backward through the graph a second time"


@dataclass
class Joint:
    """A graph with a backward pass in it. Its last inputs are the cotangents, its last outputs the gradients.

    Attributes:
        graph: the joint graph.
        results: outputs of the forward pass that are differentiable, by number, in the order of the cotangents.
        wanted: inputs whose gradients the last outputs are, by number, in the order of those outputs.
        overwritten: inputs that get new contents when the forward pass has run, by number.
        anchor: an input that the results depend on, by number: where all gradients are None, eager's results still
            require grad.
        question: for gradients by cotangents that lie otherwise than those of the graph; None when it cannot be asked.
        flagged: inputs that have to require grad before autograd hears of the call, by number.
    """

    graph: Graph
    results: list[int]
    wanted: list[int]
    overwritten: list[int]
    anchor: int
    question: Question | None
    flagged: list[int]


@dataclass(frozen=True)
class Recorded:
    """Gradients as values, before the ends of the graph are known.

    Attributes:
        start: how many ops the forward pass has.
        cotangents: one input per differentiable result.
        leaves: the differentiable results.
        gradients: input, gradient and its strides.
        anchor, question: as in `Joint`.
    """

    start: int
    cotangents: list[Input]
    leaves: list[TracedTensor]
    gradients: list[tuple[Input, Value, tuple[int, ...]]]
    anchor: Input
    question: Question


def record_backward(recorder: Recorder, replays: Replays) -> Recorded | str | None:
    """Record the backward pass from the results of a function.

    Args:
        replays: knows which results the program itself has to differentiate.

    Returns:
        The gradients, None when nothing returned can still be differentiated, or why this call must run eager.
    """
    differentiates, assumes = recorder.locator.differentiates, recorder.assumptions.allowed
    recorder.assumptions.allowed = False
    try:
        return _record_backward(recorder, replays)
    finally:
        recorder.locator.differentiates, recorder.assumptions.allowed = differentiates, assumes


def _record_backward(recorder: Recorder, replays: Replays) -> Recorded | str | None:
    results = list(replays.results)
    hooked = next((m for m in recorder.sources.modules if m._backward_hooks or m._backward_pre_hooks), None)
    if results and hooked is not None:
        return f"the module {recorder.sources.module_paths[id(hooked)]!r} has backward hooks"
    if _reaches(results, [leaf for leaf, _ in replays.own_leaves]):
        return "a result can be differentiated by a leaf tensor that the function makes and gives away"
    inputs = [tensor for tensor, _ in _differentiable_inputs(recorder)]
    replays.loose += [result for result in results if not _reaches([result], inputs)]
    results = [result for result in results if _reaches([result], inputs)]
    while results:
        mark = len(recorder.graph.ops)
        cotangents, stand_ins = _cotangents(recorder, results)
        wanted = _differentiable_inputs(recorder)
        tensors = [tensor for tensor, _ in wanted]
        try:
            with without_hooks(tensors):
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
            if replays:
                return "it writes to an argument or returns a view, and has run a backward pass through that"
            results = [leaf for leaf in results if not _is_used_up(recorder, leaf)]
            continue
        gradients = [
            (value, functionalize.read(recorder.builder, recorder.state_of(grad)), geometry(grad)[1])
            for (_, value), grad in zip(wanted, found, strict=True)
            if grad is not None
        ]
        reached = [tensor for tensor, grad in zip(tensors, found, strict=True) if grad is not None]
        del found, stand_ins
        question = Question(recorder, results, reached)
        return Recorded(mark, cotangents, results, gradients, wanted[0][1], question)
    return None


def _reaches(results: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor]) -> bool:
    """Whether a backward pass from one of the results comes to one of the leaves, or to a tensor that is none."""
    if not leaves:
        return False
    wanted, seen = {id(leaf) for leaf in leaves}, set()
    ends = {leaf.grad_fn for leaf in leaves if leaf.grad_fn is not None}
    nodes = [result.grad_fn for result in results]
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in ends or id(getattr(node, "variable", None)) in wanted:
            return True
        nodes += [following for following, _ in node.next_functions]
    return False


def _is_used_up(recorder: Recorder, leaf: TracedTensor) -> bool:
    """A backward pass inside the function has freed what another one would need."""
    mark = len(recorder.graph.ops)
    _, stand_ins = _cotangents(recorder, [leaf])
    wanted = [tensor for tensor, _ in _differentiable_inputs(recorder)]
    try:
        with without_hooks(wanted):
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


def _cotangents(recorder: Recorder, results: list[TracedTensor]) -> tuple[list[Input], list[TracedTensor]]:
    """One input and stand-in per result. They have no binding: the caller puts them behind all other inputs."""
    inputs, stand_ins = [], []
    for number, leaf in enumerate(results):
        shape, strides = leaf.state.shape, usual(leaf)
        type_ = TensorType(leaf.state.dtype, shape, leaf.state.device)
        hint = None if strides == layout.contiguous(shape) else strides
        value = recorder.builder.input(f"cotangent.{number}", type_, Role.ARG, f"cotangent.{number}", hint)
        inputs.append(value)
        stand_ins.append(recorder.make(root_state(value, strides)))
    return inputs, stand_ins


def _differentiable_inputs(recorder: Recorder) -> list[tuple[torch.Tensor, Input]]:
    pairs: list[tuple[torch.Tensor, Input]] = []
    origins = {argument.number: argument.origin for argument in recorder.arguments}
    for value, binding in zip(recorder.graph.inputs, recorder.bindings, strict=False):
        tensor, origin = binding.tensor, origins.get(binding.leaf)
        if tensor is None or binding.kind is BindingKind.STORAGE:
            continue
        if binding.leaf < 0 and tensor.requires_grad:
            pairs.append((tensor, value))
        elif origin is not None and origin.requires_grad:
            pairs.append((origin, value))
    return pairs


def _flagged(recorder: Recorder) -> list[Input]:
    """The arguments of which the function sets `requires_grad` to True."""
    found = [argument for argument in recorder.arguments if argument.sets_flag and argument.stand_in.requires_grad]
    numbers = {argument.number for argument in found}
    pairs = zip(recorder.graph.inputs, recorder.bindings, strict=False)
    return [value for value, binding in pairs if binding.leaf in numbers and binding.kind is BindingKind.ARG]


def refusal(recorder: Recorder) -> str:
    """Why the results cannot be handed out by one autograd function, or an empty string."""
    graph = recorder.graph
    written = {write.target for write in graph.writes}
    for value, binding in zip(graph.inputs, recorder.bindings, strict=False):
        tensor = binding.tensor
        if tensor is None or not tensor.requires_grad:
            continue
        if value in written and binding.leaf < 0 and not tensor.is_leaf:
            return f"it writes to {value.path}, which requires grad"
        if binding.kind is BindingKind.STORAGE:
            return f"{value.path} requires grad and shares memory with another input that is written"
    return ""


def close(
    recorder: Recorder, recorded: Recorded, numbers: list[int], overwritten: Collection[Storage]
) -> tuple[Graph, Joint]:
    """Complete the joint graph, behind whose results the gradients are put; and the forward pass alone.

    Args:
        numbers: output of the graph that each differentiable result is.
        overwritten: storages that get new contents after the forward pass.
    """
    graph = recorder.graph
    cotangents = set(recorded.cotangents)
    inputs = [value for value in graph.inputs if value not in cotangents]
    forward = Graph(graph.name, inputs, _forward_ops(graph, recorded.start), list(graph.writes), list(graph.outputs))
    graph.inputs = inputs + recorded.cotangents
    positions = {value: number for number, value in enumerate(graph.inputs)}
    taken = {output.value for output in graph.outputs}
    for _, value, strides in recorded.gradients:
        graph.outputs.append(own_gradient(recorder.builder, value, strides, taken))
    changing = [positions[storage.source] for storage in overwritten if storage.source is not None]
    wanted = [positions[value] for value, _, _ in recorded.gradients]
    anchor, flagged = positions[recorded.anchor], [positions[value] for value in _flagged(recorder)]
    return forward, Joint(graph, numbers, wanted, changing, anchor, recorded.question, flagged)


def _forward_ops(graph: Graph, start: int) -> list[Op]:
    """The ops of the forward pass, and of those behind it the ones that complete its results."""
    live = graph.live_out()
    kept: list[Op] = []
    for op in reversed(graph.ops[start:]):
        if any(result in live for result in op.results):
            live.update(op.inputs)
            kept.append(op)
    return graph.ops[:start] + kept[::-1]
