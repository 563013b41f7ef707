"""Checks core ops three ways: type rule and reference on real operands, and their lowering run by the kernel oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from graphc import ops
from graphc.errors import InvalidGraphError
from graphc.frontend.aten.importer import tensor_type
from graphc.ir import interpreter
from graphc.ir.graph import Builder, Graph, Operand, Output, Role
from graphc.ir.types import HOST, TensorType, bool_, f64, i64
from graphc.passes.plan import make_plan
from tests.plan_interpreter import run_plan
from tests.support import assert_contract

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
SPECIAL = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-3, 7.0, 300.0)


class Host:
    """Marks a Python number as a host scalar operand."""

    def __init__(self, value: bool | int | float) -> None:
        self.value = value

    @property
    def type(self) -> TensorType:
        dtype = bool_ if isinstance(self.value, bool) else i64 if isinstance(self.value, int) else f64
        return TensorType(dtype, (), HOST)


def graph_of(name: str, operands: Sequence[Any], attrs: dict[str, Any]) -> tuple[Graph, list[Any]]:
    """A graph of one op, and its inputs: tensors and host scalars become inputs, numbers literals."""
    graph = Graph(name)
    builder = Builder(graph, ops.infer)
    inputs: list[Any] = []

    def value(item: Any) -> Operand:
        if not isinstance(item, (torch.Tensor, Host)):
            return item  # type: ignore[no-any-return]
        inputs.append(item.value if isinstance(item, Host) else item)
        strides = None if isinstance(item, Host) or item.is_contiguous() else tuple(item.stride())
        type_ = item.type if isinstance(item, Host) else tensor_type(item)
        return builder.input(f"x{len(inputs)}", type_, Role.ARG, f"x{len(inputs)}", strides)

    op = builder.multi(name, [value(item) for item in operands], attrs)
    graph.outputs = [Output(result) for result in op.results]
    return graph, inputs


def check(name: str, *operands: Any, lowers: bool = True, **attrs: Any) -> Any:
    """Check one op on operands; returns its result by the reference.

    Args:
        lowers: also plan it, run the plan with the oracles and compare with the reference.
    """
    graph, inputs = graph_of(name, operands, attrs)
    (result,) = interpreter.run(graph, inputs)
    stated = graph.outputs[0].value.type
    if isinstance(result, torch.Tensor):
        assert tensor_type(result) == stated, f"{name}: type rule {stated}, reference {tensor_type(result)}"
    else:
        assert stated.is_host and {f64: float, i64: int, bool_: bool}[stated.dtype] is type(result)
    if not lowers:
        return result
    (made,) = run_plan(make_plan(graph), inputs)
    if isinstance(result, torch.Tensor):
        exact = _in_double(name, operands, attrs) if result.dtype.is_floating_point else None
        assert_close(made, result, exact)
    else:
        assert made == result or made != made, f"{name}: lowering {made}, reference {result}"
    return result


def assert_close(actual: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor | None) -> None:
    """The contract; float64, which nothing wider judges, agrees to 12 digits of the largest element."""
    if actual.dtype != torch.float64:
        assert_contract(actual, eager, exact)
        return
    finite = eager[eager.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    torch.testing.assert_close(actual, eager, rtol=1e-12, atol=1e-13 * scale, equal_nan=True)


def _in_double(name: str, operands: Sequence[Any], attrs: dict[str, Any]) -> torch.Tensor | None:
    """The same op in float64, or None where that is another question (casts, bits, the next float)."""
    if name in ("bitcast", "cast", "nextafter", "to_tensor", "full", "iota"):
        return None
    wide = [
        item.double() if isinstance(item, torch.Tensor) and item.dtype.is_floating_point else item for item in operands
    ]
    graph, inputs = graph_of(name, wide, attrs)
    (result,) = interpreter.run(graph, inputs)
    return result if isinstance(result, torch.Tensor) else None


def refuses(message: str, name: str, *operands: Any, **attrs: Any) -> None:
    """Check that the type rule refuses operands or attributes with a message that matches."""
    with pytest.raises(InvalidGraphError, match=message):
        graph_of(name, operands, attrs)


def random(shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Random numbers about 0 of any dtype."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    low, high = (0, 100) if dtype == torch.uint8 else (-50, 50)
    return torch.randint(low, high, tuple(shape), generator=generator).to(dtype)


def each(values: Sequence[Any]) -> Callable[[Any], Any]:
    """Parametrize `value` with readable ids."""
    return pytest.mark.parametrize("value", values, ids=[str(v) for v in values])
