"""A capture leaves things as they were: what it may have changed is put back, and none of its tensors lives on."""

from __future__ import annotations

import contextlib
import gc
import types
import weakref
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from graphc.errors import CaptureError
from graphc.frontend.attributes import Attributes
from graphc.frontend.global_state import GlobalState
from graphc.frontend.modules import ModuleFacts
from graphc.frontend.python_random import PythonRandom
from graphc.frontend.recorder import set_versions
from graphc.frontend.traced import TracedTensor

_FRAME = types.FrameType


class Undo:
    """What the function may have changed outside of graphs, and how to put it back."""

    def __init__(
        self, modules: ModuleFacts, leaves: list[Any], attributes: Attributes, python_random: PythonRandom
    ) -> None:
        self._modules, self._attributes, self._flags = modules, attributes, GlobalState()
        self._random, self._python_random = torch.get_rng_state(), python_random
        params: list[torch.Tensor] = [
            p for module in modules.modules() for p in module._parameters.values() if p is not None and not is_lazy(p)
        ]
        params += [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_leaf]
        self._tensors = [(tensor, tensor.grad, tensor.requires_grad) for tensor in params]
        buffers = [
            b for module in modules.modules() for b in module._buffers.values() if b is not None and not is_lazy(b)
        ]
        self._versions = [
            (t, t._version) for t in (*params, *buffers) if not t.is_inference() and type(t) is not TracedTensor
        ]

    def check_flags(self, name: str) -> None:
        """Raises:
        CaptureError: the function has set a global flag of torch, which would happen only while it is captured.
        """
        if changed := self._flags.changed():
            raise CaptureError(
                f"{name} changes {changed[0]} and leaves it so, which a compiled program cannot; use a `with` block, "
                "or do it outside of the compiled function"
            )

    def check_random(self) -> None:
        """Raises:
        EagerOnlyError: the function has drawn numbers that would be constants of the program.
        """
        self._python_random.check()

    def settled(self) -> None:
        """After a good run: names, random state and version counters (nothing has been written yet)."""
        self._attributes.restore()
        torch.set_rng_state(self._random)
        set_versions(self._versions)

    def all(self) -> None:
        """After a failed run: attributes of modules and gradients too."""
        self._flags.restore()
        self._modules.restore()
        self._python_random.restore()
        for tensor, grad, requires_grad in self._tensors:
            if tensor.grad is not grad:
                tensor.grad = grad
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
        self.settled()


def check_leaks(stand_ins: list[weakref.ref[Any]]) -> None:
    """No stand-in may outlive the capture: whoever holds it would find no data in it."""
    alive = [tensor for ref in stand_ins if (tensor := ref()) is not None]
    if not alive:
        return
    del alive
    gc.collect()
    alive = [tensor for ref in stand_ins if (tensor := ref()) is not None]
    _break_circles(alive)
    del alive
    alive = [tensor for ref in stand_ins if (tensor := ref()) is not None]
    if alive:
        kept = next((tensor for tensor in alive if tensor.state.storage.base.op is not None), alive[0])
        op = kept.state.storage.base.op
        raise CaptureError(
            f"the function keeps a tensor it made ({kept!r}) in a global, a closure, a list or an attribute, which "
            "a compiled program cannot; return it instead",
            op.location if op is not None else None,
        )


def _break_circles(alive: list[Any]) -> None:
    """Free what autograd alone holds: `x *= x` saves x in the history of x, and so keeps itself, in eager too."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        loose = [
            tensor
            for tensor in alive
            if all(holder is alive or isinstance(holder, _FRAME) for holder in gc.get_referrers(tensor))
            and not tensor.is_leaf
        ]
        for tensor in loose:
            if not tensor._is_view():  # the bases of views are here too
                tensor.detach_()
        for tensor in loose:
            if tensor._is_view() and not tensor._base.requires_grad:
                torch.autograd.graph.increment_version(tensor)
                with contextlib.suppress(RuntimeError):  # of a view that no history can be made for
                    tensor.grad_fn  # noqa: B018  # history that is out of date is made anew, from the base's
