"""What autograd has to see happen to the user's own tensors: done by eager calls behind each run of a program.

A program hands out values. Where the function writes to an argument what requires grad, the new contents are one more
result, and copied into the argument after the run; where a result that requires grad is a view, of an argument or of
another result, the view is made after the run. So autograd outside knows the writes and the views, and their bases.
Leaves that the function makes and returns become leaves again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.autograd.function import BackwardCFunction

from graphc.errors import EagerOnlyError
from graphc.frontend.argument_tensors import shares_storage
from graphc.frontend.aten import layout
from graphc.frontend.functionalize import Storage, overlap
from graphc.frontend.inputs import BindingKind
from graphc.frontend.leaves import OutputLeaf
from graphc.frontend.traced import TracedTensor, is_parameter
from graphc.ir.graph import StridedView

if TYPE_CHECKING:
    from graphc.frontend.recorder import Recorder

_CHAIN_LIMIT = 1000


class Replay(Protocol):
    """One eager call behind a run."""

    def replay(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Make it, on the program's outputs and inputs of this run."""


@dataclass(frozen=True)
class WriteAgain:
    """An argument gets new contents.

    Args:
        target: the input.
        number: the output that holds them.
    """

    target: int
    number: int

    def replay(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Copy them."""
        inputs[self.target].copy_(outputs[self.number])


@dataclass(frozen=True)
class ViewAgain:
    """A result is a view.

    Args:
        number: the output.
        base: the input, or the other output, that it is a view of.
        of_input: which of the two.
        view: makes it of its base.
    """

    number: int
    base: int
    of_input: bool
    view: Callable[[torch.Tensor], torch.Tensor]

    def replay(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Make the view."""
        outputs[self.number] = self.view((inputs if self.of_input else outputs)[self.base])


@dataclass(frozen=True)
class Strided:
    """A view that the user makes by its geometry.

    Args:
        view: the geometry; the offset counts from the base's first element.
    """

    view: StridedView

    def __call__(self, base: Any) -> torch.Tensor:
        """Make it, wherever in its memory the base begins."""
        made: torch.Tensor = base.as_strided(
            self.view.shape, self.view.strides, base.storage_offset() + self.view.offset
        )
        return made


@dataclass(frozen=True)
class DetachAgain:
    """A result sees the memory of an input, and autograd is to know nothing of that.

    Args:
        number: the output.
    """

    number: int

    def replay(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Detach it."""
        outputs[self.number] = outputs[self.number].detach()


@dataclass(frozen=True)
class LeafAgain:
    """A result is a leaf of autograd's that the function has made, with the gradient that it has left there.

    Args:
        number: the output.
        gradient: the output that is its gradient, or -1 for none.
        requires_grad: a parameter need not.
        is_parameter: it is a parameter.
    """

    number: int
    gradient: int
    requires_grad: bool
    is_parameter: bool

    def replay(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Make it one."""
        leaf = outputs[self.number].detach().requires_grad_(self.requires_grad)
        if self.is_parameter:
            leaf = torch.nn.Parameter(leaf, self.requires_grad)
        leaf.grad = outputs[self.gradient] if self.gradient >= 0 else None
        outputs[self.number] = leaf


@dataclass(frozen=True)
class AttachAgain:
    """A result can be differentiated, but only by leaves that the function has made and let go.

    Args:
        number: the output.
    """

    number: int

    def replay(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Have autograd know it so."""
        outputs[self.number] = _OfNobody.apply(torch.empty((), requires_grad=True), outputs[self.number])


class _OfNobody(torch.autograd.Function):
    """From a leaf that nobody has to a tensor that is computed already."""

    @staticmethod
    def forward(ctx: Any, leaf: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        return result.detach()

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[None, None]:
        return None, None


@dataclass
class Replays:
    """What a capture finds to be done behind each run.

    Attributes:
        results: what is left to be differentiated as results of the program, those of `hidden` among them.
        hidden: tensors that are outputs for the sake of replays alone.
        writes: number of the argument, and the tensor that holds what is written to it.
        views: result and base.
        loose: results, and tensors of `hidden`, that can only be differentiated by leaves that nobody has any more.
        own_leaves: results that are leaves of autograd's made by the function, each with its gradient; parameters that
            require no grad too.
        written: storages that the program itself need not write to.
        refusal: why there can be none; empty when there can.
    """

    results: list[TracedTensor] = field(default_factory=list)
    hidden: list[TracedTensor] = field(default_factory=list)
    writes: list[tuple[int, TracedTensor]] = field(default_factory=list)
    views: list[tuple[TracedTensor, torch.Tensor]] = field(default_factory=list)
    loose: list[TracedTensor] = field(default_factory=list)
    own_leaves: list[tuple[TracedTensor, torch.Tensor | None]] = field(default_factory=list)
    written: set[Storage] = field(default_factory=set)
    refusal: str = ""

    def __bool__(self) -> bool:
        return bool(self.writes or self.views)

    @property
    def unreturned(self) -> list[torch.Tensor]:
        """Tensors that have to be outputs for the sake of replays."""
        return [*self.hidden, *(gradient for _, gradient in self.own_leaves if gradient is not None)]

    def made(self, recorder: Recorder, leaves: Sequence[Any], found: Sequence[OutputLeaf]) -> list[Replay]:
        """The replays, once the outputs of the graph are known.

        Args:
            leaves, found: what outputs there are, and what has become of each.
        """
        numbers = {id(leaf): out.number for leaf, out in zip(leaves, found, strict=True)}
        places = _places(recorder)
        replays: list[Replay] = [AttachAgain(numbers[id(leaf)]) for leaf in self.loose]
        replays += [WriteAgain(places[number], numbers[id(new)]) for number, new in self.writes]
        for leaf, base in self.views:
            number = numbers[id(leaf)]
            output = recorder.graph.outputs[number]
            view = _view_of(recorder, leaf, base, output.view, id(base) in numbers)
            argument = recorder.arguments.find(base)
            if id(base) in numbers:
                replays.append(ViewAgain(number, numbers[id(base)], False, view))
            else:
                place = places[argument.number] if argument is not None else _place_of(recorder, base)
                replays.append(ViewAgain(number, place, True, view))
        replays += [DetachAgain(number) for number in _detached(recorder, leaves, found)]
        for leaf, gradient in self.own_leaves:
            place = -1 if gradient is None else numbers[id(gradient)]
            replays.append(LeafAgain(numbers[id(leaf)], place, leaf.requires_grad, is_parameter(leaf)))
        return replays + recorder.moves.replays(numbers)


def _view_of(
    recorder: Recorder, leaf: TracedTensor, base: torch.Tensor, view: StridedView | None, of_output: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Makes a view again, by the operators that have made it in the capture: gradients lie as theirs do.

    Args:
        leaf, base: the view, and what it is a view of.
        view: its geometry in the storage of the base; None where it is all of that.
        of_output: the base is a result of the program.
    """
    if not _is_by_geometry(leaf, base):
        return _without_capture(leaf, base)
    state = leaf.state
    if view is None:
        view = StridedView(state.shape, state.strides, 0)
    elif not of_output:  # counted from the base, which may be a part of the input
        state = recorder.state_of(base)
        view = replace(view, offset=view.offset - (state.offset - state.storage.root.offset))
    return Strided(view)


def _without_capture(leaf: torch.Tensor, base: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """What autograd knows of how a view was made, held by a tensor that has nothing to do with the capture."""
    with (
        torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch(), torch.enable_grad(),
        torch.autograd._force_original_view_tracking(True),
    ):  # fmt: skip
        plain = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device="meta", requires_grad=True)
        again: Callable[[torch.Tensor], torch.Tensor] = leaf._view_func_unsafe(plain)._view_func_unsafe
    return again


def _detached(recorder: Recorder, leaves: Sequence[Any], found: Sequence[OutputLeaf]) -> set[int]:
    """Outputs that lie in an input's memory and do not require grad, other than the input itself."""
    return {
        out.number
        for leaf, out in zip(leaves, found, strict=True)
        if type(leaf) is TracedTensor
        and not leaf.requires_grad
        and leaf.state.storage.visible
        and id(leaf.state) not in recorder.very_tensors
    }


def _places(recorder: Recorder) -> dict[int, int]:
    """By argument: the input that it is."""
    return {b.leaf: place for place, b in enumerate(recorder.bindings) if b.kind is BindingKind.ARG}


def _place_of(recorder: Recorder, tensor: torch.Tensor) -> int:
    return next(place for place, b in enumerate(recorder.bindings) if b.tensor is tensor and b.leaf < 0)


def _history(recorder: Recorder, leaf: TracedTensor) -> Any:
    try:
        return leaf.grad_fn
    except RuntimeError:  # eager hands it out, and raises when it is asked for its history
        raise EagerOnlyError(
            "a result is a view made without autograd, and its memory was then written under it",
            recorder.locator.here(),
        ) from None


def find_replays(recorder: Recorder, leaves: Sequence[Any]) -> Replays:
    """Sort the results of a function, and what it has written, into what the program gives and what is replayed.

    Args:
        leaves: of the returned value. Those that require grad are meant.
    """
    made = {id(leaf): leaf for leaf in leaves if type(leaf) is TracedTensor}
    given = {key: leaf for key, leaf in made.items() if leaf.requires_grad}
    found = Replays()
    found.own_leaves += [(leaf, None) for key, leaf in made.items() if key not in given and is_parameter(leaf)]
    _find_writes(recorder, found)
    shared: dict[Storage, list[TracedTensor]] = {}
    for leaf in given.values():
        if recorder.arguments.find(leaf) is not None:
            continue
        if _history(recorder, leaf) is None:
            if id(leaf.state) not in recorder.very_tensors:
                found.own_leaves.append((leaf, leaf.grad))
            continue
        if leaf.state.storage.visible:
            _add_view_of_input(recorder, found, leaf)
        else:
            shared.setdefault(leaf.state.storage, []).append(leaf)
    for together in shared.values():
        _add_shared(found, together)
    found.results += found.hidden
    return found


def _find_writes(recorder: Recorder, found: Replays) -> None:
    for argument in recorder.arguments:
        if not argument.is_rewritten:
            continue
        state = argument.stand_in.state
        others = [other.tensor for other in recorder.arguments if other is not argument]
        with torch._C.DisableTorchFunction():
            shared = state.parent is not None or shares_storage(argument.tensor, others)
        if shared:
            found.refusal = f"{argument.name} is written, requires grad and shares memory with another argument"
            return
        with torch.enable_grad():
            new = argument.stand_in.clone()
        assert isinstance(new, TracedTensor)
        found.hidden.append(new)
        found.writes.append((argument.number, new))
        found.written.add(state.storage)


def _add_view_of_input(recorder: Recorder, found: Replays, leaf: TracedTensor) -> None:
    base = leaf._base
    known = base is not None and (
        recorder.arguments.find(base) is not None or any(b.tensor is base and b.leaf < 0 for b in recorder.bindings)
    )
    if not known or not _is_plain_view(leaf, base):
        found.refusal = "a result that requires grad is a view of an input that autograd does not know as one"
        return
    if _is_at_traced_place(leaf, base):
        found.refusal = "a result that requires grad is a view of an input at a place that data decide"
        return
    if _is_by_geometry(leaf, base) and overlap(tuple(base.shape), tuple(base.stride())):  # type: ignore[union-attr]
        # `as_strided` shares a gradient among all elements at one place
        found.refusal = "a result that requires grad is a view of an input whose elements lie at one place in memory"
        return
    found.views.append((leaf, base))  # type: ignore[arg-type]  # there is one


def _add_shared(found: Replays, together: list[TracedTensor]) -> None:
    """Results that lie in one memory, which the function has made."""
    if len(together) == 1:
        found.results += together
        return
    bases: list[Any] = [leaf._base if leaf._base is not None else leaf for leaf in together]
    base = bases[0]
    same = all(other is base for other in bases) and type(base) is TracedTensor and _is_all(base)
    views = [leaf for leaf in together if leaf is not base]
    if not same or not all(_is_plain_view(leaf, base) and not _is_at_traced_place(leaf, base) for leaf in views):
        found.refusal = "two results that require grad share memory in a way that autograd does not know"
        return
    if any(leaf is base for leaf in together):
        found.results.append(base)
    else:
        found.hidden.append(base)
    found.views += [(leaf, base) for leaf in views]


def _is_all(base: TracedTensor) -> bool:
    """It is all of its memory, from the first element on, be it as a view that autograd knows nothing of."""
    state, root = base.state, base.state.storage.root
    if state.parent is None:
        return True
    dense = layout.is_dense(state.shape, state.strides) and math.prod(state.shape) == math.prod(root.shape)
    return dense and state.dtype == root.dtype and state.offset == root.offset


def _is_by_geometry(leaf: torch.Tensor, base: Any) -> bool:
    """A view whose gradient is found by places in memory."""
    return any(type(node).__name__.startswith("AsStrided") for node in _steps(leaf, base) or ())


def _is_at_traced_place(leaf: torch.Tensor, base: Any) -> bool:
    """One of the operators between the two selects by a number of the capture, as `x[index]` does."""
    steps = [node for node in _steps(leaf, base) or () if type(node).__name__ == "SelectBackward0"]
    return any(isinstance(node._saved_index, torch.SymInt) for node in steps)


def _is_plain_view(leaf: torch.Tensor, base: Any) -> bool:
    """Autograd goes from one to the other through operators alone: no function or hook of the user's lies between."""
    steps = _steps(leaf, base)
    return steps is not None and not leaf._backward_hooks


def _steps(leaf: torch.Tensor, base: Any) -> list[Any] | None:
    """The operators by which autograd comes from a view to its base; None where others lie between."""
    node: Any = leaf.grad_fn
    stop = base.grad_fn
    found: list[Any] = []
    for _ in range(_CHAIN_LIMIT):
        if node is stop or node is None or type(node).__name__ == "AccumulateGrad":
            return found
        found.append(node)
        following = [after for after, _ in node.next_functions if after is not None]
        if isinstance(node, BackwardCFunction) or len(following) != 1:
            return None
        (node,) = following
    return None
