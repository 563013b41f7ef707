"""Kernels on the CPU's numbers one after the other by one foreign call, with nothing of Python between them.

    add, check, scale, ...  ──>  calls 0, 1, 2, ... with places in the table of a call  ──>  a few lines of C
                                     └── no C compiler: numpy, one by one

Python numbers lie in the table itself, as cells of 8 bytes. The list stops behind a kernel that has found bad data.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from graphc.errors import CompilerError
from graphc.ir.types import UNFAILED
from graphc.program.plan import ARENA, CHECKS, INPUT, KernelStep
from graphc.program.record import Program
from graphc.program.triton_kernel import HOST_TEXT, host_function, host_source
from graphc.runtime.checks import DeviceCells, raise_failed
from graphc.runtime.frame import Frame, Memory, check_storage
from graphc.runtime.host_kernels import HostKernel
from graphc.runtime.launch_list import Argument
from graphc.runtime.small_library import small_library

FLAGS = ("-std=gnu11", "-O1", "-w", "-shared", "-fPIC", "-fno-math-errno", "-ffp-contract=off", "-fwrapv",
         "-fno-strict-aliasing")  # fmt: skip
"""For kernels on numbers: nothing is vectorised, so that functions are libm's own."""
MAX_BUFFERS = 64
"""Buffers of a kernel in a list."""
_CELL = 8
"""Bytes of a Python number."""

_WALK = f"""#include <stdint.h>
#include <string.h>

typedef struct {{
  void (*run)(char *const *);  /* 0 copies `size` bytes from the first argument to the second */
  int64_t first, count, size;
  const int64_t *cells;  /* in which it reports bad data */
  int64_t cell_count;
}} call_t;

typedef struct {{ int64_t place, offset; }} argument_t;

/* Makes all calls. Gives the number of the call that has found bad data, and `stop` when none has. */
int64_t graphc_walk(const call_t *calls, const argument_t *arguments, int64_t stop, char *const *table) {{
  char *pointers[{MAX_BUFFERS}];
  for (int64_t at = 0; at < stop; at++) {{
    const call_t *one = &calls[at];
    for (int64_t i = 0; i < one->count; i++)
      pointers[i] = table[arguments[one->first + i].place] + arguments[one->first + i].offset;
    if (one->run) one->run(pointers);
    else memcpy(pointers[1], pointers[0], one->size);
    for (int64_t i = 0; i < one->cell_count; i++)
      if (one->cells[i] != {UNFAILED + 1} - 1) return at;
  }}
  return stop;
}}

/* Copies `count` elements of `size` bytes that lie anywhere into one array, or back. */
void graphc_gather(char *const *addresses, int64_t count, int64_t size, char *array) {{
  for (int64_t i = 0; i < count; i++) memcpy(array + i * size, addresses[i], size);
}}
void graphc_scatter(char *const *addresses, int64_t count, int64_t size, const char *array) {{
  for (int64_t i = 0; i < count; i++) memcpy(addresses[i], array + i * size, size);
}}
"""


class _CallText(ctypes.Structure):
    _fields_ = [
        ("run", ctypes.c_void_p),
        ("first", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("cells", ctypes.c_void_p),
        ("cell_count", ctypes.c_int64),
    ]


@functools.cache
def walker() -> ctypes.CDLL:
    """The lines of C that make the calls.

    Raises:
        CompilerError: there is no C compiler.
    """
    found = small_library("walk", _WALK, FLAGS)
    found.graphc_walk.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    found.graphc_walk.restype = ctypes.c_int64
    for name in ("graphc_gather", "graphc_scatter"):
        function = getattr(found, name)
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p], None
    return found


class HostLibrary:
    """The kernels that the CPU runs in a program, in C where that can be.

    Args:
        program: the record.

    Attributes:
        reason: why they are interpreted; "" when they are not, or have not been asked for yet.
    """

    def __init__(self, program: Program) -> None:
        self._sources, self._kernels = program.sources, dict[str, HostKernel]()
        self._library: ctypes.CDLL | None = None
        self._is_prepared, self.reason = False, ""

    def prepare(self) -> None:
        """Compile what there is."""
        if self._is_prepared:
            return
        self._is_prepared = True
        text = self._sources.get(HOST_TEXT)
        try:
            walker()
            if text is not None:
                self._library = small_library("host", text, FLAGS, ("-lm",))
        except CompilerError as error:
            self.reason = error.message.partition("\n")[0]

    def walker(self) -> ctypes.CDLL | None:
        """What makes calls in C; None when there is no compiler."""
        self.prepare()
        return None if self.reason else walker()

    def has(self, name: str) -> bool:
        """Whether the CPU runs a kernel."""
        return host_source(name) in self._sources

    def gather(self, addresses: Sequence[int], size: int, array: int) -> None:
        """Copy elements of `size` bytes that lie anywhere into an array at an address."""
        self._copy("graphc_gather", addresses, size, array)

    def scatter(self, addresses: Sequence[int], size: int, array: int) -> None:
        """Copy them back."""
        self._copy("graphc_scatter", addresses, size, array)

    def _copy(self, function: str, addresses: Sequence[int], size: int, array: int) -> None:
        walk = self.walker()
        if walk is not None:
            getattr(walk, function)((ctypes.c_void_p * len(addresses))(*addresses), len(addresses), size, array)
            return
        for number, address in enumerate(addresses):
            ends = (array + number * size, address) if function == "graphc_gather" else (address, array + number * size)
            ctypes.memmove(*ends, size)

    def kernel(self, name: str) -> HostKernel:
        """A kernel by name."""
        if name not in self._kernels:
            self._kernels[name] = HostKernel(self._sources[host_source(name)])
        return self._kernels[name]

    def address(self, name: str) -> int:
        """Of a kernel's C function, 0 when there is none."""
        self.prepare()
        if self._library is None:
            return 0
        function = getattr(self._library, host_function(name), None)  # None: a kernel that C cannot hold
        return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0

    def report(self) -> str:
        """How kernels are run, in words; "" when there are none."""
        names = [name.removesuffix(host_source("")) for name in self._sources if name.endswith(host_source(""))]
        if not names:
            return ""
        interpreted = [name for name in names if not self.address(name)]
        if not interpreted:
            return f"{len(names)} kernels in C"
        return f"{len(interpreted)} of {len(names)} kernels interpreted: {self.reason or 'C does not hold them'}"


@dataclass(frozen=True)
class Call:
    """A call of a kernel, or a copy.

    Args:
        kernel: its name; "" = a copy from the first argument to the second.
        places: per argument a place in a table of addresses, and bytes from there.
        size: bytes of a copy.
        cells: in which the kernel reports bad data.
    """

    kernel: str
    places: tuple[tuple[int, int], ...]
    size: int = 0
    cells: DeviceCells | None = None


@dataclass(frozen=True)
class _Item:
    """A kernel with its buffers, or without a kernel a copy of a buffer's first `size` bytes to an address."""

    kernel: str
    buffers: tuple[int, ...]
    offsets: tuple[int, ...] = ()
    target: int = 0
    size: int = 0


class HostRun:
    """Kernels that the CPU runs, one after the other, as a part of a program; and copies of what they work on.

    Args:
        memory: of the program.
        library: its kernels.
    """

    def __init__(self, memory: Memory, library: HostLibrary) -> None:
        self._memory, self._library = memory, library
        self.items: list[_Item] = []
        self._bound: _Bound | None = None

    def add(self, step: KernelStep) -> None:
        """Append a kernel."""
        self._append(_Item(step.kernel, step.buffers, step.offsets))

    def add_copy(self, index: int, target: int, size: int) -> None:
        """Append a copy of the first `size` bytes of a buffer to an address."""
        self._append(_Item("", (index,), (0,), target, size))

    def writes(self, item: _Item) -> list[int]:
        """Buffers that a kernel stores to."""
        if not item.kernel:
            return []
        found = zip(item.buffers, self._library.kernel(item.kernel).kernel.buffers, strict=True)
        return [index for index, buffer in found if buffer.access != "in"]

    def extend(self, other: HostRun, copies: dict[int, tuple[int, int]]) -> None:
        """Append another run, with copies of buffers right after they are written.

        Args:
            other: of the same program.
            copies: address and bytes, by buffer.
        """
        for item in other.items:
            self._append(item)
            for index in self.writes(item):
                if index in copies:
                    self.add_copy(index, *copies[index])

    def _append(self, item: _Item) -> None:
        self.items.append(item)
        for index in item.buffers:
            self._memory.on_host(index)  # a place in the tables of all calls
        specs = self._memory.buffers
        self._memory.computed |= {index for index in self.writes(item) if specs[index].host}

    def __call__(self, frame: Frame) -> None:
        """Make the calls, in order.

        Raises:
            What eager raises for bad data that a kernel has found; those after it have not run.
        """
        if self._bound is None:
            self._bound = _Bound(self, self._memory, self._library)
        self._bound.run(frame)


class Walk:
    """Calls of kernels on memory of the CPU, in C where that can be.

    Args:
        library: the kernels.
        calls: in order.
    """

    def __init__(self, library: HostLibrary, calls: Sequence[Call]) -> None:
        self.calls = calls
        self._kernels = [library.kernel(call.kernel) if call.kernel else None for call in calls]
        functions = [library.address(call.kernel) if call.kernel else 0 for call in calls]
        walk = library.walker()
        in_c = all(function or not call.kernel for function, call in zip(functions, calls, strict=True))
        fits = all(len(call.places) <= MAX_BUFFERS for call in calls)
        self._walk = walk.graphc_walk if walk is not None and in_c and fits else None
        flat = [pair for call in calls for pair in call.places]
        self._arguments = (Argument * len(flat))(*flat)  # type: ignore[misc]  # tuples are taken for structures
        self._texts, first = (_CallText * len(calls))(), 0
        for text, call, function in zip(self._texts, calls, functions, strict=False):
            text.run, text.first, text.count, text.size = function, first, len(call.places), call.size
            if call.cells is not None:
                text.cells, text.cell_count = call.cells.values.data_ptr(), len(call.cells.checks)
            first += len(call.places)
        self._addresses = ctypes.addressof(self._texts), ctypes.addressof(self._arguments), len(calls)

    def run(self, table: ctypes.Array[ctypes.c_uint64]) -> int:
        """Make the calls; the number of the one that has found bad data, that of all calls when none has."""
        if self._walk is not None:
            found: int = self._walk(*self._addresses, ctypes.addressof(table))
            return found
        for number, (call, kernel) in enumerate(zip(self.calls, self._kernels, strict=True)):
            addresses = [table[place] + offset for place, offset in call.places]
            if kernel is None:
                ctypes.memmove(addresses[1], addresses[0], call.size)
            else:
                kernel.at(addresses)
            if call.cells is not None and call.cells.has_failed():
                return number
        return len(self.calls)


class _Bound:
    """A list with addresses and places, ready to be run."""

    def __init__(self, run: HostRun, memory: Memory, library: HostLibrary) -> None:
        self._memory, items = memory, run.items
        specs = [memory.buffers[i] for i in sorted({i for item in items for i in item.buffers})]
        placed = [(memory.on_host(spec.index), spec) for spec in specs if spec.kind not in (ARENA, CHECKS) or spec.host]
        self._inputs = [(place, spec.source) for place, spec in placed if not spec.host and spec.kind == INPUT]
        self._made = [(place, spec.index) for place, spec in placed if not spec.host and spec.kind != INPUT]
        self._cells = [place for place, spec in placed if spec.host]
        self._given = [(place + 1, spec) for place, spec in placed if spec.host and spec.index not in memory.computed]
        written = {index for item in items for index in run.writes(item)}
        self._numbers = [(place + 1, spec) for place, spec in placed if spec.host and spec.index in written]
        self._walk = Walk(library, [self._call(item) for item in items])

    def _call(self, item: _Item) -> Call:
        memory, places = self._memory, list[tuple[int, int]]()
        for index, offset in zip(item.buffers, item.offsets, strict=True):
            spec = memory.buffers[index]
            skip = 0 if spec.host else offset * spec.dtype.itemsize
            if spec.kind == CHECKS:
                skip += memory.cells[index].values.data_ptr()
            elif spec.kind == ARENA and not spec.host:
                skip += spec.arena_offset
            places.append((memory.on_host(index), skip))
        if not item.kernel:
            return Call("", (*places, (memory.nowhere, item.target)), item.size)
        checked = sorted({index for index in item.buffers if memory.buffers[index].kind == CHECKS})
        assert len(checked) <= 1, "checks on the CPU are one buffer"
        return Call(item.kernel, tuple(places), cells=memory.cells[checked[0]] if checked else None)

    def run(self, frame: Frame) -> None:
        table, inputs, base = frame.table, frame.inputs, ctypes.addressof(frame.table)
        for place, source in self._inputs:
            address = inputs[source].data_ptr()
            if not address:
                check_storage(inputs[source])
            table[place] = address
        for place, index in self._made:
            table[place] = frame.made[index].data_ptr()
        for place in self._cells:
            table[place] = base + _CELL * (place + 1)
        for place, spec in self._given:
            kind = "d" if spec.dtype.is_float else "q"
            struct.pack_into(kind, table, _CELL * place, self._memory.number(frame, spec))
        at = self._walk.run(table)
        if at < len(self._walk.calls):
            cells = self._walk.calls[at].cells
            raise_failed([] if cells is None else [cells])
        for place, spec in self._numbers:
            kind = "d" if spec.dtype.is_float else "q"
            frame.numbers[spec.index] = struct.unpack_from(kind, table, _CELL * place)[0]
