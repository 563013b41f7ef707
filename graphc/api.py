"""What users call: `compile`, `trace`, `run`, `explain`, `eager`, and the object that `compile` returns."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any, overload

import torch

from graphc import driver
from graphc.compilation import STAGES, Compilation, Report
from graphc.data_loops import DataLoops, data_loops, names_of_data
from graphc.earnings import Earnings, kind_of
from graphc.entries import FEW, Entry, Likely, Stats, entry_of, leave_to_native
from graphc.errors import (
    AssumptionError,
    DataLoopError,
    EagerCallError,
    EagerOnceError,
    EagerOnlyError,
    FallbackWarning,
    GraphcWarning,
    UninitializedError,
    UnsupportedError,
)
from graphc.families import Families
from graphc.frontend.ambient import surroundings
from graphc.frontend.capture import is_capturing
from graphc.frontend.draws import Drawn
from graphc.frontend.list_arguments import Lists
from graphc.options import Options, make_options
from graphc.path_calls import PathCalls, PathView
from graphc.paths import PathTree
from graphc.settings import override, settings
from graphc.sized_calls import SizedCalls

if TYPE_CHECKING:
    from graphc.frontend.captured import Captured
    from graphc.frontend.loop_bodies import LoopBody
    from graphc.frontend.reclaim import Spare
    from graphc.frontend.segments import Regrow
    from graphc.ir.graph import Graph


_ATTEMPTS = 3
"""Captures for one call: the first ones may fill caches that the function keeps outside."""


class CompiledFunction(SizedCalls, PathCalls):
    """A compiled callable: calls like its target, with the target's signature, docstring and attributes.

    Thread-safe: several threads may call it at once; compiling is done by one of them at a time.
    """

    def __init__(self, target: Callable[..., Any], options: Options) -> None:
        self.target = target
        self.options = options
        self._entries: tuple[Entry, ...] = ()
        self._likely = Likely()
        self._has_many = False  # some of these have programs for many sizes
        self._stats = Stats()
        self._lock = threading.RLock()
        self._dynamic_scalars: set[int] = set()
        self._dynamic_numbers: set[Hashable] = set()
        self._said: set[str] = set()
        self._earnings = Earnings()
        self._assumes = True  # branches that only guard against errors are no decisions
        self._once = 0  # calls that ran eager because of what a function may do in its first calls alone
        self._eager_only = ""  # why calls that no program matches are not captured any more
        self._drawn = Drawn()
        self._draws = False  # some program draws
        self._lists = Lists()
        self._loops: DataLoops | None = None  # what runs it turn by turn
        self.families = Families(self._stats)
        if not isinstance(target, torch.nn.Module):
            functools.update_wrapper(self, target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if settings().eager or self.options.backend == "eager" or is_capturing():
            return self.target(*args, **kwargs)
        if self._loops is not None:
            return self._loops.run(*args, **kwargs)
        if self._draws:
            self._drawn.begin()
        entries = self._entries
        by_shapes = self._has_many or len(entries) >= FEW
        for entry in self._likely.first(entries, args, kwargs) if by_shapes else entries:
            inputs = entry.captured.match(args, kwargs)
            if inputs is not None:
                if entry.many is None:
                    return self._run(entry, inputs, args, kwargs)
                found = entry.many.find(inputs)
                if found is not None:
                    return self._run(found, inputs, args, kwargs)
        is_known = self._entries or self._eager_only
        data = frozenset() if is_known else names_of_data(self.target, args, kwargs)
        if data and self._go_turn_by_turn(lambda body: not data.isdisjoint(body.through)):
            return self(*args, **kwargs)
        reason = surroundings() or self._eager_only
        if reason:
            return self._run_eager(reason, args, kwargs)
        if len(self._stats.recompiles) >= settings().max_recompiles and not self._earned(args, kwargs):
            return self._run_unearned(args, kwargs)
        for attempt in range(_ATTEMPTS):
            try:
                entry = self._add_entry(args, kwargs)
            except EagerOnlyError as error:
                if isinstance(error, DataLoopError) and self._go_turn_by_turn(error.is_there):
                    break
                self._once += isinstance(error, EagerOnceError)
                if not isinstance(error, EagerCallError) or self._once >= _ATTEMPTS:
                    self._eager_only = str(error)
                reason = str(error)
                if isinstance(error, EagerOnceError) and not self._eager_only:
                    reason += "; the next call is captured again, as this may be so in a first call alone"
                return self._run_eager(reason, args, kwargs)
            except UninitializedError:
                return self._run_plain(args, kwargs)
            if entry.execute is None and entry.tree is None and entry.many is None:
                return self._run(entry, [], args, kwargs, fresh=True)
            fits = entry.fit(args, kwargs)
            if fits is not None:
                return self._run_fresh(*fits, args, kwargs)
            reason = entry.captured.explain_miss(args, kwargs)
            self._withdraw(entry.captured, attempt + 1 < _ATTEMPTS)
        if self._loops is not None:
            return self._loops.run(*args, **kwargs)
        self._eager_only = f"it changes, while it runs, what its own compilation depends on: {reason}"
        return self._run_eager(self._eager_only, args, kwargs)

    def _go_turn_by_turn(self, is_data: Callable[[LoopBody], bool]) -> bool:
        """Have the function's loops over data run in Python, with compiled turns, which count for this callable too.

        Args:
            is_data: whether a loop is known to go through data.
        """

        def compiled(turn: Callable[..., Any], options: Options) -> CompiledFunction:
            made = CompiledFunction(turn, options)
            made._stats = self._stats
            made.families = Families(self._stats)
            return made

        self._loops = data_loops(self.target, is_data, self.options, compiled)
        return self._loops is not None

    def expect_changes(self, find: Callable[[], set[int]]) -> None:
        """Have numbers that differ from call to call be inputs of the first program already.

        Args:
            find: which leaves of the arguments these are.
        """
        if not self._entries:
            self._dynamic_scalars |= find()

    def _run_fresh(self, entry: Entry, inputs: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The first call of a program."""
        try:
            return self._run(entry, inputs, args, kwargs, fresh=True)
        except BaseException:
            if entry.tree is None:
                self._withdraw(entry.captured)
            raise

    def _withdraw(self, captured: Captured, always: bool = False) -> None:
        """Take back the state that was made for a program, and the program itself where there was some, or always."""
        self.families.forget(captured.graph)
        if captured.withdraw() or always:
            with self._lock:
                self._entries = tuple(entry for entry in self._entries if entry.captured is not captured)

    def _run(self, entry: Entry, inputs: list[Any], args: Any, kwargs: Any, fresh: bool = False) -> Any:
        if entry.execute is None:
            if entry.tree is not None:
                return self._run_tree(entry.tree, inputs, args, kwargs, fresh)
            return self._run_plain(args, kwargs)
        self._stats.hits += not fresh
        try:
            outputs = self._execute(entry, inputs)
        except AssumptionError:
            self._stats.hits -= not fresh
            return self._run_unassumed(args, kwargs)
        return entry.captured.rebuild(outputs, inputs, (args, kwargs))

    def _execute(self, entry: Entry, inputs: list[Any]) -> list[Any]:
        assert entry.execute is not None
        if entry.reclaimer is None or settings().keep_gradients:
            return entry.execute(inputs)
        spare: Spare = {}
        try:
            entry.reclaimer.take(spare)
            return entry.execute(inputs, spare) if spare else entry.execute(inputs)
        except BaseException:
            entry.reclaimer.put_back(spare)
            raise

    def _run_unassumed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call whose data lead to an error of the user's, which eager raises. If not, such branches are decisions."""
        result = self._run_plain(args, kwargs)
        with self._lock:
            self._assumes = False
            self._entries = tuple(entry for entry in self._entries if not (entry.tree or entry.captured.assumes))
        return result

    def _run_eager(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that no program can answer; each reason is said once."""
        self._say(f"{self.options.name} runs eager, since {reason}", 5)
        return self._run_plain(args, kwargs)

    def _run_plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call by eager, counted."""
        self._stats.eager_calls += 1
        self._drawn.rewind()
        return self.target(*args, **kwargs)

    def _say(self, text: str, stacklevel: int) -> None:
        """Warn once of calls that run eager."""
        if text not in self._said:
            self._said.add(text)
            warnings.warn(FallbackWarning(text), stacklevel=stacklevel)

    def _earned(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether another program is worth its compilation: one for all numbers that change, or one for many calls."""
        entries = self._entries
        if not entries:
            return True
        newest = entries[0].captured
        general = self._changed_scalars(args, kwargs) - self._dynamic_scalars
        return bool(general or newest.changed_numbers() - self._dynamic_numbers) or self._earnings.suffice(
            kind_of(args, kwargs)
        )

    def _run_unearned(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that no program fits and that is not worth one yet."""
        kind = kind_of(args, kwargs)
        reason = (
            f"none of its programs fits the call, and there are {settings().max_recompiles + 1} or more. Calls that "
            "have run eager for as long as a compilation takes are compiled (GRAPHC_MAX_RECOMPILES)"
        )
        start = time.perf_counter()
        result = self._run_eager(reason, args, kwargs)
        self._earnings.ran(kind, time.perf_counter() - start)
        return result

    def _regrow(self, tree: PathTree, args: tuple[Any, ...], kwargs: dict[str, Any], regrow: Regrow) -> None:
        with self._lock:
            self._lists = regrow.lists
            self._entries = tuple(entry for entry in self._entries if entry.tree is not tree)
            self._add_entry(args, kwargs, regrow.merged)

    def _add_entry(self, args: tuple[Any, ...], kwargs: dict[str, Any], merged: frozenset[int] = frozenset()) -> Entry:
        with self._lock, driver.collector_paused():
            for entry in self._entries:  # another thread may have compiled it meanwhile
                if entry.fit(args, kwargs) is not None:
                    return entry
            if (built := self._built_entry(args, kwargs)) is not None:
                return built
            self._note_recompile(args, kwargs)
            if (sized := self._sized_entry(args, kwargs)) is not None:
                return sized
            start, reuses = time.perf_counter(), self._stats.reuses
            dynamic = frozenset(self._dynamic_scalars)
            steps = () if settings().max_paths > 0 else None  # no decisions yet, or none allowed
            numbers = frozenset(self._dynamic_numbers)
            captured = driver.capture(
                self.target, args, kwargs, self.options, dynamic, steps, merged, numbers, self._assumes,
                drawn=self._drawn, lists=self._lists,
            )  # fmt: skip
            try:
                entry = self._compile(captured)
            except BaseException:
                captured.withdraw()
                raise
            self._lists = captured.lists
            self._draws |= captured.draws > 0
            self._entries = (entry, *self._entries)
            self._earnings.compiled(time.perf_counter() - start, self._stats.reuses > reuses)
            return entry

    def _compile(self, captured: Captured) -> Entry:
        if captured.needs_grad:
            what = f"{self.options.name}: gradients are needed, and {captured.needs_grad}, so such calls run eager. "
            self._say(f"{what}Under torch.no_grad() they run compiled.", 6)
            return Entry(captured, None, None)
        if captured.segment is not None:
            return Entry(captured, None, None, PathTree(self.options.name, captured, self))
        execute: Callable[..., list[Any]] | None = None
        if captured.joint is not None:
            compilation, execute = driver.differentiable(captured, self.options, self.families)
        else:
            compilation = driver.compile_graph(captured.graph, self.options, self.families)
        self._stats.compiles += 1
        leave_to_native(captured, compilation)
        return entry_of(captured, compilation, execute)

    def _changed_scalars(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
        """Argument leaves whose Python numbers have changed enough to be inputs of the next program."""
        newest, *others = (entry.captured for entry in self._entries)
        return newest.changed_scalars(args, kwargs, others)

    def _note_recompile(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._entries:
            return
        newest = self._entries[0].captured
        self._dynamic_scalars |= self._changed_scalars(args, kwargs)
        self._dynamic_numbers |= newest.changed_numbers()
        reason = newest.explain_miss(args, kwargs)
        self._stats.recompiles.insert(0, reason)
        if len(self._stats.recompiles) == settings().max_recompiles:
            warnings.warn(
                GraphcWarning(
                    f"{self.options.name} has been compiled {len(self._stats.recompiles) + 1} times; the last time "
                    f"because of {reason}. See .stats().recompiles for all reasons."
                ),
                stacklevel=5,
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        import copy

        target = copy.deepcopy(self.target, memo)
        return self if target is self.target else CompiledFunction(target, self.options)

    def __reduce__(self) -> Any:
        name = getattr(self.target, "__qualname__", "")
        if _find_global(getattr(self.target, "__module__", ""), name) is self:
            return name  # a decorated function: found again under its name
        return CompiledFunction, (self.target, self.options)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
        if self._loops is not None:
            raise UnsupportedError(
                f"{self.options.name} goes through the items of a data loader, turn by turn; ask about a function that "
                "does what it does in a turn"
            )
        for entry in self._entries:
            if (fits := entry.fit(args, kwargs)) is not None:
                return fits[0]
        entry = self._add_entry(args, kwargs)
        fits = None if entry.many is None else entry.fit(args, kwargs)
        return entry if fits is None else fits[0]

    def _compilation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Compilation | PathView:
        known = self._entries
        self._drawn.begin()
        entry = self._find(args, kwargs)
        try:
            if entry.tree is not None:
                return self._follow(entry.tree, entry.captured.match(args, kwargs) or [], args, kwargs)
        finally:
            self._drawn.rewind()
            if entry not in known:
                self._withdraw(entry.captured)  # a question leaves no state of optimizers behind
        if entry.compilation is None:
            raise UnsupportedError(
                f"{self.options.name} runs eager for these inputs because gradients are needed; "
                "ask inside torch.no_grad()"
            )
        return entry.compilation

    def graph(self, *args: Any, stage: str = "captured", **kwargs: Any) -> Any:
        """The IR for these inputs, compiling if need be; the function's effects are not carried out.

        Args:
            stage: `captured` or `optimized` (a graph), or `scheduled` (the plan, with its kernels in loop IR).

        Returns:
            The graph or plan; where the function branches on data, a list: those of each program on the path that
            these inputs take, in order.

        Raises:
            ValueError: no such stage.
        """
        if stage not in STAGES:
            raise ValueError(f"stage {stage!r}; there are {', '.join(STAGES)}")
        return self._compilation(args, kwargs).stage(stage)

    def source(self, *args: Any, **kwargs: Any) -> dict[str, str]:
        """The generated files for these inputs, by name; where the function branches on data, by program and name."""
        return self._compilation(args, kwargs).sources()

    def explain(self, *args: Any, **kwargs: Any) -> Report:
        """What became of each op for these inputs: fused into which kernel, left to ATen and why, memory, time.

        Where the function branches on data, the report has the tree of all paths met so far too.
        """
        return self._compilation(args, kwargs).report()

    def stats(self) -> Stats:
        """Counters since the callable was made."""
        return self._stats


def _find_global(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


class CompiledModule:
    """Mixed into the class of a compiled nn.Module, which shares the original's state: parameters, hooks, mode, all.

    It is an instance of the original's class, so `state_dict`, `parameters`, `train`, `to`, `isinstance` and attribute
    access are the original's own.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._graphc[1](*args, **kwargs)

    _graphc: tuple[torch.nn.Module, CompiledFunction]

    @property
    def original(self) -> torch.nn.Module:
        """The module that was compiled; it runs eager."""
        return self._graphc[0]

    @property
    def compiled(self) -> CompiledFunction:
        """What a call of this module runs."""
        return self._graphc[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return _twin, (self.original, self.compiled.options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        import copy

        return _twin(copy.deepcopy(self.original, memo), self.compiled.options)

    def graph(self, *args: Any, stage: str = "captured", **kwargs: Any) -> Any:
        return self.compiled.graph(*args, stage=stage, **kwargs)

    def source(self, *args: Any, **kwargs: Any) -> dict[str, str]:
        return self.compiled.source(*args, **kwargs)

    def explain(self, *args: Any, **kwargs: Any) -> Report:
        return self.compiled.explain(*args, **kwargs)

    def stats(self) -> Stats:
        return self.compiled.stats()


def _compile_class(cls: Any, options: Options) -> Any:
    """Make calls of all instances of a module class run compiled, each instance with programs of its own."""

    def _graphc_call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return torch.nn.Module.__call__(self, *args, **kwargs)

    def compiled(self: torch.nn.Module) -> CompiledFunction:
        """What a call of this module runs."""
        made: CompiledFunction = self.__dict__.get("_graphc_compiled") or self.__dict__.setdefault(
            "_graphc_compiled", CompiledFunction(types.MethodType(_graphc_call, self), options)
        )
        return made

    cls._graphc_call = _graphc_call  # under its own name, by which bound methods are pickled
    cls.compiled = property(compiled)
    cls.__call__ = lambda self, *args, **kwargs: self.compiled(*args, **kwargs)
    return cls


def _twin(module: torch.nn.Module, options: Options) -> torch.nn.Module:
    """A compiled twin of `module`: another object, of a class derived from its class, over the very same `__dict__`."""
    cls = type(module)
    namespace = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "_graphc": (module, CompiledFunction(module, options)),
    }
    twin: torch.nn.Module = object.__new__(type(cls.__name__, (CompiledModule, cls), namespace))
    object.__setattr__(twin, "__dict__", module.__dict__)
    return twin


@overload
def compile(
    target: Callable[..., Any],
    *,
    backend: str = ...,
    mode: str = ...,
    dynamic: bool | None = ...,
    numerics: str = ...,
    name: str | None = ...,
) -> Any: ...
@overload
def compile(
    target: None = None,
    *,
    backend: str = ...,
    mode: str = ...,
    dynamic: bool | None = ...,
    numerics: str = ...,
    name: str | None = ...,
) -> Callable[[Callable[..., Any]], Any]: ...


def compile(
    target: Any = None,
    *,
    backend: str = "auto",
    mode: str = "default",
    dynamic: bool | None = None,
    numerics: str = "default",
    name: str | None = None,
) -> Any:
    """Compile a function, a method or an nn.Module; also a decorator, with or without arguments.

    The target is captured at its first call and again whenever a fact that the capture assumed has changed (shapes,
    dtypes, flags of modules, globals and closures it reads, Python arguments); `.stats()` counts and explains that.

    Args:
        target: the callable; a module gives back a module of the same class sharing its parameters. A module class is
            given back itself, and calls of its instances run compiled.
        backend: `auto` (triton for tensors of a GPU, c for those of the CPU), `triton`, `c`, `interpret` (op by op with
            ATen), or `eager` (the target as it is).
        mode: `default` decides by models of the machine; `max` measures while compiling: products of matrices,
            convolutions and attention as library calls and as generated code, cut in several ways.
        dynamic: False: every new shape is compiled for itself alone. None or True: what is compiled for the second
            shape on is for others too, where they differ in sizes.
        numerics: `default` keeps reduced-precision intermediates in float32 and computes random numbers in the kernels
            that use them; `eager` rounds where eager rounds and draws eager's very random numbers.
        name: name in the IR, in generated code and in messages; the target's own by default.

    Returns:
        A callable like the target, with `.graph`, `.source`, `.explain` and `.stats`.

    Raises:
        TypeError: the target cannot be called, is a generator or coroutine function, or a class of anything else.
        ValueError: an option has no such value.
    """
    if target is None:
        return functools.partial(compile, backend=backend, mode=mode, dynamic=dynamic, numerics=numerics, name=name)
    options = make_options(target, backend, mode, dynamic, numerics, name)
    if isinstance(target, type):
        if not issubclass(target, torch.nn.Module):
            raise TypeError(f"{target.__name__} is a class; compile its methods, or an instance")
        return _compile_class(target, options)
    if isinstance(target, CompiledFunction):
        return CompiledFunction(target.target, options)
    if isinstance(target, CompiledModule):
        return _twin(target.original, options)
    if isinstance(target, torch.nn.Module):
        return _twin(target, options)
    return CompiledFunction(target, options)


def trace(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Graph:
    """Capture `fn` on these arguments and give the graph, nothing compiled and no effect of `fn` carried out.

    Raises:
        CaptureError, UnsupportedError: `fn` cannot be captured; with the user's line.
    """
    target = fn.target if isinstance(fn, CompiledFunction) else fn
    return driver.capture(target, args, kwargs, make_options(target), frozenset()).graph


def run(graph: Graph, *inputs: Any, backend: str = "auto", numerics: str = "default") -> list[Any]:
    """Compile and run a graph, such as one parsed from edited text.

    Args:
        inputs: one tensor or number per graph input, in order; those that the graph writes are changed in place.

    Returns:
        One tensor or number per graph output.

    Raises:
        InvalidGraphError: the graph is malformed.
        ValueError: wrong number of inputs, or one whose dtype, shape or strides are not what the graph declares.
    """
    options = Options(name=graph.name, backend=backend, numerics=numerics)
    return driver.run_graph(graph, list(inputs), options)


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Report:
    """`.explain(...)` of a compiled callable; a plain one is compiled for it."""
    compiled: Any = fn if isinstance(fn, (CompiledFunction, CompiledModule)) else compile(fn)
    return compiled.explain(*args, **kwargs)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Inside this context every compiled callable runs as plain PyTorch."""
    with override(eager=True):
        yield
