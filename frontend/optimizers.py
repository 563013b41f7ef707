"""Optimizers during a capture: their state, made for real where it is made lazily, and their changing numbers.

An optimizer is met when its `step` runs, or when Python looks into its parameter groups or its state. State that its
first step would create is created when it steps, for real, once, by the optimizer's own `_init_group`; from then on it
is state that the program updates in place. What only the function can give (momentum buffers, weights that an optimizer
of the user's puts aside) becomes an output, stored after the run. Learning rates, and momentum that a schedule cycles,
are inputs of the program from where the optimizer is met to the end. Everything else in the parameter groups is
guarded. What the function sets there is set after each run.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from graphc.errors import EagerOnceError, EagerOnlyError
from graphc.frontend.attributes import Number
from graphc.frontend.guards import GuardBuilder, is_plain, same, snapshot
from graphc.frontend.inputs import GONE, Access, shown_key
from graphc.frontend.objects import is_traced
from graphc.frontend.schedulers import Later
from graphc.ir.graph import Input, Role, Value

if TYPE_CHECKING:
    from graphc.frontend.host import HostNode
    from graphc.frontend.recorder import Recorder

_DYNAMIC = ("['lr']",)
"""Entries of parameter groups that schedules change: inputs of the program from the start when they are floats."""
_CYCLED = ("['momentum']", "['betas'][0]")
"""The same, where OneCycleLR or CyclicLR has left its `max_momentum` in the group."""
_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


class OptimizerNumber(NamedTuple):
    """Names an entry of a parameter group."""

    optimizer: int
    group: int  # the id of its dict
    entry: str

    @property
    def is_rate(self) -> bool:
        """A learning rate, of which Python code asks what it is more than what it is compared with."""
        return self.entry in _DYNAMIC


@dataclass(frozen=True)
class _Assumed:
    """How an entry of a parameter group that is an input compares with a plain number, as in `momentum != 0`."""

    access: Access
    comparison: str
    other: float
    answer: bool


@dataclass(frozen=True)
class StateEffect:
    """A tensor or number that a run stores in the state of an optimizer.

    Args:
        param: whose state; None for what is kept of no parameter.
        number: of the effect's output; -1 for a `constant`.
    """

    optimizer: torch.optim.Optimizer
    param: Any
    key: Any
    number: int
    constant: Any = None

    def apply(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Put it there; `outputs` are the leaves of this run that are effects."""
        state = state_of(self.optimizer)
        home = state if self.param is None else state[self.param]
        home[self.key] = outputs[self.number] if self.number >= 0 else self.constant


class Stored(NamedTuple):
    """What the function has left in the state of an optimizer: a tensor or number of the capture, or a plain value."""

    optimizer: torch.optim.Optimizer
    param: Any
    key: Any
    value: Any


def state_effects(stored: Sequence[Stored], first: int) -> tuple[list[StateEffect], list[Any]]:
    """The effects, and the tensors and traced numbers that takes, numbered from `first`."""
    made: list[Any] = []
    effects = []
    for optimizer, param, key, value in stored:
        if is_traced(value):
            effects.append(StateEffect(optimizer, param, key, first + len(made)))
            made.append(value)
        else:
            effects.append(StateEffect(optimizer, param, key, -1, snapshot(value)))
    return effects, made


@dataclass(frozen=True)
class CreatedState:
    """State of an optimizer that a capture made for real.

    Attributes:
        known: what there was before: keys by parameter.
    """

    optimizer: torch.optim.Optimizer
    known: dict[Any, frozenset[Any]]

    def remove(self) -> None:
        """State as before the capture."""
        state = state_of(self.optimizer)
        for param, home in list(state.items()):
            if param not in self.known:
                del state[param]
            elif isinstance(home, dict):
                for key in [key for key in home if key not in self.known[param]]:
                    del home[key]


class _Group:
    """One parameter group as this capture found it; optimizers may share one.

    Attributes:
        home: the dict.
        then: what was in it.
        placed: what stands in it in the place of that.
    """

    def __init__(self, home: dict[str, Any]) -> None:
        self.home, self.then, self.params = home, dict(home), list(home["params"])
        self.placed: dict[str, Any] = {}


class _Met:
    """One optimizer as this capture found it.

    Attributes:
        stepped: it has begun to step.
        followed: what is kept in its state is known, and what becomes of it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, number: int, groups: list[_Group]) -> None:
        self.optimizer, self.number, self.path = optimizer, number, f"optimizer{number or ''}"
        self.stepped = self.followed = False
        self.groups = groups
        self.found = CreatedState(optimizer, {p: _keys(home) for p, home in state_of(optimizer).items()})
        self.before: dict[Any, tuple[dict[Any, Any], dict[Any, Any]]] = {}
        self.counted: dict[tuple[int, Any], Any] = {}  # numbers in the state that are inputs, by home and key

    def homes(self) -> dict[Any, dict[Any, Any]]:
        """Where state is kept that may be changed: by parameter, and under None what is kept of none."""
        state = state_of(self.optimizer) if self.followed else {}
        found: dict[Any, dict[Any, Any]] = {None: state} if _own_entries(state) or None in self.before else {}
        return found | {param: home for param, home in state.items() if isinstance(home, dict)}

    def entries(self, param: Any, home: dict[Any, Any]) -> dict[Any, Any]:
        """What is kept in one of these."""
        return _own_entries(home) if param is None else home


class Optimizers:
    """All optimizers of one capture.

    Args:
        recorder: the capture.
        constants: (optimizer, group, entry) of numbers that are to be constants, since Python looked at them.
    """

    def __init__(self, recorder: Recorder, constants: frozenset[Any]) -> None:
        self._recorder, self._constants = recorder, constants
        self._met: dict[int, _Met] = {}
        self._groups: dict[int, _Group] = {}
        self.rebound: set[int] = set()  # ids of tensors in the state in whose place the function has put others
        self._running: list[bool] = []
        self._watching = True
        self._schedules: list[Any] = []  # those whose last rates are those of their optimizers
        self.changing: list[Number] = []  # those that are inputs
        self._inputs: dict[OptimizerNumber, Any] = {}  # numbers that are inputs of the program
        self._accesses: dict[OptimizerNumber, Access] = {}  # where those are found that are no learning rates
        self._assumed: list[_Assumed] = []

    def meet(self, optimizer: torch.optim.Optimizer) -> _Met:
        """Python looks into its parameter groups, where inputs of the program are from now on."""
        met = self._met.get(id(optimizer))
        if met is None:
            met = _Met(optimizer, len(self._met), [])
            self._met[id(optimizer)] = met
            for index, home in enumerate(groups_of(optimizer)):
                group = self._groups.get(id(home))
                if group is None:
                    group = self._groups[id(home)] = _Group(home)
                    for key, value in group.then.items():
                        given = self._with_inputs(met, index, key, value)
                        if given is not value:
                            group.placed[key] = home[key] = given
                met.groups.append(group)
        return met

    def look_into(self, optimizer: torch.optim.Optimizer) -> None:
        """As `meet`, unless `unwatched`."""
        if self._watching and id(optimizer) not in self._met:
            with torch._C.DisableTorchFunction():
                self.meet(optimizer)

    def look_into_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Python looks into the state of an optimizer, or may change it."""
        met = self._met.get(id(optimizer))
        if self._watching and (met is None or not met.followed):
            with torch._C.DisableTorchFunction():
                self._follow(self.meet(optimizer))

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """For the block: looking into parameter groups is for their parameters alone, and nobody looks into state."""
        watching, self._watching = self._watching, False
        try:
            yield
        finally:
            self._watching = watching

    def last_rates(self, scheduler: Any) -> list[Any] | None:
        """What a schedule has set last, where that is what the groups hold: inputs of the program."""
        last, optimizer = getattr(scheduler, "_last_lr", None), getattr(scheduler, "optimizer", None)
        if not isinstance(optimizer, torch.optim.Optimizer) or type(last) is not list:
            return None
        met = self.meet(optimizer)
        if not is_plain(last) or not same(last, [group.then.get("lr") for group in met.groups]):
            return None
        self._schedules.append(scheduler)
        return [group.placed.get("lr", rate) for group, rate in zip(met.groups, last, strict=True)]

    def enter(self, optimizer: torch.optim.Optimizer) -> None:
        """`optimizer.step` starts: the step takes the paths and the arithmetic that it takes outside of a capture.

        Raises:
            EagerOnlyError: of a class that is not compiled.
            EagerOnceError: the function has looked for state that is made only now.
        """
        if isinstance(optimizer, torch.optim.LBFGS):
            where = self._recorder.locator.here()
            raise EagerOnlyError("LBFGS searches along a line, by Python numbers that depend on data", where)
        met = self._met.get(id(optimizer))
        if met is not None and len(met.groups) != len(groups_of(optimizer)):  # it was being made when it was met
            del self._met[id(optimizer)]
        met = self.meet(optimizer)
        if not met.stepped:
            met.stepped = True
            known = {p: _keys(home) for p, home in state_of(optimizer).items()}
            with self.unwatched():
                _create_state(optimizer)
            if met.followed and any(known.get(p) != _keys(home) for p, home in state_of(optimizer).items()):
                raise EagerOnceError(
                    f"it looks into the state of {type(optimizer).__name__} before its first step, which makes that",
                    self._recorder.locator.here(),
                )
            with torch._C.DisableTorchFunction():
                for group in met.groups:
                    for param in group.params:
                        self._recorder.gradients.see(param, self._recorder.sources.find(param)[1])
                self._follow(met)
        self._running.append(torch.compiler._is_compiling_flag)
        torch.compiler._is_compiling_flag = False

    def _with_inputs(self, met: _Met, index: int, key: str, value: Any) -> Any:
        """An entry of a parameter group, with inputs of the program in the place of numbers that change."""
        for number in _numbers(met, index, key, value):
            given = self._input(met, number)
            if given is not number.value:
                value = (given, *value[1:]) if type(value) is tuple else given
        return value

    def _input(self, met: _Met, number: Number) -> Any:
        """The input for a number, or the number itself where it stays as it is."""
        entry = number.access.suffix
        name = OptimizerNumber(met.number, id(number.access.root), entry)
        changes = entry in _DYNAMIC or _is_cycled(number) or number.key in self._recorder.dynamic_numbers
        if not changes or name in self._constants:
            return number.value
        if name not in self._inputs:
            self._inputs[name] = self._recorder.number_input(number.value, number.path, number.access, name)
            self.changing.append(number)
            if not name.is_rate:
                self._accesses[name] = number.access
        return self._inputs[name]

    def assume(self, node: HostNode) -> bool:
        """Python asks how such a number compares with a plain one: true when the answer can be, and is, guarded."""
        op, (leaf, *others) = node.value.op, node.leaves or (None,)
        access = self._accesses.get(leaf) if isinstance(leaf, OptimizerNumber) else None
        if op is None or access is None or others or op.name not in _COMPARED:
            return False
        number, other = op.operands
        if not isinstance(number, Input) or isinstance(other, (Value, complex)):
            return False
        assumed = _Assumed(access, _COMPARED[op.name], float(other), bool(node.hint))
        if assumed not in self._assumed:
            self._assumed.append(assumed)
        return True

    def numbers(self) -> list[Number]:
        """The numbers in parameter groups that may become inputs; learning rates, which always are, left out."""
        return [
            number
            for met in self._met.values()
            for index, group in enumerate(met.groups)
            for key, value in group.then.items()
            for number in _numbers(met, index, key, value)
            if number.access.suffix not in _DYNAMIC
        ]

    def leave(self, optimizer: torch.optim.Optimizer) -> None:
        """`optimizer.step` has ended."""
        torch.compiler._is_compiling_flag = self._running.pop()

    def changed(self) -> list[tuple[dict[str, Any], str, Any]]:
        """(group, name, new value) of what the function has set in parameter groups.

        Raises:
            EagerOnlyError: it is nothing that can be set again after each run.
        """
        found = []
        for met, _, group in self._found_groups():
            for key, new in group.home.items():
                new = new.before if isinstance(new, Later) else new
                known = group.placed.get(key, group.then.get(key, GONE))
                if new is known or key == "params" or (is_plain(new) and same(new, known)):
                    continue
                if not is_plain(new) and not is_traced(new):
                    raise EagerOnlyError(f"it sets {key} of {type(met.optimizer).__name__} to {type(new).__name__}")
                found.append((group.home, key, new))
        return found

    def _follow(self, met: _Met) -> None:
        """Take the state as it is now as what the function starts from."""
        if met.followed:
            return
        met.followed = True
        recorder = self._recorder
        for number, (param, home) in enumerate(met.homes().items()):
            items = {key: snapshot(item) for key, item in met.entries(param, home).items()}
            met.before[param] = home, items
            path = f"{met.path}.{recorder.sources.find(param)[1]}" if isinstance(param, torch.Tensor) else met.path
            for key, item in items.items():
                access = Access(home, "").item(home, key)
                if isinstance(item, torch.Tensor):
                    recorder.sources.note(
                        item, Role.STATE, f"{path}.{key if isinstance(key, str) else shown_key(key)}", access
                    )
                elif type(item) in (int, float) and type(key) is str and access.key() not in self._constants:
                    given = recorder.number_input(item, f"{met.path}.{key}{number or ''}", access, access.key())
                    met.counted[id(home), key] = home[key] = given

    # after the run

    def stored(self) -> list[Stored]:
        """What the function has left in the state of optimizers.

        Raises:
            EagerOnlyError: it is nothing that can be stored again after each run.
        """
        found = []
        for met in self._met.values():
            for param, home in met.homes().items():
                then = met.before.get(param, ({}, {}))[1]
                for key, item in met.entries(param, home).items():
                    known = met.counted.get((id(home), key), then.get(key, GONE))
                    if item is known or (is_plain(item) and same(item, known)):
                        continue
                    if not is_traced(item) and not is_plain(item):
                        raise EagerOnlyError(
                            f"{type(met.optimizer).__name__} keeps a {type(item).__name__} in state[{key!r}] that its "
                            "step changes, which a compiled program cannot"
                        )
                    found.append(Stored(met.optimizer, param, key, item))
        return found

    def settle(self) -> None:
        """After a good run: state as it was before the step, lazily created state kept."""
        self._running.clear()  # of steps that did not come to their end; the capture has put the flag back
        for group in self._groups.values():
            _restore(group.home, group.then)
        for met in self._met.values():
            for param, home in list(met.homes().items()):
                if param in met.before:
                    then = met.before[param][1]
                    changed = (item for key, item in then.items() if home.get(key) is not item)
                    self.rebound.update(id(item) for item in changed if isinstance(item, torch.Tensor))
                    _restore(home, then, met.entries(param, home))
                elif param is None:
                    _restore(home, {}, met.entries(param, home))
                else:
                    del state_of(met.optimizer)[param]
                    home.clear()

    def undo(self) -> None:
        """After a failed run: created state goes too."""
        self.settle()
        for met in self._met.values():
            met.found.remove()

    def created(self) -> list[CreatedState]:
        """State that was made for real, after a good run."""
        return [
            met.found
            for met in self._met.values()
            if met.stepped and any(met.found.known.get(p) != _keys(home) for p, home in state_of(met.optimizer).items())
        ]

    def guards(self, g: GuardBuilder) -> None:
        """The parameter groups and which state there is."""
        for assumed in self._assumed:
            entry, question = f"{g.hold(assumed.access.root)}{assumed.access.suffix}", f"{assumed.comparison} "
            question += repr(assumed.other)
            g.check(f"({entry} {question}) is {assumed.answer}", f"whether {assumed.access.suffix} {question}")
        for scheduler in self._schedules:
            groups = g.hold(groups_of(scheduler.optimizer))
            rates = f"[group['lr'] for group in {groups}]"
            g.check(f"{g.hold(scheduler)}._last_lr == {rates}", "whether a schedule's last rates are in use")
        for met in self._met.values():
            optimizer, path = g.hold(met.optimizer), met.path
            g.check(f"len({optimizer}.param_groups) == {len(met.groups)}", f"number of parameter groups of {path}")
            for index, group in enumerate(met.groups):
                g.is_object(f"{optimizer}.param_groups[{index}]", group.home, f"parameter group {index} of {path}")
            if met.followed:
                self._guard_state(g, met)
        for met, index, group in self._found_groups():
            path, home = met.path, g.hold(group.home)
            g.check(
                f"list(map(id, {home}['params'])) == {g.hold([id(p) for p in group.params])}",
                f"parameters in group {index} of {path}",
            )
            for key, value in group.then.items():
                if is_plain(value) and key not in group.placed:
                    g.equals(f"{home}[{key!r}]", value, f"{key} of {path}")
                elif type(value) is tuple:
                    g.equals(f"{home}[{key!r}][1:]", value[1:], f"{key} of {path}")

    def _found_groups(self) -> Iterator[tuple[_Met, int, _Group]]:
        """The groups of all optimizers, each once, with the first that has it and its number there."""
        seen: set[int] = set()
        for met in self._met.values():
            for index, group in enumerate(met.groups):
                if id(group) not in seen:
                    seen.add(id(group))
                    yield met, index, group

    @staticmethod
    def _guard_state(g: GuardBuilder, met: _Met) -> None:
        """Which state there is, and the plain values in it."""
        path, kept = met.path, _kept(met.optimizer)
        g.check(
            f"list(map(id, {g.hold(_kept)}({g.hold(met.optimizer)}))) == {g.hold(list(map(id, kept)))}",
            f"state of {path}",
        )
        g.hold(kept)  # so that their ids stay their own
        for home, items in met.before.values():
            for key, item in items.items():
                if is_plain(item) and (id(home), key) not in met.counted:
                    what = f"{shown_key(key)} in the state of {path}"
                    g.equals(f"{g.hold(home)}[{g.hold(key)}]", item, what)
        entries = [(home, len(home)) for home, _ in met.before.values()]
        known, sizes = g.hold([home for home, _ in entries]), g.hold([size for _, size in entries])
        g.check(f"list(map(len, {known})) == {sizes}", f"state of {path}")


def groups_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Its parameter groups, where looking at them is not to be noticed."""
    found: list[dict[str, Any]] | None = vars(optimizer).get("param_groups")
    return optimizer.param_groups if found is None else found


def state_of(optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    """Its state, where looking at that is not to be noticed."""
    found: dict[Any, Any] | None = vars(optimizer).get("state")
    return optimizer.state if found is None else found


def _kept(optimizer: torch.optim.Optimizer) -> list[Any]:
    """What tells whether the same state is there: the dicts in it, and keys of what is none."""
    return [item if isinstance(item, dict) else key for key, item in state_of(optimizer).items()]


def _own_entries(state: dict[Any, Any]) -> dict[Any, Any]:
    """What an optimizer keeps in its state that is of no parameter."""
    return {key: item for key, item in state.items() if not isinstance(item, dict)}


def _keys(home: object) -> frozenset[Any]:
    return frozenset(home) if isinstance(home, dict) else frozenset()


def _numbers(met: _Met, index: int, key: str, value: Any) -> list[Number]:
    """An entry of a parameter group where it is a number, or the first of Adam's betas where a schedule cycles it."""
    group, suffix = groups_of(met.optimizer)[index], f"[{key!r}]"
    if type(value) is tuple and key == "betas" and "max_momentum" in group:
        value, suffix = value[0], f"{suffix}[0]"
    if type(value) not in (int, float):
        return []
    return [Number(f"{met.path}.{key}{index or ''}", Access(group, suffix), value)]


def _is_cycled(number: Number) -> bool:
    return number.access.suffix in _CYCLED and "max_momentum" in number.access.root


def _restore(home: dict[Any, Any], then: dict[Any, Any], now: dict[Any, Any] | None = None) -> None:
    """What was in a dict, or in the part of it that is `now`."""
    for key in [key for key in (home if now is None else now) if key not in then]:
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
