"""A compiled graph: what runs, what each stage of it looked like, and the report of what became of each op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphc.options import Options, pass_context, templates_for
from graphc.settings import settings

if TYPE_CHECKING:
    from graphc.ir.graph import Graph
    from graphc.loopir.kernel import Kernel
    from graphc.passes.templates import Templates
    from graphc.program.plan import Plan
    from graphc.program.record import Program

STAGES = ("captured", "optimized", "scheduled")


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
        optimized, plan: its later stages, once they have been made.
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
    optimized: Graph | None = None
    plan: Plan | None = None

    def stage(self, stage: str) -> Any:
        """The graph (`captured`, `optimized`) or plan (`scheduled`); made again when it came from the cache."""
        if stage == "captured":
            return self.graph
        if self.optimized is None:
            self.optimized = optimize_graph(self.graph, self.options, self.backend, self._templates())
        if stage == "optimized":
            return self.optimized
        if self.plan is None:
            plan = plan_graph(self.optimized, self.options, self.backend, templates=self._templates())
            self.plan = plan if not self._measured() else _with_forms(plan, self.backend, self._measured())
        return self.plan

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


def dump(name: str, stage: str, text: Callable[[], str]) -> None:
    """Write what a stage looks like into the folder that GRAPHC_DUMP names, if any."""
    folder = settings().dump
    if folder is None:
        return
    target = Path(folder) / name
    target.mkdir(parents=True, exist_ok=True)
    (target / stage).write_text(text())


def optimize_graph(graph: Graph, options: Options, backend: str, templates: Templates | None = None) -> Graph:
    """A copy of a graph through all passes over graphs.

    Args:
        templates: which products are to be kernels; None = as is usual for the backend.
    """
    from graphc.passes.pipeline import optimize

    copy = graph.copy()  # passes rewrite in place, and the captured stage stays as it is
    optimize(copy, pass_context(options, backend, templates))
    dump(options.name, "optimized.graph", lambda: str(copy))
    return copy


def rolled_graph(graph: Graph, options: Options, backend: str) -> Graph:
    """A copy of a captured graph with its loops found, which takes as many ops for any number of turns."""
    from graphc.passes.pipeline import roll

    copy = graph.copy()
    roll(copy, pass_context(options, backend))
    return copy


def plan_graph(
    graph: Graph,
    options: Options,
    backend: str,
    on_kernels: Callable[[list[Kernel]], None] | None = None,
    templates: Templates | None = None,
) -> Plan:
    """The plan of an optimised graph.

    Args:
        on_kernels: is told of kernels as soon as they are known, while the plan is still being made.
        templates: which products are to be kernels; None = as is usual for the backend.
    """
    from graphc.passes.plan import make_plan

    templates = templates_for(backend) if templates is None else templates
    plan = make_plan(graph, numerics=options.numerics, backend=backend, templates=templates, on_kernels=on_kernels)
    dump(options.name, "scheduled.plan", lambda: str(plan))
    return plan


def _with_forms(plan: Plan, backend: str, measured: Mapping[str, Any]) -> Plan:
    """The plan with its steps in the forms that were measured to be fastest."""
    from graphc.codegen.c.emit import emit_kernel
    from graphc.runtime.device import current_target
    from graphc.trials import NativeBench, TritonBench
    from graphc.tuning import with_forms

    bench = TritonBench(current_target()) if backend == "triton" else NativeBench(emit_kernel)
    return with_forms(plan, bench, measured)
