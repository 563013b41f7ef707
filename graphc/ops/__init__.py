"""The operators of the graph IR. Importing this package registers all of them, one file per family."""

from graphc.ops import (
    activation,
    attention,
    contraction,
    convolution,
    creation,
    extern,
    foreach,
    grouped,
    indexing,
    layout,
    loop,
    loss,
    normalization,
    pointwise,
    pooling,
    random,
    reductions,
    resampling,
    scaled,
    scan,
    views,
)
from graphc.ops.registry import ElementContext, Kind, LoopValue, OpDef, all_ops, exists, get, infer, register

FAMILIES = (
    activation,
    attention,
    contraction,
    convolution,
    creation,
    extern,
    foreach,
    grouped,
    indexing,
    layout,
    loop,
    loss,
    normalization,
    pointwise,
    pooling,
    random,
    reductions,
    resampling,
    scaled,
    scan,
    views,
)
"""The modules that define ops."""

__all__ = [
    "FAMILIES",
    "ElementContext",
    "Kind",
    "LoopValue",
    "OpDef",
    "all_ops",
    "exists",
    "get",
    "infer",
    "register",
]
