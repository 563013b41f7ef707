"""nn.Modules as a capture meets them: what is guarded of them, and undoing what a capture left there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Any, TypeAlias

import torch
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from graphc.errors import EagerOnceError
from graphc.frontend.gradients import Gradients
from graphc.frontend.guards import Describe, GuardBuilder, is_plain, snapshot
from graphc.frontend.inputs import Access, SourceMap
from graphc.frontend.names import attribute_names, constructor_names
from graphc.frontend.traced import is_parameter

Masked: TypeAlias = Callable[[Access, Any], Any]
_INTERNAL = frozenset(vars(torch.nn.Module())) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_ALL_HOOKS = frozenset(name for name in vars(torch.nn.Module()) if name.endswith("_hooks"))
_TABLES = ("_parameters", "_buffers", "_modules")


def keeps_names(item: Any) -> bool:
    """A tensor that attributes of the user's can be kept on, as `weight.mask = ...`."""
    return type(item) in (torch.Tensor, torch.nn.Parameter)


class ModuleState:
    """One module before the run."""

    def __init__(self, path: str, module: torch.nn.Module) -> None:
        self.path, self.module = path, module
        own = module.__dict__
        self.own = dict(own)
        self.tables = {name: dict(own[name]) for name in _TABLES}
        tensors = {**self.tables["_parameters"], **self.tables["_buffers"]}
        self.attached = {key: (tensor, dict(vars(tensor))) for key, tensor in tensors.items() if keeps_names(tensor)}
        self.hooks = {name: tuple(own[name].values()) for name in _HOOKS}
        self.hook_tables = {
            name: dict(table) for name, table in own.items() if name in _ALL_HOOKS and table is not None
        }
        names = attribute_names(type(module)) if type(module).__module__.startswith("torch.nn.") else None
        self.plain = {
            key: snapshot(value)
            for key, value in own.items()
            if key not in _INTERNAL
            and (names is None or key in names or key not in constructor_names(type(module)))
            and is_plain(value)
        }
        self.keys = {
            key: tuple(value)
            for key, value in own.items()
            if type(value) is dict and key not in _INTERNAL and key not in self.plain
        }

    def restore(self) -> None:
        """Put back every attribute, parameter, buffer, child and hook."""
        own = self.module.__dict__
        for name, table in self.tables.items():
            now = own[name]
            if len(now) != len(table) or any(now.get(key) is not item for key, item in table.items()):
                own[name].clear()
                own[name].update(table)
        for key in [key for key in own if key not in self.own]:
            del own[key]
        own.update(self.own)
        for name, table in self.hook_tables.items():
            if own[name].keys() != table.keys():
                own[name].clear()
                own[name].update(table)
        for tensor, names in self.attached.values():
            if vars(tensor) or names:
                vars(tensor).clear()
                vars(tensor).update(names)


class ModuleFacts:
    """Snapshots of all modules a function may run, taken before it runs.

    Args:
        sources: knows the modules; those it learns later are added by `update`.
    """

    def __init__(self, sources: SourceMap) -> None:
        self._sources = sources
        self._states: dict[int, ModuleState] = {}
        self._hook_count = RemovableHandle.next_id
        self.update()

    def update(self) -> None:
        """Snapshot modules learnt since."""
        for module in self._sources.modules[len(self._states) :]:
            self._states[id(module)] = ModuleState(self._sources.module_paths[id(module)], module)

    def note_gradients(self, gradients: Gradients) -> None:
        """Tell what gradients the parameters have."""
        for state in self._states.values():
            for key, parameter in state.tables["_parameters"].items():
                if parameter is not None and not is_lazy(parameter):
                    gradients.see(parameter, f"{state.path}.{key}".lstrip("."))

    def modules(self) -> list[torch.nn.Module]:
        """The modules known."""
        return [state.module for state in self._states.values()]

    def tables(self) -> Iterator[tuple[str, Access | None, dict[Any, Any]]]:
        """(path, access, dict) of where modules keep names: attributes, tensors, dicts among these, names on tensors.

        Only the last two may be other dicts in later calls; the others have no access.
        """
        for state in self._states.values():
            own = state.module.__dict__
            yield from ((state.path, None, table) for table in (own, own["_buffers"], own["_parameters"]))
            for key, value in own.items():
                if type(value) is dict and key not in _INTERNAL:
                    yield f"{state.path}.{key}".lstrip("."), Access(own, f"[{key!r}]"), value
            for key, (tensor, _) in state.attached.items():
                yield f"{state.path}.{key}".lstrip("."), Access(tensor, ".__dict__"), vars(tensor)

    def hook_tables(self) -> Iterator[dict[Any, Any]]:
        """Where hooks are registered."""
        for state in self._states.values():
            own = state.module.__dict__
            yield from (own[name] for name in own if "_hooks" in name and isinstance(own[name], dict))

    def restore(self) -> None:
        """Undo what the function did to attributes of modules."""
        for state in self._states.values():
            state.restore()

    def plain(self) -> Iterator[tuple[str, Access, Any]]:
        """(path, access, value) of the plain attributes that are guarded."""
        for state in self._states.values():
            where = f"{state.path}." if state.path else ""
            for key, value in state.plain.items():
                yield f"{where}{key}", Access(state.module.__dict__, f"[{key!r}]"), value
            for key, (tensor, names) in state.attached.items():
                for name, value in names.items():
                    if is_plain(value):
                        yield f"{where}{key}.{name}", Access(vars(tensor), f"[{name!r}]"), snapshot(value)

    def check_tables(self, gradients: Gradients) -> None:
        """After the run. A parameter that the function has made may be in the place of another one.

        Raises:
            EagerOnceError: there are other parameters or modules, which later code knows by identity.
        """
        for state in self._states.values():
            for name in ("_parameters", "_modules"):
                now, then = state.module.__dict__[name], state.tables[name]
                for key in {**then, **now}:
                    old, new = then.get(key), now.get(key)
                    if new is not old and not (is_parameter(new) and old is not None and gradients.has_none(old)):
                        raise EagerOnceError(
                            f"it binds {f'{state.path}.{key}'.lstrip('.')} to something else; "
                            "write into the one that is there (`parameter.data.copy_(new)`) to have it compiled"
                        )

    def guards(
        self, g: GuardBuilder, numbers: Collection[Hashable] = (), masked: Masked = lambda access, value: value
    ) -> None:
        """Guard flags, plain attributes, children and hooks of all modules.

        Args:
            numbers: keys of accesses to numbers that are inputs.
            masked: the value to guard at a place, see `Attributes.masked`.
        """
        for path, access, value in self.plain():
            if not numbers or access.key() not in numbers:
                g.equals(access, masked(access, value), f"attribute {path}")
        for state in self._states.values():
            _module_guards(g, state)
        states = list(self._states.values())
        if states:
            tables = g.hold(tuple(state.module.__dict__ for state in states))
            total = sum(len(state.own) for state in states)
            g.check(f"sum(map(len, {tables})) == {total}", _describe_attributes(states))
        attached = [(vars(tensor), len(names)) for state in states for tensor, names in state.attached.values()]
        what = "the set of attributes of a parameter or buffer"
        if empty := tuple(table for table, count in attached if not count):
            g.check(f"not any({g.hold(empty)})", what)
        if filled := tuple(table for table, count in attached if count):
            total = sum(count for _, count in attached)
            g.check(f"sum(map(len, {g.hold(filled)})) == {total}", what)
        counter = g.hold(RemovableHandle)
        same_hooks = g.hold(lambda: all(_hooks(s.module) == s.hooks for s in states))
        g.check(f"({counter}.next_id == {self._hook_count} or {same_hooks}())", "forward hooks of a module")
        for state in states:
            for name, hooks in state.hooks.items():
                if hooks:
                    g.check(
                        f"tuple({g.hold(state.module.__dict__)}[{name!r}].values()) == {g.hold(hooks)}",
                        f"hooks of {state.path}",
                    )


def _describe_attributes(states: list[ModuleState]) -> Describe:
    def describe(scope: dict[str, Any]) -> str:
        changed = [s for s in states if s.own.keys() != s.module.__dict__.keys()]
        names = {key for s in changed for key in s.own.keys() ^ s.module.__dict__.keys()}
        where = ", ".join(s.path or "the module" for s in changed)
        return f"the set of attributes of {where}: {', '.join(sorted(names))}"

    return describe


def all_hooks(module: torch.nn.Module) -> Iterator[Any]:
    """The hooks of a module, of all kinds."""
    for name, table in module.__dict__.items():
        if name in _ALL_HOOKS and table is not None:
            yield from table.values()


def _hooks(module: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(module.__dict__[name].values()) for name in _HOOKS}


def _module_guards(g: GuardBuilder, state: ModuleState) -> None:
    where = f"{state.path}." if state.path else ""
    for key, names in state.keys.items():
        g.check(f"tuple({g.hold(state.module.__dict__)}[{key!r}]) == {g.hold(names)}", f"names in {where}{key}")
    for name, then in state.tables.items():
        if then:
            g.is_object(Access(state.module.__dict__, f"[{name!r}]"), state.module.__dict__[name], f"{where}{name}")
    if state.tables["_modules"]:
        table = state.module.__dict__["_modules"]
        g.check(
            f"{g.hold(table)} == {g.hold(dict(state.tables['_modules']))}",
            f"submodules of {state.path or 'the module'}",
        )
    for name in ("_parameters", "_buffers"):
        for key, item in state.tables[name].items():
            if item is None:
                g.is_object(Access(state.module.__dict__[name], f"[{key!r}]"), None, f"tensor {where}{key}")
