"""Steps of a plan as programs of their own, so that they can be timed in each of their forms.

plan ── step, its buffers ──> Trial ── one form ──> a plan of that step alone, on made-up data ──> a run to be timed
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

from graphc.errors import CodegenError, CompilerError
from graphc.ir.types import Location
from graphc.loopir.kernel import Kernel
from graphc.program.loops import moved
from graphc.program.plan import (
    ARENA,
    CHECKS,
    EXTERNAL,
    INPUT,
    AtenStep,
    BufferSpec,
    Check,
    GemmStep,
    KernelStep,
    Plan,
    Step,
    View,
)
from graphc.runtime.device import find_device
from graphc.runtime.load import Executable, build_program
from graphc.runtime.tensors import torch_dtype
from graphc.runtime.timing import Clock, cpu_clock, device_clock, timer

if TYPE_CHECKING:
    from graphc.codegen.native import EmittedKernel

_ALIGNMENT = 256
_PREPARED = 8
"""Programs that are compiled at once, before they are timed."""
Outcome: TypeAlias = "dict[str, float | str]"
"""Per form its seconds, or why it cannot be run."""


@dataclass(frozen=True)
class Trial:
    """A step of a plan, to be measured in each of its forms.

    Args:
        label: what it is, for people; steps of one plan that differ have different labels.
        text: all that its time depends on, besides the machine.
        step: on `buffers`, which are those that it names, in order.
        kernels: what it runs, by name.
        checks: per buffer of that kind what its cells mean.
        forms: that it can have, the one that is taken without measuring first.
    """

    label: str
    text: str = field(repr=False)
    step: Step = field(repr=False)
    buffers: tuple[BufferSpec, ...] = field(repr=False)
    kernels: Mapping[str, Kernel] = field(repr=False)
    checks: Mapping[int, list[Check]] = field(repr=False)
    forms: tuple[str, ...]


class Bench(Protocol):
    """Where steps are measured."""

    def forms(self, plan: Plan, step: Step, buffers: Sequence[BufferSpec]) -> tuple[str, ...]:
        """The forms that a step of a plan can have."""

    def measure(self, trials: Sequence[Trial], is_over: Callable[[], bool]) -> Iterator[tuple[Trial, Outcome]]:
        """Measure each, until time is over."""


def trial_of(bench: Bench, plan: Plan, step: Step, buffers: Sequence[BufferSpec]) -> Trial | None:
    """The trial of a step, None when it is of a kind that cannot be measured alone.

    Args:
        buffers: that the step names: the plan's, or those of a loop.
    """
    if not isinstance(step, KernelStep | GemmStep | AtenStep):
        return None
    used = list(dict.fromkeys(_used(step)))
    specs = tuple(replace(buffers[old], index=new, source=-1, arena_offset=-1) for new, old in enumerate(used))
    own = replace(moved(step, {old: (new, 0) for new, old in enumerate(used)}), location=Location())
    kernels = {step.kernel: plan.kernels[step.kernel]} if isinstance(step, KernelStep) else {}
    plain = own if not isinstance(own, KernelStep) else replace(own, kernel="")
    texts = [str(replace(kernel, name="kernel", notes=())) for kernel in kernels.values()]
    facts = [(x.dtype.name, x.shape, x.strides, x.nbytes, x.device, x.host, x.kind == EXTERNAL) for x in specs]
    checks = {new: plan.checks[old] for new, old in enumerate(used) if buffers[old].kind == CHECKS}
    text = "\n".join([repr(plain), repr(facts), *texts])
    return Trial(_label(step), text, own, specs, kernels, checks, bench.forms(plan, step, buffers))


def _used(step: KernelStep | GemmStep | AtenStep) -> Iterable[int]:
    if isinstance(step, KernelStep):
        return step.buffers
    if isinstance(step, GemmStep):
        return (step.a.buffer, step.b.buffer, step.out.buffer)
    return (*(view.buffer for view in step.views()), *(index for index in step.outs if index >= 0))


def _label(step: KernelStep | GemmStep | AtenStep) -> str:
    if isinstance(step, KernelStep):
        return step.kernel
    if isinstance(step, GemmStep):
        sign = " added to what is there" if step.accumulate else ""
        out = "" if step.out.strides[-1] == 1 else f" -> {_layout(step.out)}"
        return f"{_layout(step.a)} @ {_layout(step.b)}{out}{sign}"
    rest = [value for value in step.args if not isinstance(value, View)] + [f"{k}={v}" for k, v in step.kwargs]
    return f"{step.op} {' '.join(map(_layout, step.views()))} {' '.join(map(str, rest))}".rstrip()


def _layout(view: View) -> str:
    return f"{view.dtype.name}{list(view.shape)}{{{', '.join(map(str, view.strides))}}}"


def in_form(step: Step, form: str) -> Step:
    """A step in a form; that of a kernel stands in the plan."""
    return replace(step, form=form) if isinstance(step, GemmStep | AtenStep) else step


def plan_of(pairs: Sequence[tuple[Trial, str]]) -> Plan:
    """A plan of one step per trial and form, in order; its inputs are all that they read."""
    plan = Plan("trial")
    sources = 0
    for trial, form in pairs:
        first = len(plan.buffers)
        made = trial.step.outs if isinstance(trial.step, AtenStep) else ()
        for spec in trial.buffers:
            index = first + spec.index
            if spec.kind == CHECKS:
                plan.checks[index] = trial.checks[spec.index]
                kind = CHECKS
            elif spec.index in made and not spec.host:
                kind = EXTERNAL if spec.kind == EXTERNAL else ARENA
            else:
                kind = INPUT
            offset = plan.arena_bytes if kind == ARENA else -1
            plan.arena_bytes += -(-spec.nbytes // _ALIGNMENT) * _ALIGNMENT if kind == ARENA else 0
            source = sources if kind == INPUT else -1
            sources += kind == INPUT
            plan.buffers.append(replace(spec, index=index, kind=kind, source=source, arena_offset=offset))
        step = moved(trial.step, {spec.index: (first + spec.index, 0) for spec in trial.buffers})
        plan.steps.append(in_form(step, form))
        plan.kernels.update(trial.kernels)
        plan.forms.update({name: form for name in trial.kernels if form})
    return plan


def inputs_of(plan: Plan) -> list[Any]:
    """Made-up data for such a plan: normal numbers, and zeros where integers may be places; steps share the memory."""
    wanted: dict[tuple[Any, ...], int] = {}
    places: list[tuple[BufferSpec, tuple[Any, ...]]] = []
    for step in plan.steps:
        assert isinstance(step, KernelStep | GemmStep | AtenStep)
        for place, index in enumerate(dict.fromkeys(_used(step))):
            spec = plan.buffers[index]
            if spec.kind == INPUT:
                key = (spec.dtype, spec.device, place)
                wanted[key] = max(wanted.get(key, 0), -(-spec.nbytes // spec.dtype.itemsize))
                places.append((spec, key))
    memory = {key: _filled(torch_dtype(key[0]), key[1], size) for key, size in wanted.items() if key[1] != "host"}
    found: list[Any] = [None] * len(places)
    for spec, key in places:
        number = 0.5 if spec.dtype.is_float else 0
        found[spec.source] = number if spec.host else memory[key].as_strided(spec.shape, spec.strides)
    return found


def _filled(dtype: torch.dtype, name: str, size: int) -> torch.Tensor:
    found = find_device(name)
    place = torch.device(name) if found is None else found.place(found.current())
    memory = torch.zeros(size, dtype=dtype, device=place)
    if dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        memory.normal_(generator=torch.Generator(place).manual_seed(0))
    return memory


@dataclass(frozen=True)
class NativeBench:
    """Steps in C: all trials are one program, whose steps are run apart.

    Args:
        emit: as for `graphc.codegen.native.generate_native`.
    """

    emit: Callable[..., EmittedKernel]

    def forms(self, plan: Plan, step: Step, buffers: Sequence[BufferSpec]) -> tuple[str, ...]:
        from graphc.codegen.forms import native_forms

        return native_forms(step, buffers)

    def measure(self, trials: Sequence[Trial], is_over: Callable[[], bool]) -> Iterator[tuple[Trial, Outcome]]:
        from graphc.codegen.native import generate_native
        from graphc.runtime.native_program import NativeProgram

        plan = plan_of([(trial, form) for trial in trials for form in trial.forms])
        program = build_program(generate_native(plan, self.emit, apart=True), "trials", keep=False)
        assert isinstance(program, NativeProgram)
        with program.segments_apart(inputs_of(plan)) as runs:
            left = iter(runs)
            for trial in trials:
                own = {form: next(left) for form in trial.forms}
                if is_over():
                    return
                yield trial, dict(timer()(trial.label, own, cpu_clock))


@dataclass(frozen=True)
class TritonBench:
    """Steps on a device: each form of a trial is a program.

    Args:
        target: the chip, as for `graphc.codegen.triton.program.generate`.
    """

    target: str

    def forms(self, plan: Plan, step: Step, buffers: Sequence[BufferSpec]) -> tuple[str, ...]:
        from graphc.codegen.triton.emit import kernel_forms

        return kernel_forms(plan.kernels[step.kernel], self.target) if isinstance(step, KernelStep) else ("",)

    def measure(self, trials: Sequence[Trial], is_over: Callable[[], bool]) -> Iterator[tuple[Trial, Outcome]]:
        for first in range(0, len(trials), _PREPARED):
            some = trials[first : first + _PREPARED]
            if is_over():
                return
            with ThreadPoolExecutor(_PREPARED) as pool:
                plans = [[plan_of([(trial, form)]) for form in trial.forms] for trial in some]
                built = [[pool.submit(copy_context().run, self._build, plan) for plan in own] for own in plans]
            for trial, own, futures in zip(some, plans, built, strict=True):
                if is_over():
                    return
                yield trial, _time_programs(trial, own, [future.result() for future in futures])

    def _build(self, plan: Plan) -> Executable | str:
        """The program, or why there is none."""
        from graphc.codegen.triton.program import generate

        try:
            return build_program(generate(plan, self.target), "trials", keep=False)
        except (CodegenError, CompilerError) as error:
            return f"does not compile: {error.message.partition(chr(10))[0]}"


def _time_programs(trial: Trial, plans: Sequence[Plan], programs: Sequence[Executable | str]) -> Outcome:
    """Times of a trial's forms; a form that the device cannot run is none."""
    from graphc.runtime.triton_program import TritonProgram

    found: Outcome = {}
    runs: dict[str, Callable[[], object]] = {}
    clock: Clock = cpu_clock
    for form, plan, program in zip(trial.forms, plans, programs, strict=True):
        if isinstance(program, str):
            found[form] = program
            continue
        assert isinstance(program, TritonProgram)
        if program.device is not None:
            clock = device_clock(program.device, program.index)
        try:
            runs[form] = program.run_alone(inputs_of(plan))
        except (RuntimeError, ValueError, IndexError) as error:  # asks for too much; a call that refuses made-up data
            found[form] = f"does not run: {str(error).partition(chr(10))[0]}"
    return found | (timer()(trial.label, runs, clock) if runs else {})
