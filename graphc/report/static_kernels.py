"""Generated kernels compiled for GPUs that are not there, one line of facts per launch and target.

A line says what the machine code looks like (registers, spills, shared memory, widths of global accesses, matrix
instructions), what the kernel moves against the least possible, and how long that takes at best. `faults` says what is
wrong with it; no kernel is to have any.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.matmul import LAST_STEP
from graphc.codegen.triton.program import triton_kernels, with_loop_kernels
from graphc.codegen.triton.tiles import machine_of
from graphc.codegen.triton.tiling import choose_tiling
from graphc.ir.types import FLOAT8
from graphc.passes.chips import CHIPS, Chip
from graphc.program.loops import unroll
from graphc.program.plan import AtenStep, ForeachStep, GemmStep, KernelStep, Plan, Step
from graphc.program.triton_kernel import ITEMSIZE, TABLE_BLOCK, Launch, TritonKernel
from graphc.report import sass
from graphc.report.bound import Bound, bound, turns_of
from graphc.report.kernel_traffic import SMALL, TABLE, Traffic, kernel_traffic, table_traffic
from graphc.report.sass import Turn
from graphc.runtime.triton_cross import TARGETS, compile_for
from graphc.runtime.triton_launcher import OPTIONS
from graphc.settings import settings

WORKERS = 2
SPILLED_BY_PRODUCTS = 96
"""Bytes per thread (on AMD registers) that may be spilled where sums fill the registers."""
MOST_PROGRAMS = 65535
"""Along y and z of a grid. Source: CUDA C++ Programming Guide, technical specifications per compute capability."""
MOST_TIMES = 3
"""Times the least possible that a kernel may move: long rows are read once per pass."""


@dataclass(frozen=True)
class Candidate:
    """A kernel of a program.

    Args:
        program: name of the program.
        calls: how often the program runs it.
        made: its code.
        traffic: of one call; None for a template, whose loops are its own.
        others: its code by target, where it differs.
        only: the targets that have such a kernel; none named = all.
        programs: of a launch over a table, whose grid is known when it is made.
    """

    program: str
    calls: int
    made: TritonKernel
    traffic: Traffic | None
    others: Mapping[str, TritonKernel] = field(default_factory=dict)
    only: frozenset[str] = frozenset()
    programs: int = 0

    def on(self, target: str) -> Candidate:
        """The same with its code for a target."""
        return replace(self, made=self.others.get(target, self.made), others={})


@dataclass(frozen=True)
class Line:
    """One launch of a kernel on one target.

    Args:
        program, kernel, function, calls: which it is.
        target: as in `graphc.runtime.triton_cross.TARGETS`.
        registers, spills, stack, shared: as in `CompiledKernel`.
        loads, stores: widths in bytes of the global accesses.
        tensor_core: number of matrix instructions.
        moved, least: bytes of all launches of one call of the kernel; 0 where not known.
        best: least time of one call in microseconds, by chip.
        busy: how much of memory's time the busiest unit of the chip with the most bandwidth takes, see
            `graphc.report.bound`; 0 where that is not known.
        unit: which unit.
        flight: bytes per processor that are on their way while it waits.
        faults: what is wrong.
    """

    program: str
    kernel: str
    function: str
    calls: int
    target: str
    registers: int
    spills: int
    stack: int
    shared: int
    loads: tuple[int, ...]
    stores: tuple[int, ...]
    tensor_core: int
    moved: int
    least: int
    best: dict[str, float] = field(default_factory=dict)
    busy: float = 0.0
    unit: str = ""
    flight: float = 0.0
    faults: tuple[str, ...] = ()


def launches_of(plan: Plan) -> dict[str, int]:
    """What one run of a program starts: launches of generated kernels, and calls of libraries."""
    steps, made = _device_kernels(plan)
    found = {"launches": 0, "library": 0}
    for step in unroll(steps):
        names = [step.kernel] if isinstance(step, KernelStep) else step.kernels if isinstance(step, ForeachStep) else []
        found["launches"] += sum(len(made[name].launches) for name in names if name in made)
        found["library"] += isinstance(step, (GemmStep, AtenStep))
    return found


def candidates(program: str, plan: Plan) -> list[Candidate]:
    """The kernels of a plan that a device runs."""
    steps, made = _device_kernels(plan)
    calls: dict[str, int] = {}
    found: list[Candidate] = []
    for step in unroll(steps):
        if isinstance(step, KernelStep) and step.kernel in made:
            calls[step.kernel] = calls.get(step.kernel, 0) + 1
        elif isinstance(step, ForeachStep):
            for name, arguments in zip(step.kernels, step.arguments, strict=True):
                if name in made:
                    traffic = table_traffic(plan.kernels[name], step, arguments)
                    programs = sum(step.sizes) // TABLE_BLOCK
                    found.append(Candidate(program, 1, made[name], traffic, programs=programs))
    for name, count in calls.items():
        kernel = plan.kernels.get(name)
        if kernel is None:
            found.append(Candidate(program, count, made[name], None))
            continue
        traffic = kernel_traffic(kernel, choose_tiling(kernel), made[name])
        others = {target: emit_kernel(kernel, target=target) for target in TARGETS}
        holds_float8 = any(buffer.dtype in FLOAT8 for buffer in kernel.buffers)
        only = frozenset(chip.target for chip in CHIPS if chip.multiplies_float8) if holds_float8 else frozenset[str]()
        found.append(Candidate(program, count, made[name], traffic, others, only))
    return found


def _device_kernels(plan: Plan) -> tuple[list[Step], dict[str, TritonKernel]]:
    """Steps with loops that are one kernel as such, and all kernels that a device runs."""
    steps, loops = with_loop_kernels(plan)
    return steps, triton_kernels(replace(plan, steps=steps)) | loops


def inspect(found: Sequence[Candidate], targets: Sequence[str], workers: int = WORKERS) -> list[Line]:
    """Compile kernels for targets.

    Args:
        found: kernels; equal ones are compiled once.
        workers: processes that compile; with 1 it is done in this one.

    Raises:
        BackendUnavailableError: no triton, or it is interpreting.
        CompilerError: a kernel does not compile.
    """
    placed = [(item.on(target), target) for item in found for target in targets if target in (item.only or targets)]
    jobs = {(_text_key(item.made), target): (item.made, target) for item, target in placed}
    facts = {key: kept for key, (made, target) in jobs.items() if (kept := _kept(made, target)) is not None}
    missing = [job for key, job in jobs.items() if key not in facts]
    for (made, target), made_facts in zip(missing, _compile_all(missing, workers), strict=True):
        facts[_text_key(made), target] = made_facts
    return [line for item, target in placed for line in _lines(item, target, facts[_text_key(item.made), target])]


def _compile_all(jobs: Sequence[tuple[TritonKernel, str]], workers: int) -> Iterable[list[dict[str, Any]]]:
    if workers < 2 or len(jobs) < 2:
        return [_compile(job) for job in jobs]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_compile, jobs, chunksize=4))


def _compile(job: tuple[TritonKernel, str]) -> list[dict[str, Any]]:
    """What is kept of one kernel compiled for one target, per launch."""
    made, target = job
    found: list[dict[str, Any]] = []
    for compiled in compile_for(made, target):
        plain = {k: v for k, v in asdict(compiled).items() if k != "asm"}
        turns = turns_of(compiled.asm["cubin"], target) if "cubin" in compiled.asm else []
        counts = {k: {str(a): b for a, b in plain[k].items()} for k in ("loads", "stores", "widths")}
        found.append({**plain, **counts, "turns": [turn.to_plain() for turn in turns]})
    path = _path(made, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(found))
    fresh.replace(path)
    return found


def _kept(made: TritonKernel, target: str) -> list[dict[str, Any]] | None:
    path = _path(made, target)
    return json.loads(path.read_text()) if path.exists() else None


def _text_key(made: TritonKernel) -> str:
    return hashlib.sha256(f"{made.text}{made.to_plain()}".encode()).hexdigest()


def _path(made: TritonKernel, target: str) -> Path:
    import triton

    from graphc.runtime import machine_code

    readers = b"".join(Path(str(module.__file__)).read_bytes() for module in (machine_code, sass))
    reader = hashlib.sha256(readers).hexdigest()[:8]
    versions = f"{triton.__version__}-{reader}-{hashlib.sha256(repr(OPTIONS).encode()).hexdigest()[:8]}"
    return settings().cache_dir / "static_kernels" / versions / f"{_text_key(made)[:40]}-{target.replace(':', '')}.json"


def _lines(item: Candidate, target: str, facts: Sequence[dict[str, Any]]) -> list[Line]:
    traffic = item.traffic
    lines = []
    for launch, fact in zip(item.made.launches, facts, strict=True):
        chips = [chip for chip in CHIPS if chip.target == target]
        best = {} if traffic is None else {chip.name: _best(chip, traffic) for chip in chips}
        limit = _limit(item, launch, fact, chips)
        lines.append(
            Line(
                item.program, item.made.name, launch.function, item.calls, target,
                fact["registers"], fact["spills"], fact["stack"], fact["shared"],
                tuple(sorted(map(int, fact["loads"]))), tuple(sorted(map(int, fact["stores"]))), fact["tensor_core"],
                traffic.moved if traffic else 0, traffic.least if traffic else 0, best,
                limit.busy if limit else 0.0, limit.unit if limit else "", limit.flight if limit else 0.0,
                tuple(faults(item, launch, fact, target)),
            )
        )  # fmt: skip
    return lines


def _best(chip: Chip, traffic: Traffic) -> float:
    return chip.seconds(traffic.least, traffic.work, traffic.matrix) * 1e6


def _limit(item: Candidate, launch: Launch, fact: dict[str, Any], chips: Sequence[Chip]) -> Bound | None:
    """What bounds a launch on the chip with the most bandwidth."""
    if item.traffic is None or not fact["turns"]:
        return None
    chip = max(chips, key=lambda chip: chip.bandwidth)
    turns = [Turn.from_plain(plain) for plain in fact["turns"]]
    return bound(turns, chip, launch, fact["registers"], fact["shared"], item.traffic.widths.keys(), item.programs)


def faults(item: Candidate, launch: Launch, fact: dict[str, Any], target: str) -> list[str]:
    """What is wrong with one launch compiled for one target."""
    found = []
    room = machine_of(target).shared
    if fact["shared"] > room:
        found.append(f"takes {fact['shared']} bytes of shared memory where {room} are")
    if max(launch.grid[1:]) > MOST_PROGRAMS:
        found.append(f"a grid of {launch.grid}, where {MOST_PROGRAMS} is the most along y and z")
    text = _function_text(item.made.text, launch.function)
    multiplies = "tl.dot(" in text
    if fact["spills"] > (SPILLED_BY_PRODUCTS if multiplies else 0):
        found.append(f"spills {fact['spills']} bytes")
    if multiplies and not fact["tensor_core"] and 'input_precision="ieee"' not in text:
        found.append("a matrix product without tensor cores")
    if item.traffic is not None:
        found += _narrow(item, launch, fact)
        # what tiles of products read again, they find in a cache
        large = item.traffic.least >= SMALL and not multiplies
        if large and item.traffic.moved > MOST_TIMES * item.traffic.least:
            found.append(f"moves {item.traffic.moved / item.traffic.least:.1f} times the least possible")
    return found


def _function_text(text: str, function: str) -> str:
    start = text.index(f"def {function}(")
    end = text.find("@triton.jit", start)
    return text[start : end if end > 0 else len(text)]


def _narrow(item: Candidate, launch: Launch, fact: dict[str, Any]) -> list[str]:
    """Buffers whose elements lie side by side and are accessed one by one all the same."""
    assert item.traffic is not None
    found = []
    possible = item.traffic.widths.get(TABLE, 0)
    if launch is item.made.launches[0] and possible > max(fact["widths"].get(str(TABLE), (possible,))):
        found.append(f"no accesses of {possible} bytes to rows of the table")
    for at, (name, kind) in enumerate(item.made.signature):
        possible, seen = item.traffic.widths.get(at, 0), fact["widths"].get(str(at), ())
        is_apart = item.traffic.ragged or LAST_STEP in item.made.text
        worst = (max if is_apart else min)(seen, default=possible)
        if possible > ITEMSIZE[kind] >= worst:
            found.append(f"scalar accesses to {name.removesuffix('_ptr')}, which could be of {possible} bytes")
    return found
