"""`graphc bench zoo`: forward passes and whole training steps of the tutorials' models, which lie in benchmarks/zoo."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from graphc.report.bench import Row
from graphc.report.own_models import Made, bench_own, empty_caches
from graphc.report.targets import TargetError

FORMS = ("forward", "step")


def load_zoo() -> ModuleType:
    """The package benchmarks/zoo next to this one.

    Raises:
        TargetError: there is none, since graphc was installed without its repository.
    """
    name, file = "_graphc_zoo", Path(__file__).resolve().parents[2] / "benchmarks" / "zoo" / "__init__.py"
    if name in sys.modules:
        return sys.modules[name]
    if not file.is_file():
        raise TargetError("the zoo is part of graphc's repository (benchmarks/zoo), not of the installed package")
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chosen(spec: str) -> list[str]:
    """Names of the models that `zoo`, `zoo:FAMILY` or `zoo:NAME,NAME` stand for.

    Raises:
        TargetError: no such model or family.
    """
    entries = load_zoo().ENTRIES
    wanted = [name for name in spec.partition(":")[2].split(",") if name]
    families = list(dict.fromkeys(entry.family for entry in entries.values()))
    unknown = [name for name in wanted if name not in entries and name not in families]
    if unknown:
        raise TargetError(f"the zoo has no {', '.join(unknown)}; it has {', '.join([*families, *entries])}")
    return [name for name, entry in entries.items() if not wanted or name in wanted or entry.family in wanted]


def make(name: str, form: str) -> Made:
    """A model of the tutorials' size, to be called (`forward`) or trained (`step`)."""
    work = load_zoo().build(name, "full")
    if form == "step":
        return Made(work.training().step, work.batch(0), tuple(work.net.parameters()), not work.draws)
    work.net.eval()

    def forward(*batch: torch.Tensor) -> Any:
        with torch.no_grad():
            return work.run(work.net, *batch)

    return Made(forward, work.batch(0), comparable=not work.draws)


def bench_zoo(
    spec: str,
    against: Sequence[str],
    rounds: int,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> list[Row]:
    """Rows for the chosen models: forward pass in eval mode, and whole training step.

    Raises:
        TargetError: no such model.
    """
    rows: list[Row] = []
    with empty_caches():
        for name in chosen(spec):
            for form in FORMS:
                rows += bench_own(f"{name} {form}", partial(make, name, form), against, rounds, progress, **options)
    return rows
