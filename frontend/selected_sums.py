"""Sums, means, extremes and losses of selected rows: what gives tensors of known shape.

Rows that are not selected are the neutral element of a reduction. A mean of no rows is 0 / 0, as eager's.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F

from graphc.frontend import host
from graphc.frontend.recorder import Recorder
from graphc.frontend.selected import Selected
from graphc.frontend.selected_functions import RULES, Declined, Rule, both, by_dim, call, made, place, rows_of, together

_Tensor: Any = torch.Tensor
_16_BITS = (torch.float16, torch.bfloat16)


def _dims(selected: Selected, dim: Any) -> tuple[list[int], bool]:
    """The dims of all rows that a reduction goes along, and whether it goes along the rows themselves."""
    rank, count = 1 + len(selected.row), selected.mask.tensor.dim()
    given = range(rank) if dim is None or dim in ([], ()) else dim if isinstance(dim, (list, tuple)) else [dim]
    if not all(type(one) is int and -rank <= one < rank for one in given):
        raise Declined
    of_rows = [one % rank for one in given]
    if len(set(of_rows)) < len(of_rows):
        raise Declined
    dims = [one + count - 1 for one in of_rows if one]
    return (list(range(count)) if 0 in of_rows else []) + dims, 0 in of_rows


def _arguments(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, bool, dict[str, Any]]:
    """(dim, keepdim, all others by name) of a reduction."""
    names = ("dim", "keepdim")
    given = {**dict(zip(names, args[1:], strict=False)), **by_dim(kwargs)}
    if len(args) > 3 or given.keys() - {*names, "dtype"}:
        raise Declined
    return given.pop("dim", None), given.pop("keepdim", False), given


def _reduction(of_rows: Callable[[Any, Selected, list[int], bool, dict[str, Any]], torch.Tensor]) -> Rule:
    """A reduction of all rows to one, or of each row.

    Args:
        of_rows: the first, given the function, a selection, the dims of all rows, `keepdim` and all other arguments.
    """

    def reduce(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        selected = together(args)
        dim, keepdim, options = _arguments(args, kwargs)
        dims, over_rows = _dims(selected, dim)
        if not over_rows:
            return made(recorder, func(selected.guarded(), dims, keepdim, **options), selected)
        result, rank = of_rows(func, selected, dims, keepdim, options), selected.mask.tensor.dim()
        return result.flatten(0, rank - 1) if keepdim and rank > 1 else result  # one dim for all of the mask's

    return reduce


def _sum(func: Any, selected: Selected, dims: list[int], keepdim: bool, options: dict[str, Any]) -> torch.Tensor:
    total: torch.Tensor = func(selected.filled(0), dims, keepdim, **options)
    return total


def _no_form(func: Any, selected: Selected, dims: list[int], keepdim: bool, options: dict[str, Any]) -> NoReturn:
    raise Declined


def _mean(func: Any, selected: Selected, dims: list[int], keepdim: bool, options: dict[str, Any]) -> torch.Tensor:
    dtype = options.get("dtype") or selected.full.dtype
    if not dtype.is_floating_point:
        raise Declined
    return _mean_over(selected, dims, keepdim, dtype)


def _mean_over(selected: Selected, dims: list[int], keepdim: bool, dtype: torch.dtype) -> torch.Tensor:
    """The sum, divided in the dtype it is summed in, and rounded once."""
    wide = torch.float32 if dtype in _16_BITS else dtype
    total = torch.sum(selected.filled(0), dims, keepdim, dtype=wide)
    sizes = [selected.full.shape[one] for one in dims[selected.mask.tensor.dim() :]]
    return (total / (selected.mask.count * math.prod(sizes))).to(dtype)


def _all(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`all` and `any` of truth values."""
    selected = together(args)
    if len(args) > 1 or kwargs or selected.full.dtype != torch.bool:
        raise Declined
    return func(selected.filled(func in (torch.all, _Tensor.all)))


def _extreme(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`max` and `min`: of all elements, of each row, or of two selections element by element.

    Of all elements where there are some, which the program checks: what eager says of none is eager's to say. Without
    gradients, which would go to elements that are not selected where these are as extreme.
    """
    selected = together((*args, *kwargs.values()))
    if any(isinstance(arg, torch.Tensor) for arg in args[1:]):
        return made(recorder, func(*(rows_of(arg, selected) for arg in args), **kwargs), selected)
    dim, keepdim, options = _arguments(args, kwargs)
    if dim is not None:
        if options:
            raise Declined
        return made(recorder, func(selected.guarded(), place(selected, dim), keepdim), selected)
    full = selected.full
    if full.dtype == torch.bool or (full.requires_grad and torch.is_grad_enabled()) or 0 in selected.row:
        raise Declined
    number = host.node_of(selected.mask.number)
    assert number is not None
    if not number.scope.assume(number.binary("gt", 0)):
        raise Declined
    least, greatest = (-torch.inf, torch.inf) if full.is_floating_point() else _bounds(full.dtype)
    return func(selected.filled(least if func in (torch.max, _Tensor.max) else greatest))


def _bounds(dtype: torch.dtype) -> tuple[int, int]:
    known = torch.iinfo(dtype)
    return known.min, known.max


def _norm(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The root of the sum of squares, or the sum of absolute values."""
    selected = together(args)
    given = {**dict(zip(("p", "dim", "keepdim", "dtype"), args[1:], strict=False)), **kwargs}
    given = {name: item for name, item in given.items() if item is not None and item is not False}
    dim = given.pop("dim", None)
    if given.get("p", "fro") not in ("fro", 1, 2):
        raise Declined
    if dim is None:
        if given.keys() - {"p"}:
            raise Declined
        return func(selected.filled(0), **given)
    dims, over_rows = _dims(selected, dim)
    if over_rows:
        raise Declined
    return made(recorder, func(selected.guarded(), dim=dims, **given), selected)


# losses


@functools.cache
def _signature(func: Any) -> inspect.Signature:
    return inspect.signature(func)


def _bound(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a loss by name."""
    bound = _signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    if given.pop("size_average", None) is not None or given.pop("reduce", None) is not None:
        raise Declined
    return given


def _loss(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A loss whose mean is that of its elements."""
    given = _bound(func, args, kwargs)
    if func in _WEIGHTED_MEANS and given.get("weight") is not None:
        raise Declined
    return _reduced(recorder, _elements(recorder, func, given), given["reduction"])


def _elements(recorder: Recorder, func: Any, given: dict[str, Any]) -> Selected:
    """A loss of each element."""
    first = together(list(given.values()))
    rows = {name: rows_of(item, first) for name, item in given.items()}
    if func is F.binary_cross_entropy:  # which refuses what is no probability
        if type(given["input"]) is not Selected:
            raise Declined
        rows["input"] = torch.where(first.mask.over(first.full), rows["input"], 0.5)
    result: Selected = made(recorder, func(**{**rows, "reduction": "none"}), first)
    return result


def _reduced(recorder: Recorder, losses: Selected, reduction: str) -> Any:
    if reduction == "none":
        return losses
    dims = list(range(losses.full.dim()))
    if reduction == "mean":
        return _mean_over(losses, dims, False, losses.full.dtype)
    total = losses.filled(0).sum()
    if reduction == "batchmean":
        return total / losses.mask.count
    if reduction != "sum":
        raise Declined
    return total


def _class_loss(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`cross_entropy` and `nll_loss`: of classes, rows that are not selected are to be ignored like others."""
    given = _bound(func, args, kwargs)
    scores, classes, reduction = given["input"], given["target"], given["reduction"]
    if not (type(scores) is type(classes) is Selected and scores.mask is classes.mask and scores.row):
        raise Declined
    dims = scores.mask.tensor.dim()
    whole = classes.full.dtype == torch.int64
    if len(scores.row) != len(classes.row) + whole or reduction not in ("mean", "sum", "none"):
        raise Declined
    target = classes.filled(given["ignore_index"]) if whole else classes.guarded()
    rows = {**given, "input": scores.guarded().flatten(0, dims - 1), "target": target.flatten(0, dims - 1)}
    if whole and reduction != "none":
        return func(**rows)
    losses = func(**{**rows, "reduction": "none"})
    full = losses.reshape(*scores.mask.tensor.shape, *losses.shape[1:])
    losses = made(recorder, full, scores)
    if reduction == "mean":  # for each row and each place in it
        return losses.filled(0).sum() / (losses.mask.count * math.prod(losses.row))
    return _reduced(recorder, losses, reduction)


_WEIGHTED_MEANS = (F.mse_loss, F.l1_loss, F.huber_loss)
RULES.update({
    **dict.fromkeys(both("sum"), _reduction(_sum)),
    **dict.fromkeys(both("amax", "amin"), _reduction(_no_form)),
    **dict.fromkeys(both("mean"), _reduction(_mean)),
    **dict.fromkeys(both("all", "any"), _all),
    **dict.fromkeys(both("max", "min"), _extreme),
    **dict.fromkeys(both("norm"), _norm),
    **dict.fromkeys(
        (
            F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy,
            F.binary_cross_entropy_with_logits, F.kl_div, F.poisson_nll_loss, F.soft_margin_loss,
        ),
        _loss,
    ),
    **dict.fromkeys((F.cross_entropy, F.nll_loss), _class_loss),
})  # fmt: skip
call_of_selected = call
"""`selected_functions.call`, with the rules of this module."""
