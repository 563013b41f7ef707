"""How generated C is compiled, and how it must be to mean what it says."""

from __future__ import annotations

from graphc.settings import settings

CFLAGS: tuple[str, ...] = (
    "-std=gnu11",
    "-O2",  # -O3 takes twice the time and finds nothing more in loops that say `omp simd`
    "-ftree-loop-vectorize",
    "-fvect-cost-model=dynamic",
    "-fno-thread-jumps",  # threading splits chains of selects into branches, which then do not vectorise
    "-fno-tree-pre",  # so does moving computations into the branches that need them
    "-march=native",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-fno-math-errno",  # sqrt and the functions of libmvec are pure
    "-fno-trapping-math",  # comparisons may be turned into selects
    "-ffp-contract=off",  # no fused multiply-add where the program has none
    "-fwrapv",  # integers wrap, as in eager
    "-fno-strict-aliasing",  # the arena holds values of several dtypes one after the other
    "-fno-semantic-interposition",
)
"""Flags for every unit of generated kernels. NaN, inf and signed zeros stay what IEEE says: no -ffast-math."""


def c_flags() -> tuple[str, ...]:
    """Flags of the programs that are made now: those that the user adds come last, and so win."""
    return (*CFLAGS, *settings().cflags)


LIBRARIES: tuple[str, ...] = ("-lmvec", "-lm")
"""Libraries that generated kernels call."""
