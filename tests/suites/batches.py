"""Several samples compiled as one program, so that the C compiler runs once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tests.suites.gradients import backward_outside
from tests.suites.verdicts import COMPILED, RIGHT, Verdict, judge

SIZE = 32


@dataclass(frozen=True)
class Call:
    """One sample.

    Args:
        name: of the sample.
        fn: what is compiled, a function or a module; called with `args`.
        cotangents: where gradients are to be taken outside what is compiled, those of its results.
    """

    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    cotangents: Sequence[torch.Tensor] | None = None


def judge_all(
    calls: Sequence[Call], backend: str, *, values: bool = True, explain: bool = False, size: int = SIZE
) -> list[Verdict]:
    """Judge samples in batches; one that is not right as a whole is halved until what is not right stands alone.

    Args:
        calls: all with cotangents, or none.
        backend, values, explain: as in `judge`.
        size: most samples of a batch.
    """
    found: list[Verdict] = []
    for first in range(0, len(calls), size):
        found += _judge_together(calls[first : first + size], backend, values, explain)
    return found


def _judge_together(calls: Sequence[Call], backend: str, values: bool, explain: bool) -> list[Verdict]:
    """Samples in one program, or, where that is not right as a whole, each half of them in one."""
    if len(calls) == 1:
        alone = _judge(calls[0], backend, values, explain)
        return [] if alone is None else [alone]
    whole = _judge(_joined(calls), backend, values, explain)
    if whole is not None and whole.kind == RIGHT and whole.how == COMPILED and not whole.by_rounding:
        return [Verdict(call.name, RIGHT, externs=whole.externs) for call in calls]
    middle = len(calls) // 2
    return [
        verdict
        for half in (calls[:middle], calls[middle:])
        for verdict in _judge_together(half, backend, values, explain)
    ]


def _judge(call: Call, backend: str, values: bool, explain: bool) -> Verdict | None:
    if call.cotangents is None:
        return judge(call.name, call.fn, call.args, backend, values=values, explain=explain)
    around = backward_outside(call.cotangents)
    return judge(call.name, call.fn, call.args, backend, values=values, around=around)


def _joined(calls: Sequence[Call]) -> Call:
    fns = [call.fn for call in calls]
    given = None
    if calls[0].cotangents is not None:
        given = [cotangent for call in calls for cotangent in call.cotangents or ()]

    def batch(arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [fn(*args) for fn, args in zip(fns, arguments)]

    modules = [fn for fn in fns if isinstance(fn, torch.nn.Module)]
    return Call(calls[0].name, _Batch(modules) if modules else batch, ([call.args for call in calls],), given)


class _Batch(torch.nn.Module):
    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(modules)
        self.training = modules[0].training

    def forward(self, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [module(*args) for module, args in zip(self.parts, arguments)]
