"""Import rules of random numbers: library calls with the effect `random`, of types known here.

They draw from torch's generator exactly as eager does, in eager's order, used or not. In-place fills are imported by
the rule of their functional overload and a write-back. Overloads without a rule are recognised by their tag
`nondeterministic_seeded`. A generator of the caller's own is refused: a program has no place to keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from graphc.frontend.aten import layout
from graphc.frontend.aten.importer import Importer
from graphc.frontend.aten.registry import CONTIGUOUS, Decline, rule
from graphc.frontend.aten.stated import device_attr, stated_call
from graphc.ir.graph import Attr, Named, Operand, Value
from graphc.ir.types import DType, TensorType, bool_, i64

RANDOM = "random"


def _create(
    imp: Importer, overload: str, args: Sequence[Any], size: Sequence[int], dtype: DType, device: str, layout: Any
) -> Value:
    """A fresh tensor of random numbers."""
    if layout is not None and layout != torch.strided:
        raise Decline("not strided")
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
    return _create(imp, "aten.rand.default", [size], size, _float(imp, dtype), _device(imp, device, pin_memory), layout)


@rule("aten.randn.default", layout=CONTIGUOUS)
def randn(
    imp: Importer,
    size: Sequence[int],
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Value:
    return _create(
        imp, "aten.randn.default", [size], size, _float(imp, dtype), _device(imp, device, pin_memory), layout
    )


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
    return _create(imp, "aten.randint.default", [high, size], size, imp.dtype(dtype, i64), where, layout)


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
    return _create(imp, "aten.randint.low", [low, high, size], size, imp.dtype(dtype, i64), where, layout)


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


def _fill(imp: Importer, overload: str, self: Value, *args: Operand) -> Value:
    """A tensor like `self` of random numbers; also the new contents for an in-place fill.

    Raises:
        Decline: numbers are drawn in memory order, and the functional overload may lay its result out in another way.
    """
    if self.dtype.kind == "complex" or any(isinstance(arg, Value) and arg.type.is_host for arg in args):
        raise Decline("complex numbers, or parameters that the program computes")
    if not layout.is_contiguous(self.shape, imp.strides(self)):  # type: ignore[arg-type]  # static shapes
        raise Decline("not contiguous")
    (value,) = stated_call(imp, overload, [self, *args], [self.type], effect=RANDOM)
    return value


@rule("aten.bernoulli.p")
def bernoulli_p(imp: Importer, self: Value, p: Operand = 0.5, generator: Any = None) -> Value:
    _default_generator(generator)
    return _fill(imp, "aten.bernoulli.p", self, p)


@rule("aten.bernoulli.default")
def bernoulli(imp: Importer, self: Value, generator: Any = None) -> Value:
    _default_generator(generator)
    if not self.dtype.is_float:
        raise Decline("eager raises")
    return _fill(imp, "aten.bernoulli.default", self)


@rule("aten.uniform.default")
def uniform(
    imp: Importer, self: Value, from_: Operand = 0.0, to: Operand = 1.0, generator: Any = None, **named: Operand
) -> Value:
    _default_generator(generator)
    return _fill(imp, "aten.uniform.default", self, named.get("from", from_), to)


@rule("aten.exponential.default")
def exponential(imp: Importer, self: Value, lambd: Operand = 1.0, generator: Any = None) -> Value:
    _default_generator(generator)
    return _fill(imp, "aten.exponential.default", self, lambd)


def _default_generator(generator: Any) -> None:
    if generator is not None:
        raise Decline("a generator of the caller's own")


def _like(
    imp: Importer,
    overload: str,
    self: Value,
    args: Sequence[Any],
    dtype: torch.dtype | None,
    options: dict[str, Any],
) -> Value:
    """A fresh tensor of random numbers in the shape and memory format of another."""
    if options.get("layout") not in (None, torch.strided) or options.get("pin_memory"):
        raise Decline("not strided, or pinned memory")
    kind, where = imp.dtype(dtype, self.dtype), imp.device(options.get("device"), self)
    if kind.kind == "complex":
        raise Decline("complex numbers")
    kwargs: dict[str, Attr] = {"dtype": kind, "device": device_attr(where)}
    strides = imp.memory_format_strides(self, options.get("memory_format"))
    if options.get("memory_format") not in (None, torch.preserve_format):
        kwargs["memory_format"] = Named("memory_format", str(options["memory_format"]).removeprefix("torch."))
    (value,) = stated_call(imp, overload, [self, *args], [TensorType(kind, self.shape, where)], kwargs, RANDOM)
    return imp.with_strides(value, strides)


@rule("aten.rand_like.default")
def rand_like(imp: Importer, self: Value, dtype: torch.dtype | None = None, **options: Any) -> Value:
    return _like(imp, "aten.rand_like.default", self, [], dtype, options)


@rule("aten.randn_like.default")
def randn_like(imp: Importer, self: Value, dtype: torch.dtype | None = None, **options: Any) -> Value:
    return _like(imp, "aten.randn_like.default", self, [], dtype, options)


@rule("aten.randint_like.default")
def randint_like(imp: Importer, self: Value, high: int, dtype: torch.dtype | None = None, **options: Any) -> Value:
    return _like(imp, "aten.randint_like.default", self, [high], dtype, options)


@rule("aten.randint_like.low_dtype")
def randint_like_low(
    imp: Importer, self: Value, low: int, high: int, dtype: torch.dtype | None = None, **options: Any
) -> Value:
    return _like(imp, "aten.randint_like.low_dtype", self, [low, high], dtype, options)


@rule("aten.native_dropout.default")
def native_dropout(imp: Importer, input: Value, p: float, train: bool | None) -> tuple[Value, Value]:
    if not input.dtype.is_float:
        raise Decline("eager raises")
    if train is False:
        # a copy, as eager makes: the result is no view of the input
        copy = imp.b.op("reshape", input, shape=input.shape)
        return copy, imp.full(input.shape, True, bool_, input.device)  # type: ignore[arg-type]  # static shapes
    types = [input.type, input.type.with_dtype(bool_)]
    out, mask = stated_call(imp, "aten.native_dropout.default", [input, p, train], types, effect=RANDOM)
    strides = imp.preserved_strides(input)
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
