"""What the runtime needs to launch a generated Triton kernel, as plain data next to its text.

TritonKernel ── text ──> Program.sources["softmax.triton.py"]
             └─ to_plain() ──> Program.kernels["softmax"]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphc.program.plan import BufferSpec

ITEMSIZE = {"*fp64": 8, "*fp32": 4, "*fp16": 2, "*bf16": 2, "*i64": 8, "*i32": 4, "*i16": 2, "*i8": 1, "*i1": 1,
            "*u64": 8, "*u32": 4, "*u16": 2, "*u8": 1, "*fp8e4nv": 1, "*fp8e5": 1}  # fmt: skip
"""Bytes of an element by Triton's name of a pointer to it."""
ALIGNMENT = 16
"""Bytes to which pointers must be aligned for the widest memory accesses."""
DESCRIPTOR = 128
"""Bytes of the description of a matrix by which blocks of it are copied."""
TABLE_BLOCK = 1024
"""Elements per program of a kernel over a table of rows."""


@dataclass(frozen=True)
class Launch:
    """One launch of one function of a kernel's module.

    Args:
        function: its name there.
        grid: programs in x, y, z; none runs when one of them is 0.
        constexprs: compile-time arguments (block sizes) by name, after the pointers.
        num_warps: warps of 32 threads per program.
        num_stages: blocks of operands on their way at once in pipelined loops; 0 = as Triton has it.
        unaligned: function that takes its place when a pointer is not aligned to `ALIGNMENT`; empty = the same.
        flushes: functions of the chip's library may take numbers below 2^-126 for 0.
    """

    function: str
    grid: tuple[int, int, int]
    constexprs: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int = 0
    unaligned: str = ""
    flushes: bool = False

    def variant(self, is_aligned: bool) -> Launch:
        """What is launched for pointers that are aligned, or not all of them."""
        return self if is_aligned or not self.unaligned else replace(self, function=self.unaligned, unaligned="")


@dataclass(frozen=True)
class Scratch:
    """Memory that lives only between the launches of one kernel: `size` elements of Triton type `dtype` (`*fp32`)."""

    dtype: str
    size: int


@dataclass(frozen=True)
class SizeArgument:
    """A size of the program's inputs that a kernel takes.

    Args:
        name: of the parameter, behind the pointers.
        kind: `i32` or `i64`.
        value: what it is told.
        is_multiple: it is known to be a multiple of `ALIGNMENT`.
    """

    name: str
    kind: str
    value: int
    is_multiple: bool


@dataclass(frozen=True)
class TritonKernel:
    """A generated kernel.

    Args:
        name: of the kernel.
        text: the module's source.
        signature: (parameter, Triton pointer type) of the kernel's buffers in order, then of its scratch memory. Every
            function of the module takes all of them.
        launches: in order, on one stream.
        scratch: memory to be allocated per run, zero or more.
        descriptors: of matrices, that each program writes to memory which Triton takes behind the parameters.
        numbers: positions of buffers that are accessed one number at a time, for which alignment does nothing.
        sizes: of the program's inputs, which every function takes behind the pointers.
    """

    name: str
    text: str
    signature: tuple[tuple[str, str], ...]
    launches: tuple[Launch, ...]
    scratch: tuple[Scratch, ...] = ()
    descriptors: int = 0
    numbers: tuple[int, ...] = ()
    sizes: tuple[SizeArgument, ...] = ()

    @property
    def descriptor_bytes(self) -> int:
        """Memory for the descriptors of all programs."""
        return DESCRIPTOR * self.descriptors * max((prod(launch.grid) for launch in self.launches), default=0)

    def to_plain(self) -> dict[str, Any]:
        """Everything but the text, in tuples, numbers and strings."""
        return {
            "name": self.name,
            "signature": self.signature,
            "launches": tuple(
                (
                    item.function,
                    item.grid,
                    item.constexprs,
                    item.num_warps,
                    item.num_stages,
                    item.unaligned,
                    item.flushes,
                )
                for item in self.launches
            ),
            "scratch": tuple((item.dtype, item.size) for item in self.scratch),
            "descriptors": self.descriptors,
            "numbers": self.numbers,
            "sizes": tuple((item.name, item.kind, item.value, item.is_multiple) for item in self.sizes),
        }

    @staticmethod
    def from_plain(text: str, plain: dict[str, Any]) -> TritonKernel:
        """The kernel whose `to_plain` gave `plain` and whose text is `text`."""
        return TritonKernel(
            plain["name"],
            text,
            tuple((name, kind) for name, kind in plain["signature"]),
            tuple(
                Launch(function, tuple(grid), tuple((name, value) for name, value in constexprs), *rest)
                for function, grid, constexprs, *rest in plain["launches"]
            ),
            tuple(Scratch(dtype, size) for dtype, size in plain["scratch"]),
            plain["descriptors"],
            tuple(plain["numbers"]),
            tuple(SizeArgument(*item) for item in plain["sizes"]),
        )


def triton_source(kernel: str) -> str:
    """Name of the file with a kernel's Triton text."""
    return f"{kernel}.triton.py"


def host_source(kernel: str) -> str:
    """Name of the file with the loop IR of a kernel that the CPU runs."""
    return f"{kernel}.loop"


HOST_TEXT = "host.c"
"""Name of the C source with the kernels that the CPU runs."""


def host_function(kernel: str) -> str:
    """Name of the C function, in `HOST_TEXT`, that takes the addresses of a kernel's buffers as an array."""
    return f"host_{kernel}"


def runs_on_host(used: Iterable[int], buffers: Sequence[BufferSpec]) -> bool:
    """Whether a kernel works on what lies with the CPU, single numbers for the most part, in a program for a device."""
    return all(buffers[index].host or buffers[index].device == "cpu" for index in used) and any(
        spec.device != "cpu" for spec in buffers if not spec.host
    )
