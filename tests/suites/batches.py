"""Several samples compiled as one program, so that the C compiler runs once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tests.suites.gradients import backward_outside
from tests.suites.verdicts import RAISES, RIGHT, Verdict, judge

SIZE = 8


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
    """Judge samples in batches; those of a batch that is not right as a whole are judged one by one.

    Args:
        calls: all with cotangents, or none.
        backend, values, explain: as in `judge`.
        size: most samples of a batch.
    """
    found: list[Verdict] = []
    for first in range(0, len(calls), size):
        batch = calls[first : first + size]
        whole = _judge(_joined(batch), backend, values, explain) if len(batch) > 1 else None
        if whole is not None and whole.kind == RIGHT and whole.how != RAISES:
            found += [Verdict(call.name, RIGHT, how=whole.how, externs=whole.externs) for call in batch]
        else:
            alone = [_judge(call, backend, values, explain) for call in batch]
            found += [verdict for verdict in alone if verdict is not None]
    return found


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
