"""The pipeline from a user's function to a running program: every step in order, each with its reason in one line.

capture          the user's code runs once on traced tensors          frontend
look up          has this very graph been built before?               runtime.cache
optimize         graph -> graph, composites expanded                  passes
plan             fuse, lower to loop IR, schedule, lay out memory     passes
measure          with mode="max": which forms of steps are fastest     tuning
generate         loop IR -> C or Triton text, steps -> native program codegen
build and load   compiler, disk cache, dlopen                         runtime
"""

from __future__ import annotations

import gc
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphc.errors import (
    BackendUnavailableError,
    CodegenError,
    CompilerError,
    FallbackWarning,
    LoweringError,
    UnsupportedError,
)
from graphc.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphc.codegen.c.emit import CKernel
    from graphc.frontend.captured import Captured
    from graphc.frontend.cotangents import Strides
    from graphc.frontend.segments import Oracle, Step
    from graphc.ir.graph import Graph
    from graphc.loopir.kernel import Kernel
    from graphc.passes.base import PassContext
    from graphc.passes.templates import Templates
    from graphc.program.plan import Plan
    from graphc.program.record import Program
    from graphc.runtime.load import Executable

BACKENDS = ("auto", "triton", "c", "interpret", "eager")
NUMERICS = ("default", "eager")
MODES = ("default", "max")
STAGES = ("captured", "optimized", "scheduled")


@dataclass(frozen=True)
class Options:
    """What the user asked of `compile`."""

    name: str
    backend: str = "auto"
    numerics: str = "default"
    mode: str = "default"

    @property
    def measures(self) -> bool:
        """What runs fastest is measured."""
        return self.mode == "max"


def make_options(
    target: Any,
    backend: str = "auto",
    mode: str = "default",
    dynamic: bool | None = None,
    numerics: str = "default",
    name: str | None = None,
) -> Options:
    """Check the arguments of `compile`.

    Raises:
        TypeError: the target cannot be called, or is a generator or coroutine function.
        ValueError: an option has no such value.
        UnsupportedError: an option that this version does not offer.
    """
    if not callable(target):
        raise TypeError(f"graphc.compile takes a callable, not {type(target).__name__}")
    if inspect.isgeneratorfunction(target) or inspect.iscoroutinefunction(target):
        kind = "generator" if inspect.isgeneratorfunction(target) else "coroutine"
        raise TypeError(
            f"{target.__name__} is a {kind} function; compile the function that computes one item, "
            "and call that in the loop"
        )
    options = ("backend", backend, BACKENDS), ("numerics", numerics, NUMERICS), ("mode", mode, MODES)
    for option, value, allowed in options:
        if value not in allowed:
            raise ValueError(f"{option}={value!r}; there are {', '.join(allowed)}")
    if dynamic:
        raise UnsupportedError("dynamic=True: symbolic shapes are not offered; every new shape is compiled once")
    label = name or getattr(target, "__name__", None) or type(target).__name__
    return Options("".join(c if c.isalnum() or c == "_" else "_" for c in label) or "graph", backend, numerics, mode)


def capture(
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Options,
    dynamic_scalars: frozenset[int],
    steps: Sequence[Step] | None = None,
    merged: frozenset[int] = frozenset(),
    numbers: frozenset[Hashable] = frozenset(),
    assumes: bool = True,
    oracle: Oracle | None = None,
) -> Captured:
    """Run the user's code once on traced tensors; see `graphc.frontend.capture`."""
    from graphc.frontend.capture import capture as capture_target

    with collector_paused():
        captured = capture_target(
            target, args, kwargs, name=options.name, dynamic_scalars=dynamic_scalars, steps=steps, merged=merged,
            numerics=options.numerics, numbers=numbers, assumes=assumes, oracle=oracle,
        )  # fmt: skip
    _dump(options.name, "captured.graph", lambda: str(captured.graph))
    return captured


def differentiable(captured: Captured, options: Options) -> tuple[Compilation, Callable[[list[Any]], list[Any]]]:
    """Split a capture with a backward pass in two and compile the forward half; `captured.graph` becomes that half."""
    from graphc.differentiable import Differentiable
    from graphc.frontend.capture import gradient_strides
    from graphc.frontend.cotangents import relaid
    from graphc.passes.partition import partition
    from graphc.passes.pipeline import prepare_split

    joint = captured.joint
    assert joint is not None
    with collector_paused():
        graph = joint.graph.copy()
        again = prepare_split(graph, _context(options, _choose_backend(graph, options)))
        split = partition(graph, len(joint.results), len(joint.wanted), again, joint.overwritten)
    captured.graph = split.forward
    forward = compile_graph(split.forward, options)

    def compile_backward(strides: Sequence[Strides] | None) -> Callable[[list[Any]], list[Any]]:
        graph, question = split.backward, joint.question
        if strides is not None and question is not None:
            with collector_paused():
                graph = relaid(graph, strides, gradient_strides(question, strides))
        forward.backward = compile_graph(graph, replace(options, name=split.backward.name))
        forward.backwards += 1
        return forward.backward.execute

    return forward, Differentiable(options.name, joint, split, forward.execute, compile_backward)


def _dump(name: str, stage: str, text: Callable[[], str]) -> None:
    folder = settings().dump
    if folder is None:
        return
    target = Path(folder) / name
    target.mkdir(parents=True, exist_ok=True)
    (target / stage).write_text(text())


def _not_built(inputs: list[Any]) -> list[Any]:
    raise AssertionError(f"a compilation with {len(inputs)} inputs was run before it was built")


@dataclass
class Compilation:
    """A compiled graph: what runs, and what each stage looked like.

    Attributes:
        graph: as captured.
        backend: the one that runs it: c, triton, interpret.
        execute: program inputs in, program outputs out.
        program: the built program; None for `interpret`.
        seconds: time of each phase.
        cached: the program came from the disk cache.
        backward: the backward pass, once it has run; of several, the one compiled last.
        backwards: how many there are, one per layout of cotangents.
    """

    graph: Graph
    options: Options
    backend: str
    execute: Callable[[list[Any]], list[Any]] = _not_built
    program: Program | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    cached: bool = False
    backward: Compilation | None = None
    backwards: int = 0
    _optimized: Graph | None = None
    _plan: Plan | None = None

    def stage(self, stage: str) -> Any:
        """The graph (`captured`, `optimized`) or plan (`scheduled`); made again when it came from the cache."""
        if stage == "captured":
            return self.graph
        if self._optimized is None:
            self._optimized = _optimize(self.graph, self.options, self.backend, self._templates())
        if stage == "optimized":
            return self._optimized
        if self._plan is None:
            plan = _plan(self._optimized, self.options, self.backend, templates=self._templates())
            self._plan = plan if not self._measured() else _with_forms(plan, self.backend, self._measured())
        return self._plan

    def _measured(self) -> dict[str, Any]:
        """What the program's steps were chosen by."""
        found: dict[str, Any] = {} if self.program is None else self.program.stats.get("measured", {})
        return found

    def _templates(self) -> Templates | None:
        """Which products are templates, with what was chosen against the model."""
        if not self._measured():
            return templates_for(self.backend)
        from graphc.tuning import chosen_templates

        return templates_for(self.backend, chosen_templates(self._measured()))

    def sources(self) -> dict[str, str]:
        """Generated files by name; empty for `interpret`."""
        return dict(self.program.sources) if self.program is not None else {}

    def report(self) -> Report:
        """Counters and reasons of this compilation."""
        stats = dict(self.program.stats) if self.program is not None else {}
        launched = getattr(self.execute, "report", None)
        if launched is not None:
            stats["launch"] = launched()
        if self.backwards > 1:
            stats["backward programs"] = self.backwards
        backward = self.backward.report() if self.backward is not None else None
        name, seconds = self.options.name, dict(self.seconds)
        return Report(name, self.backend, self.cached, seconds, stats, str(self.graph), backward)


@dataclass(frozen=True)
class Report:
    """What became of each op. `str(report)` is a readable summary; the fields are for programs.

    Attributes:
        name, backend, cached, seconds: as in `Compilation`.
        stats: of the plan: graph_ops, kernels, kernel_calls, fused_ops, externs, bytes, arena_bytes, ... On a GPU also
            launch: how the kernels are launched, and whether the program is recorded and replayed, or why not.
        graph: text of the captured graph.
        backward: of the backward pass, once it has run.
    """

    name: str
    backend: str
    cached: bool
    seconds: dict[str, float]
    stats: dict[str, Any]
    graph: str
    backward: Report | None = None

    def __str__(self) -> str:
        origin = "from the disk cache" if self.cached else "compiled"
        times = ", ".join(f"{phase} {seconds * 1e3:.0f} ms" for phase, seconds in self.seconds.items())
        lines = [f"{self.name}: backend {self.backend}, {origin} ({times})"]
        for key, value in self.stats.items():
            if isinstance(value, dict):
                lines.append(f"  {key}:")
                lines.extend(f"    {name}: {_detail(detail)}" for name, detail in value.items())
            else:
                lines.append(f"  {key}: {value}")
        if self.backward is not None:
            lines.append(str(self.backward))
        return "\n".join(lines)


def _detail(found: Any) -> Any:
    """A measurement in words; anything else as it is."""
    if not isinstance(found, dict):
        return found
    times = (
        f"{form} {value * 1e6:.1f} us" if isinstance(value, float) else f"{form} {value}"
        for form, value in found.items()
        if form != "chosen"
    )
    return f"{found.get('chosen', 'as by default')} ({'; '.join(times)})"


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = time.perf_counter() - start


@contextmanager
def collector_paused() -> Iterator[None]:
    """Python's cyclic garbage collector off: with a large graph alive its scans took a third of compile time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _log(compilation: Compilation) -> None:
    """What GRAPHC_DEBUG asks for, on stderr: 1 a line per program, 2 its report, 3 its IR, 4 its generated code."""
    level = settings().debug
    if level >= 1:
        times = ", ".join(f"{phase} {seconds * 1e3:.0f} ms" for phase, seconds in compilation.seconds.items())
        print(f"graphc: {compilation.options.name}: backend {compilation.backend}, {times}", file=sys.stderr)
    if level >= 2:
        print(compilation.report(), file=sys.stderr)
    if level >= 3:
        print(*(compilation.stage(stage) for stage in STAGES), sep="\n", file=sys.stderr)
    if level >= 4:
        print(*compilation.sources().values(), sep="\n", file=sys.stderr)


def compile_graph(graph: Graph, options: Options) -> Compilation:
    """Optimize, plan, generate, build and load a graph for the backend that its device and the options ask for.

    Raises:
        BackendUnavailableError: the backend asked for cannot run here.
    """
    with collector_paused():
        compilation = _compile(graph, options)
    _log(compilation)
    return compilation


def _compile(graph: Graph, options: Options) -> Compilation:
    backend = _choose_backend(graph, options)
    if backend == "interpret":
        return _interpreted(graph, options)
    try:
        return _built(graph, options, backend)
    except CompilerError as error:
        if options.backend != "auto" and backend != "c":
            raise
        warnings.warn(
            FallbackWarning(f"{options.name}: {error}\nIt runs op by op, as fast as eager, until that is mended."),
            stacklevel=2,
        )
        return _interpreted(graph, options)
    except (LoweringError, CodegenError) as error:
        if not any(value.dtype.kind == "complex" or value.dtype.name.startswith("f8") for value in graph.values()):
            raise
        warnings.warn(
            FallbackWarning(f"{options.name}: {error.message}. The program runs op by op, as fast as eager."),
            stacklevel=2,
        )
        return _interpreted(graph, options)


def _choose_backend(graph: Graph, options: Options) -> str:
    from graphc.ir.types import HOST
    from graphc.runtime.device import find_device

    devices = {value.type.device for value in graph.values()} - {"cpu", HOST}
    unknown = sorted(device for device in devices if find_device(device) is None)
    if unknown and options.backend != "interpret":
        if options.backend != "auto":
            raise BackendUnavailableError(f"{options.name}: backend={options.backend!r} has no code for {unknown[0]}")
        reason = f"graphc has no code for {unknown[0]}"
        warnings.warn(FallbackWarning(f"{options.name} runs op by op, as fast as eager, since {reason}"), stacklevel=3)
        return "interpret"
    on_gpu = bool(devices)
    backend = ("triton" if on_gpu else "c") if options.backend == "auto" else options.backend
    if backend == "c" and on_gpu:
        raise BackendUnavailableError(f"{options.name}: backend='c' runs CPU tensors; there are some on a GPU")
    if backend == "c" and settings().compiler() is None:
        warnings.warn(
            FallbackWarning(
                f"no C compiler ({settings().cc}): {options.name} runs op by op, as fast as eager. "
                "Install gcc or name a compiler in GRAPHC_CC."
            ),
            stacklevel=3,
        )
        return "interpret"
    return backend


def _interpreted(graph: Graph, options: Options) -> Compilation:
    import torch

    from graphc.ir.interpreter import run as interpret
    from graphc.ops.extern import effect

    draws = any(effect(op) == "random" for op in graph.ops)

    def execute(inputs: list[Any]) -> list[Any]:
        state = torch.get_rng_state() if draws else None
        try:
            return interpret(graph, inputs)
        except BaseException:  # a failed call leaves things as they were
            if state is not None:
                torch.set_rng_state(state)
            raise

    return Compilation(graph, options, "interpret", execute)


def _context(options: Options, backend: str, templates: Templates | None = None) -> PassContext:
    from graphc.passes.base import PassContext

    templates = templates_for(backend) if templates is None else templates
    if templates is None:
        return PassContext(numerics=options.numerics)
    return PassContext(numerics=options.numerics, target="gpu", templates=templates)


def _optimize(graph: Graph, options: Options, backend: str, templates: Templates | None = None) -> Graph:
    from graphc.passes.pipeline import optimize

    copy = graph.copy()  # passes rewrite in place, and the captured stage stays as it is
    optimize(copy, _context(options, backend, templates))
    _dump(options.name, "optimized.graph", lambda: str(copy))
    return copy


def templates_for(backend: str, choices: Mapping[str, bool] | None = None) -> Templates | None:
    """Which products of matrices are to be Triton kernels, on the current device and with torch's flags.

    Args:
        choices: where it was measured whether they are to be.
    """
    if backend != "triton":
        return None
    import torch

    from graphc.passes.templates import Templates
    from graphc.runtime.device import current_target, present_device

    device = present_device()
    tf32 = device is not None and device.allows_tf32()
    deterministic = torch.are_deterministic_algorithms_enabled()
    return Templates(current_target(), tf32, settings().templates, deterministic, choices or {})


def _plan(
    graph: Graph,
    options: Options,
    backend: str,
    on_kernels: Callable[[list[Kernel]], None] | None = None,
    templates: Templates | None = None,
) -> Plan:
    from graphc.passes.plan import make_plan

    templates = templates_for(backend) if templates is None else templates
    plan = make_plan(graph, numerics=options.numerics, backend=backend, templates=templates, on_kernels=on_kernels)
    _dump(options.name, "scheduled.plan", lambda: str(plan))
    return plan


def plan_for(graph: Graph, options: Options, backend: str) -> Plan:
    """The plan of a graph for a backend, whether that can run here or not."""
    with collector_paused():
        found: Plan = Compilation(graph, options, backend).stage("scheduled")
    return found


def _built(graph: Graph, options: Options, backend: str) -> Compilation:
    """From the disk cache when this very graph has been built here before, else through the whole pipeline."""
    from graphc.runtime.load import find_program

    found = Compilation(graph, options, backend)
    text = str(graph)
    key = _cache_key(text, options, backend)
    with _timed(found.seconds, "look up"):
        executable = find_program(key)
    found.cached = executable is not None
    if executable is None:
        with _timed(found.seconds, "optimize"):
            found.stage("optimized")
        try:
            executable = (_build_triton if backend == "triton" else _build_native)(found, key)
        except BackendUnavailableError as error:
            found.execute = _unavailable(error)  # its sources can still be read
            return found
    found.execute, found.program = executable, executable.program
    for name, source in found.program.sources.items():
        _dump(options.name, name, source.__str__)
    return found


def _build_native(found: Compilation, key: str) -> Executable:
    """Plan, generate, build. Kernels are built from the moment they are known, while the plan is still being made."""
    from graphc.codegen.c.emit import COptions, emit_kernel
    from graphc.codegen.c.flags import c_flags
    from graphc.codegen.native import generate_native, kernel_files
    from graphc.runtime.build import Build
    from graphc.runtime.load import build_program

    emitted: dict[tuple[int, str], tuple[Kernel, CKernel]] = {}

    def options_of(kernel: Kernel, begins: str) -> COptions:
        """A kernel of any size is called for pieces of a table of rows, by several threads already."""
        return COptions(parallel=all(isinstance(axis.extent, int) for axis in kernel.axes), begins=begins)

    def emit(kernel: Kernel, begins: str = "") -> CKernel:
        key = id(kernel), begins
        if key not in emitted:
            emitted[key] = (kernel, emit_kernel(kernel, options_of(kernel, begins)))  # holding the kernel keeps its id
        return emitted[key][1]

    with Build(c_flags()) as build:

        def start(kernels: list[Kernel]) -> None:
            for name, text in kernel_files([emit(kernel) for kernel in kernels]).items():
                build.start(name, text)

        with _timed(found.seconds, "plan"):
            found._plan = plan = _plan(found.stage("optimized"), found.options, found.backend, start)
        is_complete = True
        if found.options.measures:
            with _timed(found.seconds, "measure"):
                plan, is_complete = _tune_native(plan, emit)
            found._plan = plan
        with _timed(found.seconds, "generate"):
            found.program = generate_native(plan, emit)
        with _timed(found.seconds, "build"):
            return build_program(found.program, key, build, keep=is_complete)


def _tune_native(plan: Plan, emit: Callable[..., CKernel]) -> tuple[Plan, bool]:
    """The plan with its steps in the forms that are fastest; and whether all of them were measured."""
    from graphc.trials import NativeBench
    from graphc.tuning import Tuning, choose_forms

    tuning = Tuning(NativeBench(emit), _machine("c"), settings().tune_seconds)
    return choose_forms(plan, tuning), tuning.is_complete


def _build_triton(found: Compilation, key: str) -> Executable:
    from graphc.codegen.triton.program import generate
    from graphc.runtime.device import current_target
    from graphc.runtime.load import build_program

    is_complete = True
    with _timed(found.seconds, "plan"):
        plan = found.stage("scheduled")
    if found.options.measures:
        with _timed(found.seconds, "measure"):
            plan, is_complete = _tune_triton(found)
    with _timed(found.seconds, "generate"):
        found.program = generate(plan, current_target())
    with _timed(found.seconds, "build"):
        return build_program(found.program, key, keep=is_complete)


def _tune_triton(found: Compilation) -> tuple[Plan, bool]:
    """The plan with templates, and tiles of templates, where they are fastest; and whether all was measured."""
    from graphc.runtime.device import current_target
    from graphc.trials import TritonBench
    from graphc.tuning import Tuning, choose_forms, choose_templates

    def plan_with(choices: Mapping[str, bool]) -> tuple[Plan, Mapping[str, bool]]:
        templates = templates_for("triton", choices)
        assert templates is not None
        found._optimized = _optimize(found.graph, found.options, "triton", templates)
        return _plan(found._optimized, found.options, "triton", templates=templates), templates.asked

    tuning = Tuning(TritonBench(current_target()), _machine("triton"), settings().tune_seconds)
    plan, choices = choose_templates(plan_with, tuning)
    found._optimized = _optimize(found.graph, found.options, "triton", templates_for("triton", choices))
    found._plan = choose_forms(plan, tuning)
    return found._plan, tuning.is_complete


def _with_forms(plan: Plan, backend: str, measured: Mapping[str, Any]) -> Plan:
    from graphc.codegen.c.emit import emit_kernel
    from graphc.runtime.device import current_target
    from graphc.trials import NativeBench, TritonBench
    from graphc.tuning import with_forms

    bench = TritonBench(current_target()) if backend == "triton" else NativeBench(emit_kernel)
    return with_forms(plan, bench, measured)


def _machine(backend: str) -> dict[str, str]:
    """What times depend on besides the machine as `program_key` has it."""
    import torch

    from graphc.runtime.device import present_device

    device = present_device()
    if backend == "triton" and device is not None:
        return {"device": device.model(device.current()), "target": device.target(device.current())}
    return {"threads": str(torch.get_num_threads())}


def _unavailable(error: BackendUnavailableError) -> Callable[[list[Any]], list[Any]]:
    def refuse(inputs: list[Any]) -> list[Any]:
        raise error

    return refuse


def _cache_key(text: str, options: Options, backend: str) -> str:
    from graphc.runtime.cache import program_key

    facts = {"backend": backend, "numerics": options.numerics, "chunk_bytes": str(settings().chunk_bytes)}
    if backend == "triton":
        facts["templates"] = repr(templates_for(backend))
    if options.measures:
        facts["measured on"] = repr(_machine(backend))
    if backend == "c":
        facts["cflags"] = " ".join(settings().cflags)
    return program_key(text, facts)


def run_graph(graph: Graph, inputs: list[Any], options: Options) -> list[Any]:
    """Verify, compile and run a graph on given inputs; see `graphc.run`."""
    from graphc.ir.verifier import verify

    verify(graph)
    _check_inputs(graph, inputs)
    outputs = compile_graph(graph, options).execute(inputs)
    truths = [o.value.type.is_host and o.value.dtype.kind == "bool" for o in graph.outputs]
    return [bool(found) if truth else found for found, truth in zip(outputs, truths, strict=True)]  # kept as integers


def _check_inputs(graph: Graph, inputs: list[Any]) -> None:
    import torch

    from graphc.ir.types import contiguous_strides

    if len(inputs) != len(graph.inputs):
        raise ValueError(f"{graph.name} takes {len(graph.inputs)} inputs, got {len(inputs)}")
    for declared, given in zip(graph.inputs, inputs, strict=True):
        if declared.type.is_host:
            if isinstance(given, torch.Tensor):
                raise ValueError(f"input {declared.name} is a Python number, got a tensor")
            continue
        if not isinstance(given, torch.Tensor):
            raise ValueError(f"input {declared.name} is {declared.type}, got {type(given).__name__}")
        strides = declared.strides or contiguous_strides(declared.shape)
        has = (str(given.dtype).removeprefix("torch."), tuple(given.shape), tuple(given.stride()))
        wants = (declared.dtype.torch_name, tuple(declared.shape), tuple(strides))
        if has[:2] != wants[:2] or (has[2] != wants[2] and given.numel() > 1):
            raise ValueError(f"input {declared.name}: dtype, shape, strides {has}, the graph declares {wants}")
