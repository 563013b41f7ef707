"""What the runtime asks of a kind of accelerator, and how it finds the one behind a device's name.

All that knows a vendor's interface stands in the modules that implement `Device`, one per kind of device as torch
names it: `device_KIND.py`. Everything else of the runtime works with any object of this protocol, such as one made for
a test.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch


class Recording(Protocol):
    """Launches that were recorded once and can be made again, in one go and with the same addresses."""

    def replay(self) -> None:
        """Make them on the current stream."""


class Device(Protocol):
    """A kind of accelerator. `index` is the number of one device of that kind.

    Attributes:
        kind: as torch names it in front of the colon.
        interpreted: generated kernels are run by Triton's interpreter, whatever they were compiled for.
    """

    kind: str
    interpreted: bool

    def current(self) -> int:
        """The device that new tensors go to."""

    def guard(self, index: int) -> AbstractContextManager[Any]:
        """Makes a device the current one inside the block."""

    def place(self, index: int) -> torch.device:
        """Where tensors of a device are made."""

    def target(self, index: int) -> str:
        """What to compile for, as `graphc.passes.chips` names it."""

    def allows_tf32(self) -> bool:
        """Whether torch lets products of float32 round their operands to 10 bits of mantissa."""

    def attention_libraries(self) -> tuple[str, ...]:
        """Those that torch has switched on, by their names in the compiler; no device need be there."""

    def runs_attention(
        self, library: str, dtype: torch.dtype, query: Sequence[int], keys: int, causal: bool, trains: bool
    ) -> bool:
        """Whether one of them computes attention on the current device.

        Args:
            query: sizes of the query, (B, H, S, D).
            keys: how many keys there are.
            trains: with its gradient.
        """

    def refusal(self, index: int) -> str:
        """Why a device cannot run generated kernels; "" when it can."""

    def memory(self, index: int) -> tuple[int, int]:
        """Bytes that this process could still allocate, those that torch keeps for reuse included, and all bytes."""

    def give_back(self, index: int) -> None:
        """Wait for the device, and give it the memory back that torch keeps for reuse."""

    def stream(self, index: int) -> int:
        """The handle of the current stream."""

    def launch_function(self) -> int:
        """Address of the driver's function that launches a kernel, for `graphc.runtime.launch_list`; 0 = none."""

    def attach(self, index: int) -> None:
        """Make the driver's current device in this thread the one that torch would use: a thread may be new to it."""

    def describe(self, code: int) -> str:
        """What an error code of the launch function means."""

    def cannot_record(self) -> str:
        """Why launches cannot be recorded here at all; "" when they can."""

    def is_recording(self, index: int) -> bool:
        """Whether somebody is recording what goes to the current stream."""

    def pool(self) -> Any:
        """Memory for recordings that never run at the same time."""

    def record(self, index: int, pool: Any, run: Callable[[], None]) -> Recording:
        """Record what `run` launches; nothing of it is carried out.

        Raises:
            Whatever `run` raises, or the driver when something cannot be recorded. The device works as before then.
        """

    def note_used(self, index: int, tensor: torch.Tensor) -> None:
        """Have torch's allocator not reuse memory before the current stream is done with what is on it now."""

    def mark(self, index: int, old: Any = None) -> Any:
        """A mark behind everything that is on the current stream; `old` is one that may be moved there."""

    def wait(self, index: int, mark: Any) -> None:
        """Have the current stream wait until a mark is reached; the CPU does not."""

    def model(self, index: int) -> str:
        """What the device is called where it is sold: times are its own."""

    def seconds(self, index: int, run: Callable[[], object], repeats: int) -> float:
        """Seconds that the device takes for what `run` puts on the current stream, the mean of so many runs."""


_found: dict[str, Device | None] = {}


def register(device: Device) -> None:
    """Use this for all devices of its kind."""
    _found[device.kind] = device


def find_device(name: str) -> Device | None:
    """What implements a device such as `KIND` or `KIND:1`; None where the CPU computes, as on `cpu` and `host`."""
    kind = name.partition(":")[0]
    if kind not in _found:
        module = f"graphc.runtime.device_{kind}"
        exists = kind.isidentifier() and importlib.util.find_spec(module) is not None
        _found[kind] = importlib.import_module(module).DEVICE if exists else None
    return _found[kind]


def index_of(name: str, device: Device) -> int:
    """The number of the device `KIND:1`; that of the current one for `KIND` alone."""
    _, colon, number = name.partition(":")
    return int(number) if colon else device.current()


def present_device() -> Device | None:
    """The accelerator of this machine, None when there is none."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return find_device(found.type) if found is not None else None


def current_target() -> str:
    """What the current device of this machine is compiled for, "" when there is none."""
    device = present_device()
    return device.target(device.current()) if device is not None else ""
