"""Kernels that run again: what is made of inputs alone is not kept while a loop runs.

    before                                      after
    x_rows = reshape(x)                         x_rows = reshape(x)
    ...  = gemm(x_rows, w)                      ...  = gemm(x_rows, w)
    loop forward, loop backward                 loop forward, loop backward
                                                x_rows_2 = reshape(x)
    dw   = gemm(dy, x_rows)                     dw   = gemm(dy, x_rows_2)

A recurrent network reads its sequences in another order than they lie in, at its start and for the gradients of its
weights. In between come the loops, where memory is short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from graphc.ir.sizes import typical
from graphc.loopir.kernel import Kernel
from graphc.passes.rooms import Mover
from graphc.program.lifetimes import step_buffers, written_buffers
from graphc.program.loops import LoopStep
from graphc.program.plan import ARENA, INPUT, BufferSpec, KernelStep, Step

SMALLEST = 1 << 16
"""Bytes from which a value is worth making again."""


def run_again(steps: Sequence[Step], buffers: list[BufferSpec], kernels: Mapping[str, Kernel]) -> list[Step]:
    """The steps with, behind loops, kernels once more instead of what they made before.

    Args:
        buffers: of the program; those for what is made again are added.
    """
    loops = [number for number, step in enumerate(steps) if isinstance(step, LoopStep)]
    results = [_result(step, buffers, kernels) for step in steps]
    made = {index: number for number, index in enumerate(results) if index >= 0}
    if not loops or not made:
        return list(steps)
    written = {index for step in steps for index in written_buffers(step, kernels) if buffers[index].kind == INPUT}
    last_loop = [sum(loop < number for loop in loops) for number in range(len(steps))]
    found: list[Step] = []
    anew: dict[tuple[int, int], int] = {}  # what is made again, behind so many loops -> its new buffer
    for number, step in enumerate(steps):
        places: dict[int, tuple[int, int]] = {}
        for index in dict.fromkeys(step_buffers(step)):
            origin = made.get(index, number)
            if origin == number or last_loop[number] == last_loop[origin]:
                continue
            maker = steps[origin]
            assert isinstance(maker, KernelStep)
            if not written.isdisjoint(maker.buffers):
                continue
            key = index, last_loop[number]
            if key not in anew:
                anew[key] = len(buffers)
                buffers.append(replace(buffers[index], index=len(buffers)))
                found.append(Mover(buffers, {index: (anew[key], 0)}).step(maker))
            places[index] = anew[key], 0
        found.append(Mover(buffers, places).step(step) if places else step)
    return found


def _result(step: Step, buffers: Sequence[BufferSpec], kernels: Mapping[str, Kernel]) -> int:
    """The buffer that a kernel makes as a whole, when it reads nothing but inputs; else -1."""
    if not isinstance(step, KernelStep):
        return -1
    stored = [at for at, buffer in enumerate(kernels[step.kernel].buffers) if buffer.access != "in"]
    if len(stored) != 1 or step.offsets[stored[0]]:
        return -1
    spec = buffers[step.buffers[stored[0]]]
    plain = spec.kind == ARENA and not spec.host and typical(spec.nbytes) >= SMALLEST
    others = [index for at, index in enumerate(step.buffers) if at != stored[0]]
    return spec.index if plain and others and all(buffers[index].kind == INPUT for index in others) else -1
