"""What a capture gives: the graph, how its inputs are fed, when it holds, and how its outputs become the user's."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from graphc.frontend import tree
from graphc.frontend.argument_effects import ArgumentEffect
from graphc.frontend.guards import GuardSet
from graphc.frontend.inputs import Binding, BindingKind
from graphc.frontend.joint import Joint
from graphc.frontend.leaves import OutputLeaf, find
from graphc.frontend.list_arguments import Lists
from graphc.frontend.objects import opened_arguments
from graphc.frontend.optimizers import CreatedState
from graphc.frontend.replays import Replay
from graphc.frontend.scalers import CreatedScale
from graphc.frontend.segments import Segment
from graphc.frontend.sized import Sized
from graphc.ir.graph import Graph

if TYPE_CHECKING:
    from graphc.frontend.attributes import Number


class Effect(Protocol):
    """Something a run changes outside of the program."""

    def apply(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Change it; `outputs` are the leaves of this run that are effects, `inputs` those of the program."""


@dataclass(frozen=True)
class Ends:
    """What a run of the function came to; all empty for one that ended at a decision.

    Attributes:
        node, leaves: the returned structure and its leaves.
        effects, effect_leaves, argument_effect: what to change after each run, and the outputs that takes.
        gradients: (path, tensor, whether it has a gradient) of each whose gradient's existence was assumed.
        graph: of the forward pass, when the recorded graph holds a backward pass too.
        joint, needs_grad, replays, path, checks: as in `Captured`.
    """

    node: tree.Node = field(default_factory=lambda: tree.flatten(())[1])
    leaves: list[OutputLeaf] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    effect_leaves: list[OutputLeaf] = field(default_factory=list)
    argument_effect: ArgumentEffect | None = None
    gradients: list[tuple[str, torch.Tensor, bool]] = field(default_factory=list)
    graph: Graph | None = None
    joint: Joint | None = None
    needs_grad: str = ""
    replays: list[Replay] = field(default_factory=list)
    path: Graph | None = None
    checks: int = 0


@dataclass
class Captured:
    """A captured function.

    Attributes:
        graph: the program.
        bindings: how each graph input is fed, in the order of `graph.inputs`.
        guards: the facts the capture assumed.
        out_node: structure of the returned value.
        out_leaves: its leaves.
        arg_node: structure of (args, kwargs).
        scalars: argument leaves that were Python floats or ints, with their values.
        counters: those of them that are ints in objects.
        effects: what to change after each run: gradients, state of optimizers.
        effect_leaves: the outputs they take.
        argument_effect: what to change in containers and objects of the arguments after each run.
        joint: the graph with its backward pass, when results can be differentiated; `graph` is to be its forward half.
        needs_grad: why calls that need gradients must run eager; empty when they need not.
        warnings: what the user should know: calls kept as they are against expectation, tensors bound by identity, ...
        seconds: wall time of the capture.
        segment: for one program of several on a path, how it goes with the others; else None.
        dynamic: argument leaves that were asked to be, and are, inputs of the program.
        numbers: Python numbers that its guards compare, or that are inputs.
        number_inputs: keys of those that are inputs, and of places whose tensors are looked up in each call.
        modules: how many modules its guards know.
        created: state of optimizers and scalers that was made for real, for the program to update.
        replays: eager calls behind each run, for autograd to see.
        assumes: the program stops with `AssumptionError` where its data lead to an error of the user's.
        path: of the last program of a path: all of the path as one graph.
        checks: how many outputs of `path` check decisions, the last ones of its forward pass; 0: it makes no checks.
        draws: how often it draws from generators of Python and numpy.
        lists: which lists among the arguments are taken as they are.
        sized: for which other sizes it holds, where it is for many.
    """

    graph: Graph
    bindings: list[Binding]
    guards: GuardSet
    out_node: tree.Node
    out_leaves: list[OutputLeaf]
    arg_node: tree.Node
    scalars: dict[int, int | float] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    effect_leaves: list[OutputLeaf] = field(default_factory=list)
    argument_effect: ArgumentEffect | None = None
    joint: Joint | None = None
    needs_grad: str = ""
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    segment: Segment | None = None
    dynamic: frozenset[int] = frozenset()
    counters: frozenset[int] = frozenset()
    modules: int = 0
    numbers: list[Number] = field(default_factory=list)
    number_inputs: frozenset[Hashable] = frozenset()
    created: list[CreatedState | CreatedScale] = field(default_factory=list)
    replays: list[Replay] = field(default_factory=list)
    assumes: bool = False
    path: Graph | None = None
    checks: int = 0
    draws: int = 0
    lists: Lists = field(default_factory=Lists)
    sized: Sized | None = None

    def __post_init__(self) -> None:
        first = self.out_leaves[0] if self.out_node.kind == "leaf" else OutputLeaf()
        self._alone = first.number if first.host is None else -1  # the output which is all that is returned

    def match(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any] | None:
        """The inputs of the program for a call, in the order of `graph.inputs`, or None when a guard fails."""
        return self.guards.match(args, kwargs)

    def tensors(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The tensors of a call by the paths of the inputs that they would be; empty for calls of another structure."""
        leaves, node = flatten_call(tuple(args), kwargs, self.lists)
        if node != self.arg_node:
            return {}
        found: dict[str, torch.Tensor] = {}
        for value, binding in zip(self.graph.inputs, self.bindings, strict=False):
            item = binding.found(leaves)
            if isinstance(item, torch.Tensor):
                found[value.path] = item
        return found

    def withdraw(self) -> bool:
        """The program is not kept (its call failed, or was only a question): state made for it goes. True if any."""
        for state in self.created:
            state.remove()
        return bool(self.created)

    def assumes_no_more_than(self, other: Captured) -> bool:
        """For programs of one path: a call that `other` matches is matched by this one too, with the same inputs."""
        pairs = zip(self.bindings, other.bindings, strict=False)
        return (
            not self.graph.writes
            and (self.modules, len(self.bindings)) == (other.modules, len(other.bindings))
            and all((a.kind, a.leaf, a.count) == (b.kind, b.leaf, b.count) and a.tensor is b.tensor for a, b in pairs)
        )

    def merged_storages(self, args: Sequence[Any], kwargs: dict[str, Any]) -> frozenset[int]:
        """The storages of a call (by address) that this capture took as one input each."""
        whole = [binding for binding in self.bindings if binding.kind is BindingKind.STORAGE]
        if not whole:
            return frozenset()
        leaves, _ = flatten_call(tuple(args), kwargs, self.lists)
        tensors: list[Any] = [leaves[binding.leaf] if binding.leaf >= 0 else binding.tensor for binding in whole]
        return frozenset(tensor.untyped_storage()._cdata for tensor in tensors)

    def explain_miss(self, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        """The first fact that changed, such as `argument x: shape (3, 4), compiled for (2, 4)`; empty when none did."""
        other = "sizes for which other things are true" if self.sized is not None else ""
        return self.guards.explain(args, kwargs) or other

    def changed_scalars(self, args: Sequence[Any], kwargs: dict[str, Any], others: Iterable[Captured]) -> set[int]:
        """Argument leaves whose Python number is another one than when captured, and is to be an input from now on.

        An int, which is a size or a choice more often than a number to compute with, has to have had another value in
        one of `others` as well. Numbers in one list (lengths of sequences, say) become inputs together.
        """
        leaves, node = flatten_call(tuple(args), kwargs, self.lists)
        if node != self.arg_node:
            return set()
        changed = {i for i, then in self.scalars.items() if type(leaves[i]) is type(then) and leaves[i] != then}
        known = [other.scalars for other in others if other.arg_node == node]

        def counts(index: int) -> bool:
            values = {leaves[index], self.scalars[index], *(scalars.get(index, leaves[index]) for scalars in known)}
            return index in self.counters or isinstance(leaves[index], float) or len(values) > 2

        found = set(filter(counts, changed))
        for numbers in tree.flat_lists(node):
            if not found.isdisjoint(numbers):
                found.update(self.scalars.keys() & set(numbers))
        return found

    def changed_numbers(self) -> set[Hashable]:
        """Keys of the places that hold another number or tensor than captured, and of all inputs found at places."""
        changed = {number.key for number in self.numbers if number.has_changed()}
        return changed | self.moved_places() | self.number_inputs

    def moved_places(self) -> set[Hashable]:
        """Keys of the places that hold another tensor than captured."""
        return {binding.accesses[0].key() for binding in self.bindings if binding.has_moved()}

    def rebuild(
        self, outputs: list[Any], inputs: Sequence[Any] = (), call: tuple[Sequence[Any], dict[str, Any]] = ((), {})
    ) -> Any:
        """The value the user's function returns.

        Args:
            outputs: what the program gave, in the order of `graph.outputs`: tensors, and numbers for host values.
            inputs: the program's inputs of this call.
            call: (args, kwargs), in which the function's effects on containers and objects are carried out.
        """
        if self.replays:
            with torch.enable_grad():
                for replay in self.replays:
                    replay.replay(outputs, inputs)
        if self.effects or self.argument_effect is not None:
            return self._with_effects(outputs, inputs, call)
        return self._returned(outputs, call)

    def at(self, sizes: Mapping[str, int]) -> Captured:
        """The same for some sizes, of a capture for many, as far as goes what is returned and left behind."""
        sized = self.sized
        assert sized is not None

        def leaves(found: list[OutputLeaf]) -> list[OutputLeaf]:
            return [replace(leaf, constant=sized.at(leaf.constant, sizes)) for leaf in found]

        return replace(self, out_leaves=leaves(self.out_leaves), effect_leaves=leaves(self.effect_leaves), sized=None)

    def _with_effects(self, outputs: Sequence[Any], inputs: Sequence[Any], call: Any) -> Any:
        made = [_leaf(leaf, outputs, call) for leaf in self.effect_leaves]
        change = None if self.argument_effect is None else self.argument_effect.ready(made, call)
        returned = self._returned(outputs, call)
        for effect in self.effects:
            effect.apply(made, inputs)
        if change is not None:
            change()
        return returned

    def _returned(self, outputs: Sequence[Any], call: Any) -> Any:
        if self._alone >= 0:
            return outputs[self._alone]
        node = self.out_node
        if node.kind == "leaf":
            return _leaf(self.out_leaves[0], outputs, call)
        leaves = [_leaf(leaf, outputs, call) for leaf in self.out_leaves]
        if node.kind in ("tuple", "list") and len(node.children) == len(leaves) and node.flat:
            return tuple(leaves) if node.kind == "tuple" else leaves
        return tree.rebuild(node, iter(leaves))


def flatten_call(
    args: tuple[Any, ...], kwargs: dict[str, Any], lists: Lists | None = None
) -> tuple[list[Any], tree.Node]:
    """Leaves and structure of the arguments of a call; objects that hold tensors are opened.

    Args:
        lists: says which lists are leaves; None: none.
    """
    call = args, kwargs
    closed = lists.ids(call) if lists is not None and lists.closed else None
    return tree.flatten(call, opened_arguments(call), (lambda item: id(item) in closed) if closed else None)


def _leaf(leaf: OutputLeaf, outputs: Sequence[Any], call: Any) -> Any:
    if leaf.path is not None:
        return find(call, leaf.path)
    if leaf.number < 0:
        return leaf.constant
    value = outputs[leaf.number]
    if leaf.host is None:
        return value
    return leaf.host(value.item() if isinstance(value, torch.Tensor) else value)
