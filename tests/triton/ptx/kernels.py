"""Generated kernels, compiled for `TARGET` and executed from their machine code, on tensors of the CPU.

`PtxKernel` takes the place of Triton's interpreter: alone, or in every program after `install`.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch

from graphc.codegen.triton.tiles import machine_of
from graphc.program.triton_kernel import Launch, TritonKernel
from graphc.runtime import triton_launcher, triton_program
from graphc.runtime.triton_cross import gpu_target
from graphc.runtime.triton_launcher import (
    SCRATCH_ALIGNMENT,
    compile_launch,
    fits_memory,
    scratch_places,
    torch_type,
    unaligned_of,
    with_fewer_stages,
)
from tests.triton.ptx.assembler import without_assembler
from tests.triton.ptx.machine import Code
from tests.triton.ptx.parse import PtxError, parse

TARGET = os.environ.get("GRAPHC_PTX_TARGET", "cuda:80")
"""What kernels are compiled for, where nothing else is said. Of chips newer than `cuda:90` not all is known here."""


def compile_ptx(
    kernel: TritonKernel, launch: Launch, unaligned: Sequence[int] = (), target: str = ""
) -> tuple[str, int]:
    """PTX of a launch, and the bytes of shared memory of a program; arguments as for `compile_launch`.

    Raises:
        PtxError: it takes more memory than the chip or the kernel has for it.
    """
    from triton import knobs

    target, old = target or TARGET, knobs.runtime.add_stages_inspection_hook
    knobs.runtime.add_stages_inspection_hook = without_assembler
    try:
        for fewer in with_fewer_stages(launch):
            compiled = compile_launch(kernel, fewer, gpu_target(target), unaligned)
            shared = int(compiled.metadata.shared)
            if shared <= machine_of(target).shared and fits_memory(compiled, kernel):
                return compiled.asm["ptx"], shared
    finally:
        knobs.runtime.add_stages_inspection_hook = old
    raise PtxError(f"{launch.function} wants more memory than there is")


@functools.lru_cache(16)  # steps are many objects, which slow down every collection of garbage
def _code(text: str) -> Code:
    return Code(parse(text))


class PtxKernel:
    """A kernel that is executed from its machine code; calls like `InterpretedKernel`.

    Args:
        kernel: the generated kernel.
        target: what it is compiled for, by default `TARGET`.
    """

    def __init__(self, kernel: TritonKernel, target: str = "") -> None:
        self.kernel, self.target = kernel, target
        self._compiled: dict[tuple[Launch, tuple[int, ...]], tuple[Code, int]] = {}

    def __call__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Run on tensors whose first element is the buffer's first element, of the signature's dtypes.

        Raises:
            PtxError: what a GPU would refuse or leave open, naming the instruction.
        """
        for tensor, (name, kind) in zip(tensors, self.kernel.signature):
            assert tensor.dtype == torch_type(kind), f"{name} is {tensor.dtype}, not {kind}"
        offsets, size = scratch_places(self.kernel)
        scratch = torch.empty(size + SCRATCH_ALIGNMENT, dtype=torch.uint8)
        first = scratch.data_ptr() + -scratch.data_ptr() % SCRATCH_ALIGNMENT
        pointers = [*(tensor.data_ptr() for tensor in tensors), *(first + offset for offset in offsets)]
        unaligned = unaligned_of(pointers)
        positions = tuple(number for number in range(len(pointers)) if unaligned >> number & 1)
        places = _places([*tensors, scratch])
        for launch in self.kernel.launches:
            if prod(launch.grid):
                code, shared = self._prepared(launch.variant(not unaligned), positions)
                function = code.module.functions[code.module.entry]
                values = [*pointers, 0, 0][: len(function.parameters)]  # of which a driver takes no more, either
                wrong = code.launch(launch.grid, function.threads, shared, values, places)
                if wrong:
                    raise PtxError("; ".join(wrong))

    @property
    def doubts(self) -> set[str]:
        """Of all that has been compiled, see `Code`."""
        return {text for code, _ in self._compiled.values() for text in code.doubts}

    def _prepared(self, launch: Launch, positions: tuple[int, ...]) -> tuple[Code, int]:
        found = self._compiled.get((launch, positions))
        if found is None:
            text, shared = compile_ptx(self.kernel, launch, positions, self.target)
            found = self._compiled[launch, positions] = _code(text), shared
        return found


def _places(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """The memory of tensors; of all that are alive where one of them may be a table of addresses."""
    if any(tensor.dtype == torch.int64 and bool((tensor.abs() >> 40).any()) for tensor in tensors):
        tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor) and _has_memory(item)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return [(storage.data_ptr(), storage.nbytes()) for storage in storages]


def _has_memory(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type != "meta" and type(tensor) in _PLAIN


_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def install(target: str = "") -> None:
    """Have all programs of this process run their kernels from machine code where Triton's interpreter would."""
    made = functools.partial(PtxKernel, target=target) if target else PtxKernel
    for module in (triton_launcher, triton_program):
        module.InterpretedKernel = made  # type: ignore[attr-defined, misc, assignment]
        module.require_interpreter = lambda: None  # type: ignore[attr-defined]


@contextmanager
def from_machine_code(target: str = "") -> Iterator[None]:
    """The same inside of a block."""
    names = ("InterpretedKernel", "require_interpreter")
    old = [(module, name, getattr(module, name)) for module in (triton_launcher, triton_program) for name in names]
    install(target)
    try:
        yield
    finally:
        for module, name, value in old:
            setattr(module, name, value)
