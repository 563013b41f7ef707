"""Float arithmetic that numpy lacks, in C: fused multiply-add, and rounding in other directions than to nearest.

Source: PTX ISA 8.7, 9.7.3 Floating Point Instructions; a fused multiply-add of 16-bit floats is rounded to odd in
float32 first, which makes the second rounding the only one that counts (Boldo and Melquiond, Emulation of FMA and
correctly rounded sums: proved algorithms using rounding to odd, 2008).
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from graphc.runtime.small_library import small_library

Array = np.ndarray[Any, Any]

_TEXT = r"""
#include <fenv.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

static const int MODES[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};

#define LOOP(NAME, TYPE, EXPRESSION)                                                                      \
    void NAME(int64_t n, const TYPE *a, const TYPE *b, const TYPE *c, TYPE *out, int mode) {              \
        int old = fegetround();                                                                           \
        fesetround(MODES[mode]);                                                                          \
        for (int64_t i = 0; i < n; i++) out[i] = EXPRESSION;                                              \
        fesetround(old);                                                                                  \
    }

LOOP(fma_f32, float, fmaf(a[i], b[i], c[i]))
LOOP(fma_f64, double, fma(a[i], b[i], c[i]))
LOOP(add_f32, float, a[i] + b[i])
LOOP(add_f64, double, a[i] + b[i])
LOOP(mul_f32, float, a[i] * b[i])
LOOP(mul_f64, double, a[i] * b[i])
LOOP(div_f32, float, a[i] / b[i])
LOOP(div_f64, double, a[i] / b[i])
LOOP(sqrt_f32, float, sqrtf(a[i]))
LOOP(sqrt_f64, double, sqrt(a[i]))
LOOP(narrow_f64, double, (double)(float)a[i])

void fma_odd(int64_t n, const float *a, const float *b, const float *c, float *out, int mode) {
    int old = fegetround();
    fesetround(FE_TOWARDZERO);
    for (int64_t i = 0; i < n; i++) {
        feclearexcept(FE_INEXACT);
        volatile float value = fmaf(a[i], b[i], c[i]);
        uint32_t bits;
        memcpy(&bits, (const float *)&value, 4);
        if (fetestexcept(FE_INEXACT)) bits |= 1;
        memcpy(out + i, &bits, 4);
    }
    feclearexcept(FE_ALL_EXCEPT);
    fesetround(old);
}
"""
_FLAGS = ("-O2", "-shared", "-fPIC", "-frounding-math", "-ftrapping-math", "-ffp-contract=off")
MODES = {"rn": 0, "rz": 1, "rm": 2, "rp": 3}
"""Rounding by the modifier's name."""


@functools.cache
def _library() -> ctypes.CDLL:
    return small_library("exact", _TEXT, _FLAGS, ("-lm",))


def exactly(name: str, mode: str, *operands: Array) -> Array:
    """An operation of one rounding on floats of one dtype.

    Args:
        name: `fma`, `add`, `mul`, `div`, `sqrt`, `narrow` (to the nearest float32, kept in float64), `fma_odd`.
        mode: `rn`, `rz`, `rm` or `rp`.
        operands: float32 or float64, broadcastable.
    """
    parts = [np.ascontiguousarray(part) for part in np.broadcast_arrays(*operands)]
    out = np.empty_like(parts[0])
    kind = "" if name == "fma_odd" else "_f32" if out.dtype == np.float32 else "_f64"
    pointers = [ctypes.c_void_p(part.ctypes.data) for part in parts] + [None] * (3 - len(parts))
    function = getattr(_library(), name + kind)
    function(ctypes.c_int64(out.size), *pointers, ctypes.c_void_p(out.ctypes.data), MODES[mode])
    return out
