"""Values that no input of a function decides: `torch.linspace(0, rate, n)[i].item()` is a number while capturing.

Where Python looks at such a value, or an operator's result has a shape that such values decide, the answer is computed
at once, by the ops' own references, and the capture goes on: it is no decision on data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from graphc.ir.graph import Input, Op, Role, Value
from graphc.ir.interpreter import Datum, run_op
from graphc.ops.extern import effect
from graphc.ops.registry import Kind, get

_ELEMENTS = 1 << 16
"""Larger values are left to the program."""
_OPS = 4096


class Known:
    """Computes values of one capture.

    Args:
        constant: the tensor behind an input that was made from Python data.
    """

    def __init__(self, constant: Callable[[Input], torch.Tensor | None]) -> None:
        self._constant = constant
        self._data: dict[Value, Datum] = {}
        self._unknown: set[Value] = set()

    def of(self, value: Value) -> Datum | None:
        """The value, or None when inputs or random numbers decide it, or it takes too much work."""
        if value not in self._data and value not in self._unknown:
            self._compute(value)
        return self._data.get(value)

    def all(self, values: Sequence[Value]) -> list[Datum] | None:
        """Several values, or None when one of them is not known."""
        found = [self.of(value) for value in values]
        return None if any(item is None for item in found) else [item for item in found if item is not None]

    def _compute(self, value: Value) -> None:
        ops = self._sources(value)
        if ops is None:
            self._unknown.add(value)
            return
        lookup: Any = get
        with torch.no_grad(), torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            try:
                for op in ops:
                    run_op(op, self._data, lookup)
            except Exception:  # the program raises it, when it runs
                self._unknown.add(value)

    def _sources(self, value: Value) -> list[Op] | None:
        """The ops still to be run for a value, in order; None when it cannot be known."""
        order: list[Op] = []
        seen: set[Op] = set()
        stack: list[tuple[Value, bool]] = [(value, False)]
        while stack:
            item, ready = stack.pop()
            if item in self._data:
                continue
            if item in self._unknown:
                self._give_up(stack)
                return None
            if isinstance(item, Input):
                tensor = self._constant(item) if item.role is Role.CONST else None
                if tensor is None:
                    self._unknown.add(item)
                    self._give_up(stack)
                    return None
                self._data[item] = tensor
                continue
            op = item.op
            if op is None or not _is_computable(op):
                self._unknown.add(item)
                self._give_up(stack)
                return None
            if len(seen) > _OPS:
                self._unknown.add(item)
                return None
            if ready:
                order.append(op)
            elif op not in seen:
                seen.add(op)
                stack.append((item, True))
                stack.extend((operand, False) for operand in op.inputs)
        return order

    def _give_up(self, stack: list[tuple[Value, bool]]) -> None:
        """What waits for an unknown value is unknown too, and is not gone through again."""
        self._unknown.update(item for item, ready in stack if ready)


def _is_computable(op: Op) -> bool:
    small = all(isinstance(r.type.numel, int) and r.type.numel <= _ELEMENTS for r in op.results)
    cpu = all(r.type.is_host or r.device == "cpu" for r in op.results)
    return small and cpu and not effect(op) and get(op.name).kind is not Kind.RANDOM and not op.attrs.get("mutates")
