"""Kernels on single numbers in a program for a device as one small C source: the CPU runs them in nanoseconds.

    add.loop, scale.loop ──> host.c: void host_add(char *const *p), void host_scale(char *const *p)

Each function takes the addresses of its kernel's buffers, in order. What calls them one after the other is of the
runtime, see `graphc.runtime.host_list`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from graphc.codegen.c.emit import CKernel, COptions, emit_kernel
from graphc.codegen.c.prelude import prelude
from graphc.errors import CodegenError
from graphc.ir.types import f32, f64
from graphc.loopir.kernel import Compute, Kernel, Statement
from graphc.loopir.numpy_ops import IN_FLOAT64
from graphc.program.triton_kernel import host_function

_OPTIONS = COptions(parallel=False)


def host_text(kernels: Mapping[str, Kernel]) -> str:
    """The C source of kernels that the CPU runs, by name.

    Returns:
        A function per kernel that C can hold; the others (of 8-bit floats) are left to be interpreted. "" when there is
        none.

    Numerics: functions of f32 are computed in f64 and rounded once, as the interpreter of loop IR does; those of f64
    are libm's, one number at a time, as Python's own are.
    """
    made: dict[str, CKernel] = {}
    for name, kernel in kernels.items():
        try:
            found = emit_kernel(replace(widen_functions(kernel), name=name, notes=()), _OPTIONS)
        except CodegenError:
            continue  # its loop IR is there as well
        if not found.sizes:
            made[name] = found
    if not made:
        return ""
    helpers = {helper for kernel in made.values() for helper in kernel.helpers}
    return "\n".join((prelude(helpers), *(part for item in made.items() for part in _function(*item))))


def _function(name: str, kernel: CKernel) -> Iterator[str]:
    yield kernel.text
    pointers = ", ".join(f"(void *)p[{number}]" for number in range(len(kernel.parameters)))
    yield f"void {host_function(name)}(char *const *p) {{ {kernel.name}({pointers}); }}\n"


def widen_functions(kernel: Kernel) -> Kernel:
    """Functions of f32 (exponentials, powers) as functions of f64, rounded once.

    v1: f32 = exp v0   ──>   v1_0: f64 = cast v0
                             v1_r: f64 = exp v1_0
                             v1: f32 = cast v1_r
    """
    body: list[Statement] = []
    for s in kernel.body:
        if not (isinstance(s, Compute) and s.dtype == f32 and s.op in (*IN_FLOAT64, "pow")):
            body.append(s)
            continue
        wide = tuple(f"{s.id}_{number}" for number in range(len(s.args)))
        body += [Compute(name, f64, "cast", (arg,)) for name, arg in zip(wide, s.args, strict=True)]
        body += [Compute(f"{s.id}_r", f64, s.op, wide), Compute(s.id, f32, "cast", (f"{s.id}_r",))]
    return replace(kernel, body=tuple(body))
