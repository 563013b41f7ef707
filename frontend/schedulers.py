"""Learning-rate schedules inside a compiled step.

`scheduler.step()` is Python arithmetic on Python numbers, whose results the program of the same call does not need: the
optimizer's step comes before. So it is not captured. It is noted, and made for real after each run, with what the
program gives for its arguments (`ReduceLROnPlateau` takes a loss). What it will have changed cannot be read before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from graphc.errors import UnsupportedError
from graphc.frontend import tree
from graphc.frontend.leaves import OutputLeaf
from graphc.frontend.objects import is_traced

if TYPE_CHECKING:
    from graphc.frontend.recorder import Recorder


class Later:
    """Stands where a schedule puts a number once the program has run, in the place of the one before."""

    __slots__ = ("before",)  # an object that consists of its attributes would be opened where it is a result

    def __init__(self, before: Any) -> None:
        self.before = before

    def __float__(self) -> float:
        raise UnsupportedError(_TOO_EARLY)

    __int__ = __index__ = __bool__ = __float__

    def __format__(self, spec: str) -> str:
        raise UnsupportedError(_TOO_EARLY)


_TOO_EARLY = (
    "what scheduler.step() sets is read in the compiled function that calls it, where it is known only after the "
    "program has run; read it outside"
)


@dataclass(frozen=True)
class ScheduleEffect:
    """A step of a schedule, made after each run."""

    step: Callable[..., Any]
    node: tree.Node
    leaves: tuple[OutputLeaf, ...]

    def apply(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Make it; `outputs` are the leaves of this run that are effects."""
        args, kwargs = tree.rebuild(
            self.node, iter([outputs[leaf.number] if leaf.number >= 0 else leaf.constant for leaf in self.leaves])
        )
        self.step(*args, **kwargs)


class Schedules:
    """The steps of schedules in one capture.

    Args:
        recorder: the capture.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._steps: list[tuple[Callable[..., Any], Any, Any]] = []
        self._hidden: list[tuple[dict[str, Any], Any]] = []
        self._ahead: set[int] = set()  # optimizers whose numbers are not known any more

    def step(self, scheduler: Any, step: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """`scheduler.step(...)` is called."""
        self._steps.append((step.__get__(scheduler), args, kwargs))
        for optimizer in _optimizers(scheduler):
            if id(optimizer) not in self._ahead:
                self._ahead.add(id(optimizer))
                for group in optimizer.param_groups:
                    self._hidden.append((group, group["lr"]))
                    group["lr"] = Later(group["lr"])

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Raises:
        UnsupportedError: its step comes after one of its schedule.
        """
        if id(optimizer) in self._ahead:
            raise UnsupportedError(
                "optimizer.step() follows scheduler.step() in one compiled function, whose program would need a "
                "learning rate that is known only after it; call scheduler.step() last, or outside",
                self._recorder.locator.here(),
            )

    def check_read(self) -> None:
        """Raises:
        UnsupportedError: a step has been noted, and Python asks for what it sets.
        """
        if self._steps:
            raise UnsupportedError(_TOO_EARLY, self._recorder.locator.here())

    def effects(self, first: int) -> tuple[list[ScheduleEffect], list[Any]]:
        """The steps, and the tensors and traced numbers that they take, numbered from `first`."""
        effects: list[ScheduleEffect] = []
        made: list[Any] = []
        for step, args, kwargs in self._steps:
            leaves, node = tree.flatten((args, kwargs))
            given = []
            for leaf in leaves:
                traced = is_traced(leaf)
                given.append(OutputLeaf(first + len(made)) if traced else OutputLeaf(constant=leaf))
                made += [leaf] if traced else []
            effects.append(ScheduleEffect(step, node, tuple(given)))
        return effects, made

    def restore(self) -> None:
        """Learning rates as before, and nothing held of the capture."""
        self._steps.clear()
        for group, number in self._hidden:
            group["lr"] = number
        self._hidden.clear()


def _optimizers(scheduler: Any) -> Iterator[torch.optim.Optimizer]:
    for name in ("optimizer", "_optimizer"):
        found = getattr(scheduler, name, None)
        if isinstance(found, torch.optim.Optimizer):
            yield found


def stepping() -> list[tuple[type, str, Callable[..., Any]]]:
    """(class, name, method) of every method of a schedule that steps it or tells the last learning rate."""
    found: list[tuple[type, str, Callable[..., Any]]] = []
    classes: list[type] = [LRScheduler]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        found += [(cls, name, vars(cls)[name]) for name in ("step", "get_last_lr") if name in vars(cls)]
    return found
