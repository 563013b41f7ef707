"""nn.Modules as a capture meets them: what is guarded of them, and undoing what a capture left there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from graphc.errors import CaptureError
from graphc.frontend.gradients import Gradients
from graphc.frontend.guards import GuardBuilder, is_plain, snapshot
from graphc.frontend.inputs import Access, SourceMap
from graphc.frontend.reads import attribute_names
from graphc.frontend.traced import TracedTensor
from graphc.ir.types import UNKNOWN

_INTERNAL = frozenset(vars(torch.nn.Module())) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_TABLES = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class FlagEffect:
    """A bool that a run leaves in an attribute of a module."""

    table: dict[str, Any]
    key: str
    value: bool

    def apply(self, outputs: list[Any]) -> None:
        """Put it there."""
        self.table[self.key] = self.value


class ModuleState:
    """One module before the run."""

    def __init__(self, path: str, module: torch.nn.Module) -> None:
        self.path, self.module = path, module
        own = module.__dict__
        self.own = dict(own)
        self.tables = {name: dict(own[name]) for name in _TABLES}
        self.hooks = {name: tuple(own[name].values()) for name in _HOOKS}
        names = attribute_names(type(module)) if type(module).__module__.startswith("torch.nn.") else None
        self.plain = {
            key: snapshot(value)
            for key, value in own.items()
            if key not in _INTERNAL and (names is None or key in names) and is_plain(value)
        }

    def restore(self) -> None:
        """Put back every attribute, parameter, buffer and child."""
        own = self.module.__dict__
        for name, table in self.tables.items():
            now = own[name]
            if len(now) != len(table) or any(now.get(key) is not item for key, item in table.items()):
                own[name].clear()
                own[name].update(table)
        for key in [key for key in own if key not in self.own]:
            del own[key]
        own.update(self.own)


class ModuleFacts:
    """Snapshots of all modules a function may run, taken before it runs.

    Args:
        sources: knows the modules; those it learns later are added by `update`.

    Attributes:
        assigned: after the run, the tensors it assigned to attributes that held another: (table, key, tensor).
        flags: bools it changed, such as `training`.
    """

    def __init__(self, sources: SourceMap) -> None:
        self._sources = sources
        self._states: dict[int, ModuleState] = {}
        self.assigned: list[tuple[dict[str, Any], str, TracedTensor]] = []
        self.flags: list[FlagEffect] = []
        self._hook_count = RemovableHandle.next_id
        self._differentiable = ""
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

    def restore(self) -> None:
        """Undo what the function did to attributes of modules."""
        for state in self._states.values():
            state.restore()

    def settle(self) -> None:
        """After a run: what the function assigned to attributes is noted, and what was there before put back.

        Raises:
            CaptureError: it leaves a tensor of its own in an attribute that held none of that type.
        """
        for state in self._states.values():
            own = state.module.__dict__
            for key, value in list(own.items()):
                then = state.own.get(key)
                if type(value) is bool and type(then) is bool and value != then:
                    self.flags.append(FlagEffect(own, key, value))
                    own[key] = then
            for table, before in ((own, state.own), (own["_buffers"], state.tables["_buffers"])):
                for key, value in list(table.items()):
                    if type(value) is TracedTensor:
                        self._settle_one(state, table, before, key)

    def _settle_one(self, state: ModuleState, table: dict[str, Any], before: dict[str, Any], key: str) -> None:
        new, old = table[key], before.get(key)
        path = f"{state.path}.{key}".lstrip(".")
        same_type = isinstance(old, torch.Tensor) and type(old) is not TracedTensor
        if not same_type or (old.shape, old.dtype, old.device, old.stride()) != (  # type: ignore[union-attr]
            new.shape, new.dtype, new.device, new.stride(),
        ):  # fmt: skip
            op = new.state.storage.base.op
            raise CaptureError(
                f"the function stores a tensor in the attribute {path}, which a compiled program cannot; return it, or "
                "give the attribute a tensor of the same shape, dtype and strides before",
                op.location if op is not None else UNKNOWN,
            )
        if new.requires_grad:
            self._differentiable = self._differentiable or path
        self.assigned.append((table, key, new))
        table[key] = old

    def reason(self) -> str:
        """Why calls that need gradients must run eager; empty when they need not."""
        if not self._differentiable:
            return ""
        return f"it stores a tensor that requires grad in the attribute {self._differentiable}; detach() it before"

    def guards(self, g: GuardBuilder) -> None:
        """Guard flags, plain attributes, children and hooks of all modules."""
        for state in self._states.values():
            _module_guards(g, state)
        states = list(self._states.values())
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


def _hooks(module: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(module.__dict__[name].values()) for name in _HOOKS}


def _module_guards(g: GuardBuilder, state: ModuleState) -> None:
    own = g.hold(state.module.__dict__)
    where = f"{state.path}." if state.path else ""
    for key, value in state.plain.items():
        g.equals(Access(state.module.__dict__, f"[{key!r}]"), value, f"attribute {where}{key}")
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
    if not type(state.module).__module__.startswith("torch.nn."):
        g.check(f"len({own}) == {len(state.own)}", f"the set of attributes of {state.path or 'the module'}")
