"""Host time of a launch outside of recordings: what lies between Python and the driver, one that does nothing here.

    python benchmarks/launches.py [--launches N] [--pointers K]

The driver is a C function that returns at once, so this is the cost of graphc's side alone: one foreign call for all
launches of a program, and the same launches one foreign call each.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from graphc.runtime.launch_list import Binary, LaunchList

_DRIVER = """#include <stdint.h>
int64_t launches = 0;
int nothing(void *f, uint32_t x, uint32_t y, uint32_t z, uint32_t a, uint32_t b, uint32_t c, uint32_t s, void *stream,
            void **arguments, void **extra) {
  launches += arguments[0] != 0;
  return 0;
}
"""


def driver(folder: str) -> ctypes.CDLL:
    """A driver whose launches do nothing but count."""
    source, library = Path(folder) / "driver.c", Path(folder) / "driver.so"
    source.write_text(_DRIVER)
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def microseconds(call: Callable[[], object], count: int) -> float:
    """Per launch, the median of rounds."""
    found = []
    for _ in range(25):
        start = time.perf_counter()
        for _ in range(100):
            call()
        found.append((time.perf_counter() - start) / 100 / count * 1e6)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launches", type=int, default=100)
    parser.add_argument("--pointers", type=int, default=6)
    options = parser.parse_args()
    count, pointers = options.launches, options.pointers
    with tempfile.TemporaryDirectory() as folder:
        library = driver(folder)
        address = ctypes.cast(library.nothing, ctypes.c_void_p).value
        assert address
        binary, places = Binary(1, 128, 0), [(i, 16 * i) for i in range(pointers)]
        table = (ctypes.c_uint64 * pointers)(*[256 * (i + 1) for i in range(pointers)])

        def make(number: int) -> LaunchList:
            return LaunchList(
                [binary] * number, [(1, 1, 1)] * number, [places] * number, [0] * number, [-1] * number, address
            )

        whole, single, at = make(count), make(1), ctypes.addressof(table)
        assert whole.run(0, at, 0) == (count, 0)
        assert ctypes.c_int64.in_dll(library, "launches").value == count
        print(f"{count} launches of {pointers} pointers in one foreign call: "
              f"{microseconds(lambda: whole.run(0, at, 0), count):.3f} us per launch")  # fmt: skip
        print(f"one foreign call per launch: {microseconds(lambda: single.run(0, at, 0), 1):.3f} us per launch")


if __name__ == "__main__":
    main()
