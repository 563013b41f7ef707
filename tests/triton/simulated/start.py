"""In a process of the simulation, before anything else: operators by the CPU, and kernels from their machine code."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import traceback
from typing import Any

import numpy as np

OPERATORS = "GRAPHC_SIMULATED_OPERATORS"
"""Where the library of operators is."""
IDLE = "GRAPHC_SIMULATED_IDLE"
_KEPT = 256  # programs of machine code


def start() -> None:
    """Make the process what `tests.triton.simulated` says; it has the driver from its start."""
    import torch
    from triton import knobs

    from tests.triton.ptx.assembler import without_assembler
    from tests.triton.simulated import cells

    idle = os.environ.get(IDLE, "0") != "0"
    torch.backends.cudnn.enabled = idle  # its kernels cannot be executed, those of attention aside
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    library = ctypes.CDLL(os.environ[OPERATORS])
    library.simulated_register()
    cells.register()
    library.simulated_set_launcher(_launch)
    library.simulated_blocks.restype = ctypes.c_size_t
    _blocks.append(library.simulated_blocks)
    if not idle:
        knobs.runtime.add_stages_inspection_hook = without_assembler


_blocks: list[Any] = []


@functools.lru_cache(_KEPT)
def _code(text: bytes) -> Any:
    from tests.triton.ptx.machine import Code
    from tests.triton.ptx.parse import parse

    return Code(parse(text.decode()))


def _places() -> list[tuple[int, int]]:
    """Address and bytes of all memory of the GPUs, and of the host where it is locked."""
    room = 4096
    while True:
        found = np.zeros((room, 2), np.uint64)
        count = _blocks[0](found.ctypes.data_as(ctypes.POINTER(ctypes.c_uint64)), room)
        if count <= room:
            return [(int(start), int(size)) for start, size in found[:count]]
        room = 2 * count


@ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_uint,
    ctypes.POINTER(ctypes.c_uint64), ctypes.c_size_t,
)  # fmt: skip
def _launch(text: bytes, shape: Any, shared: int, values: Any, count: int) -> int:
    name = text.partition(b".entry ")[2].partition(b"(")[0].decode()
    try:
        code = _code(text)
        entry = code.module.functions[code.module.entry]
        grid, block = tuple(shape[:3]), tuple(shape[3:6])
        assert block == (entry.threads, 1, 1), f"{entry.name} is compiled for {entry.threads} threads, not {block}"
        wrong = code.launch(grid, entry.threads, shared, values[:count], _places())
    except Exception:
        given = ", ".join(map(hex, values[:count]))
        print(f"simulated GPU: {name}({given}), grid {tuple(shape[:3])}", file=sys.stderr)
        traceback.print_exc()
        return 1
    for line in wrong:
        print(f"simulated GPU: {line}", file=sys.stderr)
    return int(bool(wrong))
