"""Checks import rules: every ATen call of a block is also imported, interpreted, and compared with what eager gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graphc import ops
from graphc.frontend.aten import layout
from graphc.frontend.aten.importer import Importer, tensor_type
from graphc.frontend.aten.registry import CONTIGUOUS, POINTWISE, RULES, Decline, Rule, load_rules
from graphc.ir import interpreter
from graphc.ir.graph import Builder, Graph, Output, Role, Value
from graphc.ops import Kind
from tests.ops.core import assert_close

load_rules()

UNSPECIFIED = ("aten.empty", "aten.new_empty")
"""Overloads whose results hold anything."""


class CheckRules(TorchDispatchMode):
    """Checks the import rule of every ATen call that has one.

    Attributes:
        used: how often each overload was imported.
        declined: how often a rule declined.
        mistakes: what was wrong, one line per call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used: Counter[str] = Counter()
        self.declined: Counter[str] = Counter()
        self.mistakes: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = RULES.get(str(func))
        expected = func(*args, **kwargs)
        if rule is None or torch.Tag.nondeterministic_seeded in func.tags:
            return expected
        if not any(t.dtype.is_complex or t.layout != torch.strided for t in _tensors((args, kwargs))):
            self._check(func, rule, args, kwargs, expected)
        return expected

    def _check(self, func: Any, rule: Rule, args: Any, kwargs: Any, expected: Any) -> None:
        try:
            compare(func, rule, args, kwargs, expected)
            self.used[str(func)] += 1
        except Decline:
            self.declined[str(func)] += 1
        except Exception as error:  # every kind of mistake is reported, none stops the run
            self.mistakes.append(f"{func}{_text(args)}{kwargs}: {type(error).__name__}: {error}")


def compare(func: Any, rule: Rule, args: Sequence[Any], kwargs: dict[str, Any], expected: Any) -> Graph:
    """Import one call, run the graph, compare values, dtypes, shapes and strides with eager's results."""
    graph, results = imported(rule, args, kwargs)
    answers = _as_list(expected)
    assert len(results) == len(answers), f"{len(results)} results, eager has {len(answers)}"
    graph.outputs = [Output(value) for value, _ in results]
    got = interpreter.run(graph, list(_tensors((args, kwargs))))
    exact = _exact(func, args, kwargs)[: len(answers)]
    for (value, strides), mine, eager, wide in zip(results, got, answers, exact, strict=True):
        assert isinstance(mine, torch.Tensor)
        assert value.type == tensor_type(mine), f"stated {value.type}, computed {tensor_type(mine)}"
        if not str(func).startswith(UNSPECIFIED):
            assert_close(mine, eager, wide)
        else:
            assert (mine.shape, mine.dtype) == (eager.shape, eager.dtype)
        if eager.numel() > 1:
            mattering = [d for d, size in enumerate(eager.shape) if size != 1]
            stated, real = [strides[d] for d in mattering], [eager.stride(d) for d in mattering]
            assert stated == real, f"strides {tuple(strides)}, eager {eager.stride()} for {tuple(eager.shape)}"
    return graph


def imported(rule: Rule, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Graph, list[tuple[Value, Any]]]:
    """The graph a rule makes of a call, and per result its value and the strides stated for it."""
    graph = Graph("call")
    builder = Builder(graph, ops.infer)
    strides: dict[Value, tuple[int, ...]] = {}

    def to_value(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            number = len(graph.inputs)
            value = builder.input(f"x{number}", tensor_type(item), Role.ARG, f"x{number}", tuple(item.stride()))
            strides[value] = tuple(item.stride())
            return value
        if isinstance(item, (list, tuple)):
            return type(item)(to_value(part) for part in item)
        return item

    values = [to_value(item) for item in args]
    keywords = {key: to_value(item) for key, item in kwargs.items()}
    importer = Importer(builder)
    importer.begin(strides)
    result = rule.fn(importer, *values, **keywords)
    found = [part for part in (result if isinstance(result, (list, tuple)) else [result]) if part is not None]
    return graph, [(value, _result_strides(importer, value, rule, strides)) for value in found]


def _result_strides(importer: Importer, value: Value, rule: Rule, operands: dict[Value, tuple[int, ...]]) -> Any:
    given = importer.given_strides(value)
    if given is not None:
        return given
    pointwise = rule.layout == POINTWISE
    if not pointwise and rule.layout != CONTIGUOUS and value.op is not None:
        pointwise = ops.get(value.op.name).kind is Kind.POINTWISE
    if not pointwise:
        return layout.contiguous(value.shape)  # type: ignore[arg-type]
    return layout.tensor_iterator_strides(
        value.shape,
        [(v.shape, s) for v, s in operands.items()],  # type: ignore[arg-type, misc]
    )


def _exact(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[torch.Tensor | None]:
    """The same call in float64, or Nones where there is no such thing."""
    floats = {torch.float32, torch.bfloat16, torch.float16}

    def wide(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return item.double() if item.dtype in floats else item
        if isinstance(item, torch.dtype):
            return torch.float64 if item in floats else item
        return type(item)(wide(part) for part in item) if isinstance(item, (list, tuple)) else item

    try:
        answers = _as_list(func(*wide(list(args)), **{key: wide(item) for key, item in kwargs.items()}))
    except (RuntimeError, TypeError, ValueError):
        return [None] * 8
    return [a if a.dtype == torch.float64 else None for a in answers]


def _tensors(item: Any) -> Iterator[torch.Tensor]:
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from _tensors(part)
    elif isinstance(item, dict):
        yield from _tensors(tuple(item.values()))


def _as_list(answer: Any) -> list[torch.Tensor]:
    return [part for part in (answer if isinstance(answer, (list, tuple)) else [answer]) if part is not None]


def _text(args: Sequence[Any]) -> str:
    def one(item: Any) -> str:
        if isinstance(item, torch.Tensor):
            return f"{str(item.dtype)[6:]}{list(item.shape)}/{list(item.stride())}"
        return f"[{', '.join(map(one, item))}]" if isinstance(item, (list, tuple)) else repr(item)

    return f"({', '.join(map(one, args))})"
