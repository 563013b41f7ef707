"""What functions of torch make of rows that wait for their selection (`graphc.frontend.selections`).

A rule computes with all rows what eager computes with the selected ones, and gives a `Selected`, or for sums over the
rows a tensor. A function without a rule, and arguments that a rule declines, are for real rows.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from graphc.frontend import host
from graphc.frontend.recorder import Recorder
from graphc.frontend.selected import Again, Escaped, Family, Selected

Rule: TypeAlias = Callable[[Recorder, Any, Sequence[Any], dict[str, Any]], Any]
_Tensor: Any = torch.Tensor


class Declined(Exception):
    """A rule does not hold for these arguments."""


def call(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What a function gives that has selections among its arguments.

    Returns:
        NotImplemented where it is to be called with the real rows.

    Raises:
        Escaped: of real rows made now, others would not know.
    """
    met = list(_found((*args, *kwargs.values())))
    for selected in met:
        selected.family.check()
    if func in _HISTORY:
        raise Escaped
    if args and type(args[0]) is Selected and args[0].family.size > 1 and _is_in_place(func, args, kwargs):
        raise Escaped
    rule = RULES.get(func)
    if rule is None or not met or any(selected.rows is not None for selected in met) or kwargs.get("out") is not None:
        return NotImplemented
    Selected.in_rule = True
    try:
        result = rule(recorder, func, args, kwargs)
    except Declined:
        return NotImplemented
    except (RuntimeError, TypeError, ValueError, IndexError):  # the same call of the real rows raises in their terms
        return NotImplemented
    finally:
        Selected.in_rule = False
    results = result if isinstance(result, (list, tuple)) else [result]
    for part, item in enumerate(results):
        if type(item) is Selected and all(item is not one for one in met):
            item.again = Again(func, args, kwargs, part if results is result else -1, recorder)
    return result


def _found(items: Iterable[Any]) -> Iterable[Selected]:
    for item in items:
        if type(item) is Selected:
            yield item
        elif isinstance(item, (list, tuple)):
            yield from _found(item)


def _is_in_place(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a function writes to its first argument."""
    name = getattr(func, "__name__", "")
    flagged = kwargs.get("inplace", func in _WITH_FLAG and any(arg is True for arg in args[1:]))
    augmented = name.startswith("__i") and hasattr(operator, name) and name not in ("__invert__", "__index__")
    plain_suffix = name.endswith("_") and not name.endswith("__")
    return bool(flagged) or augmented or plain_suffix or name in ("__setitem__", "__set__")


# operands


def together(items: Sequence[Any]) -> Selected:
    """The first selection of some, all of rows of the same rank, by one mask."""
    met = list(_found(items))
    first = met[0]
    if any(other.mask is not first.mask or len(other.row) != len(first.row) for other in met):
        raise Declined
    return first


def rows_of(item: Any, first: Selected) -> Any:
    """An argument of a function that takes elements one by one, in the form that goes with all rows of `first`."""
    if type(item) is Selected:
        return item.guarded()
    if isinstance(item, torch.Tensor):
        return _beside(item, first)
    return item


def _beside(tensor: torch.Tensor, first: Selected) -> torch.Tensor:
    """A tensor that is the same for all rows. Gradients come to it from the selected ones alone."""
    rank = len(first.row)
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise Declined
    if tensor.dim() == rank + 1 and tensor.shape[0] == 1:
        tensor = tensor.reshape(*(1,) * first.mask.tensor.dim(), *tensor.shape[1:])
    elif tensor.dim() > rank:
        raise Declined
    if not (tensor.requires_grad and torch.is_grad_enabled()):
        return tensor
    if not tensor.dim() and tensor.dtype != first.full.dtype:  # with dims its dtype would count for more
        raise Declined
    return torch.where(first.mask.over(first.full), tensor, tensor.detach())


def place(selected: Selected, dim: Any, more: int = 0) -> int:
    """The dim of all rows for a dim of a row.

    Args:
        more: dims that the result has and the selection has not.
    """
    rank = 1 + len(selected.row) + more
    if type(dim) is not int or not -rank <= dim < rank or dim in (0, -rank):
        raise Declined
    return dim % rank + selected.mask.tensor.dim() - 1


def by_dim(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, with torch's names for numpy's."""
    return {{"axis": "dim", "keepdims": "keepdim"}.get(name, name): item for name, item in kwargs.items()}


def made(recorder: Recorder, full: Any, like: Selected, family: Family | None = None, raw: bool = False) -> Any:
    """Results as selections, also several."""
    if isinstance(full, (list, tuple)):
        return type(full)([made(recorder, part, like, family, raw) for part in full])
    mask = like.mask.tensor
    if full.shape[: mask.dim()] != mask.shape or full.device != mask.device:
        raise Declined
    return recorder.selections.make(full, like.mask, family, raw)


# element by element


def _pointwise(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if _is_in_place(func, args, kwargs) or "requires_grad" in kwargs:
        raise Declined
    first = together((*args, *kwargs.values()))
    full = func(*(rows_of(arg, first) for arg in args), **{name: rows_of(arg, first) for name, arg in kwargs.items()})
    return made(recorder, full, first)


def _division(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Whole numbers that are not selected, and may be 0, are no divisors."""
    first = together((*args, *kwargs.values()))
    whole = [type(arg) is Selected and not arg.full.is_floating_point() for arg in args]
    given = [arg.filled(1) if fill else rows_of(arg, first) for arg, fill in zip(args, whole, strict=True)]
    return made(recorder, func(*given, **kwargs), first)


def _in_place(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`rows.mul_(2)`: nobody else has these rows."""
    target = args[0]
    if type(target) is not Selected or (target.full.requires_grad and not torch.is_grad_enabled()):
        raise Declined
    plain_function = _IN_PLACE[func]
    result = RULES[plain_function](recorder, plain_function, args, kwargs)
    if result.full.dtype != target.full.dtype or result.full.shape != target.full.shape:
        raise Declined
    target.written(result.full)
    return target


def _converted(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Another dtype, or a copy."""
    selected = args[0]
    if type(selected) is not Selected or "memory_format" in kwargs:
        raise Declined
    full = func(selected.full, *(arg.full if type(arg) is Selected else arg for arg in args[1:]), **kwargs)
    return selected if full is selected.full else made(recorder, full, selected, raw=selected.raw)


def _detached(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    (selected,) = args
    return made(recorder, selected.full.detach(), selected, selected.family)


def _contiguous(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    (selected,) = args
    return made(recorder, selected.full, selected, selected.family, selected.raw)


# views


def _getitem(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`rows[:, 1]`, `rows[..., :2]`, and `rows[other]` with a mask made of rows."""
    selected, index = args
    if type(selected) is not Selected:
        raise Declined
    if type(index) is Selected:
        return _selected_again(recorder, selected, index)
    items = index if type(index) is tuple else (index,)
    taken = sum(isinstance(item, (int, slice)) for item in items)
    if not all(item is None or item is Ellipsis or type(item) in (int, slice) for item in items) or not items:
        raise Declined
    if items[0] == slice(None) and taken <= 1 + len(selected.row):
        items = items[1:]
    elif items[0] is not Ellipsis or taken > len(selected.row):
        raise Declined
    full = selected.full[(slice(None),) * selected.mask.tensor.dim() + items]
    return made(recorder, full, selected, selected.family, selected.raw)


def _selected_again(recorder: Recorder, selected: Selected, index: Selected) -> Any:
    condition, mask = index.full, selected.mask
    same = index.mask is mask and condition.dtype == torch.bool
    if not same or condition.shape != selected.full.shape[: condition.dim()]:
        raise Declined
    both = recorder.selections.mask(mask.over(condition) & condition)
    return recorder.selections.make(selected.full, both, raw=selected.raw)


def _reshaped(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`view(-1)`, and `view(-1, ...)` or `view(rows.size(0), ...)` that leave rows whole."""
    selected, *shape = args
    if kwargs:
        raise Declined
    if len(shape) == 1 and isinstance(shape[0], (list, tuple)):
        shape = list(shape[0])
    if len(shape) == 1 and type(shape[0]) is int and shape[0] == -1:
        return _elements(recorder, selected)
    count, *row = shape
    if not row or not all(type(size) is int for size in row):
        raise Declined
    number = host.node_of(count)
    if number is None and (count != -1 or math.prod(row) != math.prod(selected.row)):
        raise Declined
    if number is not None and number is not host.node_of(selected.mask.number):
        raise Declined
    full = selected.full.reshape(*selected.mask.tensor.shape, *row)
    return made(recorder, full, selected, selected.family, selected.raw)


def _flattened(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`flatten()` and `flatten(1)`"""
    selected, *dims = args
    dims += kwargs.values()
    if not dims:
        return _elements(recorder, selected)
    if dims != [1] or not selected.row or "end_dim" in kwargs:
        raise Declined
    full = selected.full.flatten(selected.mask.tensor.dim())
    return made(recorder, full, selected, selected.family, selected.raw)


def _elements(recorder: Recorder, selected: Selected) -> Selected:
    """All elements of the rows, one by one."""
    if math.prod(selected.row) == 1:
        full = selected.full.reshape(selected.mask.tensor.shape)
        return recorder.selections.make(full, selected.mask, selected.family, selected.raw)
    mask = selected.mask.of_elements(selected.full)
    return recorder.selections.make(selected.full, mask, selected.family, selected.raw)


def _along(position: int, default: Any = None, *, view: bool = False, more: int = 0) -> Rule:
    """A function of each row, along dims of it.

    Args:
        position: of `dim` among the arguments.
        default: the dim where none is given.
        view: its results share memory with the first argument.
        more: dims that the result has and the selection has not.
    """

    def along(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        first = together(args)
        given = [_all_rows(arg, view) for arg in args]
        options = by_dim(kwargs)
        dim = args[position] if len(args) > position else options.pop("dim", default)
        dims = dim if isinstance(dim, (list, tuple)) else (dim,)
        places: Any = tuple(place(first, dim, more) for dim in dims)
        places = places if isinstance(dim, (list, tuple)) else places[0]
        if len(args) > position:
            given[position] = places
        else:
            options["dim"] = places
        if view:
            return made(recorder, func(*given, **options), first, first.family, first.raw)
        return made(recorder, func(*given, **options), first)

    return along


def _all_rows(item: Any, raw: bool = False) -> Any:
    if isinstance(item, (list, tuple)) and any(isinstance(part, torch.Tensor) for part in item):
        return [_all_rows(part, raw) for part in item]
    if type(item) is Selected:
        return item.full if raw else item.guarded()
    if isinstance(item, torch.Tensor):
        raise Declined
    return item


def _gather(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Indices that are not selected may lie anywhere, and are not looked at."""
    selected, dim, index = args
    first = together((selected, index))
    if kwargs or type(selected) is not Selected or type(index) is not Selected:
        raise Declined
    return made(recorder, func(selected.guarded(), place(first, dim), index.filled(0)), first)


def _one_hot(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    selected, *count = args
    if not all(type(number) is int and number > 0 for number in (*count, *kwargs.values())) or not (count or kwargs):
        raise Declined  # how many classes there are is read from the rows
    return made(recorder, func(selected.filled(0), *count, **kwargs), selected)


def _setitem(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`x[mask] = rows` by the same mask."""
    target, mask, rows = args
    if type(rows) is not Selected or not isinstance(mask, torch.Tensor) or type(target) is Selected:
        raise Declined
    if type(mask) is Selected or mask.dtype != torch.bool or target.dtype != rows.full.dtype:
        raise Declined
    if mask.shape != target.shape[: mask.dim()] or recorder.selections.mask(mask) is not rows.mask:
        raise Declined
    if len(rows.row) != target.dim() - mask.dim():
        raise Declined
    target.copy_(torch.where(rows.mask.over(target), rows.full, target))
    return None


# what is known of rows


def _shape(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    selected, *dim = args
    sizes = (selected.mask.number, *selected.row)
    given = [*dim, *kwargs.values()]
    return sizes[given[0]] if given and given[0] is not None else torch.Size(sizes)


def _numel(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    selected = args[0]
    return selected.mask.number * math.prod(selected.row)


def _rank(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return 1 + len(args[0].row)


def _of_all(recorder: Recorder, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What is the same of all rows."""
    return func(args[0].full, *args[1:], **kwargs)


# the functions


def both(*names: str, where: Sequence[Any] = (torch, _Tensor)) -> list[Any]:
    """The functions of these names, as functions and as methods."""
    return [getattr(owner, name) for owner in where for name in names if hasattr(owner, name)]


_ELEMENTWISE = (
    "abs", "absolute", "neg", "negative", "add", "sub", "subtract", "mul", "multiply", "rsub", "pow",
    "float_power", "square", "sqrt", "rsqrt", "reciprocal", "exp", "exp2", "expm1", "log", "log1p", "log2", "log10",
    "xlogy", "sigmoid", "logit", "tanh", "relu", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "arctan2",
    "sinh", "cosh", "erf", "erfc", "lgamma", "digamma", "floor", "ceil", "round", "trunc", "frac", "sign", "sgn",
    "eq", "ne", "lt", "le", "gt", "ge", "greater", "greater_equal", "less", "less_equal", "not_equal", "clamp",
    "clip", "clamp_min", "clamp_max", "maximum", "minimum", "fmax", "fmin", "where", "lerp", "addcmul", "addcdiv",
    "nan_to_num", "logaddexp", "hypot", "isnan", "isinf", "isfinite", "isclose", "logical_and", "logical_or",
    "logical_not", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "masked_fill",
    "zeros_like", "ones_like", "full_like",
)  # fmt: skip
_OPERATORS = (
    "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__pow__", "__rpow__", "__neg__", "__abs__",
    "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__and__", "__rand__", "__or__", "__ror__", "__xor__",
    "__rxor__", "__invert__",
)  # fmt: skip
_DIVIDING = (
    "div", "divide", "true_divide", "floor_divide", "remainder", "fmod", "__truediv__", "__rtruediv__", "__rdiv__",
    "__div__", "__floordiv__", "__rfloordiv__", "__mod__", "__rmod__",
)  # fmt: skip
_ACTIVATIONS = (
    "relu", "relu6", "elu", "selu", "celu", "leaky_relu", "gelu", "silu", "mish", "softplus", "sigmoid", "tanh",
    "logsigmoid", "softsign", "hardtanh", "hardsigmoid", "hardswish", "tanhshrink", "softshrink",
)  # fmt: skip
_WITH_FLAG = frozenset(both("relu", "relu6", "elu", "selu", "celu", "leaky_relu", "silu", "mish", "hardtanh",
                            "hardsigmoid", "hardswish", where=(F,)))  # fmt: skip
_HISTORY = frozenset((
    _Tensor.register_hook, _Tensor.register_post_accumulate_grad_hook, _Tensor.retain_grad, _Tensor.grad.__get__,
    _Tensor.grad.__set__, _Tensor.data.__get__, _Tensor.data.__set__, _Tensor.requires_grad.__set__,
    _Tensor.requires_grad_, _Tensor.backward, torch.autograd.grad, torch.autograd.backward,
))  # fmt: skip
"""What asks after the tensor itself, in the history of others that were made of it."""
_IN_PLACE: dict[Any, Any] = {
    **{
        getattr(_Tensor, f"{name}_"): getattr(_Tensor, name)
        for name in (*_ELEMENTWISE, *_DIVIDING)
        if hasattr(_Tensor, f"{name}_") and hasattr(_Tensor, name)
    },
    **{
        getattr(_Tensor, f"__i{name}__"): getattr(_Tensor, f"__{name}__")
        for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
        if f"__i{name}__" in dir(_Tensor)
    },
}
_GETTERS = ("dtype", "device", "layout", "is_cuda", "is_cpu", "requires_grad", "is_sparse", "is_quantized", "is_nested")

RULES: dict[Any, Rule] = {
    **dict.fromkeys(both(*_ELEMENTWISE), _pointwise),
    **dict.fromkeys(both(*_OPERATORS, where=(_Tensor,)), _pointwise),
    **dict.fromkeys(both(*_ACTIVATIONS, where=(F,)), _pointwise),
    **dict.fromkeys(both(*_DIVIDING), _division),
    **dict.fromkeys(_IN_PLACE, _in_place),
    **dict.fromkeys(
        both("float", "double", "half", "bfloat16", "int", "long", "bool", "short", "to", "type_as", "clone", "cpu",
             "cuda", where=(_Tensor,)), _converted,
    ),
    torch.clone: _converted,
    **dict.fromkeys(both("detach"), _detached),
    _Tensor.contiguous: _contiguous,
    _Tensor.__getitem__: _getitem,
    _Tensor.__setitem__: _setitem,
    **dict.fromkeys((_Tensor.view, _Tensor.reshape, torch.reshape), _reshaped),
    **dict.fromkeys(both("flatten"), _flattened),
    **dict.fromkeys(both("squeeze"), _along(1, view=True)),
    **dict.fromkeys(both("unsqueeze"), _along(1, view=True, more=1)),
    **dict.fromkeys(both("chunk", "split"), _along(2, 0, view=True)),
    **dict.fromkeys(both("unbind"), _along(1, 0, view=True)),
    **dict.fromkeys(both("cat", "concat"), _along(1, 0)),
    **dict.fromkeys(both("stack"), _along(1, 0, more=1)),
    **dict.fromkeys(both("softmax", "log_softmax"), _along(1)),
    **dict.fromkeys(both("softmax", "log_softmax", "softmin", where=(F,)), _along(1)),
    **dict.fromkeys(both("argmax", "argmin", "logsumexp", "cumsum", "prod", "var", "std"), _along(1)),
    **dict.fromkeys(both("normalize", "cosine_similarity", where=(F,)), _along(2, 1)),
    torch.cosine_similarity: _along(2, 1),
    **dict.fromkeys(both("gather"), _gather),
    F.one_hot: _one_hot,
    **dict.fromkeys((_Tensor.shape.__get__, _Tensor.size), _shape),
    **dict.fromkeys(both("numel"), _numel),
    _Tensor.nelement: _numel,
    **dict.fromkeys((_Tensor.ndim.__get__, _Tensor.dim, _Tensor.ndimension), _rank),
    **{getattr(_Tensor, name).__get__: _of_all for name in _GETTERS},
    **dict.fromkeys(both("is_floating_point", "is_complex", "element_size", "get_device"), _of_all),
    **dict.fromkeys(
        both("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", where=(_Tensor,)), _of_all,
    ),
}  # fmt: skip
"""By the function that Python calls; those of sums and losses are added by `selected_sums`."""
