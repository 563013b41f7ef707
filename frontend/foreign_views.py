"""Views that graphs have no form for, such as of complex numbers: read through the ATen call itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphc.errors import UnsupportedError
from graphc.frontend.aten.extern import import_extern
from graphc.frontend.functionalize import Link, ParentValue, TensorState
from graphc.ir.graph import Builder, Value

if TYPE_CHECKING:
    from graphc.frontend.recorder import Recorder

_INVERSES = {"aten.view_as_real.default": "aten.view_as_complex.default"}
_INVERSES.update({view: real for real, view in _INVERSES.items()})
_INVERSES.update({name: name for name in ("aten._conj.default", "aten._neg_view.default")})
_PHYSICAL = {"aten._conj.default": "aten._conj_physical.default", "aten._neg_view.default": "aten.neg.default"}


@dataclass(frozen=True, eq=False)
class ForeignView(Link):
    """A view read by calling ATen, and written by its inverse where there is one."""

    recorder: Recorder
    func: str
    rest: tuple[Any, ...]
    kwargs: dict[str, Any]
    part: int | None

    def forward(self, b: Builder, parent: Value) -> Value:
        answer = import_extern(self.recorder.imp, self.func, (parent, *self.rest), self.kwargs).returned
        value = answer if self.part is None else answer[self.part]
        assert isinstance(value, Value)
        return value

    def backward(self, b: Builder, parent: ParentValue, new: Value) -> Value:
        inverse = {_PHYSICAL.get(f, f): _PHYSICAL.get(g, g) for f, g in _INVERSES.items()}.get(self.func)
        if inverse is None:
            raise UnsupportedError(f"writing in place through {self.func} is not supported; write to its base instead")
        value = import_extern(self.recorder.imp, inverse, (new,), {}).returned
        assert isinstance(value, Value)
        return value


def is_foreign(state: TensorState) -> bool:
    """Whether a tensor is such a view, or a view of one: its memory does not hold what it reads."""
    step: TensorState | None = state
    while step is not None:
        if isinstance(step.link, ForeignView):
            return True
        step = step.parent
    return False


def foreign_view(
    recorder: Recorder, func: Any, source: TensorState, values: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[TensorState]:
    """The states of the results of a view call without a view rule."""
    name = _PHYSICAL.get(str(func), str(func))
    answer = import_extern(recorder.imp, name, values, kwargs).returned
    parts = list(answer) if isinstance(answer, (list, tuple)) else [answer]
    states = []
    for number, value in enumerate(parts):
        link = ForeignView(recorder, name, values[1:], kwargs, number if isinstance(answer, (list, tuple)) else None)
        state = source.view(link, value.shape, recorder.imp.strides(value), dtype=value.dtype)
        state.cached, state.version = value, source.storage.version
        states.append(state)
    return states
