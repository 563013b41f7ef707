"""`mode="max"`: what is measured instead of taken from a model, and what follows from it.

    each step of the plan that can be computed in several forms     the fastest one: BLAS or tiles, which tile, ...
    each site where a template is weighed against a library call    two plans: the steps in which they differ are timed

Times are kept in the disk cache under all that they depend on: kernel text, shapes, dtypes, strides, machine. So
another process that compiles the same measures nothing, and comes to the same program.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from graphc.program.loops import LoopStep
from graphc.program.plan import BufferSpec, KernelStep, Plan, Step
from graphc.runtime.cache import disk_cache, program_key, read_entry
from graphc.settings import settings
from graphc.trials import Bench, Outcome, Trial, in_form, trial_of

MARGIN = 0.97
"""Part of a form's time that another one must stay below to take its place: noise is to decide nothing."""
TEMPLATE, LIBRARY = "template", "library"
NOT_MEASURED = "not measured"
_FILE = "seconds.json"

_kept: dict[str, Outcome] = {}  # where there is no disk cache


@dataclass
class Tuning:
    """The measurements of one compilation.

    Args:
        bench: where steps are measured.
        machine: what times depend on besides what `program_key` knows.
        limit: seconds that may be spent.

    Attributes:
        measured: how many trials have been measured, and not looked up.
        report: what was found, for `explain`: per thing that was decided the seconds of each form, and the chosen one.
        is_complete: nothing was left out for lack of time.
    """

    bench: Bench
    machine: Mapping[str, str]
    limit: float
    measured: int = 0
    report: dict[str, dict[str, Any]] = field(default_factory=dict)
    is_complete: bool = True

    def __post_init__(self) -> None:
        self._known: dict[str, Outcome] = {}
        self._started = time.monotonic()

    def is_over(self) -> bool:
        """Whether time is up."""
        return time.monotonic() - self._started > self.limit

    def learn(self, trials: Iterable[Trial]) -> None:
        """Look up the times of all trials, and measure those that nobody knows."""
        unknown: dict[str, Trial] = {}
        for trial in trials:
            if trial.text not in self._known and trial.text not in unknown:
                found = _look_up(self._key(trial))
                if found is None:
                    unknown[trial.text] = trial
                else:
                    self._known[trial.text] = found
        if not unknown:
            return
        for trial, outcome in self.bench.measure(list(unknown.values()), self.is_over):
            self.measured += 1
            self._known[trial.text] = outcome
            _keep(self._key(trial), outcome)
        self.is_complete &= all(text in self._known for text in unknown)

    def best(self, trial: Trial) -> tuple[str, float] | None:
        """The form to be taken and its seconds, None when they are not known."""
        found = self._known.get(trial.text, {})
        times = {form: value for form in trial.forms if isinstance(value := found.get(form), float)}
        if not times:
            return None
        first = next(iter(times))
        best = min(times, key=lambda form: times[form])
        best = best if times[best] < MARGIN * times[first] else first
        return best, times[best]

    def note(self, trial: Trial) -> None:
        """Report what was found of a trial of several forms."""
        best = self.best(trial)
        chosen = {} if best is None else {"chosen": best[0]}
        outcome = self._known.get(trial.text, dict.fromkeys(trial.forms, NOT_MEASURED))
        self.report[trial.label] = {**chosen, **outcome}

    def _key(self, trial: Trial) -> str:
        return program_key(trial.text, {"measured": repr(trial.forms), **self.machine})


def _look_up(key: str) -> Outcome | None:
    if not settings().cache:
        return _kept.get(key)
    folder = disk_cache().get(key)
    return None if folder is None else json.loads(read_entry(folder, _FILE))


def _keep(key: str, outcome: Outcome) -> None:
    if settings().cache:
        disk_cache().put(key, {_FILE: json.dumps(outcome).encode()})
    else:
        _kept[key] = outcome


def _steps(plan: Plan) -> Iterator[tuple[Step, Sequence[BufferSpec], int]]:
    """Steps with the buffers that they name, and how often each is run. Loops that may be one kernel are one step."""
    for step in plan.steps:
        if isinstance(step, LoopStep) and not step.rows:
            yield from ((inner, step.specs, step.length) for inner in step.steps)
        else:
            yield step, plan.buffers, 1


def choose_forms(plan: Plan, tuning: Tuning) -> Plan:
    """The plan with each step in its fastest form."""
    trials = [trial_of(tuning.bench, plan, step, buffers) for step, buffers, _ in _steps(plan)]
    several = [trial for trial in trials if trial is not None and len(trial.forms) > 1]
    tuning.learn(several)
    for trial in several:
        tuning.note(trial)
    return with_forms(plan, tuning.bench, tuning.report)


def with_forms(plan: Plan, bench: Bench, report: Mapping[str, Mapping[str, Any]]) -> Plan:
    """The plan with steps in the forms that a report of measurements has chosen for them."""
    forms: dict[str, str] = {}

    def chosen(step: Step, buffers: Sequence[BufferSpec]) -> Step:
        if isinstance(step, LoopStep) and not step.rows:
            return replace(step, steps=tuple(chosen(inner, step.specs) for inner in step.steps))
        trial = trial_of(bench, plan, step, buffers)
        form = report.get(trial.label, {}).get("chosen", "") if trial is not None and len(trial.forms) > 1 else ""
        if form and isinstance(step, KernelStep):
            forms[step.kernel] = form
        return in_form(step, form)

    steps = [chosen(step, plan.buffers) for step in plan.steps]
    return replace(plan, steps=steps, forms=forms, stats={**plan.stats, "measured": dict(report)})


def choose_templates(
    plan_with: Callable[[Mapping[str, bool]], tuple[Plan, Mapping[str, bool]]], tuning: Tuning
) -> tuple[Plan, dict[str, bool]]:
    """The plan with templates where they are faster than library calls with kernels around them.

    Sites are tried out one by one, in program order, each with what has been chosen for those before it. What a choice
    brings up, such as products in attention that was one call, is tried out after the others.

    Args:
        plan_with: the plan for choices per site, and the answer of the model per site that it met.

    Returns:
        The plan and the choices that differ from the model's.
    """
    choices: dict[str, bool] = {}
    best, asked = plan_with(choices)
    pending, known = dict(asked), set(asked)
    while pending:
        site = next(iter(pending))
        is_template = pending.pop(site)
        if tuning.is_over():
            tuning.is_complete = False
            tuning.report[site] = {TEMPLATE: NOT_MEASURED, LIBRARY: NOT_MEASURED}
            continue
        other, more = plan_with({**choices, site: not is_template})
        times = _compare(best, other, tuning)
        if times is None:
            continue
        here, there = (TEMPLATE, LIBRARY) if is_template else (LIBRARY, TEMPLATE)
        is_better = not isinstance(times, str) and times[1] < MARGIN * times[0]
        found = dict.fromkeys((here, there), times) if isinstance(times, str) else {here: times[0], there: times[1]}
        tuning.report[site] = {"chosen": there if is_better else here, **found}
        if is_better:
            choices[site] = not is_template
            best = other
            pending |= {other_site: answer for other_site, answer in more.items() if other_site not in known}
            known.update(more)
    return best, choices


def chosen_templates(report: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """The choices that a report of measurements stands for."""
    return {
        site: found["chosen"] == TEMPLATE for site, found in report.items() if TEMPLATE in found and "chosen" in found
    }


def _compare(plan: Plan, other: Plan, tuning: Tuning) -> tuple[float, float] | str | None:
    """Seconds of the steps in which two plans differ, None when there are none; or why they cannot be told."""
    sides = []
    for item in (plan, other):
        found: dict[str, Trial] = {}
        counts: Counter[str] = Counter()
        for step, buffers, times in _steps(item):
            trial = trial_of(tuning.bench, item, step, buffers)
            text = repr(step) if trial is None else trial.text
            counts[text] += times
            if trial is not None:
                found[text] = trial
        sides.append((found, counts))
    (here, mine), (there, others) = sides
    differences = mine - others, others - mine
    if not any(differences):
        return None
    trials = here | there
    if any(text not in trials for side in differences for text in side):
        return "a step in which the plans differ cannot be run alone"
    tuning.learn(trials[text] for side in differences for text in side)
    sums: list[float] = []
    for side in differences:
        bests = [(tuning.best(trials[text]), times) for text, times in side.items()]
        if any(best is None for best, _ in bests):
            return NOT_MEASURED if not tuning.is_complete else "a step cannot be run"
        sums.append(sum(best[1] * times for best, times in bests if best is not None))
    return sums[0], sums[1]
