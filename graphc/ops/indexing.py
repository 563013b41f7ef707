"""Reading and writing at places that are data: gather, take, index, scatter, put.

Indices are integer tensors. As in eager, negative ones count from the end or are refused, and those out of range are
refused: `graphc.ops.checks` says what each eager function takes. The program raises what eager raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from graphc.ir.dims import Dim
from graphc.ir.graph import Attr, Builder, Op, Operand, Ref, Value
from graphc.ir.types import TensorType
from graphc.ops import checks, rules
from graphc.ops.registry import AtenCall, ElementContext, Kind, LoopValue, OpDef, register

SCATTER_MODES = ("set", "add", "prod", "amax", "amin")
PUT_MODES = ("set", "add")


def _indices(op: str, operands: Sequence[Operand], position: int) -> Value:
    value = rules.tensor(op, operands, position, ("int", "uint"))
    if value.type.dtype.name not in ("i64", "i32", "i16", "i8", "u8"):
        rules.fail(op, f"operand {position} is {value.type.dtype.name}; indices are i64, i32, i16, i8 or u8")
    return value


def _check_not_empty(op: str, base: Value, dim: int, indices: Value) -> None:
    if base.type.shape[dim] == 0 and indices.type.numel != 0:
        rules.fail(op, f"{base.type} has nothing to index in dim {dim}")


# gather: an index per element


def _infer_gather(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("gather", attrs, ("dim",), ("check",))
    checks.check_name("gather", attrs.get("check", "gather"))
    rules.check_count("gather", operands, 2)
    base, indices = rules.tensor("gather", operands, 0), _indices("gather", operands, 1)
    _check_along("gather", base, indices, attrs["dim"])
    return (base.type.with_shape(indices.type.shape),)


def _check_along(op: str, base: Value, indices: Value, dim: Attr) -> None:
    if base.type.rank != indices.type.rank:
        rules.fail(op, f"{base.type} and its indices {indices.type} differ in their number of dims")
    rules.check_dim(op, dim, base.type.rank)
    for d, (size, count) in enumerate(zip(base.type.shape, indices.type.shape, strict=True)):
        if d != dim and isinstance(size, int) and isinstance(count, int) and count > size:
            rules.fail(op, f"indices {indices.type} reach beyond {base.type} in dim {d}")
    _check_not_empty(op, base, dim, indices)


def _lower_gather(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    base, dim = op.operands[0], op.attrs["dim"]
    assert isinstance(base, Value)
    check = op.attrs.get("check", "gather")
    position = checks.data_index(ctx, op.operands[1], index, base.type.shape[dim], check, dim)
    return ctx.element(base, (*index[:dim], position, *index[dim + 1 :]))


def _gather(x: torch.Tensor, indices: torch.Tensor, dim: int, check: str = "gather") -> torch.Tensor:
    return torch.gather(x, dim, checks.checked_indices(indices, x.shape[dim], check, dim))


# take: indices of any rank in place of a dim


def _infer_take(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("take", attrs, ("dim",), ("check",))
    checks.check_name("take", attrs.get("check", "index"))
    rules.check_count("take", operands, 2)
    base, indices = rules.tensor("take", operands, 0), _indices("take", operands, 1)
    dim = rules.check_dim("take", attrs["dim"], base.type.rank)
    _check_not_empty("take", base, dim, indices)
    shape = base.type.shape
    return (base.type.with_shape((*shape[:dim], *indices.type.shape, *shape[dim + 1 :])),)


def _take(x: torch.Tensor, indices: torch.Tensor, dim: int, check: str = "index") -> torch.Tensor:
    shape = (*x.shape[:dim], *indices.shape, *x.shape[dim + 1 :])
    if check == "index" and 0 in shape:  # eager looks at indices as it reads elements
        return x.new_empty(shape)
    return torch.index_select(x, dim, checks.checked_indices(indices, x.shape[dim], check).reshape(-1)).reshape(shape)


def _lower_take(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    (base, indices), dim = op.operands, op.attrs["dim"]
    assert isinstance(base, Value) and isinstance(indices, Value)
    rank = indices.type.rank
    check = op.attrs.get("check", "index")
    position = checks.data_index(ctx, indices, index[dim : dim + rank], base.type.shape[dim], check)
    return ctx.element(base, (*index[:dim], position, *index[dim + rank :]))


def _take_call(op: Op) -> AtenCall:
    check, (_, indices) = op.attrs.get("check", "index"), op.operands
    if check == "take":
        return "aten.take.default", (Ref(0), Ref(1)), {}
    if check in ("embedding", "index_select"):
        assert isinstance(indices, Value)
        if indices.type.rank == 1:
            return "aten.index_select.default", (Ref(0), op.attrs["dim"], Ref(1)), {}
        return "aten.embedding.default", (Ref(0), Ref(1)), {}
    return "aten.index.Tensor", (Ref(0), (None,) * op.attrs["dim"] + (Ref(1),)), {}


# index: several index tensors, one per indexed dim


def _infer_index(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("index", attrs, ("dims", "at"))
    if len(operands) < 2:
        rules.fail("index", "needs a base and at least one tensor of indices")
    base = rules.tensor("index", operands, 0)
    dims = rules.check_dims("index", attrs["dims"], base.type.rank)
    indices = [_indices("index", operands, i) for i in range(1, len(operands))]
    if len(indices) != len(dims):
        rules.fail("index", f"{len(indices)} tensors of indices for dims={dims}")
    common = rules.broadcast("index", [value.type.shape for value in indices])
    if 0 not in common and any(base.type.shape[dim] == 0 for dim in dims):
        rules.fail("index", f"{base.type} has nothing to index")
    kept = [size for d, size in enumerate(base.type.shape) if d not in dims]
    at = rules.check_dim("index", attrs["at"], len(kept) + 1, "at")
    return (base.type.with_shape((*kept[:at], *common, *kept[at:])),)


def _index(x: torch.Tensor, *indices: torch.Tensor, dims: tuple[int, ...], at: int) -> torch.Tensor:
    common: tuple[int, ...] = rules.broadcast("index", [tuple(i.shape) for i in indices])  # type: ignore[assignment]
    kept = [d for d in range(x.dim()) if d not in dims]
    rest = x.permute(*dims, *kept)
    if 0 in (*common, *rest.shape[len(dims) :]):  # eager looks at indices as it reads elements
        found = x.new_empty((*common, *rest.shape[len(dims) :]))
    else:
        places = [checks.checked_indices(i, x.shape[d], "index", n) for n, (i, d) in enumerate(zip(indices, dims))]
        found = rest[tuple(places)]
    order = [*range(len(common), len(common) + at), *range(len(common)), *range(len(common) + at, found.dim())]
    return found.permute(order).clone()


def _lower_index(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> LoopValue:
    base, dims, at = op.operands[0], op.attrs["dims"], op.attrs["at"]
    assert isinstance(base, Value)
    kept_count = base.type.rank - len(dims)
    common = index[at : len(index) - (kept_count - at)]
    rest = iter((*index[:at], *index[len(index) - (kept_count - at) :]))
    chosen = iter(op.operands[1:])
    source: list[Dim] = []
    for d, size in enumerate(base.type.shape):
        if d not in dims:
            source.append(next(rest))
            continue
        indices = next(chosen)
        assert isinstance(indices, Value)
        at_indices = rules.broadcast_index(indices, common)
        source.append(checks.data_index(ctx, indices, at_indices, size, "index", dims.index(d)))
    return ctx.element(base, tuple(source))


# scatter: an index per source element; put: rows at indices of any rank


def _infer_scatter(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("scatter", attrs, ("dim", "mode"), ("check",))
    checks.check_name("scatter", attrs.get("check", "gather"))
    rules.check_count("scatter", operands, 3)
    base, indices, source = _scatter_operands("scatter", operands, attrs["mode"], SCATTER_MODES)
    _check_along("scatter", base, indices, attrs["dim"])
    if source.type.shape != indices.type.shape:
        rules.fail("scatter", f"indices {indices.type} and source {source.type} differ in shape")
    return (base.type,)


def _scatter_operands(
    op: str, operands: Sequence[Operand], mode: Attr, modes: Sequence[str]
) -> tuple[Value, Value, Value]:
    base, indices, source = rules.tensor(op, operands, 0), _indices(op, operands, 1), rules.tensor(op, operands, 2)
    if source.type.dtype != base.type.dtype:
        rules.fail(op, f"base {base.type} and source {source.type} differ in dtype")
    if mode not in modes:
        rules.fail(op, f"mode={mode!r} is none of {', '.join(modes)}")
    return base, indices, source


def _scatter(
    base: torch.Tensor, indices: torch.Tensor, source: torch.Tensor, dim: int, mode: str, check: str = "gather"
) -> torch.Tensor:
    indices = checks.checked_indices(indices, base.shape[dim], check, dim)
    if mode == "set":
        return torch.scatter(base, dim, indices, source)
    if mode == "add":
        return torch.scatter_add(base, dim, indices, source)
    return torch.scatter_reduce(base, dim, indices, source, mode, include_self=True)


def _place_scatter(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> tuple[Dim, ...]:
    base, indices, _ = op.operands
    assert isinstance(base, Value)
    dim = op.attrs["dim"]
    at = checks.data_index(ctx, indices, index, base.type.shape[dim], op.attrs.get("check", "gather"), dim)
    return (*index[:dim], at, *index[dim + 1 :])


def _scatter_call(op: Op) -> AtenCall:
    dim, mode = op.attrs["dim"], op.attrs["mode"]
    if mode in ("set", "add"):
        overload = "aten.scatter.src" if mode == "set" else "aten.scatter_add.default"
        return overload, (Ref(0), dim, Ref(1), Ref(2)), {}
    return "aten.scatter_reduce.two", (Ref(0), dim, Ref(1), Ref(2), mode), {}


def _infer_put(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("put", attrs, ("dim", "mode"), ("call", "check"))
    checks.check_name("put", attrs.get("check", "index"))
    rules.check_count("put", operands, 3)
    base, indices, source = _scatter_operands("put", operands, attrs["mode"], PUT_MODES)
    dim = rules.check_dim("put", attrs["dim"], base.type.rank)
    _check_not_empty("put", base, dim, indices)
    modes = {"index_put": PUT_MODES, "index_add": ("add",), "index_copy": ("set",)}
    call = attrs.get("call", "index_put")
    if attrs["mode"] not in modes.get(call, ()) or (call != "index_put" and indices.type.rank != 1):
        rules.fail("put", f"call={call!r} does not do mode={attrs['mode']!r} with {indices.type}")
    shape = base.type.shape
    expected = (*shape[:dim], *indices.type.shape, *shape[dim + 1 :])
    if source.type.shape != expected:
        rules.fail("put", f"the source is {source.type}, must be {rules.text(expected)}")
    return (base.type,)


def _put(
    base: torch.Tensor, indices: torch.Tensor, source: torch.Tensor, dim: int, mode: str, call: str = "index_put",
    check: str = "index",
) -> torch.Tensor:  # fmt: skip
    if call != "index_put":
        return getattr(torch, call)(base, dim, indices, source)
    indices = checks.checked_indices(indices, base.shape[dim], check)
    result = base.clone()
    if mode == "set":
        result[(slice(None),) * dim + (indices,)] = source
        return result
    flat = source.reshape(*base.shape[:dim], indices.numel(), *base.shape[dim + 1 :])
    return result.index_add(dim, indices.reshape(-1), flat)


def put_check(op: Op) -> str:
    """Which of `INDEX_CHECKS` the eager function makes that a put stands for."""
    base = op.operands[0]
    assert isinstance(base, Value)
    if "check" in op.attrs:
        return str(op.attrs["check"])
    call = op.attrs.get("call", "index_put")
    if call != "index_add":
        return "index" if call == "index_put" else "index_copy"
    return "gather" if base.type.rank > 1 else "embedding"


def _place_put(ctx: ElementContext, op: Op, index: tuple[Dim, ...]) -> tuple[Dim, ...]:
    base, indices, _ = op.operands
    assert isinstance(base, Value) and isinstance(indices, Value)
    dim, behind = op.attrs["dim"], op.attrs["dim"] + indices.type.rank
    at = checks.data_index(ctx, indices, index[dim:behind], base.type.shape[dim], put_check(op), dim)
    return (*index[:dim], at, *index[behind:])


def _put_call(op: Op) -> AtenCall:
    call = op.attrs.get("call", "index_put")
    if call != "index_put":
        return f"aten.{call}.default", (Ref(0), op.attrs["dim"], Ref(1), Ref(2)), {}
    indices = (None,) * op.attrs["dim"] + (Ref(1),)
    return "aten.index_put.default", (Ref(0), indices, Ref(2), op.attrs["mode"] == "add"), {}


# one_hot


def _infer_one_hot(operands: Sequence[Operand], attrs: Mapping[str, Attr]) -> Sequence[TensorType]:
    rules.check_attrs("one_hot", attrs, ("classes", "dtype"))
    value = rules.only_tensor("one_hot", operands, ("int", "uint"))
    (count,) = rules.check_shape("one_hot", (attrs["classes"],), "classes")
    dtype = rules.check_dtype("one_hot", attrs["dtype"])
    if dtype.kind == "complex":
        rules.fail("one_hot", f"does not make {dtype.name}")
    return (TensorType(dtype, (*value.type.shape, count), value.type.device),)


def _one_hot(x: torch.Tensor, classes: int, dtype: Any) -> torch.Tensor:
    return (x.unsqueeze(-1) == torch.arange(classes, device=x.device)).to(rules.torch_dtype(dtype))


def _expand_one_hot(builder: Builder, op: Op) -> Sequence[Value]:
    x, dtype = op.operands[0], op.attrs["dtype"]
    assert isinstance(x, Value)
    column = builder.op("reshape", x, shape=(*x.type.shape, 1))
    classes = builder.op(
        "iota", size=op.attrs["classes"], start=0, step=1, dtype=x.type.dtype, device=x.type.device
    )  # fmt: skip
    hot = builder.op("eq", column, classes)
    return [hot if dtype == hot.dtype else builder.op("cast", hot, dtype=dtype)]


def _register_all() -> None:
    for definition in (
        OpDef(
            "gather", Kind.INDEXING, "x[.., indices[i], ..] with an index per element: torch.gather. dim; check.",
            _infer_gather, _gather, lower=_lower_gather,
            call=lambda op: ("aten.gather.default", (Ref(0), op.attrs["dim"], Ref(1)), {}),
        ),
        OpDef(
            "take", Kind.INDEXING, "x with `dim` replaced by the dims of the indices, as in an embedding. dim; check.",
            _infer_take, _take, lower=_lower_take, call=_take_call,
        ),
        OpDef(
            "index", Kind.INDEXING,
            "x[i0, i1, ..] with broadcast indices for `dims`; their common shape stands at dim `at` of what is left.",
            _infer_index, _index, lower=_lower_index,
        ),
        OpDef(
            "scatter", Kind.SCATTER,
            "The base with elements written at an index each: torch.scatter. dim; mode: set, add, prod, amax or amin.",
            _infer_scatter, _scatter, call=_scatter_call, place=_place_scatter,
        ),
        OpDef(
            "put", Kind.SCATTER,
            "The inverse of take: base[.., indices, ..] = or += source. dim; mode: set or add; call: the ATen operator "
            "that does it, by its rules for indices: index_put, index_add or index_copy.",
            _infer_put, _put, call=_put_call, place=_place_put,
        ),
        OpDef(
            "one_hot", Kind.COMPOSITE, "1 at the place of each index in a new last dim, else 0. classes; dtype.",
            _infer_one_hot, _one_hot, expand=_expand_one_hot,
        ),
    ):  # fmt: skip
        register(definition)


_register_all()
