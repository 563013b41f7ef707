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
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from graphc.compilation import STAGES, Compilation, dump, optimize_graph, plan_graph, rolled_graph
from graphc.errors import BackendUnavailableError, CodegenError, CompilerError, FallbackWarning, LoweringError
from graphc.options import Options, cache_key, choose_backend, for_part, machine, pass_context, templates_for
from graphc.settings import or_else, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graphc.codegen.c.emit import CKernel
    from graphc.differentiable import Program
    from graphc.families import Families
    from graphc.frontend.captured import Captured
    from graphc.frontend.cotangents import Question, Strides
    from graphc.frontend.draws import Drawn
    from graphc.frontend.joint import Joint
    from graphc.frontend.list_arguments import Lists
    from graphc.frontend.segments import Oracle, Step
    from graphc.frontend.sized import SizedInputs
    from graphc.ir.graph import Graph, Input
    from graphc.loopir.kernel import Kernel
    from graphc.passes.partition import Split
    from graphc.program.plan import Plan
    from graphc.program.record import Program as Record
    from graphc.runtime.build import Build
    from graphc.runtime.load import Executable

_Made = TypeVar("_Made")


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
    drawn: Drawn | None = None,
    lists: Lists | None = None,
    sized: SizedInputs | None = None,
) -> Captured:
    """Run the user's code once on traced tensors; see `graphc.frontend.capture`."""
    from graphc.frontend.capture import capture as capture_target

    with collector_paused():
        captured = capture_target(
            target, args, kwargs, name=options.name, dynamic_scalars=dynamic_scalars, steps=steps, merged=merged,
            numerics=options.numerics, numbers=numbers, assumes=assumes, oracle=oracle, drawn=drawn, lists=lists,
            sized=sized,
        )  # fmt: skip
    dump(options.name, "captured.graph", lambda: str(captured.graph))
    return captured


def differentiable(
    captured: Captured, options: Options, families: Families | None = None
) -> tuple[Compilation, Callable[[list[Any]], list[Any]]]:
    """Split a capture with a backward pass in two and compile the forward half; `captured.graph` becomes that half."""
    joint = captured.joint
    assert joint is not None
    split = split_joint(joint, options)
    captured.graph = split.forward
    forward = compile_graph(split.forward, options, families)
    return forward, with_backward(joint, split, options, forward, families)


def split_joint(joint: Joint, options: Options) -> Split:
    """The forward and the backward half of a graph with both."""
    from graphc.passes.partition import partition
    from graphc.passes.pipeline import prepare_split

    with collector_paused():
        graph = joint.graph.copy()
        again = prepare_split(graph, pass_context(options, choose_backend(graph, options)))
        return partition(graph, len(joint.results), len(joint.wanted), again, joint.overwritten)


@dataclass(frozen=True)
class Behind:
    """A backward half for some sizes, of one for many.

    Args:
        cotangents: its last inputs.
        graph: makes the graph.
        recorded: compiles it for cotangents that lie as when recorded.
    """

    cotangents: Sequence[Input]
    graph: Callable[[], Graph]
    recorded: Callable[[], Compilation]


def with_backward(
    joint: Joint,
    split: Split,
    options: Options,
    forward: Compilation,
    families: Families | None,
    behind: Behind | None = None,
) -> Callable[[list[Any]], list[Any]]:
    """Runs a compiled forward half; the backward half is compiled when a gradient is asked for.

    Args:
        behind: the backward half, where the graphs are for many sizes.
    """
    from graphc.differentiable import Differentiable

    chosen = settings()

    def compile_backward(strides: Sequence[Strides | None] | None) -> Program | None:
        with or_else(chosen):
            return compiled(strides)

    def compiled(strides: Sequence[Strides | None] | None) -> Program | None:
        graph: Graph | None = split.backward
        reached: Sequence[int] = range(len(joint.wanted))
        if strides is not None:
            with collector_paused():
                whole = split.backward if behind is None else behind.graph()
                graph, reached = _backward_for(whole, joint.question, strides)
        if graph is None:
            return None
        if strides is None and behind is not None:
            forward.backward = behind.recorded()
        else:
            forward.backward = compile_graph(graph, backward_options(graph, split, options), families)
        forward.backwards += 1
        return forward.backward.execute, reached

    cotangents = None if behind is None else behind.cotangents
    return Differentiable(options.name, joint, split, forward.execute, compile_backward, cotangents)


def backward_options(graph: Graph, split: Split, options: Options) -> Options:
    """The options of a backward half."""
    return for_part(graph, replace(options, name=split.backward.name))


def _backward_for(
    graph: Graph, question: Question | None, strides: Sequence[Strides | None]
) -> tuple[Graph | None, Sequence[int]]:
    """A backward graph for cotangents of these strides, None where there are none; and the gradients that it gives."""
    from graphc.frontend.capture import gradient_strides
    from graphc.frontend.cotangents import relaid
    from graphc.frontend.not_given import reached_by, without

    given = [steps for steps in strides if steps is not None]
    absent = {number for number, steps in enumerate(strides) if steps is None}
    found = None if question is None else gradient_strides(question, strides)
    are_reached = reached_by(graph, len(strides), absent) if found is None else [lies is not None for lies in found]
    reached = [number for number, is_reached in enumerate(are_reached) if is_reached]
    smaller = without(graph, len(strides), absent, reached) if absent else graph
    if smaller is not None and found is not None:
        smaller = relaid(smaller, given, [lies for lies in found if lies is not None])
    return smaller, reached


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
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


def compile_graph(graph: Graph, options: Options, families: Families | None = None) -> Compilation:
    """Optimize, plan, generate, build and load a graph for the backend that its device and the options ask for.

    Args:
        families: other graphs of the function, with which this one may share what is built; None = with none.

    Raises:
        BackendUnavailableError: the backend asked for cannot run here.
    """
    with collector_paused():
        compilation = _compile(graph, options, families)
    _log(compilation)
    return compilation


def _compile(graph: Graph, options: Options, families: Families | None) -> Compilation:
    backend = choose_backend(graph, options)
    if backend == "interpret":
        return _interpreted(graph, options)
    try:
        return _built(graph, options, backend, families)
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


def plan_for(graph: Graph, options: Options, backend: str) -> Plan:
    """The plan of a graph for a backend, whether that can run here or not."""
    with collector_paused():
        found: Plan = Compilation(graph, options, backend).stage("scheduled")
    return found


def _built(graph: Graph, options: Options, backend: str, families: Families | None) -> Compilation:
    """From the disk cache when this very graph has been built here before, else through the whole pipeline.

    The pipeline is gone through once for many graphs where they differ in sizes alone.
    """
    from graphc.runtime.load import find_program, program_with
    from graphc.runtime.triton_module import fingerprint, is_interpreting

    found = Compilation(graph, options, backend)
    text = str(graph)
    key = cache_key(text, options, backend)
    with timed(found.seconds, "look up"):
        executable = find_program(key)
    found.cached, shared = executable is not None, None
    families = families if options.dynamic and not options.measures else None
    facts = "" if families is None else cache_key("", options, backend)
    rolled = partial(rolled_graph, options=options, backend=backend)
    if executable is None and families is not None:
        with timed(found.seconds, "share"):
            shared = families.find(graph, facts, rolled, partial(build_for_sizes, options, backend))
        if shared is not None:
            try:
                with timed(found.seconds, "load"):
                    executable = program_with(*shared, key)
            except CompilerError as error:  # of kernels that a device compiles now
                families.refuse(graph, facts, rolled, error)
                shared = None
    if executable is None:
        try:
            if backend == "triton" and not is_interpreting():
                fingerprint()  # computed by a thread while the graph is worked on
            with timed(found.seconds, "optimize"):
                found.stage("optimized")
            executable = (_build_triton if backend == "triton" else _build_native)(found, key)
        except BackendUnavailableError as error:
            found.execute = _unavailable(error)  # its sources can still be read
            return found
    if families is not None and shared is None:
        families.remember(graph, facts, rolled)
    found.execute, found.program = executable, executable.program
    for name, source in found.program.sources.items():
        dump(options.name, name, source.__str__)
    return found


def _build_native(found: Compilation, key: str) -> Executable:
    from graphc.runtime.load import build_program

    def keep(program: Record, build: Build, is_complete: bool) -> Executable:
        return build_program(program, key, build, keep=is_complete)

    return _generate_native(found, keep)


def build_for_sizes(options: Options, backend: str, graph: Graph) -> tuple[Record, bytes]:
    """A graph with a `Size` for each number that may differ, as a program and its library; see `graphc.families`.

    Kernels in Triton are built where the program is loaded: the library is empty.
    """
    found = Compilation(graph, options, backend)
    if backend == "triton":
        from graphc.codegen.triton.program import generate
        from graphc.runtime.device import current_target

        return generate(found.stage("scheduled"), current_target()), b""
    return _generate_native(found, _with_library)


def _with_library(program: Record, build: Build, is_complete: bool) -> tuple[Record, bytes]:
    return program, build.library(program) if program.sources else b""


def _generate_native(found: Compilation, finish: Callable[[Record, Build, bool], _Made]) -> _Made:
    """Plan, generate, and what `finish` makes of the program, told whether all that was to be measured was.

    Kernels are built from the moment they are known, while the plan is still being made.
    """
    from graphc.codegen.c.emit import COptions, emit_kernel
    from graphc.codegen.c.flags import c_flags
    from graphc.codegen.native import generate_native, kernel_files
    from graphc.runtime.build import Build

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

        with timed(found.seconds, "plan"):
            found.plan = plan = plan_graph(found.stage("optimized"), found.options, found.backend, start)
        is_complete = True
        if found.options.measures:
            with timed(found.seconds, "measure"):
                plan, is_complete = _tune_native(plan, emit)
            found.plan = plan
        with timed(found.seconds, "generate"):
            found.program = generate_native(plan, emit)
        with timed(found.seconds, "build"):
            return finish(found.program, build, is_complete)


def _tune_native(plan: Plan, emit: Callable[..., CKernel]) -> tuple[Plan, bool]:
    """The plan with its steps in the forms that are fastest; and whether all of them were measured."""
    from graphc.trials import NativeBench
    from graphc.tuning import Tuning, choose_forms

    tuning = Tuning(NativeBench(emit), machine("c"), settings().tune_seconds)
    return choose_forms(plan, tuning), tuning.is_complete


def _build_triton(found: Compilation, key: str) -> Executable:
    from graphc.codegen.triton.program import generate
    from graphc.runtime.device import current_target
    from graphc.runtime.load import build_program

    is_complete = True
    with timed(found.seconds, "plan"):
        plan = found.stage("scheduled")
    if found.options.measures:
        with timed(found.seconds, "measure"):
            plan, is_complete = _tune_triton(found)
    with timed(found.seconds, "generate"):
        found.program = generate(plan, current_target())
    with timed(found.seconds, "build"):
        return build_program(found.program, key, keep=is_complete)


def _tune_triton(found: Compilation) -> tuple[Plan, bool]:
    """The plan with templates, and tiles of templates, where they are fastest; and whether all was measured."""
    from graphc.runtime.device import current_target
    from graphc.trials import TritonBench
    from graphc.tuning import Tuning, choose_forms, choose_templates

    def plan_with(choices: Mapping[str, bool]) -> tuple[Plan, Mapping[str, bool]]:
        templates = templates_for("triton", choices)
        assert templates is not None
        found.optimized = optimize_graph(found.graph, found.options, "triton", templates)
        return plan_graph(found.optimized, found.options, "triton", templates=templates), templates.asked

    tuning = Tuning(TritonBench(current_target()), machine("triton"), settings().tune_seconds)
    plan, choices = choose_templates(plan_with, tuning)
    found.optimized = optimize_graph(found.graph, found.options, "triton", templates_for("triton", choices))
    found.plan = choose_forms(plan, tuning)
    return found.plan, tuning.is_complete


def _unavailable(error: BackendUnavailableError) -> Callable[[list[Any]], list[Any]]:
    def refuse(inputs: list[Any]) -> list[Any]:
        raise error

    return refuse


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
