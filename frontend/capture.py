"""From a PyTorch function to a graph: run it once on tensors without data, and record what it does.

captured = capture(model, (x,), {})
inputs = captured.match((x,), {})          # None when a guard fails
result = captured.rebuild(run(captured.graph, inputs), inputs, ((x,), {}))
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any

from graphc.errors import CaptureError, UninitializedError, UnsupportedError
from graphc.frontend.attempt import Attempt, Request
from graphc.frontend.captured import Captured
from graphc.frontend.cotangents import Question, Strides
from graphc.frontend.dispatch import CaptureMode
from graphc.frontend.draws import Drawn
from graphc.frontend.function_mode import FunctionMode
from graphc.frontend.growing import Unwatched
from graphc.frontend.intercept import watching
from graphc.frontend.list_arguments import Lists, OtherLists
from graphc.frontend.messages import Messages, NeedsText
from graphc.frontend.objects import Restart
from graphc.frontend.recorder import RestartCapture, Specialize, Uninitialized
from graphc.frontend.segments import Diverged, Oracle, PathRaises, Regrow, Step
from graphc.frontend.selected import Escaped
from graphc.frontend.selections import at_once
from graphc.frontend.sized import SizedInputs
from graphc.frontend.target import Target

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
    drawn: Drawn | None = None,
    lists: Lists | None = None,
    sized: SizedInputs | None = None,
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
        lists: what is known of lists among the arguments.
        sized: inputs whose dims are taken for sizes that may be others in other calls.
        drawn: draws for each call what the function draws from generators of Python and numpy; None refuses that.

    Returns:
        The graph, its guards, and how its outputs become the function's return value; or for a program that is part of
        a path, how it goes with the others.

    Raises:
        DataDependentError: a Python branch, number or shape depends on tensor data, and `steps` is None.
        PathRaises: the function raises after a decision.
        Regrow: the path has to be captured again from its first program.
        UninitializedError: a lazy module runs that has no parameters yet.
        OneSizeOnly: the function depends on `sized` in a way that holds for these sizes alone.
        CaptureError: tensor subclasses, generators, tensors kept from another capture or left behind in attributes.
        UnsupportedError: sparse, quantized, nested and meta tensors, changes of storage, what else has no graph form.
        Exception: whatever the function raises by itself; where an operator refuses its arguments, eager's own class
            with the user's line in the message. Modules, gradients and torch's state are then as before.
    """
    started = time.perf_counter()
    with _LOCK:
        _STATE.capturing = True
        try:
            target = Target(fn, tuple(args), dict(kwargs or {}), name, lists or Lists())
            request = Request(None if steps is None else list(steps), numerics, numbers, assumes, oracle, drawn, sized)
            captured = _Session(target, request).run(frozenset(dynamic_scalars), merged)
        finally:
            _STATE.capturing = False
    captured.seconds = time.perf_counter() - started
    return captured


def gradient_strides(question: Question, strides: Sequence[Strides | None]) -> list[Strides | None]:
    """Ask a finished capture which gradients there are for cotangents of these strides, and how they lie; see
    `Question`."""
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


class _Session:
    """One request to capture; it may take several runs of the function."""

    def __init__(self, target: Target, request: Request) -> None:
        self.target, self.request = target, request
        self._messages = Messages(allowed=True)
        self._unshown: Exception | None = None  # why text of tensors was taken to be more than messages
        self._wide = False  # all lists are watched

    def run(self, dynamic: frozenset[int], merged: frozenset[int]) -> Captured:
        constants: frozenset[Hashable] = frozenset()
        for _ in range(_MAX_RESTARTS):
            try:
                attempt = Attempt(self.target, self.request, self._messages, self._wide)
                return attempt.run(merged, dynamic, constants)
            except RestartCapture as restart:
                merged |= {restart.storage}
                if self.request.steps:
                    raise Regrow(merged, self.target.lists) from None
            except Specialize as specialize:
                dynamic -= specialize.leaves
                constants |= specialize.leaves
            except Restart:
                if self.request.steps:
                    raise Regrow(merged, self.target.lists) from None
                self.target.open()
            except Escaped:
                at_once(self.target.fn)
                if self.request.steps:
                    raise Regrow(merged, self.target.lists) from None
            except OtherLists as other:
                if self.request.steps:
                    raise Regrow(merged, other.lists) from None
                self.target.lists = other.lists
                self.target.open()
                dynamic = frozenset()  # leaves have other numbers now
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
                    f"{self.target.name} is not deterministic: run again with the same answers it does something else: "
                    f"before, {different.before}; now, {different.now}. What follows a decision on data is compiled "
                    "by running the function again, so Python's own state and random numbers must not steer it",
                    different.location,
                ) from None
            except Uninitialized as lazy:
                raise UninitializedError(
                    f"{self.target.name}: the lazy module {str(lazy) or 'here'} has no parameters yet; "
                    "call it once before"
                ) from None
        raise UnsupportedError(f"{self.target.name}: too many tensors share memory in ways that are written in place")
