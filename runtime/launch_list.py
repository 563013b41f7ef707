"""Launches one after the other by one foreign call, with nothing of Python between them.

The table of a call holds the address of every buffer; each argument of each launch is a place in the table and an
offset. A few lines of C walk over the list and call the driver. They stop in front of a launch whose pointers are
aligned otherwise than its variant takes them, so that another one can be launched in its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from graphc.errors import CompilerError
from graphc.program.triton_kernel import ALIGNMENT
from graphc.runtime.small_library import small_library

_FLAGS = ("-O2", "-shared", "-fPIC")
MAX_ARGUMENTS = 64
"""Arguments of a launch; its alignments are bits of one word."""
_ALL = (1 << MAX_ARGUMENTS) - 1

_TEXT = f"""#include <stdint.h>

typedef struct {{
  void *function;
  uint32_t grid[3], threads, shared, first, count, padding;
  uint64_t unaligned;  /* which pointers its variant does not take to be aligned */
  uint64_t wanted;     /* of which pointers that means something */
}} launch_t;

typedef struct {{ int64_t place, offset; }} argument_t;

/* cuLaunchKernel: function, grid, block, shared bytes, stream, addresses of arguments, extra */
typedef int (*driver_t)(void *, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, void *, void **,
                        void **);

/* Launches [from, stop). Gives the number of the launch in front of which it stopped, `stop` when there is none; `code`
   is what the driver said, 0 when only the alignment is another. */
int64_t graphc_launch(driver_t driver, const launch_t *launches, const argument_t *arguments, int64_t from,
                      int64_t stop, const uint64_t *table, void *stream, int *code) {{
  uint64_t values[{MAX_ARGUMENTS} + 2];
  void *pointers[{MAX_ARGUMENTS} + 2];
  for (int i = 0; i < {MAX_ARGUMENTS} + 2; i++) pointers[i] = &values[i];
  *code = 0;
  for (int64_t at = from; at < stop; at++) {{
    const launch_t *one = &launches[at];
    uint64_t unaligned = 0;
    for (uint32_t i = 0; i < one->count; i++) {{
      const argument_t *argument = &arguments[one->first + i];
      values[i] = table[argument->place] + (uint64_t)argument->offset;
      unaligned |= (uint64_t)((values[i] & {ALIGNMENT - 1}) != 0) << i;
    }}
    if ((unaligned & one->wanted) != one->unaligned) return at;
    values[one->count] = values[one->count + 1] = 0;  /* Triton's own memory: that of descriptors is an argument */
    *code = driver(one->function, one->grid[0], one->grid[1], one->grid[2], one->threads, 1, 1, one->shared, stream,
                   pointers, 0);
    if (*code) return at;
  }}
  return stop;
}}
"""


class _Launch(ctypes.Structure):
    _fields_ = [
        ("function", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32),
        ("shared", ctypes.c_uint32),
        ("first", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("unaligned", ctypes.c_uint64),
        ("wanted", ctypes.c_uint64),
    ]


class Argument(ctypes.Structure):
    """Where in a call's table an address is, and the bytes that are added to it."""

    _fields_ = [("place", ctypes.c_int64), ("offset", ctypes.c_int64)]


@dataclass(frozen=True)
class Binary:
    """A function on the device, ready for the driver.

    Args:
        function: its handle.
        threads: per block.
        shared: bytes of dynamic shared memory per block.
    """

    function: int
    threads: int
    shared: int


def prepare() -> None:
    """Have lists ready to be made, where there is a C compiler."""
    with contextlib.suppress(CompilerError):  # who makes a list meets it again
        _entry()


class LaunchList:
    """A list of launches in C. It never changes, so that several threads may run it.

    Args:
        binaries: per launch the variant to use.
        grids: per launch the blocks in x, y, z.
        arguments: per launch (place in the table, byte offset) of each pointer.
        unaligned: per launch the pointers that its variant does not take to be aligned, as a bit set.
        wanted: per launch the pointers whose alignment means something, likewise.
        driver: address of the driver's function.

    Raises:
        CompilerError: there is no C compiler.
    """

    def __init__(
        self,
        binaries: Sequence[Binary],
        grids: Sequence[tuple[int, int, int]],
        arguments: Sequence[Sequence[tuple[int, int]]],
        unaligned: Sequence[int],
        wanted: Sequence[int],
        driver: int,
    ) -> None:
        self._call, self._driver = _entry(), driver
        self._launches = (_Launch * max(len(binaries), 1))()
        flat = [pair for pairs in arguments for pair in pairs]
        self._arguments = (Argument * max(len(flat), 1))(*flat)  # type: ignore[misc]  # tuples are taken for structures
        first = 0
        for launch, binary, grid, pairs, bits, mask in zip(
            self._launches, binaries, grids, arguments, unaligned, wanted, strict=False
        ):
            assert len(pairs) <= MAX_ARGUMENTS
            launch.function, launch.threads, launch.shared = binary.function, binary.threads, binary.shared
            launch.grid[:] = grid
            launch.first, launch.count, launch.unaligned, launch.wanted = first, len(pairs), bits, mask & _ALL
            first += len(pairs)
        self._stop = len(binaries)
        self._addresses = ctypes.addressof(self._launches), ctypes.addressof(self._arguments)

    def run(self, first: int, table: int, stream: int) -> tuple[int, int]:
        """Make the launches from number `first` on.

        Args:
            table: address of the table.
            stream: handle.

        Returns:
            The number of the launch in front of which it stopped, and the driver's error code: 0 when the pointers of
            that launch are aligned otherwise than its variant takes them. The number of launches when all are made.
        """
        code = ctypes.c_int(0)
        launches, arguments = self._addresses
        at = self._call(self._driver, launches, arguments, first, self._stop, table, stream, code)
        return at, code.value


@functools.cache
def _entry() -> ctypes._NamedFuncPointer:
    """The C function, compiled once and kept in the disk cache."""
    found = small_library("launch", _TEXT, _FLAGS).graphc_launch
    address = ctypes.c_void_p
    found.argtypes = [address, address, address, ctypes.c_int64, ctypes.c_int64, address, address,
                      ctypes.POINTER(ctypes.c_int)]  # fmt: skip
    found.restype = ctypes.c_int64
    return found
