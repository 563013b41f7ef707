"""Optimizers during a capture: their state, made for real where it is made lazily, and their changing numbers.

An optimizer is met when its `step` runs. State that its first step would create is created then, for real, once, by the
optimizer's own `_init_group`; from then on it is state that the program updates in place. State that only the first
step's gradients can give (momentum buffers) becomes an output, stored after the run. Learning rates, and momentum under
a schedule that cycles it, are inputs of the program. Everything else in the parameter groups is guarded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from graphc.errors import UnsupportedError
from graphc.frontend.guards import GuardBuilder, is_plain, same, snapshot
from graphc.frontend.inputs import Access
from graphc.frontend.traced import TracedTensor
from graphc.ir.graph import Input, Role, Value

if TYPE_CHECKING:
    from graphc.frontend.host import HostNode
    from graphc.frontend.recorder import Recorder

_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _scheduled(group: dict[str, Any]) -> Iterator[tuple[str, int | None, Any]]:
    """Entries of a parameter group that schedules change: (key, place in a tuple, value).

    Of the momentum (which is the first of Adam's betas) that is known by what OneCycleLR and CyclicLR keep beside it.
    """
    yield "lr", None, group.get("lr")
    if "max_momentum" in group:
        yield "momentum", None, group.get("momentum")
        if isinstance(group.get("betas"), tuple):
            yield "betas", 0, group["betas"][0]


@dataclass(frozen=True)
class StateEffect:
    """A tensor that a run stores in the state of an optimizer."""

    home: dict[Any, Any]
    key: Any
    number: int

    def apply(self, outputs: list[Any]) -> None:
        """Put it there; `outputs` are the leaves of this run that are effects."""
        self.home[self.key] = outputs[self.number]


class _Met:
    """One optimizer as its first `step` in this capture found it."""

    def __init__(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        self.optimizer, self.number, self.path = optimizer, number, f"optimizer{number or ''}"
        self.groups = [dict(group) for group in optimizer.param_groups]
        self.params = [list(group["params"]) for group in optimizer.param_groups]
        self.known = dict(optimizer.state)  # by parameter: the dict of its state, before anything was created
        self.before: dict[Any, tuple[dict[Any, Any], dict[Any, Any]]] = {}
        self.numbers: dict[tuple[int, str], Any] = {}  # entries of groups that hold inputs of the program, as they were

    def remember(self) -> None:
        """Take the state as it is now, after what is lazy has been created, as what the step starts from."""
        self.before = {p: (home, {k: snapshot(v) for k, v in home.items()}) for p, home in self._state().items()}

    def _state(self) -> dict[Any, dict[Any, Any]]:
        return {p: home for p, home in self.optimizer.state.items() if isinstance(home, dict)}


class Optimizers:
    """All optimizers of one capture.

    Args:
        recorder: the capture.
        constants: (optimizer, group, entry) of numbers that are to be constants, since Python looked at them.
    """

    def __init__(self, recorder: Recorder, constants: frozenset[Any]) -> None:
        self._recorder, self._constants = recorder, constants
        self._met: dict[int, _Met] = {}
        self._running: list[tuple[_Met, bool]] = []
        self._inputs: dict[tuple[int, int, str], Any] = {}  # numbers that are inputs of the program
        self._accesses: dict[Hashable, Access] = {}  # where each of them is found
        self._assumed: list[tuple[Access, str, float, bool]] = []  # how they compare with plain numbers

    def enter(self, optimizer: torch.optim.Optimizer) -> None:
        """`optimizer.step` starts: the step takes the paths and the arithmetic that it takes outside of a capture."""
        met = self._met.get(id(optimizer))
        if met is None:
            met = self._met[id(optimizer)] = _Met(optimizer, len(self._met))
            _create_state(optimizer)
            met.remember()
            self._name_state(met)
        self._running.append((met, torch.compiler._is_compiling_flag))
        torch.compiler._is_compiling_flag = False
        for index, group in enumerate(optimizer.param_groups):
            for key, place, number in _scheduled(group):
                name = (met.number, index, key)
                if type(number) is float and name not in self._constants:
                    access = Access(group, f"[{key!r}]" if place is None else f"[{key!r}][{place}]")
                    if name not in self._inputs:
                        path = f"{met.path}.{key}{index or ''}"
                        self._inputs[name] = self._recorder.number_input(number, path, access, name)
                        self._accesses[name] = access
                    met.numbers[index, key] = group[key]
                    given = self._inputs[name]
                    group[key] = given if place is None else (given, *group[key][1:])

    def leave(self, optimizer: torch.optim.Optimizer) -> None:
        """`optimizer.step` has ended."""
        met, flag = self._running.pop()
        torch.compiler._is_compiling_flag = flag
        self._put_numbers_back(met)

    @staticmethod
    def _put_numbers_back(met: _Met) -> None:
        for (index, key), number in met.numbers.items():
            met.optimizer.param_groups[index][key] = number

    def _name_state(self, met: _Met) -> None:
        sources = self._recorder.sources
        for group in met.params:
            for param in group:
                _, path, _ = sources.find(param)
                self._recorder.gradients.see(param, path)
                home, items = met.before.get(param, ({}, {}))
                for key, item in items.items():
                    if isinstance(item, torch.Tensor):
                        sources.note(item, Role.STATE, f"{met.path}.{path}.{key}", Access(home, f"[{key!r}]"))

    def assume(self, node: HostNode) -> bool:
        """Python looks at a comparison of such a number with a plain one, as `momentum != 0`: a guard will do."""
        op, access = node.value.op, self._accesses.get(next(iter(node.leaves), None))
        if op is None or access is None or len(node.leaves) != 1 or op.name not in _COMPARED:
            return False
        number, other = op.operands
        if not isinstance(number, Input) or isinstance(other, Value):
            return False
        self._assumed.append((access, _COMPARED[op.name], float(other), bool(node.hint)))
        return True

    # after the run

    def stored(self) -> list[tuple[dict[Any, Any], Any, TracedTensor]]:
        """Tensors that the function made and left in the state of an optimizer: (dict, key, tensor).

        Raises:
            UnsupportedError: it changed something there that is no tensor.
        """
        found = []
        for met in self._met.values():
            for param, home in met._state().items():
                then = met.before.get(param, ({}, {}))[1]
                for key, item in home.items():
                    if type(item) is TracedTensor:
                        found.append((home, key, item))
                    elif not (item is then.get(key) or (is_plain(item) and same(item, then.get(key)))):
                        raise UnsupportedError(
                            f"{type(met.optimizer).__name__} keeps a Python value in state[{key!r}] that its step "
                            "changes, which a compiled program cannot"
                        )
        return found

    def settle(self) -> None:
        """After a good run: state as it was before the step, lazily created state kept."""
        self._running.clear()  # of steps that did not come to their end; the capture has put the flag back
        for met in self._met.values():
            self._put_numbers_back(met)
            for param, home in list(met._state().items()):
                if param in met.before:
                    _restore(home, met.before[param][1])
                else:
                    del met.optimizer.state[param]

    def undo(self) -> None:
        """After a failed run: created state goes too."""
        self.settle()
        for met in self._met.values():
            for param in list(met.optimizer.state):
                if param not in met.known:
                    del met.optimizer.state[param]

    def guards(self, g: GuardBuilder) -> None:
        """The parameter groups and which state there is."""
        for access, comparison, other, answer in self._assumed:
            where = f"{g.hold(access.root)}{access.suffix}"
            g.check(
                f"({where} {comparison} {other!r}) is {answer}",
                f"whether a number of an optimizer {comparison} {other:g}",
            )
        for met in self._met.values():
            optimizer, path = g.hold(met.optimizer), met.path
            g.check(f"len({optimizer}.param_groups) == {len(met.groups)}", f"number of parameter groups of {path}")
            for index, (group, params) in enumerate(zip(met.groups, met.params, strict=True)):
                home = met.optimizer.param_groups[index]
                g.is_object(f"{optimizer}.param_groups[{index}]", home, f"parameter group {index} of {path}")
                g.check(
                    f"list(map(id, {g.hold(home)}['params'])) == {g.hold([id(p) for p in params])}",
                    f"parameters in group {index} of {path}",
                )
                for key, value in group.items():
                    if is_plain(value) and (index, key) not in met.numbers:
                        g.equals(f"{g.hold(home)}[{key!r}]", value, f"{key} of {path}")
                    elif type(value) is tuple:
                        g.equals(f"{g.hold(home)}[{key!r}][1:]", value[1:], f"{key} of {path}")
            homes = list(met.optimizer.state.values())
            g.check(
                f"list(map(id, {optimizer}.state.values())) == {g.hold([id(home) for home in homes])}",
                f"state of {path}",
            )
            g.hold(homes)  # so that their ids stay their own
            for home, items in met.before.values():
                g.check(f"len({g.hold(home)}) == {len(items)}", f"state of {path}")


def _restore(home: dict[Any, Any], then: dict[Any, Any]) -> None:
    for key in [key for key in home if key not in then]:
        del home[key]
    for key, item in then.items():
        if home.get(key) is not item:
            home[key] = item


def _create_state(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer create, with real tensors, the state that its first step creates."""
    initialize: Callable[..., Any] | None = getattr(optimizer, "_init_group", None)
    if initialize is None:
        return
    lists = len(inspect.signature(initialize).parameters) - 1
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch(), torch.no_grad():
        for group in optimizer.param_groups:
            initialize(group, *([] for _ in range(lists)))
