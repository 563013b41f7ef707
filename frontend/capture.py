"""From a PyTorch function to a graph: run it once on tensors without data, and record what it does.

captured = capture(model, (x,), {})
inputs = captured.match((x,), {})          # None when a guard fails
result = captured.rebuild(run(captured.graph, inputs), inputs, ((x,), {}))
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from graphc.errors import (
    CaptureError,
    EagerOnceError,
    EagerOnlyError,
    GraphcError,
    UninitializedError,
    UnsupportedError,
)
from graphc.frontend import attributes, finish, tree
from graphc.frontend.argument_effects import Changed, Given, argument_effect
from graphc.frontend.attributes import Attributes, effects_of, look_up_rebound
from graphc.frontend.captured import Captured, Effect, Ends, flatten_call
from graphc.frontend.cotangents import Question, Strides
from graphc.frontend.dispatch import CaptureMode
from graphc.frontend.facts import Facts
from graphc.frontend.function_mode import FunctionMode
from graphc.frontend.global_state import GlobalState
from graphc.frontend.gradients import GradientEffect, Gradients
from graphc.frontend.growing import Unwatched
from graphc.frontend.inputs import Access, Binding, BindingKind, SourceMap
from graphc.frontend.intercept import watching
from graphc.frontend.joint import Recorded, close, record_backward, refusal
from graphc.frontend.messages import Messages, NeedsText
from graphc.frontend.modules import ModuleFacts, all_hooks
from graphc.frontend.objects import Closed, Restart
from graphc.frontend.optimizers import Stored, state_effects
from graphc.frontend.paths import Decider
from graphc.frontend.python_random import PythonRandom
from graphc.frontend.reach import Reach
from graphc.frontend.reads import Reads
from graphc.frontend.recorder import Recorder, RestartCapture, Specialize, Uninitialized, set_versions
from graphc.frontend.replays import Replays, find_replays
from graphc.frontend.schedulers import Later
from graphc.frontend.segments import Diverged, Oracle, PathRaises, Regrow, Segment, Step, Stop, whole
from graphc.frontend.traced import TracedTensor
from graphc.frontend.watched import users
from graphc.ir.graph import Role

_LOCK = threading.RLock()
_STATE = threading.local()
_MAX_RESTARTS = 64


def capture(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    name: str | None = None,
    dynamic_scalars: Collection[int] = (),
    steps: Sequence[Step] | None = None,
    merged: frozenset[int] = frozenset(),
    numerics: str = "default",
    numbers: frozenset[Hashable] = frozenset(),
    assumes: bool = True,
    oracle: Oracle | None = None,
) -> Captured:
    """Capture one call of a function as a graph. The function runs once (rarely more often), on tensors without data.

    Args:
        fn: a function, method, nn.Module, partial, or any callable object.
        args, kwargs: of the call; any nesting of containers. Tensors are not read, and never changed.
        name: of the graph; the function's own by default.
        dynamic_scalars: argument leaves (numbered as `tree.flatten((args, kwargs))` gives them) holding Python numbers
            that shall be inputs of the program instead of constants. One whose value Python looks at stays a constant.
        steps: None refuses decisions on data. Else those taken so far on one path, and the capture is of the program
            from the last one to the next, or to the end; see `graphc.frontend.paths`.
        merged: storages (by address of the storage object) to take as one 1-D input each.
        numerics: `default`; or `eager`: random numbers are drawn by ATen, each when and as eager would.
        numbers: keys of attributes, closure cells and globals (see `attributes.Number`) whose Python numbers shall be
            inputs of the program, as `dynamic_scalars`, and of those that held another tensor before.
        assumes: where decisions are taken, those of which one side only raises are none: the program checks that it is
            on the other side; see `graphc.frontend.assumptions`.
        oracle: answers decisions behind `steps`, so that the capture goes on there; it may end at any of them.

    Returns:
        The graph, its guards, and how its outputs become the function's return value; or for a program that is part of
        a path, how it goes with the others.

    Raises:
        DataDependentError: a Python branch, number or shape depends on tensor data, and `steps` is None.
        PathRaises: the function raises after a decision.
        Regrow: the path has to be captured again from its first program.
        UninitializedError: a lazy module runs that has no parameters yet.
        CaptureError: tensor subclasses, generators, tensors kept from another capture or left behind in attributes.
        UnsupportedError: sparse, quantized, nested and meta tensors, changes of storage, what else has no graph form.
        Exception: whatever the function raises by itself; where an operator refuses its arguments, eager's own class
            with the user's line in the message. Modules, gradients and torch's state are then as before.
    """
    started = time.perf_counter()
    with _LOCK:
        _STATE.capturing = True
        try:
            session = _Session(fn, tuple(args), dict(kwargs or {}), name, steps, numerics, numbers, assumes, oracle)
            captured = session.run(frozenset(dynamic_scalars), merged)
        finally:
            _STATE.capturing = False
    captured.seconds = time.perf_counter() - started
    return captured


def gradient_strides(question: Question, strides: Sequence[Strides]) -> list[Strides]:
    """Ask a finished capture how the gradients lie for cotangents of these strides; see `Question`."""
    with _LOCK:
        _STATE.capturing = True
        try:
            recorder = question.recorder
            with watching(recorder), CaptureMode(recorder), FunctionMode(recorder):
                return question.ask(strides)
        finally:
            _STATE.capturing = False


def is_capturing() -> bool:
    """True on a thread that is inside `capture`."""
    return getattr(_STATE, "capturing", False)


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


class _Session:
    """One request to capture; it may take several runs of the function."""

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None,
        steps: Sequence[Step] | None, numerics: str, numbers: frozenset[Hashable], assumes: bool, oracle: Oracle | None,
    ) -> None:  # fmt: skip
        self.numerics, self.numbers, self.assumes = numerics, numbers, assumes
        self.fn, self.args, self.kwargs = fn, args, kwargs
        self.steps, self.oracle = None if steps is None else list(steps), oracle
        self.name = name or _function_name(fn)
        self._open()
        self._messages = Messages(allowed=True)
        self._unshown: Exception | None = None  # why text of tensors was taken to be more than messages
        self._given: list[Any] = []
        self._copies: Given | None = None
        self._wide = False  # all lists are watched

    def _open(self) -> None:
        self.leaves, self.node = flatten_call(self.args, self.kwargs)
        self.names = _argument_names(self.fn, self.node)

    def run(self, dynamic: frozenset[int], merged: frozenset[int]) -> Captured:
        constants: frozenset[Hashable] = frozenset()
        for _ in range(_MAX_RESTARTS):
            try:
                return self._attempt(merged, dynamic, constants)
            except RestartCapture as restart:
                merged |= {restart.storage}
                if self.steps:
                    raise Regrow(merged) from None
            except Specialize as specialize:
                dynamic -= specialize.leaves
                constants |= specialize.leaves
            except Restart:
                if self.steps:
                    raise Regrow(merged) from None
                self._open()
            except Unwatched:
                self._wide = True
            except NeedsText as needs:
                self._messages, self._unshown = Messages(allowed=False), needs.error
            except Diverged as different:
                if self._messages.made:  # the runs before had the numbers
                    self._messages = Messages(allowed=False)
                    continue
                if self._unshown is not None:
                    raise PathRaises(self._unshown) from None
                raise CaptureError(
                    f"{self.name} is not deterministic: run again with the same answers it does something else: "
                    f"before, {different.before}; now, {different.now}. What follows a decision on data is compiled "
                    "by running the function again, so Python's own state and random numbers must not steer it",
                    different.location,
                ) from None
            except Uninitialized as lazy:
                raise UninitializedError(
                    f"{self.name}: the lazy module {str(lazy) or 'here'} has no parameters yet; call it once before"
                ) from None
        raise UnsupportedError(f"{self.name}: too many tensors share memory in ways that are written in place")

    def _attempt(self, merged: frozenset[int], dynamic: frozenset[int], constants: frozenset[Hashable]) -> Captured:
        reads = Reads()
        roots = self._read(reads)
        sources = SourceMap(roots, [*reads.objects, *self._argument_objects()])
        modules = ModuleFacts(sources)
        recorder = Recorder(self.name, sources, merged, constants, self.numerics, self.assumes)
        modules.note_gradients(recorder.gradients)
        recorder.dynamic_numbers = self.numbers
        recorder.messages = self._messages
        if self.steps is not None:
            recorder.decider = recorder.imp.decisions = Decider(recorder, self.steps, self.oracle)
        facts = Facts(self.node, self.leaves, self.names, reads, modules, dynamic)
        self.attributes = Attributes(reads, modules, self.numbers - constants, self._wide)
        held = (item for module in modules.modules() for item in vars(module).values())
        generators = PythonRandom([*self.leaves, *held, *(item for _, _, item in reads.identities)])
        if reads.running:
            path, item = reads.running[0]
            raise EagerOnlyError(f"{path} is a {type(item).__name__}, which gives what comes next to one call only")
        self._reach = Reach([self.fn, *self.leaves, *modules.modules()])
        undo = _Undo(modules, self.leaves, self.attributes, generators)
        self._closed = Closed(self.leaves)
        try:
            return self._record(recorder, facts, modules, undo, dynamic)
        except BaseException:
            recorder.undo()
            undo.all()
            self._closed.restore()
            self._reach.restore()
            self._forget(recorder)
            raise

    def _record(
        self, recorder: Recorder, facts: Facts, modules: ModuleFacts, undo: _Undo, dynamic: frozenset[int]
    ) -> Captured:
        """One run of the function. Its caller puts everything back when this raises."""
        try:
            self.attributes.place(recorder)
            given = self._arguments(recorder, dynamic)
            returned = self._call(recorder, given)
            if recorder.decider is not None and recorder.decider.segment is not None:
                raise Stop  # which the function has caught
            modules.check_tables()
            modules.update()
            undo.check_flags(self.name)
            undo.check_random()
            recorder.imp.tape.check_end()
            ends = self._finish(recorder, returned)
            recorder.settle()
        except Stop:
            undo.check_random()
            self._closed.check()
            self.attributes.growing.check()
            ends = Ends(gradients=recorder.gradient_facts())
            recorder.settle()
            rebound = self.attributes.rebound()
            undo.all()
            self._check_reach()
            modules.update()
            recorder.bindings = look_up_rebound(recorder.graph, recorder.bindings, rebound, self.numbers)
            return self._prefix(recorder, facts, dynamic, ends)
        rebound = self.attributes.rebound()
        undo.settled()
        self._check_reach()
        recorder.bindings = look_up_rebound(recorder.graph, recorder.bindings, rebound, self.numbers)
        del given, returned
        self._forget(recorder)
        if ends.joint is None or ends.joint.question is None or not ends.joint.question.settle():
            if ends.joint is not None:
                ends.joint.question = None
            _check_leaks(recorder.made)
        segment = None
        if recorder.decider is not None and self.steps:
            recorder.decider.check_end()
            if ends.joint is None:
                segment = recorder.decider.last()
                ends = replace(ends, checks=recorder.decider.add_checks())
            else:
                segment = whole(ends.graph or recorder.graph)
            if ends.checks or self.oracle is None:
                ends = replace(ends, path=recorder.graph)
        return self._captured(recorder, facts, dynamic, segment, ends)

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
        recorded, branches = returned.backward, bool(self.steps)
        recorder.moves.check(branches)
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
            ),
            ends.node,
            ends.leaves,
            self.node,
            {i: leaf for i, leaf in enumerate(self.leaves) if type(leaf) is int or isinstance(leaf, float)},
            ends.effects,
            ends.effect_leaves,
            ends.argument_effect,
            ends.joint,
            ends.needs_grad,
            recorder.warnings,
            segment=segment,
            dynamic=dynamic,
            counters=frozenset(i for i, name in enumerate(self.names) if "." in name),
            modules=len(recorder.sources.modules),
            numbers=[*self.attributes.numbers.values(), *recorder.optimizers.numbers()],
            number_inputs=frozenset(self.attributes.inputs) | {n.key for n in recorder.optimizers.changing} | found,
            created=[*recorder.optimizers.created(), *recorder.scalers.created()],
            replays=ends.replays,
            assumes=bool(recorder.assumptions),
            path=ends.path,
            checks=ends.checks,
        )

    # before

    def _read(self, reads: Reads) -> list[tuple[str, torch.nn.Module]]:
        """What the function reads, and the modules to know before it runs."""
        roots: list[tuple[str, torch.nn.Module]] = []
        fn = self.fn
        while isinstance(fn, functools.partial):
            reads.arguments_of(self.name, fn)
            fn = fn.func
        if isinstance(fn, torch.nn.Module):
            roots.append(("", fn))
        elif isinstance(fn, types.MethodType):
            if isinstance(fn.__self__, torch.nn.Module):
                roots.append(("", fn.__self__))
            reads.function(fn.__func__, ("", Access(fn, ".__self__")))
        elif isinstance(fn, types.FunctionType):
            reads.function(fn)
        else:
            reads.function(vars(type(fn)).get("__call__"), ("", Access([fn], "[0]")))
        for name, leaf in zip(self.names, self.leaves, strict=True):
            if isinstance(leaf, torch.nn.Module):
                roots.append((name, leaf))
            elif isinstance(leaf, types.FunctionType):
                reads.function(leaf)
            elif _is_object(leaf):
                reads.whole(f"argument {name}", Access(leaf, ""), leaf)
        roots += reads.modules
        for path, root in list(roots):
            for child_path, module in root.named_modules(prefix=path):
                for hook in all_hooks(module):
                    reads.function(hook)
                forward = type(module).forward
                if not type(module).__module__.startswith("torch.nn."):
                    reads.function(forward, (child_path, Access([module], "[0]")))
        return roots + [pair for pair in reads.modules if pair not in roots]

    def _argument_objects(self) -> list[tuple[str, Access]]:
        """Argument leaves that are objects and may hold tensors."""
        objects: list[tuple[str, Access]] = []
        for name, leaf in zip(self.names, self.leaves, strict=True):
            if _is_object(leaf):
                objects.append((name, Access(leaf, "")))
        if not isinstance(self.fn, (torch.nn.Module, types.FunctionType, types.MethodType)):
            objects.append(("", Access(self.fn, "")))
        return objects

    def _arguments(self, recorder: Recorder, dynamic: frozenset[int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with stand-ins for tensors and dynamic numbers."""
        stand_ins: dict[int, Any] = {}
        given: list[Any] = []
        for index, (name, leaf) in enumerate(zip(self.names, self.leaves, strict=True)):
            if isinstance(leaf, torch.Tensor):
                if id(leaf) not in stand_ins:
                    binding = Binding(BindingKind.ARG, tensor=leaf, leaf=index)
                    state = recorder.add_input(leaf, Role.ARG, name, binding)
                    stand_ins[id(leaf)] = recorder.arguments.stand_in(leaf, state, name, index)
                given.append(stand_ins[id(leaf)])
            elif index in dynamic and isinstance(leaf, (bool, int, float)):
                given.append(recorder.scalar_input(leaf, name, index))
            elif isinstance(leaf, (types.GeneratorType, Iterator)):
                raise CaptureError(f"argument {name} is a {type(leaf).__name__}, which runs out when read; pass a list")
            else:
                given.append(leaf)
        rebuilt: tuple[tuple[Any, ...], dict[str, Any]] = tree.rebuild(self.node, iter(given))
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

    # the run

    def _call(self, recorder: Recorder, given: tuple[tuple[Any, ...], dict[str, Any]]) -> _Returned:
        decider = recorder.decider
        if decider is not None:
            decider.outermost = sys._getframe().f_code
        try:
            with watching(recorder), CaptureMode(recorder), FunctionMode(recorder):
                result = self.fn(*given[0], **given[1])
                self._closed.check()
                self.attributes.growing.check()
                assert self._copies is not None
                leaves, node = self._copies.flatten(result)
                leaves = [users(leaf) for leaf in leaves]
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
                backward = record_backward(recorder, replays)
                return _Returned(leaves, node, backward, replays, bound, changed)
        except Exception as error:
            if isinstance(error, Unwatched):
                raise
            if recorder.messages.made or recorder.prints.made:
                raise NeedsText(error) from None
            if isinstance(error, GraphcError):
                raise
            if decider is not None and decider.segment is not None:
                raise Stop from None  # a clean-up of the function failed for want of what it was computing
            if decider is not None and decider.all_met:
                raise PathRaises(error) from None
            raise


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


class _Undo:
    """What the function may have changed outside of graphs, and how to put it back."""

    def __init__(
        self, modules: ModuleFacts, leaves: list[Any], attributes: Attributes, python_random: PythonRandom
    ) -> None:
        self._modules, self._attributes, self._flags = modules, attributes, GlobalState()
        self._random, self._python_random = torch.get_rng_state(), python_random
        params: list[torch.Tensor] = [
            p for module in modules.modules() for p in module._parameters.values() if p is not None and not is_lazy(p)
        ]
        params += [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_leaf]
        self._tensors = [(tensor, tensor.grad, tensor.requires_grad) for tensor in params]
        buffers = [
            b for module in modules.modules() for b in module._buffers.values() if b is not None and not is_lazy(b)
        ]
        self._versions = [
            (t, t._version) for t in (*params, *buffers) if not t.is_inference() and type(t) is not TracedTensor
        ]

    def check_flags(self, name: str) -> None:
        """Raises:
        CaptureError: the function has set a global flag of torch, which would happen only while it is captured.
        """
        if changed := self._flags.changed():
            raise CaptureError(
                f"{name} changes {changed[0]} and leaves it so, which a compiled program cannot; use a `with` block, "
                "or do it outside of the compiled function"
            )

    def check_random(self) -> None:
        """Raises:
        EagerOnlyError: the function has drawn numbers that would be constants of the program.
        """
        if generator := self._python_random.changed():
            raise EagerOnlyError(
                f"the function draws from {generator}, which a compiled program would not do again; draw outside and "
                "pass the numbers, or draw with torch"
            )

    def settled(self) -> None:
        """After a good run: names, random state and version counters (nothing has been written yet)."""
        self._attributes.restore()
        torch.set_rng_state(self._random)
        set_versions(self._versions)

    def all(self) -> None:
        """After a failed run: attributes of modules and gradients too."""
        self._flags.restore()
        self._modules.restore()
        self._python_random.restore()
        for tensor, grad, requires_grad in self._tensors:
            if tensor.grad is not grad:
                tensor.grad = grad
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
        self.settled()


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


def _check_leaks(stand_ins: list[weakref.ref[Any]]) -> None:
    """No stand-in may outlive the capture: whoever holds it would find no data in it."""
    alive = [tensor for ref in stand_ins if (tensor := ref()) is not None]
    if not alive:
        return
    del alive
    gc.collect()
    alive = [tensor for ref in stand_ins if (tensor := ref()) is not None]
    _break_circles(alive)
    del alive
    alive = [tensor for ref in stand_ins if (tensor := ref()) is not None]
    if alive:
        kept = next((tensor for tensor in alive if tensor.state.storage.base.op is not None), alive[0])
        op = kept.state.storage.base.op
        raise CaptureError(
            f"the function keeps a tensor it made ({kept!r}) in a global, a closure, a list or an attribute, which "
            "a compiled program cannot; return it instead",
            op.location if op is not None else None,
        )


def _break_circles(alive: list[Any]) -> None:
    """Free what autograd alone holds: `x *= x` saves x in the history of x, and so keeps itself, in eager too."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        loose = [
            tensor
            for tensor in alive
            if all(holder is alive or isinstance(holder, _FRAME) for holder in gc.get_referrers(tensor))
            and not tensor.is_leaf
        ]
        for tensor in loose:
            if not tensor._is_view():  # the bases of views are here too
                tensor.detach_()
        for tensor in loose:
            if tensor._is_view() and not tensor._base.requires_grad:
                torch.autograd.graph.increment_version(tensor)
                with contextlib.suppress(RuntimeError):  # of a view that no history can be made for
                    tensor.grad_fn  # noqa: B018  # history that is out of date is made anew, from the base's


_FRAME = types.FrameType


def _is_object(leaf: Any) -> bool:
    """An instance of a class that graphc knows nothing of."""
    return hasattr(leaf, "__dict__") and not isinstance(leaf, (torch.Tensor, torch.nn.Module, type, types.FunctionType))


def _function_name(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    name: str = getattr(fn, "__name__", None) or type(fn).__name__
    return name if name.isidentifier() else "program"


def _argument_names(fn: Any, node: tree.Node) -> list[str]:
    """A readable path per leaf of (args, kwargs), by the parameter names of the function."""
    target = fn.forward if isinstance(fn, torch.nn.Module) else fn
    positional: list[str] = []
    rest = "args"
    try:
        for parameter in inspect.signature(target).parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                rest = parameter.name
                break
            positional.append(parameter.name)
    except (TypeError, ValueError):
        pass
    args, kwargs = node.children
    names: list[str] = []
    for index, child in enumerate(args.children):
        name = positional[index] if index < len(positional) else f"{rest}[{index - len(positional)}]"
        names.extend(tree.paths(child, name))
    for key, child in zip(kwargs.keys, kwargs.children, strict=True):
        names.extend(tree.paths(child, str(key)))
    return names
