"""Consecutive kernels of a program on one device: prepared together, launched by one foreign call.

steps: softmax, gelu, ...  ──>  launches 0, 1, 2, ... ──> LaunchList ──> the driver
                                     └── pointers aligned otherwise, or no driver: one by one
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphc.errors import CompilerError, add_location
from graphc.ir.types import Location
from graphc.program.triton_kernel import Launch
from graphc.runtime.device import Device
from graphc.runtime.launch_list import MAX_ARGUMENTS, Binary, LaunchList
from graphc.runtime.triton_launcher import Bound, DeviceKernel, Place


@dataclass
class _Item:
    """One launch of one kernel."""

    kernel: DeviceKernel
    number: int
    launch: Launch
    places: tuple[Place, ...]
    location: Location
    expected: int
    """Which pointers are not aligned if those are that the places are counted from."""
    others: dict[int, LaunchList] = field(default_factory=dict)
    """Its variants for other alignments."""

    def bound(self, unaligned: int) -> Bound:
        return self.kernel.bound(self.number, unaligned)


class Launches:
    """Kernels one after the other on one device.

    Args:
        device: its kind.
        index: its number.
        scratch: place in the table of memory that lives only between the launches of one kernel.
        nowhere: place in the table that holds 0.
    """

    def __init__(self, device: Device, index: int, scratch: int, nowhere: int) -> None:
        self._device, self._index, self._scratch, self._nowhere = device, index, scratch, nowhere
        self._items: list[_Item] = []
        self._list: LaunchList | None = None
        self._is_finished = False
        self.one_by_one = ""
        self.scratch_bytes = 0

    def add(self, kernel: DeviceKernel, places: Sequence[Place], location: Location) -> None:
        """Append a kernel with the addresses of its buffers."""
        self.scratch_bytes = max(self.scratch_bytes, kernel.scratch_bytes)
        found = kernel.arguments(places, self._scratch, self._nowhere)
        expected = kernel.unaligned([offset for _, offset in found])
        for number, launch in enumerate(kernel.active):
            self._items.append(_Item(kernel, number, launch, found, location, expected))

    def __len__(self) -> int:
        return len(self._items)

    def variants(self) -> Iterator[tuple[DeviceKernel, int, int]]:
        """Per launch its kernel, its number there, and which pointers are expected not to be aligned."""
        return ((item.kernel, item.number, item.expected) for item in self._items)

    def finish(self) -> None:
        """Compile what is left to compile, and make the list for the driver.

        Raises:
            CompilerError: a kernel does not compile.
        """
        if self._is_finished:
            return
        self._is_finished = True
        binaries = [item.bound(item.expected).binary for item in self._items]
        driver = self._device.launch_function()
        if not driver:
            self.one_by_one = "this device has no driver that graphc calls by itself"
        elif any(binary is None for binary in binaries):
            self.one_by_one = "a kernel asks for more than a plain launch"
        elif any(len(item.places) > MAX_ARGUMENTS for item in self._items):
            self.one_by_one = f"a kernel has more than {MAX_ARGUMENTS} buffers"
        else:
            try:
                found = [binary for binary in binaries if binary is not None]
                self._list = self._listed(self._items, found, [item.expected for item in self._items])
            except CompilerError as error:
                self.one_by_one = error.message.partition("\n")[0]

    def _listed(self, items: Sequence[_Item], binaries: Sequence[Binary], unaligned: Sequence[int]) -> LaunchList:
        return LaunchList(
            binaries,
            [item.launch.grid for item in items],
            [item.places for item in items],
            unaligned,
            [item.kernel.wanted for item in items],
            self._device.launch_function(),
        )

    def run(self, table: Any, stream: int) -> None:
        """Launch all of them, the device being the current one.

        Args:
            table: a ctypes array of addresses.
            stream: handle.

        Raises:
            RuntimeError: the driver refuses a launch.
            CompilerError: a variant for pointers aligned otherwise does not compile.
        """
        self.finish()
        if self._list is None:
            for item in self._items:
                self._launch_by_triton(item, table, stream)
            return
        address, at, stop = ctypes.addressof(table), 0, len(self._items)
        while True:
            at, code = self._made(self._list, at, address, stream)
            if code:
                self._refused(self._items[at], code)
            if at == stop:
                return
            self._launch_otherwise(self._items[at], table, stream)
            at += 1

    def _made(self, launches: LaunchList, first: int, table: int, stream: int) -> tuple[int, int]:
        at, code = launches.run(first, table, stream)
        if code:  # a thread that the driver does not know yet
            self._device.attach(self._index)
            at, code = launches.run(at, table, stream)
        return at, code

    def _launch_otherwise(self, item: _Item, table: Any, stream: int) -> None:
        """Make a launch whose pointers are aligned otherwise than expected."""
        unaligned = item.kernel.unaligned([table[place] + offset for place, offset in item.places])
        binary = item.bound(unaligned).binary
        if binary is None:
            self._launch_by_triton(item, table, stream)
            return
        if unaligned not in item.others:
            item.others[unaligned] = self._listed([item], [binary], [unaligned])
        _, code = self._made(item.others[unaligned], 0, ctypes.addressof(table), stream)
        if code:
            self._refused(item, code)

    def _launch_by_triton(self, item: _Item, table: Any, stream: int) -> None:
        pointers = [table[place] + offset for place, offset in item.places]
        try:
            item.bound(item.kernel.unaligned(pointers))(pointers, stream)
        except RuntimeError as error:
            add_location(error, item.location)
            raise

    def _refused(self, item: _Item, code: int) -> None:
        error = RuntimeError(
            f"kernel {item.launch.function}: the driver refused to launch it: {self._device.describe(code)}"
        )
        add_location(error, item.location)
        raise error
