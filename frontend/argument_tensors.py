"""Tensors among the arguments, as autograd sees them: leaves or not, written in place or not, and their `.grad`.

An argument that is no leaf gets a stand-in that is none either, so that the function may write to it as in eager. A
gradient that the function leaves in an argument is put there, or added to what is there, after each run; one that
Python reads is an input of the program, as those of parameters are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from graphc.errors import EagerCallError, EagerOnlyError
from graphc.frontend.functionalize import TensorState
from graphc.frontend.inputs import Binding, BindingKind
from graphc.frontend.traced import OWN_ATTRIBUTES, TracedTensor
from graphc.ir.graph import Role

if TYPE_CHECKING:
    from graphc.frontend.guards import GuardBuilder
    from graphc.frontend.recorder import Recorder


class _Given(torch.autograd.Function):
    """From the leaf that a capture differentiates by to the stand-in of an argument that is no leaf."""

    @staticmethod
    def forward(ctx: Any, origin: TracedTensor) -> TracedTensor:
        return origin.recorder.make(origin.state)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> torch.Tensor:
        return cotangent


@dataclass
class Argument:
    """One tensor among the arguments.

    Attributes:
        stand_in: what the function is given.
        origin: what gradients are taken by: the stand-in itself where that is a leaf.
        old: the stand-in for the gradient it came with, once Python has read it.
        read: Python looked whether there is a gradient.
        reset: the function has set or dropped the gradient.
        missed: attributes that Python has looked for, and that it has not.
    """

    name: str
    number: int
    tensor: torch.Tensor
    stand_in: TracedTensor
    origin: TracedTensor
    old: TracedTensor | None = None
    read: bool = False
    reset: bool = False
    missed: set[str] = field(default_factory=set)

    @property
    def is_rewritten(self) -> bool:
        """The function has written something to it that autograd must know of."""
        tensor = self.stand_in
        return tensor.requires_grad and not (tensor.is_leaf or isinstance(tensor.grad_fn, _NODE))

    @property
    def sets_flag(self) -> bool:
        """The function has set `requires_grad` of it."""
        return self.stand_in.is_leaf and self.stand_in.requires_grad is not self.tensor.requires_grad

    @property
    def reaches_outside(self) -> bool:
        """A backward pass has come to it, an inner tensor of a graph that goes on outside."""
        return self.origin.is_leaf and self.origin is not self.stand_in and self.origin.grad is not None

    @property
    def leaves_gradient(self) -> bool:
        """It has another gradient than before the function ran, or may have."""
        return self.reset or self.grad is not self.old

    @property
    def grad(self) -> torch.Tensor | None:
        """Its gradient now. Torch warns of who asks that of a tensor that is to have none."""
        tensor = self.stand_in
        return tensor.grad if tensor.is_leaf or tensor.retains_grad else None


@dataclass(frozen=True)
class _Fact:
    """What a capture has assumed of an argument.

    Args:
        has_grad: whether it has a gradient, where that was assumed.
        touched: its gradient is read or changed.
        rewritten: it is written after each run.
        missed: attributes that it has not.
    """

    name: str
    number: int
    is_leaf: bool
    has_grad: bool | None
    touched: bool
    rewritten: bool
    missed: frozenset[str]


_OF_TORCH = ("_is_param",)
"""Attributes for which torch looks itself."""
_NODE: Any = _Given._backward_cls


@dataclass(frozen=True)
class ArgumentGradient:
    """What a run leaves in `.grad` of an argument.

    Args:
        place: which input of the program the argument is.
        number: the output, or -1 for None.
        adds: to the gradient that is there, if there is one.
    """

    place: int
    number: int
    adds: bool

    def apply(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Put it there."""
        tensor, grad = inputs[self.place], outputs[self.number] if self.number >= 0 else None
        if self.adds and tensor.grad is not None:
            with torch.no_grad():
                tensor.grad.add_(grad)
        else:
            tensor.grad = grad


@dataclass(frozen=True)
class ArgumentFlag:
    """`requires_grad` that a run sets on an argument, a leaf.

    Args:
        place: which input of the program the argument is.
    """

    place: int
    value: bool

    def apply(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Set it."""
        inputs[self.place].requires_grad_(self.value)


class ArgumentTensors:
    """The tensors among the arguments of one capture.

    Args:
        recorder: the capture.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._met: dict[int, Argument] = {}
        self._facts: list[_Fact] = []
        self._numbers: list[int] = []

    def __iter__(self) -> Iterator[Argument]:
        return iter(list(self._met.values()))

    def find(self, tensor: Any) -> Argument | None:
        """The argument that a tensor stands for."""
        return self._met.get(id(tensor))

    def stand_in(self, tensor: torch.Tensor, state: TensorState, name: str, number: int) -> TracedTensor:
        """A traced tensor for an argument, leaf number `number` of all."""
        origin = made = self._recorder.make(state, tensor.requires_grad)
        if tensor.requires_grad and not tensor.is_leaf:
            with torch.enable_grad():
                made = _Given.apply(origin)
        self._met[id(made)] = Argument(name, number, tensor, made, origin)
        return made

    # attributes

    def ask_attribute(self, tensor: torch.Tensor, name: str) -> None:
        """Python looks for an attribute that a tensor of the capture has not.

        Raises:
            EagerCallError: the argument that it stands for has.
        """
        found = self.find(tensor)
        if found is None or name in _OF_TORCH:
            return
        if name in vars(found.tensor):
            where = self._recorder.locator.here()
            raise EagerCallError(f"it reads {name}, an attribute that the argument {found.name} has been given", where)
        found.missed.add(name)

    def check_attributes(self) -> None:
        """After the run.

        Raises:
            EagerOnlyError: the function has given an argument an attribute.
        """
        for argument in self:
            if names := vars(argument.stand_in).keys() - OWN_ATTRIBUTES:
                raise EagerOnlyError(f"it sets {min(names)}, an attribute, of the argument {argument.name}")

    # gradients

    def read_gradient(self, tensor: torch.Tensor) -> bool:
        """Python reads `tensor.grad`; False when that is no argument."""
        found = self.find(tensor)
        if found is None:
            return False
        if not found.reset and not found.read:
            found.read = True
            grad = found.tensor.grad if found.tensor.is_leaf else None
            if grad is not None:
                self._bring_in(found, grad)
        return True

    def _bring_in(self, found: Argument, grad: torch.Tensor) -> None:
        """Make the gradient an argument came with an input, with what the function has added to it so far."""
        recorder, added = self._recorder, found.stand_in.grad
        binding = Binding(BindingKind.ARG_GRAD, tensor=grad, leaf=found.number)
        found.old = recorder.make(recorder.add_input(grad, Role.STATE, f"{found.name}.grad", binding))
        if added is not None:
            with torch.no_grad():
                found.old.add_(added)
        found.stand_in.grad = found.old

    def reset_gradient(self, tensor: torch.Tensor) -> None:
        """Python sets `tensor.grad`."""
        found = self.find(tensor)
        if found is not None:
            found.reset = True

    def effects(self, first: int) -> tuple[list[ArgumentGradient | ArgumentFlag], list[torch.Tensor]]:
        """What a run leaves in gradients and flags of arguments, and the tensors that takes.

        Args:
            first: number of the first of these tensors.
        """
        places = [b.leaf if b.kind is not BindingKind.STORAGE else -1 for b in self._recorder.bindings]
        effects: list[ArgumentGradient | ArgumentFlag] = []
        made: list[torch.Tensor] = []
        for argument in self:
            place = places.index(argument.number)
            if argument.sets_flag:
                effects.append(ArgumentFlag(place, argument.stand_in.requires_grad))
            if not argument.leaves_gradient:
                continue
            grad = argument.grad
            adds = not (argument.reset or argument.read)
            effects.append(ArgumentGradient(place, first + len(made) if grad is not None else -1, adds))
            if grad is not None:
                made.append(grad)
        return effects, made

    def refusal(self, branches: bool) -> str:
        """Why a call must run eager, for the sake of gradients and flags of arguments; empty when it need not.

        Args:
            branches: the program is one of several on a path.
        """
        recorder = self._recorder
        for argument in self:
            touched = argument.read or argument.leaves_gradient
            inner = not argument.tensor.is_leaf and (touched or argument.reaches_outside)
            hooks = argument.tensor._backward_hooks or getattr(argument.tensor, "_post_accumulate_grad_hooks", None)
            known = recorder.gradients.knows(argument.tensor)  # the function reaches it in another way as well
            if inner or (touched and (hooks or known)):
                return f"it reads or leaves the gradient of the argument {argument.name}"
        return ""

    def release(self) -> None:
        """Let go of all tensors; what guards are to check of them stays."""
        for argument in self:
            touched = argument.read or argument.leaves_gradient
            leafness = touched or argument.reaches_outside
            if argument.missed or argument.is_rewritten or (argument.tensor.requires_grad and leafness):
                is_leaf = argument.tensor.is_leaf
                has_grad = argument.tensor.grad is not None if argument.read and is_leaf else None
                missed, rewritten = frozenset(argument.missed), argument.is_rewritten
                self._facts.append(_Fact(argument.name, argument.number, is_leaf, has_grad, touched, rewritten, missed))
        self._numbers = [argument.number for argument in self]
        self._met.clear()

    def guards(self, g: GuardBuilder, local: Callable[[int], str]) -> None:
        """Check what the capture has assumed of arguments beside their metadata.

        Args:
            local: from the number of an argument to the name that holds it.
        """
        for fact in self._facts:
            name, where = fact.name, local(fact.number)
            g.check(f"{where}.is_leaf is {fact.is_leaf}", f"whether argument {name} is a leaf")
            for attribute in sorted(fact.missed):
                g.check(f"{attribute!r} not in {where}.__dict__", f"attribute {attribute} of argument {name}")
            if fact.rewritten and len(self._numbers) > 1:
                others = ", ".join(local(number) for number in self._numbers if number != fact.number)
                test = f"{g.hold(shares_storage)}({where}, ({others},))"
                g.check(
                    f"not {test}", f"argument {name} shares memory with another one, compiled for one that does not"
                )
            if fact.has_grad is not None:
                g.check(f"({where}.grad is not None) is {fact.has_grad}", f"whether argument {name} has a gradient")
            if fact.touched:
                hooks = f"not {where}._backward_hooks and not getattr({where}, '_post_accumulate_grad_hooks', None)"
                g.check(hooks, f"hooks of argument {name}")


def shares_storage(tensor: torch.Tensor, others: Sequence[torch.Tensor]) -> bool:
    """Whether a write to `tensor` counts as one to another of these: autograd keeps count by storage."""
    storage = tensor.untyped_storage()._cdata
    return any(other.untyped_storage()._cdata == storage for other in others)
