"""ATen calls without an import rule: kept as they are, as `extern` ops, with result types learnt by a trial run.

Small calls are tried on zeros, which costs what the call costs; large ones and operators of other libraries are tried
under FakeTensorMode, which is imported only then (it takes seconds).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

from graphc.errors import DataDependentError, EagerOnlyError, ResizesError, UnsupportedError
from graphc.frontend.aten import layout, promotion
from graphc.frontend.aten.sized_trials import Lying, SizedTrial, sizes_in
from graphc.ir.graph import Attr, Builder, Named, Ref, Value
from graphc.ir.sizes import Conditions, bound, plain
from graphc.ir.types import HOST, DType, TensorType, bool_, f64, i64
from graphc.ops.extern import lengths

if TYPE_CHECKING:
    from graphc.frontend.aten.importer import Importer

_TRIAL_BYTES = 64 << 20
_UNTAGGED = frozenset(("aten._pack_padded_sequence.default",))
"""Calls whose results have shapes that depend on data, though their tags do not say so and zeros are refused."""
_PIVOTED = frozenset(("aten::linalg_ldl_solve", "aten::linalg_lu_solve", "aten::lu_unpack"))
"""Calls that count rows from 1 on, and write elsewhere in memory where they are given a 0."""
_SEEDED = frozenset(
    f"aten::_scaled_dot_product_{kind}_attention{end}"
    for kind in ("flash", "efficient", "cudnn") for end in ("", "_backward")
)  # fmt: skip
"""Attention as GPUs have it."""
_SEEDED_BYTES = 2 << 30
_HOST_TYPES = {bool: TensorType(bool_, (), HOST), int: TensorType(i64, (), HOST), float: TensorType(f64, (), HOST)}

_BY_INDICES = frozenset(("aten.index.Tensor", "aten._unsafe_index.Tensor", "aten.masked_select.default"))
"""Calls whose second argument alone decides the shapes of their results."""
MakeTensor: TypeAlias = Callable[[Value], Any]


class Trial(NamedTuple):
    """What a call returns for operands of these types.

    Args:
        structure: its answer, with `...` for each result of its own.
        own: the types of these, and the strides of tensors.
    """

    structure: Any
    own: list[tuple[TensorType, tuple[int, ...] | None]]


@dataclass(frozen=True)
class Imported:
    """An extern call in the graph.

    Args:
        returned: what the call returns, with Values for tensors and numbers, in the structure of its schema; None in
            the places of arguments that it writes to and returns.
        mutated: new contents of each argument written to, by its position in `written_arguments` order.
    """

    returned: Any
    mutated: list[Value]


def overload_of(name: str) -> Any:
    """The torch overload called `namespace.name.overload`."""
    namespace, packet, variant = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), variant)


def import_extern(imp: Importer, overload: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Imported:
    """Append an `extern` op for a call whose tensor arguments are Values.

    Raises:
        DataDependentError: the shape of a result depends on data.
        UnsupportedError: an argument cannot be kept in a graph (a generator, an object of another library).
        Exception: whatever eager raises for such arguments.
    """
    func = overload_of(overload) if isinstance(overload, str) else overload
    args, kwargs = as_eager_lays_out(imp, args), as_eager_lays_out(imp, kwargs)
    encoder = _Encoder()
    call_args = tuple(encoder.encode(arg) for arg in args)
    call_kwargs = {key: encoder.encode(value) for key, value in kwargs.items()}
    written = list(written_arguments(func, args, kwargs))
    mutates = tuple(encoder.index(value) for value in written)
    decided = None
    given = [(value.type, imp.strides(value)) for value in encoder.operands]
    tried = repr((func, call_args, call_kwargs, given, torch.get_default_dtype()))
    sizes = next(sizes_in((given, args, kwargs)), None)
    if tried in imp.trials:
        structure, own = imp.trials[tried]
    else:
        try:
            if sizes is None:
                structure, own = imp.trials[tried] = _structure(func, _try(imp, func, args, kwargs))
            else:
                structure, own = imp.trials[tried] = _tried_for_sizes(imp, func, args, kwargs, sizes.conditions)
        except DataDependentError:
            found = None if written else _run_known(imp, func, args, kwargs)
            if found is None:
                decided = imp.decisions
                if decided is None or written:
                    raise
                found = decided.results(func, encoder.operands, call_args, call_kwargs)
            structure, own = _structure(func, found)
    attrs: dict[str, Attr] = {"op": str(func), "args": call_args, "kwargs": call_kwargs}
    if mutates:
        attrs["mutates"] = mutates
    effect = _effect(func, bool(own or written))
    if effect:
        attrs["effect"] = effect
    types = [t for t, _ in own] + [value.type for value in written]
    op = imp.call(encoder.operands, attrs, types)
    for result, (_, strides) in zip(op.results, own, strict=False):
        if strides is not None:
            imp.with_strides(result, strides)
            if not layout.is_contiguous(result.shape, strides):  # type: ignore[arg-type]
                result.strides = strides
    for result, value in zip(op.results[len(own) :], written, strict=True):
        result.strides = value.strides
    if decided is not None:
        decided.answered(op)
    return Imported(_fill(structure, iter(op.results)), op.results[len(own) :])


def _tried_for_sizes(
    imp: Importer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], conditions: Conditions
) -> Trial:
    """What the call returns for operands of many sizes; the trial is kept, to be run for others."""

    def run(lying: Lying, args: Sequence[Any], kwargs: dict[str, Any]) -> Trial:
        return _structure(func, _try(lying, func, args, kwargs))

    strides = {value: imp.strides(value) for value in _values([args, kwargs])}
    trial = SizedTrial(run, args, kwargs, strides, conditions)
    imp.sized_trials.append(trial)
    return Trial(*trial.answer)


def _run_known(imp: Importer, func: Any, args: Any, kwargs: Any) -> Any:
    """What the call returns, as far as metadata goes, when no input decides its shape; else None."""
    deciding = list(_values(args[1] if str(func) in _BY_INDICES else [args, kwargs]))
    data = imp.known.all(deciding) if imp.known is not None else None
    if data is None:
        return None
    given = dict(zip(deciding, data, strict=True))
    return _call_on(func, args, kwargs, lambda value: given[value] if value in given else _filled(imp, value, 0))


def as_eager_lays_out(imp: Importer, item: Any) -> Any:
    """Arguments with a copy for each tensor that lies otherwise in eager: some calls depend on strides (generators fill
    in memory order, oneDNN's RNN takes contiguous input for granted), and a `clone` leaves no trace in a graph."""
    if isinstance(item, Value):
        shape: tuple[int, ...] = item.shape  # type: ignore[assignment]  # static by construction
        stated, eager = item.strides or layout.contiguous(shape), imp.strides(item)
        if (
            item.type.is_host
            or 0 in shape
            or all(n == 1 or s == e for n, s, e in zip(shape, stated, eager, strict=True))
        ):
            return item
        if any(n > 1 and s == 0 for n, s in zip(shape, eager, strict=True)):
            return item
        copy = copied(imp.b, item, eager)
        if not layout.is_contiguous(shape, eager):
            copy.strides = eager
        return copy
    if isinstance(item, dict):
        return {key: as_eager_lays_out(imp, part) for key, part in item.items()}
    return type(item)(as_eager_lays_out(imp, part) for part in item) if isinstance(item, (list, tuple)) else item


def kernels_hold(dtype: DType) -> bool:
    """Whether kernels store numbers of a dtype: not complex ones, nor 8-bit floats."""
    return dtype.kind != "complex" and not dtype.name.startswith("f8")


def copied(builder: Builder, value: Value, strides: tuple[int, ...]) -> Value:
    """A copy with the given strides, by library calls for numbers that kernels do not hold."""
    if kernels_hold(value.dtype):
        return builder.op("copy", value, strides=strides)
    like = {"dtype": value.dtype, "device": Named("device", value.device)}
    attrs: dict[str, Attr] = {"op": "aten.empty_strided.default", "args": (value.shape, strides), "kwargs": like}
    memory = builder.multi("extern", [], attrs, [value.type]).result
    memory.strides = None if layout.is_contiguous(value.shape, strides) else strides  # type: ignore[arg-type]
    attrs = {"op": "aten.copy.default", "args": (Ref(0), Ref(1)), "kwargs": {}}
    return builder.multi("extern", [memory, value], attrs, [value.type]).result


class _Encoder:
    """Turns arguments into an attribute template and the list of operands."""

    def __init__(self) -> None:
        self.operands: list[Value] = []

    def index(self, value: Value) -> int:
        for i, operand in enumerate(self.operands):
            if operand is value:
                return i
        self.operands.append(value)
        return len(self.operands) - 1

    def encode(self, item: Any) -> Attr:
        if item is None or isinstance(item, (bool, int, float, complex, str)):
            return item
        if isinstance(item, Value):
            return Ref(self.index(item))
        if isinstance(item, (list, tuple)):
            return tuple(self.encode(part) for part in item)
        if isinstance(item, (torch.dtype, DType)):
            return item if isinstance(item, DType) else promotion.from_torch(item)
        for kind in (torch.device, torch.layout, torch.memory_format):
            if isinstance(item, kind):
                return Named(kind.__name__, str(item).removeprefix("torch."))
        what = (
            "a torch.Generator" if isinstance(item, torch.Generator) else f"an argument of type {type(item).__name__}"
        )
        raise UnsupportedError(
            f"{what} cannot be kept in a compiled program; leave it out, or run this with graphc.eager()"
        )


def written_arguments(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Any]:
    """The arguments of this call that its schema says it writes to, in schema order, lists flattened."""
    for position, declared in enumerate(func._schema.arguments):
        if declared.alias_info is None or not declared.alias_info.is_write:
            continue
        given = args[position] if position < len(args) else kwargs.get(declared.name)
        yield from given if isinstance(given, (list, tuple)) else [] if given is None else [given]


def _effect(func: Any, has_results: bool) -> str:
    if torch.Tag.nondeterministic_seeded in func.tags:
        return "random"
    return "" if has_results and func.namespace in ("aten", "prims") else "opaque"


def _structure(func: Any, answer: Any) -> Trial:
    """What a trial has told; lengths are as they are."""
    own: list[tuple[TensorType, tuple[int, ...] | None]] = []
    returns = func._schema.returns
    answers = (answer,) if len(returns) == 1 else (() if answer is None else tuple(answer))
    known = lengths(func)

    def note(item: Any) -> Any:
        if item is None:
            return None
        if isinstance(item, (list, tuple)):
            return [note(part) for part in item]
        own.append(_result_type(item))
        return ...

    noted = [
        int(item)
        if number in known
        else None
        if declared.alias_info is not None and declared.alias_info.is_write
        else note(item)
        for number, (declared, item) in enumerate(zip(returns, answers, strict=True))
    ]
    return Trial(None if not returns else noted[0] if len(returns) == 1 else tuple(noted), own)


def _result_type(item: Any) -> tuple[TensorType, tuple[int, ...] | None]:
    if not isinstance(item, torch.Tensor):
        return _HOST_TYPES[type(item)], None
    if item.layout != torch.strided or item.is_quantized:
        raise EagerOnlyError(f"a result with layout {item.layout} (sparse, quantized) is not supported")
    from graphc.frontend.aten.importer import tensor_type

    return tensor_type(item), tuple(item.stride())


def _fill(structure: Any, results: Iterator[Value]) -> Any:
    if structure is ...:
        return next(results)
    if isinstance(structure, (list, tuple)):
        return type(structure)(_fill(part, results) for part in structure)
    return structure


# trial runs


def _try(imp: Importer | Lying, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What the call returns for tensors like its operands, as far as metadata goes."""
    values = list(_values([args, kwargs]))
    dynamic = torch.Tag.dynamic_output_shape in func.tags or str(func) in _UNTAGGED
    if dynamic and not _static_result(func, args):
        raise DataDependentError(
            f"{func} gives a result whose shape depends on the data of its operands, which one graph cannot hold: "
            "graphc.compile makes a program per shape. For a single graph use a masked form of fixed shape "
            "(torch.where, a mask multiplied in), or compute this outside the function"
        )
    if func._schema.name in _SEEDED:
        return _try_seeded(imp, func, args, kwargs)
    is_large = operand_bytes(args, kwargs) > _TRIAL_BYTES
    if is_large or func.namespace not in ("aten", "prims") or func._schema.name in _PIVOTED:
        return call_on_fakes(imp, func, args, kwargs)
    try:
        answer = call_on_zeros(imp, func, args, kwargs)
    except (IndexError, NotImplementedError, TypeError, ValueError):  # wrong whatever the values are
        raise
    except UnsupportedError:
        raise
    except Exception as error:  # values may matter (a matrix of zeros has no inverse): metadata decides then
        try:
            return call_on_fakes(imp, func, args, kwargs)
        except Exception:
            raise error from None
    if any(value.dtype.is_integral or value.type.is_host for value in values):
        _check_shapes_fixed(imp, func, args, kwargs, answer)
    return answer


def _try_seeded(imp: Importer | Lying, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """As `_try`, for attention of GPUs: on tensors where that can be, since torch tells of results that are not given.

    Seeds, which lie with the CPU when it is called and on the device when it is recorded, are taken to lie there: only
    its backward pass reads them.
    """
    first = next(_values([args, kwargs]))
    answer = None
    if operand_bytes(args, kwargs) <= _SEEDED_BYTES:
        try:
            answer = call_on_zeros(imp, func, args, kwargs)
        except RuntimeError:  # one on zeros is refused
            if first.device == "cpu":
                raise  # there is no such call
    if answer is None:
        answer = call_on_fakes(imp, func, args, kwargs)
    place = torch.device(first.device)
    return tuple([
        item.to(place) if isinstance(item, torch.Tensor) and item.device != place else item for item in answer
    ])  # fmt: skip


def _static_result(func: Any, args: Sequence[Any]) -> bool:
    if str(func) not in ("aten.index.Tensor", "aten._unsafe_index.Tensor"):
        return False
    return not any(index is not None and index.dtype.name in ("bool", "u8") for index in args[1])


def _check_shapes_fixed(
    imp: Importer | Lying, func: Any, args: Sequence[Any], kwargs: dict[str, Any], zeros: Any
) -> None:
    """Run again on ones (for numbers: twos): results of another shape depend on data, whatever the tags say.

    On the CPU, wherever the operands are: a one that is no valid index would be the end of a GPU's context.
    """

    def make(value: Value) -> Any:
        return _filled(imp, value, int(value.dtype.is_integral or value.type.is_host), "cpu")

    try:
        ones = _call_on(func, args, kwargs, make)
    except (RuntimeError, IndexError, ValueError):  # one is no valid index or class here; zeros have told all there is
        return
    if [t.shape for t in _tensors(ones)] != [t.shape for t in _tensors(zeros)]:
        raise DataDependentError(f"{func} gives a result whose shape depends on the data of its operands")


def call_on_zeros(imp: Importer | Lying, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Make a call with Values replaced by zeros of the same metadata."""
    return _call_on(func, args, kwargs, lambda value: _filled(imp, value, 0))


def operand_bytes(args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """Bytes of all tensors among arguments given as Values."""
    return sum(value.dtype.itemsize * _numel(value) for value in _values([args, kwargs]))


def _call_on(func: Any, args: Sequence[Any], kwargs: dict[str, Any], make: MakeTensor) -> Any:
    made: dict[Value, Any] = {}

    def replace(item: Any) -> Any:
        if isinstance(item, Value):
            if item not in made:
                made[item] = make(item)
            return made[item]
        if isinstance(item, DType):
            return promotion.to_torch(item)
        return [replace(part) for part in item] if isinstance(item, (list, tuple)) else bound(item)

    random = torch.Tag.nondeterministic_seeded in func.tags
    cards = {torch.device(v.device).index for v in _values([args, kwargs]) if v.device.startswith("cuda")} | {-1}
    with torch.no_grad(), generators_kept(cards if random else ()):
        answer = func(*map(replace, args), **{key: replace(value) for key, value in kwargs.items()})
    if any(isinstance(made[v], torch.Tensor) and tuple(made[v].shape) != v.shape for v in made):
        raise ResizesError(f"{func} changes the shape of a tensor that it writes to; give it the right shape before")
    return answer


@contextlib.contextmanager
def generators_kept(cards: Iterable[int]) -> Iterator[None]:
    """Leave random generators as they are before the block: those of some CUDA devices, and for -1 that of the CPU.

    `torch.random.fork_rng` would do, were it not refused while a function is captured.
    """
    generators = [torch.cuda.default_generators[card] if card >= 0 else torch.default_generator for card in cards]
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _filled(imp: Importer | Lying, value: Value, number: int, device: str = "") -> Any:
    if value.type.is_host:
        return {"f64": 1.0 + number, "i64": 1 + number, "bool": True}[value.dtype.name]
    dtype = promotion.to_torch(value.dtype)
    return torch.empty_strided(*_geometry(imp, value), dtype=dtype, device=device or value.device).fill_(number)


def _geometry(imp: Importer | Lying, value: Value) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of a value as torch takes them."""
    shape: tuple[int, ...] = value.shape  # type: ignore[assignment]  # static by construction
    return tuple(map(bound, shape)), tuple(map(bound, imp.strides(value)))


def call_on_fakes(imp: Importer | Lying, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Make a call with Values replaced by FakeTensors of the same metadata."""
    from torch._subclasses.fake_tensor import (
        DynamicOutputShapeException,
        FakeTensorMode,
        disable_fake_tensor_cache,
    )

    def make(value: Value) -> Any:
        if value.type.is_host:
            return _filled(imp, value, 0)
        dtype = promotion.to_torch(value.dtype)
        return torch.empty_strided(*_geometry(imp, value), dtype=dtype, device=value.device)

    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL)  # it prints a traceback of every call that it refuses
        # what its cache knows of an in-place call that must raise is another result than the call's own
        with FakeTensorMode() as mode, disable_fake_tensor_cache(mode):
            return _call_on(func, args, kwargs, make)
    except DynamicOutputShapeException:
        raise DataDependentError(f"{func} gives a result whose shape depends on the data of its operands") from None
    finally:
        log.setLevel(level)


def _values(item: Any) -> Iterator[Value]:
    if isinstance(item, Value):
        yield item
    elif isinstance(item, dict):
        yield from _values(list(item.values()))
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from _values(part)


def _tensors(item: Any) -> Iterator[torch.Tensor]:
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from _tensors(part)


def _numel(value: Value) -> int:
    """How many elements; of sizes as they are now, which only choose the way of a trial."""
    shape: tuple[int, ...] = value.shape  # type: ignore[assignment]  # static by construction
    return math.prod(map(plain, shape))
