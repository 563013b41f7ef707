"""`extern`: any ATen overload as it is, which is how operators without a definition of their own run.

    %r: f32[4] = extern(%a, %b) {op="aten.foo.default", args=[$0, 2, [$1, None]], kwargs={flag=True}, mutates=[0]}

`args` and `kwargs` are a template of the call: `$i` stands for operand i, `@kind.name` for a torch constant, a dtype
for itself. `mutates` lists the operands the call writes to; the graph is functional, so they are cloned, the call is
made on the clones, and the clones are results too. `effect` ("random" or "opaque") keeps the op and its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import torch

from graphc.errors import InvalidGraphError
from graphc.ir.dims import Expr
from graphc.ir.graph import Attr, Named, Op, Operand, Ref
from graphc.ir.types import DType
from graphc.ops.registry import Kind, OpDef, get, register


@lru_cache(maxsize=4096)
def overload(name: str) -> Any:
    """The ATen overload called `namespace.name.overload`, as in `aten.add.Tensor`.

    Raises:
        InvalidGraphError: this torch has no such overload.
    """
    namespace, _, rest = name.partition(".")
    packet, _, variant = rest.rpartition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), packet), variant)
    except (AttributeError, RuntimeError):
        raise InvalidGraphError(f"torch {torch.__version__} has no operator overload {name!r}") from None


def resolve(template: Attr, operands: Sequence[Any]) -> Any:
    """A template with `$i` replaced by `operands[i]`, constants by torch's objects, tuples by lists.

    Args:
        template: an `args` or `kwargs` attribute, or a part of one.
        operands: what stands for the operands: tensors and numbers, or anything else the caller works with.

    Raises:
        InvalidGraphError: a constant that torch does not have, or a symbolic size.
    """
    kind = type(template)
    if kind is Ref:
        return operands[template.index]
    if kind is tuple:
        return [resolve(item, operands) for item in template]
    if kind is dict:
        return {key: resolve(item, operands) for key, item in template.items()}
    if kind is Named or kind is DType:
        return torch_constant(template)
    if kind is Expr:
        raise InvalidGraphError(f"extern with the symbolic size {template}, which has no value here")
    return template


def torch_constant(constant: Named | DType) -> Any:
    """torch's object for a dtype, `@device.cpu`, `@memory_format.channels_last`, `@layout.strided`, `@dtype.quint8`.

    Raises:
        InvalidGraphError: torch has no such constant.
    """
    if isinstance(constant, DType):
        return getattr(torch, constant.torch_name)
    if constant.kind == "device":
        return torch.device(constant.name)
    classes = {"memory_format": torch.memory_format, "layout": torch.layout, "dtype": torch.dtype}
    value = getattr(torch, constant.name, None)
    if constant.kind not in classes or not isinstance(value, classes[constant.kind]):
        raise InvalidGraphError(f"torch has no constant {constant!r}")
    return value


def lengths(call: Any) -> frozenset[int]:
    """Which returns of an overload are lengths of its operands, numbers that follow from shapes: they are no results.

    The fused attentions of GPUs return how long the queries and the keys are, for their gradients.
    """
    if not call._schema.name.startswith("aten::_scaled_dot_product_"):
        return frozenset()
    return frozenset(number for number, item in enumerate(call._schema.returns) if str(item.type) != "Tensor")


def own_returns(call: Any, answer: Any) -> list[Any]:
    """The results of an extern op before the mutated clones: tensors and numbers that a call returned, in order.

    Lists are flattened, None (a gradient not asked for) is left out, and so are `lengths`, and returns that the schema
    marks as one of the arguments written to: those come back as clones.

    Args:
        call: the overload.
        answer: what it returned.
    """
    returns, known = call._schema.returns, lengths(call)
    answers = (answer,) if len(returns) == 1 else (() if answer is None else tuple(answer))
    found: list[Any] = []
    for number, (declared, item) in enumerate(zip(returns, answers, strict=True)):
        if number in known or (declared.alias_info is not None and declared.alias_info.is_write):
            continue
        found.extend(part for part in (item if isinstance(item, (list, tuple)) else [item]) if part is not None)
    return found


LIBRARY_CALL = "library call"
"""Why an op is an ATen call which is libraries' work by design: products, convolutions, attention, recurrent layers."""
_LIBRARIES = (
    "convolution", "mkldnn_convolution", "slow_conv", "conv_depthwise", "_scaled_dot_product", "lstm", "gru", "rnn_",
    "mkldnn_rnn", "_thnn_fused", "mm.", "bmm.", "addmm.", "baddbmm.", "grouped_mm", "_grouped_mm", "_scaled_mm",
    "linalg_solve_triangular",
)  # fmt: skip


def is_library(name: str) -> bool:
    """Whether an ATen (or other) operator is a product, a convolution, attention or a recurrent layer.

    Args:
        name: `namespace.name.overload`.
    """
    return name.partition(".")[2].startswith(_LIBRARIES)


def gives_views(name: str) -> bool:
    """Whether all that an operator gives are views of its operands, as by `view_as_real`: it moves no bytes."""
    returns = overload(name)._schema.returns
    return bool(returns) and all(item.alias_info is not None and not item.alias_info.is_write for item in returns)


def effect(op: Op) -> str:
    """Effect of any op: that of its definition, or the attribute `effect` of an extern one. Empty for pure ops."""
    stated: str = op.attrs.get("effect", "") if op.name == "extern" else get(op.name).effect
    return stated


def _infer(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> NoReturn:
    raise InvalidGraphError("the types of an extern op are stated where it is made, not inferred")


def _reference(
    *operands: Any,
    op: str,
    args: Attr = (),
    kwargs: Attr = None,
    mutates: Sequence[int] = (),
    effect: str = "",
) -> tuple[Any, ...]:
    call = overload(op)
    private = list(operands)
    for index in mutates:
        private[index] = private[index].clone()
    answer = call(*resolve(args, private), **resolve(kwargs or {}, private))
    return (*own_returns(call, answer), *(private[index] for index in mutates))


EXTERN = register(
    OpDef(
        "extern",
        Kind.EXTERN,
        "Call of an ATen overload. op: its name; args, kwargs: template of the call; mutates: operands it writes to; "
        "effect: 'random' (draws from torch's generator), 'opaque' (keeps its place), or absent.",
        _infer,
        _reference,
    )
)
