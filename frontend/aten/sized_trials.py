"""Calls of libraries on tensors of many sizes: what they return is learnt for some, and looked at again for each.

A trial knows nothing of sizes. It is run for those that there are and for a few others, and the numbers in its answers
are looked for as expressions of them, as `graphc.ir.generalize` does. That is a guess, so for other sizes the trial is
run once more before there is a program: see `SizedTrial.holds`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from graphc.ir.dims import symbol
from graphc.ir.generalize import fitted
from graphc.ir.graph import Input, Value
from graphc.ir.sizes import Conditions, Real, Reciprocal, Size, value_of
from graphc.ir.types import TensorType

_STEPS = (1, 3, 8)
"""How much larger the other sizes are for which a trial is run."""


class OneSizeOnly(BaseException):
    """A capture cannot be for many sizes.

    Not an Exception, so that the user's own handlers let it pass.
    """


class Lying:
    """Where stand-ins for values lie in memory."""

    def __init__(self) -> None:
        self._strides: dict[Value, tuple[int, ...]] = {}

    def strides(self, value: Value) -> tuple[int, ...]:
        """In elements."""
        return self._strides[value]

    def stand_in(self, value: Value, strides: tuple[int, ...], values: Mapping[str, int]) -> Value:
        """A value like another one, where sizes have some values."""
        made = Value(value.name, at(value.type, values))
        self._strides[made] = at(strides, values)
        return made


class SizedTrial:
    """A call of a library, and what it returns.

    Args:
        run: makes it on stand-ins, and says what it returns in tuples, lists, types and numbers.
        args, kwargs: with values for tensors.
        strides: of these.
        conditions: of the sizes in them.

    Attributes:
        answer: what it returns, with sizes in it.

    Raises:
        OneSizeOnly: what it returns for other sizes cannot be told.
    """

    def __init__(
        self,
        run: Callable[[Lying, Sequence[Any], dict[str, Any]], Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        strides: Mapping[Value, tuple[int, ...]],
        conditions: Conditions,
    ) -> None:
        self._run, self._args, self._kwargs, self._strides = run, args, kwargs, strides
        given = conditions.given()
        known = [conditions.all_sizes(given)]
        for step in _STEPS:
            larger = {name: size + step * place for place, (name, size) in enumerate(given.items(), 1)}
            known.append(conditions.all_sizes(larger))
        first, *others = (self._at(values) for values in known)
        rows: set[tuple[int, ...]] = set()
        _joined(first, others, functools.partial(_noted, rows))
        bases = [(symbol(name), tuple(values[name] for values in known)) for name in known[0]]
        find = fitted(bases, rows)
        if find is None:
            raise OneSizeOnly("the shape of what a library returns is no expression of the sizes of its operands")
        self.answer = _joined(first, others, lambda row: conditions.size(row[0], find(row)))

    def holds(self, values: Mapping[str, int]) -> bool:
        """Whether the call returns what is expected of it where sizes have these values."""
        return bool(self._at(values) == at(self.answer, values))

    def _at(self, values: Mapping[str, int]) -> Any:
        lying, made = Lying(), dict[Value, Value]()

        def change(item: Any) -> Any:
            if isinstance(item, Value):
                if item not in made:
                    made[item] = lying.stand_in(item, self._strides[item], values)
                return made[item]
            return [change(part) for part in item] if isinstance(item, (list, tuple)) else at(item, values)

        return self._run(lying, change(self._args), {name: change(item) for name, item in self._kwargs.items()})


def at(item: Any, values: Mapping[str, int]) -> Any:
    """The same, with sizes as ints, where they have some values."""
    if type(item) is Size:
        return value_of(item.expr, values)
    if type(item) is Reciprocal:
        return 1.0 / value_of(item.size.expr, values)
    if type(item) is Real:
        return float(value_of(item.size.expr, values))
    if isinstance(item, Input):
        return Input(item.name, at(item.type, values), item.role, item.path, at(item.strides, values))
    if isinstance(item, TensorType):
        return TensorType(item.dtype, at(item.shape, values), item.device)
    return _like(item, [at(part, values) for part in item]) if isinstance(item, (list, tuple)) else item


def sizes_in(item: Any) -> Iterator[Size]:
    """The sizes in arguments of a call, and in types and shapes of its values."""
    if type(item) is Size:
        yield item
    elif isinstance(item, (Value, TensorType)):
        yield from sizes_in(item.shape)
    elif isinstance(item, dict):
        yield from sizes_in(list(item.values()))
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from sizes_in(part)


def _joined(first: Any, others: Sequence[Any], number: Callable[[tuple[int, ...]], int]) -> Any:
    """One answer of several that are alike but for numbers.

    Args:
        number: what to put where they differ in an int.

    Raises:
        OneSizeOnly: they differ in more.
    """
    if isinstance(first, int) and not isinstance(first, bool) and all(type(other) is int for other in others):
        row = (first, *others)
        return first if len(set(row)) == 1 else number(row)
    if isinstance(first, TensorType):
        if any((other.dtype, other.device, other.rank) != (first.dtype, first.device, first.rank) for other in others):
            raise OneSizeOnly("what a library returns is of another type for other sizes")
        return TensorType(first.dtype, _joined(first.shape, [other.shape for other in others], number), first.device)
    if isinstance(first, (list, tuple)) and all(
        type(other) is type(first) and len(other) == len(first) for other in others
    ):
        return _like(first, [_joined(*(column[0], column[1:], number)) for column in zip(first, *others, strict=True)])
    if any(other != first for other in others):
        raise OneSizeOnly("what a library returns is another thing for other sizes")
    return first


def _noted(rows: set[tuple[int, ...]], row: tuple[int, ...]) -> int:
    rows.add(row)
    return row[0]


def _like(item: Any, parts: list[Any]) -> Any:
    """A sequence of these parts, of the class of another one; a plain tuple for one with names."""
    return type(item)(parts) if isinstance(item, (list, torch.Size)) else tuple(parts)
