"""The `.grad` of leaf tensors during a capture: what the program finds there, and what it leaves there.

Autograd writes `.grad` on the user's own tensors while the function runs. A capture notes what was there before, puts
it back afterwards, and gives the difference to the program: gradients made by the function become outputs that are put
in place after each run, and those added to in place are inputs that the program writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.hooks import RemovableHandle

from graphc.frontend.inputs import Access, SourceMap
from graphc.frontend.traced import TracedTensor

if TYPE_CHECKING:
    from graphc.frontend.guards import GuardBuilder


@dataclass
class _Before:
    """One leaf tensor as the capture met it.

    Attributes:
        grad: its gradient then.
        read: Python looked whether there is one.
        reset: the function dropped the gradient before anything could depend on it.
    """

    tensor: torch.Tensor
    path: str
    grad: torch.Tensor | None
    read: bool = False
    reset: bool = False


@dataclass(frozen=True)
class GradientEffect:
    """What a run leaves in `.grad` of a tensor: an output of the program, or None.

    Args:
        dropped: the function drops what was there before anything can depend on it.
    """

    tensor: torch.Tensor
    number: int = -1
    dropped: bool = False

    def apply(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Put it there; `outputs` are the leaves of this run that are effects."""
        self.tensor.grad = outputs[self.number] if self.number >= 0 else None


class Gradients:
    """Knows the gradients of all leaf tensors that a function can reach.

    Args:
        sources: told of the gradients, so that a capture knows them as `path.grad`.
    """

    def __init__(self, sources: SourceMap) -> None:
        self._sources = sources
        self._tensors: dict[int, _Before] = {}
        self._hook_count = RemovableHandle.next_id

    def see(self, tensor: torch.Tensor, path: str) -> None:
        """A real tensor that may receive a gradient; call it before the function can change that."""
        frozen = not tensor.requires_grad and tensor.grad is None  # else a gradient of former times
        if frozen or not tensor.is_leaf or id(tensor) in self._tensors:
            return
        self._tensors[id(tensor)] = _Before(tensor, path, tensor.grad)
        if tensor.grad is not None:
            self._sources.note_looked_up(tensor.grad, f"{path}.grad", Access(tensor, ".grad"))

    def read(self, tensor: torch.Tensor) -> None:
        """Python reads `tensor.grad`."""
        before = self._before(tensor)
        if before is not None and not before.reset:
            before.read = True

    def reset(self, tensors: Iterable[torch.Tensor]) -> None:
        """The function drops these gradients whether they exist or not."""
        for tensor in tensors:
            before = self._before(tensor)
            if before is not None and not before.read and tensor.grad is before.grad:
                before.reset = True
            tensor.grad = None

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether the function has been seen to reach this tensor itself."""
        return id(tensor) in self._tensors

    def has_none(self, tensor: torch.Tensor) -> bool:
        """Whether it had no gradient before, and has none now."""
        before = self._tensors.get(id(tensor))
        return tensor.grad is None and (before is None or before.grad is None)

    def _before(self, tensor: torch.Tensor) -> _Before | None:
        if type(tensor) is TracedTensor:
            return None
        if id(tensor) not in self._tensors and tensor.is_leaf:
            _, path, _ = self._sources.find(tensor)
            self.see(tensor, path)
        return self._tensors.get(id(tensor))

    def changed(self) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Tensors whose gradient is another one than before, with the new one."""
        return [(b.tensor, b.tensor.grad) for b in self._tensors.values() if self._has_changed(b)]

    def is_dropped(self, tensor: torch.Tensor) -> bool:
        """Whether the function drops this tensor's gradient, if it has one, before anything can depend on it."""
        return self._tensors[id(tensor)].reset

    @staticmethod
    def _has_changed(before: _Before) -> bool:
        return before.tensor.grad is not before.grad or (before.reset and before.grad is None)

    def restore(self) -> None:
        """Put every gradient back."""
        for before in self._tensors.values():
            if before.tensor.grad is not before.grad:
                before.tensor.grad = before.grad

    def facts(self, used: set[int]) -> list[tuple[str, torch.Tensor, bool]]:
        """(path, tensor, whether it has a gradient) of each whose gradient's existence the capture has assumed.

        Args:
            used: ids of the gradients that are inputs of the program.
        """
        return [
            (before.path, before.tensor, before.grad is not None)
            for before in self._tensors.values()
            if not before.reset and (before.read or self._has_changed(before) or id(before.grad) in used)
        ]

    def hook_guards(self, g: GuardBuilder) -> None:
        """Check that leaf tensors have the hooks that a backward pass in the program has run."""
        then = {id(before.tensor): (before, _hooks(before.tensor)) for before in self._tensors.values()}
        tensors = tuple((before.tensor, hooks) for before, hooks in then.values())
        same = g.hold(lambda: all(_hooks(tensor) == hooks for tensor, hooks in tensors))
        g.check(f"({g.hold(RemovableHandle)}.next_id == {self._hook_count} or {same}())", "hooks of a tensor")
        for before, hooks in then.values():
            if hooks:  # whose removal the number of handles made does not show
                test = f"{g.hold(_hooks)}({g.hold(before.tensor)}) == {g.hold(hooks)}"
                g.check(test, f"hooks of {before.path}")

    @staticmethod
    def guards(g: GuardBuilder, facts: list[tuple[str, torch.Tensor, bool]]) -> None:
        """Check that gradients exist where they did."""
        if not facts:
            return
        tensors, then = [tensor for _, tensor, _ in facts], [exists for _, _, exists in facts]

        def describe(scope: dict[str, Any]) -> str:
            now = zip(facts, _have_gradients(tensors), strict=True)
            path = next((path for (path, _, exists), found in now if found is not exists), "a tensor")
            return f"whether {path} has a gradient"

        g.check(f"{g.hold(_have_gradients)}({g.hold(tensors)}) == {g.hold(then)}", describe)


def _have_gradients(tensors: list[torch.Tensor]) -> list[bool]:
    return [tensor.grad is not None for tensor in tensors]


def _hooks(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What autograd calls when it has a gradient for a leaf tensor."""
    tables = (tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None))
    return tuple(hook for table in tables if table for hook in table.values())
