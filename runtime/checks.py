"""Bad data that kernels found: from the cells they report it in to the error that eager raises."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch

from graphc.errors import add_location, data_error
from graphc.ir.types import UNFAILED
from graphc.program.plan import Check

Failed: TypeAlias = list[tuple[Check, int]]
"""Checks that failed, with the largest offending value of each."""


class Cells:
    """One i64 per check, in memory of the CPU.

    Args:
        checks: what they mean.
    """

    def __init__(self, checks: Sequence[Check]) -> None:
        self.checks = checks
        self.values = (ctypes.c_int64 * len(checks))(*[UNFAILED] * len(checks))
        self.address = ctypes.addressof(self.values)

    def take(self) -> Failed:
        """What failed; after this nothing has."""
        found = _failed(self.checks, self.values)
        if found:
            self.values[:] = [UNFAILED] * len(self.checks)
        return found


class DeviceCells:
    """One i64 per check in memory of a device, and what the CPU has seen of it.

    Args:
        checks: what they mean.
        device: where kernels report.
    """

    def __init__(self, checks: Sequence[Check], device: torch.device) -> None:
        self.checks = checks
        self.values = torch.full((len(checks),), UNFAILED, dtype=torch.int64, device=device)
        is_apart = self.values.device.type != "cpu"
        self.seen = (
            torch.full((len(checks),), UNFAILED, dtype=torch.int64, device="cpu", pin_memory=True)
            if is_apart
            else self.values
        )
        self._words = (ctypes.c_int64 * len(checks)).from_address(self.seen.data_ptr())
        self._bytes = (ctypes.c_char * (8 * len(checks))).from_address(self.seen.data_ptr())
        self._unfailed = self._bytes.raw

    def fetch(self) -> None:
        """Have the device copy the cells to the CPU when it gets there; nothing waits for it."""
        if self.seen is not self.values:
            self.seen.copy_(self.values, non_blocking=True)

    def wait(self) -> None:
        """Copy the cells to the CPU when the device is done with everything so far on its current stream."""
        if self.seen is not self.values:
            self.seen.copy_(self.values)

    def has_failed(self) -> bool:
        """Whether anything has been seen to have failed."""
        return self._bytes.raw != self._unfailed

    def take(self) -> Failed:
        """What has been seen to have failed; after this nothing has."""
        if not self.has_failed():
            return []
        found = _failed(self.checks, self._words)
        self.wait()
        self.values.fill_(UNFAILED)
        self.seen.fill_(UNFAILED)
        return found


def _failed(checks: Sequence[Check], values: Iterable[int]) -> Failed:
    return [(check, value) for check, value in zip(checks, values, strict=True) if value != UNFAILED]


def raise_failed(cells: Iterable[Cells | DeviceCells]) -> None:
    """Raise for the first failed check, in the order of the user's program, if there is one.

    Raises:
        IndexError, RuntimeError, ZeroDivisionError: eager's class and message, with the user's source line added.
        AssumptionError: eager has to find out.
    """
    found = [item for part in cells for item in part.take()]
    if not found:
        return
    check, value = min(found, key=lambda item: item[0].order)
    error = data_error(check.error)(check.message.replace("{value}", str(value)))
    add_location(error, check.location)
    raise error
