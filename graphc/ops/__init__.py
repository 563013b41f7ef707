"""The operators of the graph IR. Importing this package registers all of them, one file per family."""

from graphc.ops import (
    activation,
    attention,
    contraction,
    convolution,
    creation,
    extern,
    foreach,
    indexing,
    layout,
    loop,
    loss,
    normalization,
    pointwise,
    pooling,
    pooling_backward,
    random,
    reductions,
    resampling,
    resampling_backward,
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
    indexing,
    layout,
    loop,
    loss,
    normalization,
    pointwise,
    pooling,
    pooling_backward,
    random,
    reductions,
    resampling,
    resampling_backward,
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
