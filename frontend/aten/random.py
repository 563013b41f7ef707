"""Import rules of random numbers: formulas over counter-based ones, or with numerics="eager" library calls.

Library calls have the effect `random` and draw from torch's generator exactly as eager does, in eager's order, used or
not; so do, under all settings, randperm, multinomial, poisson and what has no rule, which its tag
`nondeterministic_seeded` tells. In-place fills are imported by the rule of their functional overload and a write-back.
A generator of the caller's own is refused: a program has no place to keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from graphc.frontend.aten import keyed, layout
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, Erroneous, rule
from graphc.frontend.aten.stated import device_attr, stated_call
from graphc.ir.graph import Attr, Named, Operand, Value
from graphc.ir.types import DType, TensorType, bool_, i64
from graphc.ops.random import MANTISSA
from graphc.ops.rules import broadcast

RANDOM = "random"


Formula: TypeAlias = Callable[[Importer, tuple[int, ...], DType, str], Value]
"""Counter-based numbers of a shape and dtype on a device."""


def _normal(imp: Importer, shape: tuple[int, ...], dtype: DType, device: str) -> Value:
    return keyed.normal(imp, shape, dtype, device).to(dtype)


def _integers(low: Operand, high: Operand) -> Formula:
    return lambda imp, shape, dtype, device: keyed.integers(imp, shape, dtype, device, low, high)


def _create(
    imp: Importer, overload: str, args: Sequence[Any], size: Sequence[int], dtype: DType, device: str, layout: Any,
    formula: Formula | None = None,
) -> Value:  # fmt: skip
    """A fresh tensor of random numbers.

    Args:
        formula: how it is made of counter-based ones, unless it is a library call in any case.
    """
    if layout is not None and layout != torch.strided:
        raise Decline("not strided")
    if imp.keys.enabled and formula is not None:
        return formula(imp, tuple(size), dtype, device)
    kwargs: dict[str, Attr] = {"dtype": dtype, "device": device_attr(device)}
    (value,) = stated_call(imp, overload, args, [TensorType(dtype, tuple(size), device)], kwargs, RANDOM)
    return value


@rule("aten.rand.default", layout=CONTIGUOUS)
def rand(
    imp: Importer,
    size: Sequence[int],
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Value:
    where = _device(imp, device, pin_memory)
    return _create(imp, "aten.rand.default", [size], size, _float(imp, dtype), where, layout, keyed.draw)


@rule("aten.randn.default", layout=CONTIGUOUS)
def randn(
    imp: Importer,
    size: Sequence[int],
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Value:
    where = _device(imp, device, pin_memory)
    return _create(imp, "aten.randn.default", [size], size, _float(imp, dtype), where, layout, _normal)


@rule("aten.randint.default", layout=CONTIGUOUS)
def randint(
    imp: Importer,
    high: int,
    size: Sequence[int],
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Value:
    where = _device(imp, device, pin_memory)
    kind, formula = imp.dtype(dtype, i64), _integers(0, high)
    return _create(imp, "aten.randint.default", [high, size], size, kind, where, layout, formula)


@rule("aten.randint.low", layout=CONTIGUOUS)
def randint_low(
    imp: Importer,
    low: int,
    high: int,
    size: Sequence[int],
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Value:
    where = _device(imp, device, pin_memory)
    kind, formula = imp.dtype(dtype, i64), _integers(low, high)
    return _create(imp, "aten.randint.low", [low, high, size], size, kind, where, layout, formula)


@rule("aten.randperm.default", layout=CONTIGUOUS)
def randperm(
    imp: Importer,
    n: int,
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Value:
    where = _device(imp, device, pin_memory)
    return _create(imp, "aten.randperm.default", [n], [n], imp.dtype(dtype, i64), where, layout)


def _float(imp: Importer, dtype: torch.dtype | None) -> DType:
    found = imp.dtype(dtype)
    if not found.is_float:
        raise Decline("eager raises, or complex numbers")
    return found


def _device(imp: Importer, device: torch.device | None, pin_memory: bool | None) -> str:
    if pin_memory:
        raise Decline("pinned memory")
    return imp.device(device)


def _fill(
    imp: Importer, overload: str, self: Value, *args: Operand, formula: Formula | None = None, floats: bool = False
) -> Value:
    """A tensor like `self` of random numbers; also the new contents for an in-place fill.

    Args:
        formula: as for `_create`.
        floats: only they are taken.

    Raises:
        Decline: numbers are drawn in memory order, and the functional overload may lay its result out in another way.
    """
    if self.dtype.kind == "complex" or any(isinstance(arg, Value) and arg.type.is_host for arg in args):
        raise Decline("complex numbers, or parameters that the program computes")
    if floats and not self.dtype.is_float:
        raise Erroneous("integers")
    if imp.keys.enabled and formula is not None:
        value = formula(imp, self.shape, self.dtype, self.device)  # type: ignore[arg-type]  # static shapes
        return imp.with_strides(value, imp.preserved_strides(self))
    if not layout.is_contiguous(self.shape, imp.strides(self)):  # type: ignore[arg-type]  # static shapes
        raise Decline("not contiguous")
    (value,) = stated_call(imp, overload, [self, *args], [self.type], effect=RANDOM)
    return value


@rule("aten.bernoulli.p", "aten.bernoulli.Tensor")
def bernoulli_p(imp: Importer, self: Value, p: Operand = 0.5, generator: Any = None) -> Value:
    _default_generator(generator)
    of_tensor = isinstance(p, Value) and not p.type.is_host
    if of_tensor and not imp.keys.enabled:
        raise Decline("a probability per element")
    return _fill(imp, "aten.bernoulli.p", self, p, formula=_bernoulli(p))


def _bernoulli(p: Operand) -> Formula:
    return lambda imp, shape, dtype, device: keyed.bernoulli(imp, shape, dtype, device, p)


@rule("aten.bernoulli.default")
def bernoulli(imp: Importer, self: Value, generator: Any = None) -> Value:
    _default_generator(generator)
    if not self.dtype.is_float:
        raise Decline("eager raises")
    return _fill(imp, "aten.bernoulli.default", self, formula=_bernoulli(self))


@rule("aten.uniform.default")
def uniform(
    imp: Importer, self: Value, from_: Operand = 0.0, to: Operand = 1.0, generator: Any = None, **named: Operand
) -> Value:
    _default_generator(generator)
    low = named.get("from", from_)
    return _fill(imp, "aten.uniform.default", self, low, to, formula=_uniform(low, to), floats=True)


def _uniform(low: Any, high: Any) -> Formula:
    def formula(imp: Importer, shape: tuple[int, ...], dtype: DType, device: str) -> Value:
        if not low <= high:
            raise Erroneous(f"from {low} to {high}")
        return keyed.uniform(imp, shape, dtype, device, low, high)

    return formula


@rule("aten.normal_functional.default")
def normal_functional(
    imp: Importer, self: Value, mean: Operand = 0.0, std: Operand = 1.0, generator: Any = None
) -> Value:
    _default_generator(generator)
    return _fill(imp, "aten.normal_functional.default", self, mean, std, formula=_gaussian(mean, std), floats=True)


def _gaussian(mean: Operand, std: Operand) -> Formula:
    def formula(imp: Importer, shape: tuple[int, ...], dtype: DType, device: str) -> Value:
        scale = keyed.deviation(imp, std, keyed.wide(dtype))
        centre = keyed.rounded(imp, mean, keyed.wide(dtype)) if isinstance(mean, Value) else mean
        return keyed.scaled(imp, keyed.normal(imp, shape, dtype, device), centre, scale, dtype)

    return formula


@rule("aten.normal.Tensor_float", "aten.normal.float_Tensor", "aten.normal.Tensor_Tensor")
def normal_of_tensors(imp: Importer, mean: Operand, std: Operand = 1.0, generator: Any = None) -> Value:
    _default_generator(generator)
    tensors = [item for item in (mean, std) if isinstance(item, Value)]
    if not imp.keys.enabled or any(item.type.is_host or not item.dtype.is_float for item in tensors):
        raise Decline("a library call")
    shape = broadcast("normal", [item.shape for item in tensors])
    value = _gaussian(mean, std)(imp, shape, tensors[0].dtype, tensors[0].device)  # type: ignore[arg-type]  # static
    return imp.with_strides(value, imp.pointwise_strides(value, tensors))


@rule("aten.normal.float_float", layout=CONTIGUOUS)
def normal_of_numbers(
    imp: Importer,
    mean: Operand,
    std: Operand,
    size: Sequence[int],
    generator: Any = None,
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Value:
    _default_generator(generator)
    if not imp.keys.enabled or layout not in (None, torch.strided) or isinstance(mean, Value) or isinstance(std, Value):
        raise Decline("a library call")
    return _gaussian(mean, std)(imp, tuple(size), _float(imp, dtype), _device(imp, device, pin_memory))


@rule("aten.log_normal.default")
def log_normal(imp: Importer, self: Value, mean: Operand = 1.0, std: Operand = 2.0, generator: Any = None) -> Value:
    _default_generator(generator)
    if not std > 0:  # type: ignore[operator]  # a real number
        raise Erroneous(f"std={std}")

    def formula(imp: Importer, shape: tuple[int, ...], dtype: DType, device: str) -> Value:
        number = keyed.scaled(imp, keyed.normal(imp, shape, dtype, device), mean, std, keyed.wide(dtype))
        return keyed.rounded(imp, imp.b.op("exp", number), dtype)

    return _fill(imp, "aten.log_normal.default", self, mean, std, formula=formula, floats=True)


@rule("aten.exponential.default")
def exponential(imp: Importer, self: Value, lambd: Any = 1.0, generator: Any = None) -> Value:
    _default_generator(generator)
    return _fill(
        imp, "aten.exponential.default", self, lambd, floats=True,
        formula=lambda imp, shape, dtype, device: keyed.exponential(imp, shape, dtype, device, lambd),
    )  # fmt: skip


@rule("aten.geometric.default")
def geometric(imp: Importer, self: Value, p: Any, generator: Any = None) -> Value:
    _default_generator(generator)
    return _fill(
        imp, "aten.geometric.default", self, p,
        formula=lambda imp, shape, dtype, device: keyed.geometric(imp, shape, dtype, device, p),
    )  # fmt: skip


@rule("aten.cauchy.default")
def cauchy(imp: Importer, self: Value, median: Any = 0.0, sigma: Any = 1.0, generator: Any = None) -> Value:
    _default_generator(generator)
    return _fill(
        imp, "aten.cauchy.default", self, median, sigma, floats=True,
        formula=lambda imp, shape, dtype, device: keyed.cauchy(imp, shape, dtype, device, median, sigma),
    )  # fmt: skip


@rule("aten.random.default")
def random(imp: Importer, self: Value, generator: Any = None) -> Value:
    """All integers from 0 that the dtype can tell apart."""
    _default_generator(generator)
    dtype = self.dtype
    high = 1 << 1 if dtype.kind == "bool" else 1 << (8 * dtype.itemsize - (dtype.kind == "int"))
    if dtype.is_float:
        high = 1 << MANTISSA[dtype.name]
    return _fill(imp, "aten.random.default", self, formula=_integers(0, high))


@rule("aten.random.to")
def random_to(imp: Importer, self: Value, to: Operand, generator: Any = None) -> Value:
    _default_generator(generator)
    return _fill(imp, "aten.random.to", self, to, formula=_integers(0, to))


@rule("aten.random.from")
def random_from(
    imp: Importer, self: Value, from_: Operand = 0, to: Any = None, generator: Any = None, **named: Any
) -> Value:
    _default_generator(generator)
    low = named.get("from", from_)
    if to is None:
        raise Decline("to the largest number")
    return _fill(imp, "aten.random.from", self, low, to, formula=_integers(low, to))


def _default_generator(generator: Any) -> None:
    if generator is not None and generator is not torch.default_generator:
        raise Decline("a generator of the caller's own")


def _like(
    imp: Importer,
    overload: str,
    self: Value,
    args: Sequence[Any],
    dtype: torch.dtype | None,
    options: dict[str, Any],
    formula: Formula,
) -> Value:
    """A fresh tensor of random numbers in the shape and memory format of another."""
    if options.get("layout") not in (None, torch.strided) or options.get("pin_memory"):
        raise Decline("not strided, or pinned memory")
    kind, where = imp.dtype(dtype, self.dtype), imp.device(options.get("device"), self)
    if kind.kind == "complex":
        raise Decline("complex numbers")
    kwargs: dict[str, Attr] = {"dtype": kind, "device": device_attr(where)}
    strides = imp.memory_format_strides(self, options.get("memory_format"))
    if imp.keys.enabled:
        return imp.with_strides(formula(imp, self.shape, kind, where), strides)  # type: ignore[arg-type]  # static
    if options.get("memory_format") not in (None, torch.preserve_format):
        kwargs["memory_format"] = Named("memory_format", str(options["memory_format"]).removeprefix("torch."))
    (value,) = stated_call(imp, overload, [self, *args], [TensorType(kind, self.shape, where)], kwargs, RANDOM)
    return imp.with_strides(value, strides)


@rule("aten.rand_like.default")
def rand_like(imp: Importer, self: Value, dtype: torch.dtype | None = None, **options: Any) -> Value:
    return _like(imp, "aten.rand_like.default", self, [], dtype, options, keyed.draw)


@rule("aten.randn_like.default")
def randn_like(imp: Importer, self: Value, dtype: torch.dtype | None = None, **options: Any) -> Value:
    return _like(imp, "aten.randn_like.default", self, [], dtype, options, _normal)


@rule("aten.randint_like.default")
def randint_like(imp: Importer, self: Value, high: int, dtype: torch.dtype | None = None, **options: Any) -> Value:
    return _like(imp, "aten.randint_like.default", self, [high], dtype, options, _integers(0, high))


@rule("aten.randint_like.low_dtype")
def randint_like_low(
    imp: Importer, self: Value, low: int, high: int, dtype: torch.dtype | None = None, **options: Any
) -> Value:
    return _like(imp, "aten.randint_like.low_dtype", self, [low, high], dtype, options, _integers(low, high))


@rule("aten.native_dropout.default")
def native_dropout(imp: Importer, input: Value, p: float, train: bool | None) -> tuple[Value, Value]:
    if not input.dtype.is_float:
        raise Decline("eager raises")
    if train is False:
        # a copy, as eager makes: the result is no view of the input
        copy = imp.b.op("reshape", input, shape=input.shape)
        return copy, imp.full(input.shape, True, bool_, input.device)  # type: ignore[arg-type]  # static shapes
    if imp.keys.enabled:
        return _dropout(imp, input, p)
    types = [input.type, input.type.with_dtype(bool_)]
    out, mask = stated_call(imp, "aten.native_dropout.default", [input, p, train], types, effect=RANDOM)
    strides = imp.preserved_strides(input)
    return imp.with_strides(out, strides), imp.with_strides(mask, strides)


def _dropout(imp: Importer, input: Value, p: float) -> tuple[Value, Value]:
    if isinstance(p, Value):
        raise Decline("a probability that the program computes")
    strides = imp.preserved_strides(input)
    mask = keyed.bernoulli(imp, input.shape, bool_, input.device, 1.0 - p)  # type: ignore[arg-type]  # static shapes
    kept = imp.b.op("mul", input, keyed.rounded(imp, mask, input.dtype))
    out = imp.b.op("mul", kept, 0.0 if p == 1 else 1.0 / (1.0 - p))
    return imp.with_strides(out, strides), imp.with_strides(mask, strides)


@rule("aten.multinomial.default", layout=CONTIGUOUS)
def multinomial(
    imp: Importer, self: Value, num_samples: int, replacement: bool = False, generator: Any = None
) -> Value:
    _default_generator(generator)
    if not self.dtype.is_float or self.type.rank not in (1, 2):
        raise Decline("eager raises")
    result = TensorType(i64, (*self.shape[:-1], num_samples), self.device)
    args = [self, num_samples, replacement]
    (value,) = stated_call(imp, "aten.multinomial.default", args, [result], effect=RANDOM)
    return value


@rule("aten.poisson.default")
def poisson(imp: Importer, self: Value, generator: Any = None) -> Value:
    _default_generator(generator)
    if not self.dtype.is_float:
        raise Decline("eager raises")
    return _fill(imp, "aten.poisson.default", self)
