"""Builds generated C kernels with gcc and calls them through ctypes on flat numpy arrays."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphc.codegen.c.emit import CKernel, COptions, emit_kernel
from graphc.codegen.c.flags import CFLAGS, LIBRARIES
from graphc.codegen.c.prelude import prelude
from graphc.loopir.kernel import Kernel

_numbers = itertools.count()


def unit_text(kernels: Sequence[CKernel]) -> str:
    """One translation unit with an exported wrapper `run_<i>(void **buffers, const int64_t *sizes)` per kernel."""
    helpers = {helper for kernel in kernels for helper in kernel.helpers}
    parts = [prelude(helpers)]
    for number, kernel in enumerate(kernels):
        # numbered, since test kernels may share names
        parts.append(f"#define {kernel.name} k{number}_{kernel.name}\n{kernel.text}")
        count = len(kernel.parameters) - len(kernel.sizes)
        arguments = [f"p[{i}]" for i in range(count)] + [f"n[{i}]" for i in range(len(kernel.sizes))]
        parts.append(
            f"void run_{number}(void **p, const int64_t *n) {{ {kernel.name}({', '.join(arguments)}); }}\n"
            f"#undef {kernel.name}"
        )
    return "\n".join(parts)


def build(text: str, folder: Path) -> ctypes.CDLL:
    """Compile a translation unit and load it."""
    name = f"unit{next(_numbers)}"
    source, library = folder / f"{name}.c", folder / f"{name}.so"
    source.write_text(text)
    command = [
        "gcc",
        *CFLAGS,
        "-Wall",
        "-Wno-unknown-pragmas",
        "-Wno-tautological-compare",
        "-Wno-bool-compare",
        str(source),
        "-o",
        str(library),
        *LIBRARIES,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[:4000] + "\n" + text[:20000]
    unexpected = [line for line in done.stderr.splitlines() if "warning:" in line and "unused" not in line]
    assert not unexpected, "\n".join(unexpected)
    return ctypes.CDLL(str(library))


class CKernels:
    """Kernels compiled together.

    Args:
        kernels: what to build.
        folder: where to.
        options: of the generator.
    """

    def __init__(self, kernels: Sequence[Kernel], folder: Path, options: COptions | None = None) -> None:
        self.kernels = list(kernels)
        self.emitted = [emit_kernel(kernel, options or COptions()) for kernel in kernels]
        self.library = build(unit_text(self.emitted), folder)

    def run(
        self, number: int, buffers: Mapping[str, np.ndarray[Any, Any]], sizes: Mapping[str, int] | None = None
    ) -> None:
        """Call kernel `number` on flat arrays, by buffer name."""
        kernel = self.kernels[number]
        pointers = (ctypes.c_void_p * max(1, len(kernel.buffers)))(
            *(buffers[buffer.name].ctypes.data for buffer in kernel.buffers)
        )
        given = [(sizes or {})[name] for name in self.emitted[number].sizes]
        values = (ctypes.c_int64 * max(1, len(given)))(*given)
        getattr(self.library, f"run_{number}")(pointers, values)
