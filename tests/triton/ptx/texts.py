"""Machine code by hand, for the tests of the machine itself."""

from __future__ import annotations

import numpy as np

from tests.triton.ptx.machine import Code
from tests.triton.ptx.parse import parse

_HEAD = """
.version 8.7
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 memory[];
FUNCTIONS
.visible .entry kernel(.param .u64 .ptr .global .align 1 kernel_param_0)
.reqntid THREADS
{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .b32 %r<99>;
    .reg .b64 %rd<20>;
    ld.param.b64 %rd0, [kernel_param_0];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %rd1, %r0, 4;
    add.s64 %rd2, %rd0, %rd1;   // where this thread's word lies
BODY
    ret;
}
"""


def run(
    body: str, memory: np.ndarray, threads: int = 32, programs: int = 1, functions: str = "", shared: int = 1024
) -> list[str]:
    """Run a kernel on an array of 32-bit words, in place; what it leaves to chance, and `Code.doubts`.

    Args:
        body: its instructions: %r0 is the thread, %rd0 the array, %rd2 the thread's word of it.
        shared: bytes of shared memory.
    """
    text = _HEAD.replace("THREADS", str(threads)).replace("BODY", body).replace("FUNCTIONS", functions)
    place = memory.ctypes.data, memory.nbytes
    code = Code(parse(text))
    return code.launch((programs, 1, 1), threads, shared, [memory.ctypes.data], [place]) + sorted(code.doubts)


def words(body: str, threads: int = 32, start: np.ndarray | None = None, functions: str = "") -> np.ndarray:
    """What each thread leaves in its word; `%r1` is stored behind `body`."""
    memory = np.zeros(threads, np.uint32) if start is None else start.copy()
    assert not run(f"{body}\n    st.global.b32 [%rd2], %r1;", memory, threads, functions=functions)
    return memory
