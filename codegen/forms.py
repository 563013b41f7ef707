"""The forms that steps of a plan can be asked for: a library call, or generated code cut in one way or another.

A step without a form is computed as the generator chooses. All forms keep the numerics contract.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.codegen.aten_shim import exported
from graphc.codegen.attention import GENERATED, LIBRARY, attention_text
from graphc.codegen.gemm import BLAS, GEMM_SYMBOLS, blas_call, fits_tiles, is_empty, product_of
from graphc.codegen.tile_text import BLOCKINGS
from graphc.program.plan import AtenStep, BufferSpec, GemmStep, Step

ONLY = ("",)
"""Of a step that is computed in one way."""


def native_forms(step: Step, buffers: Sequence[BufferSpec]) -> tuple[str, ...]:
    """The forms of a step of a native program.

    Args:
        buffers: that the step names.
    """
    if isinstance(step, AtenStep):
        return ONLY if attention_text(step, buffers) is None else (LIBRARY, GENERATED)
    if not isinstance(step, GemmStep) or is_empty(step) or step.out.dtype not in GEMM_SYMBOLS:
        return ONLY
    call = blas_call(product_of(step))
    if call is None or not fits_tiles(step, call):
        return ONLY
    return (BLAS, *BLOCKINGS) if exported(GEMM_SYMBOLS[step.out.dtype][bool(call.product.batch)]) else ONLY
