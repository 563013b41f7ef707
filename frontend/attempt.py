"""One attempt at a capture: one run of the function on tensors without data, and what comes of it."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from graphc.errors import CaptureError, EagerOnceError, EagerOnlyError, GraphcError
from graphc.frontend import attributes, drawing, finish, outside, tree
from graphc.frontend.argument_effects import Changed, Given, argument_effect
from graphc.frontend.aten.sized_trials import OneSizeOnly
from graphc.frontend.attributes import Attributes, effects_of, look_up_rebound
from graphc.frontend.captured import Captured, Effect, Ends
from graphc.frontend.dispatch import CaptureMode
from graphc.frontend.draws import Drawn, Draws
from graphc.frontend.facts import Facts
from graphc.frontend.function_mode import FunctionMode
from graphc.frontend.gradients import GradientEffect, Gradients
from graphc.frontend.growing import Unwatched
from graphc.frontend.inputs import Access, BindingKind, SourceMap
from graphc.frontend.intercept import watching
from graphc.frontend.joint import Recorded, close, record_backward, refusal
from graphc.frontend.list_arguments import OtherLists
from graphc.frontend.messages import Messages, NeedsText
from graphc.frontend.modules import ModuleFacts
from graphc.frontend.objects import Closed, Restart
from graphc.frontend.optimizers import Stored, state_effects
from graphc.frontend.paths import Decider
from graphc.frontend.python_random import PythonRandom
from graphc.frontend.reach import Reach
from graphc.frontend.reads import Reads
from graphc.frontend.recorder import Recorder
from graphc.frontend.replays import Replays, find_replays
from graphc.frontend.schedulers import Later
from graphc.frontend.segments import Oracle, PathRaises, Segment, Step, Stop, whole
from graphc.frontend.selected import plain
from graphc.frontend.selections import are_allowed
from graphc.frontend.sized import Sized, SizedInputs
from graphc.frontend.target import Target
from graphc.frontend.undo import Undo, check_leaks
from graphc.frontend.watched import users


@dataclass(frozen=True)
class Request:
    """What is asked of a capture besides the function and its arguments; see `graphc.frontend.capture.capture`."""

    steps: list[Step] | None
    numerics: str
    numbers: frozenset[Hashable]
    assumes: bool
    oracle: Oracle | None
    drawn: Drawn | None
    sized: SizedInputs | None = None


@dataclass(frozen=True)
class _Returned:
    """What the function returned, flat, the backward pass from there (or why there can be none), names it bound, and
    what it changed in containers and objects of its arguments."""

    leaves: list[Any]
    node: tree.Node
    backward: Recorded | str | None
    replays: Replays
    bound: list[tuple[Any, str, Any]]
    changed: list[Changed]


class Attempt:
    """One run of the function.

    Args:
        target: the function and its arguments.
        request: what is asked.
        messages: how text made of tensors is taken.
        wide: all lists are watched.
    """

    def __init__(self, target: Target, request: Request, messages: Messages, wide: bool) -> None:
        self.target, self.request = target, request
        self._messages, self._wide = messages, wide
        self._given: list[Any] = []
        self._copies: Given | None = None

    def run(self, merged: frozenset[int], dynamic: frozenset[int], constants: frozenset[Hashable]) -> Captured:
        """Run the function, and put everything back.

        Args:
            merged: storages (by address of the storage object) to take as one 1-D input each.
            dynamic: argument leaves whose Python numbers are to be inputs.
            constants: numbers that are to be constants, since Python has looked at them.
        """
        target, request = self.target, self.request
        if request.drawn is not None:
            request.drawn.rewind()
        reads = Reads()
        roots = target.read(reads)
        sources = SourceMap(roots, [*reads.objects, *target.objects()])
        modules = ModuleFacts(sources)
        recorder = Recorder(target.name, sources, merged, constants, request.numerics, request.assumes)
        modules.note_gradients(recorder.gradients)
        recorder.dynamic_numbers = request.numbers
        recorder.messages = self._messages
        recorder.sized = request.sized
        recorder.selections.allowed = are_allowed(target.fn)
        if request.steps is not None:
            recorder.decider = recorder.imp.decisions = Decider(recorder, request.steps, request.oracle)
        facts = Facts(target.node, target.leaves, target.names, reads, modules, dynamic)
        self.attributes = Attributes(reads, modules, request.numbers - constants, self._wide)
        held = [(Access(m.__dict__, f"[{key!r}]"), item) for m in modules.modules() for key, item in vars(m).items()]
        held += [(access, item) for _, access, item in reads.identities]
        generators = PythonRandom([*target.leaves, *(item for _, item in held)])
        if reads.running:
            path, item = reads.running[0]
            raise EagerOnlyError(f"{path} is a {type(item).__name__}, which gives what comes next to one call only")
        self._draws = recorder.draws = Draws(recorder, request.drawn, constants, generators)
        self._asking = outside.refused(recorder, reads.identities)
        self._drawing = drawing.told(recorder.draws, held)
        homes = (home for _, _, home, _ in reads.contents)
        self._reach = Reach([target.fn, *target.leaves, *modules.modules(), *homes])
        undo = Undo(modules, target.leaves, self.attributes, generators)
        self._closed = Closed(target.leaves)
        try:
            return self._record(recorder, facts, modules, undo, dynamic)
        except BaseException:
            recorder.undo()
            undo.all()
            if request.drawn is not None:
                request.drawn.rewind()
            self._closed.restore()
            self._reach.restore()
            self._forget(recorder)
            raise

    def _record(
        self, recorder: Recorder, facts: Facts, modules: ModuleFacts, undo: Undo, dynamic: frozenset[int]
    ) -> Captured:
        """One run of the function. Its caller puts everything back when this raises."""
        try:
            self.attributes.place(recorder)
            given = self._arguments(recorder, dynamic)
            returned = self._call(recorder, given)
            if recorder.decider is not None and recorder.decider.segment is not None:
                raise Stop  # which the function has caught
            modules.check_tables(recorder.gradients)
            modules.update()
            undo.check_flags(self.target.name)
            undo.check_random()
            recorder.imp.tape.check_end()
            recorder.arguments.check_attributes()
            ends = self._finish(recorder, returned)
            recorder.settle()
        except Stop:
            self.attributes.growing.ends_early = True
            undo.check_random()
            self._closed.check()
            self._check_lists()
            self.attributes.growing.check()
            ends = Ends(gradients=recorder.gradient_facts())
            recorder.settle()
            rebound = self.attributes.rebound() | recorder.optimizers.rebound
            undo.all()
            self._check_reach()
            modules.update()
            recorder.bindings = look_up_rebound(recorder.graph, recorder.bindings, rebound, self.request.numbers)
            return self._prefix(recorder, facts, dynamic, ends)
        rebound = self.attributes.rebound() | recorder.optimizers.rebound
        undo.settled()
        self._check_reach()
        recorder.bindings = look_up_rebound(recorder.graph, recorder.bindings, rebound, self.request.numbers)
        del given, returned
        self._forget(recorder)
        if recorder.sized is not None and ends.joint is not None:
            ends.joint.question = None  # it would ask for one size
        if ends.joint is None or ends.joint.question is None or not ends.joint.question.settle():
            if ends.joint is not None:
                ends.joint.question = None
            check_leaks(recorder.made)
        segment = None
        if recorder.decider is not None and self.request.steps:
            recorder.decider.check_end()
            if ends.joint is None:
                segment = recorder.decider.last()
                ends = replace(ends, checks=recorder.decider.add_checks())
            else:
                segment = whole(ends.graph or recorder.graph)
            if ends.checks or self.request.oracle is None:
                ends = replace(ends, path=recorder.graph)
        return self._captured(recorder, facts, dynamic, segment, ends)

    def _check_lists(self) -> None:
        """Raises:
        OtherLists: lists among the arguments are to be taken in another way.
        """
        assert self._copies is not None
        lists = self._copies.lists(self.target.lists)
        if lists != self.target.lists:
            raise OtherLists(lists)

    def _check_reach(self) -> None:
        """Raises:
        EagerOnceError: something is not as it was, though all has been put back that further calls can do again.
        """
        if changed := self._reach.changed():
            raise EagerOnceError(f"it changes {changed}, which a compiled program would not do again")

    def _prefix(self, recorder: Recorder, facts: Facts, dynamic: frozenset[int], ends: Ends) -> Captured:
        """What a run gives that ends at a decision without an answer."""
        assert recorder.decider is not None
        self._forget(recorder)
        recorder.decider.check_end()
        return self._captured(recorder, facts, dynamic, recorder.decider.segment, ends)

    def _finish(self, recorder: Recorder, returned: _Returned) -> Ends:
        """What comes of the run: results, effects, the backward pass."""
        changed, stored = recorder.gradients.changed(), recorder.optimizers.stored()
        dropped = {id(tensor) for tensor, _ in changed if recorder.gradients.is_dropped(tensor)}
        effects, made = _effects(changed, dropped, stored)
        bound, kept = effects_of(returned.bound, len(made))
        steps, given = recorder.schedules.effects(len(made) + len(kept))
        effects, made = [*effects, *bound, *steps], [*made, *kept, *given]
        for find in (recorder.arguments.effects, recorder.scalers.effects, recorder.prints.effects):
            more, given = find(len(made))
            effects, made = [*effects, *more], [*made, *given]
        assert self._copies is not None
        change, items = argument_effect(self._copies, returned.changed, len(made))
        made += items
        replays = returned.replays
        leaves = [*returned.leaves, *made, *replays.unreturned, *recorder.assumptions.tensors, *recorder.moves]
        found = finish.finish(recorder, leaves, replays.written)
        count, last = len(returned.leaves), len(returned.leaves) + len(made)
        ends = Ends(
            returned.node,
            self._copies.located(returned.leaves, found[:count]),
            effects,
            found[count:last],
            change,
            gradients=recorder.gradient_facts(),
            replays=replays.made(recorder, leaves, found),
        )
        recorded, branches = returned.backward, bool(self.request.steps)
        reason = recorder.moves.refusal() or recorder.arguments.refusal(branches) or replays.refusal
        if not isinstance(recorded, Recorded):
            return replace(ends, needs_grad=reason or recorded or "")
        reason = reason or recorder.moves.refusal_of_graph() or refusal(recorder)
        if branches and not reason:
            assert recorder.decider is not None
            ends = replace(ends, checks=recorder.decider.add_checks())
        numbers = {id(leaf): out.number for leaf, out in zip(leaves, found, strict=True)}
        graph, joint = close(recorder, recorded, [numbers[id(leaf)] for leaf in recorded.leaves], replays.written)
        return replace(ends, graph=graph, joint=None if reason else joint, needs_grad=reason)

    def _captured(
        self, recorder: Recorder, facts: Facts, dynamic: frozenset[int], segment: Segment | None, ends: Ends
    ) -> Captured:
        graph = ends.graph or recorder.graph
        sized = None if recorder.sized is None else _sized(recorder, ends, segment)
        trained = [lambda g: Gradients.guards(g, ends.gradients), recorder.optimizers.guards, recorder.scalers.guards]
        trained.append(self.attributes.guards)
        trained.append(lambda g: recorder.arguments.guards(g, facts.local))
        if recorder.locator.differentiates:
            trained.append(recorder.gradients.hook_guards)
        looked_up = (b for b in recorder.bindings if b.kind is BindingKind.FOUND and b.number is None)
        found = {binding.accesses[0].key() for binding in looked_up}
        return Captured(
            graph if segment is None else segment.graph,
            [binding.without_argument() for binding in recorder.bindings],
            facts.guards(
                graph,
                recorder.bindings,
                trained,
                self.attributes.inputs,
                self.attributes.masked,
                self.attributes.contents(),
                self.attributes.replaced,
                self._draws.guards,
                recorder.sized_inputs,
            ),
            ends.node,
            ends.leaves,
            self.target.node,
            {i: leaf for i, leaf in enumerate(self.target.leaves) if type(leaf) is int or isinstance(leaf, float)},
            ends.effects,
            ends.effect_leaves,
            ends.argument_effect,
            ends.joint,
            ends.needs_grad,
            recorder.warnings,
            segment=segment,
            dynamic=dynamic,
            counters=frozenset(i for i, name in enumerate(self.target.names) if "." in name),
            modules=len(recorder.sources.modules),
            numbers=[*self.attributes.numbers.values(), *recorder.optimizers.numbers()],
            number_inputs=frozenset(self.attributes.inputs) | {n.key for n in recorder.optimizers.changing} | found,
            created=[*recorder.optimizers.created(), *recorder.scalers.created()],
            replays=ends.replays,
            assumes=bool(recorder.assumptions),
            path=ends.path,
            checks=ends.checks,
            draws=self._draws.count(),
            lists=self.target.lists,
            sized=sized,
        )

    def _arguments(self, recorder: Recorder, dynamic: frozenset[int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the function is given them."""
        given = [drawing.stand_in(leaf, self._draws) for leaf in self.target.stand_ins(recorder, dynamic)]
        rebuilt: tuple[tuple[Any, ...], dict[str, Any]] = tree.rebuild(self.target.node, iter(given))
        self._given, self._copies = given, Given(rebuilt)
        return rebuilt

    def _forget(self, recorder: Recorder) -> None:
        """Nothing of the run holds its tensors any more."""
        self._given.clear()
        recorder.arguments.release()
        recorder.assumptions.tensors.clear()
        recorder.moves.release()
        recorder.prints.release()
        self._copies = None

    def _call(self, recorder: Recorder, given: tuple[tuple[Any, ...], dict[str, Any]]) -> _Returned:
        decider = recorder.decider
        if decider is not None:
            decider.outermost = sys._getframe().f_code
        try:
            with (
                watching(recorder, self.target.fn), self._asking, self._drawing, CaptureMode(recorder),
                FunctionMode(recorder),
            ):  # fmt: skip
                result = self.target.fn(*given[0], **given[1])
                self._closed.check()
                self.attributes.growing.check()
                assert self._copies is not None
                leaves, node = self._copies.flatten(result)
                leaves = [leaf if self._copies.gives(leaf) else plain(drawing.own(users(leaf))) for leaf in leaves]
                del result
                recorder.selections.check()
                _check_results(leaves, node)
                bound, changed = self.attributes.changed(), self._copies.changed()
                bound += recorder.optimizers.changed()
                kept = [leaf for _, _, value in bound for leaf in attributes.flatten(value)[0]]
                kept += [leaf for change in changed for leaf in change.leaves]
                replays = find_replays(recorder, [*leaves, *kept])
                texts = [*leaves, *kept], [node, *(change.node for change in changed)]
                if recorder.messages.is_in(*texts) or recorder.prints.is_in(*texts):
                    raise NeedsText(CaptureError("text made of a tensor is a result"))
                if replays.results:
                    finish.ask_places(recorder, [*leaves, *kept])
                self._check_lists()
                backward = record_backward(recorder, replays)
                return _Returned(leaves, node, backward, replays, bound, changed)
        except Exception as error:
            if isinstance(error, (Unwatched, Restart, OtherLists)):
                raise
            self._check_lists()
            if recorder.messages.made or recorder.prints.made:
                raise NeedsText(error) from None
            if isinstance(error, GraphcError):
                raise
            if decider is not None and decider.segment is not None:
                raise Stop from None  # a clean-up of the function failed for want of what it was computing
            if decider is not None and decider.all_met:
                raise PathRaises(error) from None
            raise


def _sized(recorder: Recorder, ends: Ends, segment: Segment | None) -> Sized:
    """For which calls a capture for many sizes holds.

    Raises:
        OneSizeOnly: it is more than one program, or keeps something that is for these sizes alone.
    """
    assert recorder.sized is not None
    if segment is not None or (recorder.decider is not None and recorder.decider.taken):
        raise OneSizeOnly("it decides on data")
    if ends.needs_grad or ends.replays or any(b.kind is BindingKind.STORAGE for b in recorder.bindings):
        raise OneSizeOnly("some of it runs eager, or goes by where tensors lie in memory")
    if recorder.keeps_sizes():
        gc.collect()
        if recorder.keeps_sizes():
            raise OneSizeOnly("a size is kept outside of the function")
    paths = ((place, recorder.graph.inputs[place].path) for place in recorder.sized_inputs.values())
    inputs = {place: recorder.sized.geometry[path] for place, path in paths}
    return Sized(recorder.sized.conditions, inputs, recorder.imp.sized_trials)


def _effects(
    changed: list[tuple[torch.Tensor, torch.Tensor | None]],
    dropped: set[int],
    stored: list[Stored],
) -> tuple[list[Effect], list[Any]]:
    """What a run changes outside of the program, and the tensors it takes for that."""
    made: list[Any] = [grad for _, grad in changed if grad is not None]
    numbers = {id(grad): number for number, grad in enumerate(made)}
    effects: list[Effect] = [
        GradientEffect(t, numbers[id(g)] if g is not None else -1, id(t) in dropped) for t, g in changed
    ]
    kept, given = state_effects(stored, len(made))
    return [*effects, *kept], [*made, *given]


def _check_results(leaves: list[Any], node: tree.Node) -> None:
    for leaf in leaves:
        if isinstance(leaf, Later):
            float(leaf)  # says what is wrong
        if isinstance(leaf, (types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType)) or (
            isinstance(leaf, Iterator) and not isinstance(leaf, torch.Tensor)
        ):
            raise CaptureError(
                f"the function returns a {type(leaf).__name__}, whose body would run later; return a list or tuple, or "
                "compile what is inside the loop"
            )
