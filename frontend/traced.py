"""The tensor that stands for a graph value while the user's function runs: metadata as in eager, no data."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.utils._python_dispatch import _disable_current_modes

from graphc.errors import CaptureError, EagerOnlyError
from graphc.frontend import host
from graphc.frontend.aten import promotion
from graphc.frontend.locations import is_graphc_code

if TYPE_CHECKING:
    from graphc.frontend.functionalize import TensorState
    from graphc.frontend.recorder import Recorder

_LEAKED = (
    "this tensor was made while graphc captured a function and has no data; the function must not keep its tensors in "
    "globals, closures, lists or attributes: return them instead"
)


AS_REPR = "!r"
"""Stands for what `repr` gives, where else a format is told."""


OWN_ATTRIBUTES = frozenset(("state", "recorder"))


class TracedTensor(torch.Tensor):
    """A tensor of a captured function.

    Attributes:
        state: what it is a view of, and its value.
        recorder: the capture it belongs to.
    """

    state: TensorState
    recorder: Recorder

    @staticmethod
    def make(state: TensorState, recorder: Recorder, requires_grad: bool = False) -> TracedTensor:
        """A traced tensor with the metadata of `state`.

        It is never an inference tensor: views of parameters, which are not either, must be like them.
        """
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return TracedTensor.make(state, recorder, requires_grad)
        tensor = torch.Tensor._make_wrapper_subclass(
            TracedTensor,
            [host.sized(recorder, size) for size in state.shape],
            strides=[host.sized(recorder, stride) for stride in state.strides],
            storage_offset=host.sized(recorder, state.offset),
            dtype=promotion.to_torch(state.dtype),
            device=_device(state.device),
            requires_grad=requires_grad,
        )
        tensor.state, tensor.recorder = state, recorder
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    # sizes: numbers of the capture where they stand for many

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return torch.Size([host.sized(self.recorder, size) for size in self.state.shape])

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def stride(self, dim: int | None = None) -> Any:
        strides = tuple([host.sized(self.recorder, stride) for stride in self.state.strides])
        return strides if dim is None else strides[dim]

    def storage_offset(self) -> Any:
        return host.sized(self.recorder, self.state.offset)

    def numel(self) -> Any:
        return host.sized(self.recorder, math.prod(self.state.shape))

    nelement = numel

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> NoReturn:
        raise CaptureError(_LEAKED)

    def __getattr__(self, name: str) -> NoReturn:
        """What is neither of tensors nor has been set in the capture: an argument may have it."""
        recorder = vars(self).get("recorder")
        if recorder is not None:
            recorder.arguments.ask_attribute(self, name)
        raise AttributeError(f"'Tensor' object has no attribute {name!r}")

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        if not is_graphc_code(sys._getframe(1).f_code):
            return self._text(AS_REPR)
        sizes = ", ".join(map(str, self.state.shape))
        return f"TracedTensor({self.state.dtype.name}[{sizes}])"

    def __str__(self) -> str:
        return self._text(AS_REPR)

    def __format__(self, spec: str) -> str:
        return self._text(spec)

    def _text(self, spec: str) -> str:
        """Integers are looked at, unless for a message, since names are made of them; others are only ever shown."""
        recorder = self.recorder
        if self.dim() or self.is_floating_point() or self.is_complex():
            if recorder.messages.allowed:
                return recorder.prints.tensor(self, spec)
            if self.dim():
                raise EagerOnlyError("text made of a tensor is a result", recorder.locator.here())
            return self._known_text(spec)
        text = recorder.messages.text(lambda: recorder.prints.tensor(self, spec))
        if recorder.known_tensor(self) is None and text is not None:
            return text
        return self._known_text(spec)

    def _known_text(self, spec: str) -> str:
        """Of what the capture looks at."""
        known: Any = self.tolist()
        dtype = self.dtype
        if spec != AS_REPR:
            return format(known, spec)
        kind = complex if dtype.is_complex else float if dtype.is_floating_point else int
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return repr(torch.tensor(kind(known), dtype=dtype))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.clone()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise CaptureError(_LEAKED)


_devices: dict[str, torch.device] = {}


def _device(name: str) -> torch.device:
    found = _devices.get(name)
    if found is None:
        found = _devices[name] = torch.device(name)
    return found


def geometry(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of a tensor as graphs have them."""
    if type(tensor) is TracedTensor:
        return tensor.state.shape, tensor.state.strides
    return tuple(tensor.shape), tuple(tensor.stride())


def unwrapped(tensor: torch.Tensor) -> torch.Tensor | None:
    """A tensor without the wrappers that the gradients of torch.func put around it; None when it is one of a batch."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return None
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def is_parameter(item: Any) -> bool:
    """Whether a tensor of the capture is a parameter that the function has made: `nn.Parameter(x * 2)`."""
    return type(item) is TracedTensor and getattr(item, "_is_param", False)
