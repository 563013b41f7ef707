"""Kernels of loop IR as C functions.

Three shapes of code, chosen by where memory is contiguous:

    pointwise   no row axis: loops over all axes, the contiguous one innermost, tiles when two buffers disagree on which
    row         the contiguous axis is a row axis: per row one vectorised loop per stage of the kernel
    lanes       the contiguous axis is parallel: blocks of it are carried as small arrays through loops over the rows

With few rows and much work, the row loops of a stage run over fixed chunks in parallel and the partial results are
combined in order, so that results do not depend on the number of threads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from graphc.codegen.c.pointwise import BEFORE, is_plain_copy, takes_rows, write_pointwise
from graphc.codegen.c.prelude import MEMORY_TYPES, is_helper
from graphc.codegen.c.rows import write_rows
from graphc.codegen.c.scalar_text import c_type
from graphc.codegen.c.writer import Writer
from graphc.codegen.size_text import with_sizes
from graphc.ir.dims import symbols
from graphc.ir.sizes import depends_on_sizes, typical
from graphc.loopir.analysis import KernelFacts
from graphc.loopir.kernel import Buffer, Kernel, is_value
from graphc.loopir.transform import (
    drop_dead,
    drop_unit_axes,
    indices,
    lower_arg_reductions,
    merge_axes,
    split_divided_axes,
)

_KEYWORDS = frozenset(
    (
        "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern",
        "float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed",
        "sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while", "asm",
        "typeof", "main", "p", "h",
    )
)  # fmt: skip

_MOST_TIMES = 8
"""How many times a kernel's typical work it may have for sizes of as many bits."""


@dataclass(frozen=True)
class COptions:
    """Knobs of the C generator.

    Args:
        parallel_cost: estimated work, in additions, from which a kernel runs on several threads.
        row_buffer_bytes: stack per thread for values of one row that later stages need again.
        chunk: elements of a row in one parallel step, at least, when there are too few rows.
        parallel: False writes no OpenMP threads at all.
        threads_if: an OpenMP clause that says when there are threads; empty for always.
        begins: a buffer of which each row, right before the kernel comes to it, is copied from the same row of one more
            argument, the last one; see `copies_for`.
    """

    parallel_cost: int = 400_000
    row_buffer_bytes: int = 64 << 10
    chunk: int = 2048
    parallel: bool = True
    threads_if: str = ""
    begins: str = ""


@dataclass(frozen=True)
class CKernel:
    """A kernel as C.

    Args:
        name: of the C function, `static void NAME(<a pointer per buffer, in order>, <an int64_t per size>)`.
        text: the function.
        helpers: prelude functions it calls; `prelude(helpers)` gives their text.
        parameters: C declarations of the parameters.
        sizes: names of the symbolic sizes, in the order of their parameters.
    """

    name: str
    text: str
    helpers: frozenset[str]
    parameters: tuple[str, ...]
    sizes: tuple[str, ...] = ()

    @property
    def prototype(self) -> str:
        return f"void {self.name}({', '.join(self.parameters)})"


def emit_kernel(kernel: Kernel, options: COptions = COptions()) -> CKernel:
    """Write a kernel in C.

    Args:
        kernel: a verified kernel.
        options: see `COptions`.

    Returns:
        The function and what it needs. Buffers may share memory where they are accessed at equal indices.

    Raises:
        CodegenError: a dtype that C kernels do not hold (complex, 8-bit floats).

    Numerics: sums of f32 are accumulated in double, sums of f64 with their rounding errors; transcendental functions
    are libmvec's, within 4 units in the last place; no result depends on the number of threads.
    """
    sizes = tuple(sorted(_sizes(kernel)))
    normal = normalize(kernel)
    facts = KernelFacts(normal)
    names = {b.name: _safe_name(b.name) for b in kernel.buffers}
    writer = Writer(facts, names)
    if not any(axis.extent == 0 for axis in normal.parallel_axes):
        (write_rows if normal.row_axes else write_pointwise)(writer, _with_threads(options, facts.total_cost))
    parameters = (*(_parameter(b, names[b.name]) for b in kernel.buffers), *(f"int64_t {size}" for size in sizes))
    name = f"k_{kernel.name}"
    if options.begins:
        parameters = (*parameters, f"const void *{BEFORE}")
        name += "_on_copy"
    lines = [
        *(f"// src[{note}]" for note in kernel.notes),
        f"static __attribute__((noinline)) void {name}({', '.join(parameters)}) {{",
        *writer.lines,
        "}",
    ]
    text = with_sizes("\n".join(lines) + "\n")
    return CKernel(name, text, frozenset(writer.helpers), parameters, sizes)


def copies_for(copy: Kernel, kernel: Kernel, buffer: str) -> bool:
    """Whether a kernel may itself make the copy that it works on, row by row: what is in the cache is then worked on.

    Args:
        copy: a kernel of two buffers that runs right before it.
        buffer: of `kernel`, what the copy gives.
    """
    return is_plain_copy(normalize(copy)) and takes_rows(KernelFacts(normalize(kernel)), buffer)


def normalize(kernel: Kernel) -> Kernel:
    """The kernel with as few axes, divisions and kinds of reductions as it can have."""
    kernel = lower_arg_reductions(drop_dead(kernel))
    return merge_axes(split_divided_axes(drop_unit_axes(kernel)))


def _with_threads(options: COptions, cost: int) -> COptions:
    """The options for a kernel of so much work: what depends on sizes is compared with the limit in each call."""
    if not depends_on_sizes(cost):
        return replace(options, parallel=options.parallel and cost >= options.parallel_cost)
    may_be = options.parallel and _MOST_TIMES * typical(cost) >= options.parallel_cost
    return replace(options, parallel=may_be, threads_if=f" if (parallel: {cost} >= {options.parallel_cost})")


def _sizes(kernel: Kernel) -> set[str]:
    """Symbols that are neither axes nor values: sizes given at launch."""
    expressions = [*(axis.extent for axis in kernel.axes), *indices(kernel)]
    found = {name for expr in expressions for name in symbols(expr) if not is_value(name)}
    return found - {axis.name for axis in kernel.axes}


def _parameter(buffer: Buffer, name: str) -> str:
    c_type(buffer.dtype)
    const = "const " if buffer.access == "in" else ""
    return f"{const}{MEMORY_TYPES[buffer.dtype.name]} *{name}"


def _safe_name(name: str) -> str:
    clashes = (
        name in _KEYWORDS
        or is_helper(name)
        or re.fullmatch(r"(v\d+|gc)_\w+|\w+_(block|end|chunk|run|stop)|size\d+", name)
    )
    return f"{name}_" if clashes else name
