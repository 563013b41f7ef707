"""Traced Python numbers: what `.item()` gives inside a captured function.

They are torch's own symbolic numbers, which ATen takes as numbers, around a node of ours, which records arithmetic as
graph ops on the host. Python itself may not look at the value: a branch on it raises, unless it is an argument of the
function, whose value of this call is then taken as a constant and guarded.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeAlias, Union

import torch

from graphc.errors import DataDependentError
from graphc.frontend.locations import is_graphc_code
from graphc.ir.graph import Value
from graphc.ir.sizes import Size, SizedFloat, bound, depends_on_sizes, plain
from graphc.ir.types import DType, Location, bool_, f64, i64

Number: TypeAlias = Union[bool, int, float]

_DTYPES: dict[type, DType] = {bool: bool_, int: i64, float: f64}


class HostScope(Protocol):
    """What host scalars need from the capture."""

    def host_op(self, name: str, *operands: Value | Number) -> Value:
        """Append an op on host values."""

    def specialize(self, node: HostNode) -> Number:
        """The value of a number that is an argument, now a guarded constant.

        Raises:
            DataDependentError: it comes from tensor data, and the capture takes no decisions on them.
        """

    def expect(self, node: HostNode) -> bool:
        """The value of a condition that is said to hold; where it does not, an error follows."""

    def assume(self, node: HostNode) -> bool:
        """Whether the program checks, from now on, that a condition holds; where it does not, eager runs the call."""

    def text_of(self, node: HostNode, spec: str = "") -> str:
        """What a number is formatted as."""

    def note_number(self, node: HostNode) -> None:
        """A traced number has been made."""

    def note_size(self, node: SizeNode) -> None:
        """A size has been handed out."""

    def user_location(self) -> Location:
        """The user's line that runs now."""


class HostNode:
    """A traced number: the `node` of a `torch.SymInt`, `SymFloat` or `SymBool`.

    Args:
        scope: the capture it belongs to.
        value: its graph value, on the host device.
        kind: bool, int or float.
        hint: its value in this call, when it is computed from arguments only.
        leaves: the arguments it is computed from, by position, and other numbers that are inputs, by key.
    """

    __slots__ = ("__weakref__", "hint", "kind", "leaves", "scope", "value")

    def __init__(
        self,
        scope: HostScope,
        value: Value,
        kind: type,
        hint: Number | None = None,
        leaves: frozenset[Hashable] = frozenset(),
    ) -> None:
        self.scope, self.value, self.kind, self.hint, self.leaves = scope, value, kind, hint, leaves
        scope.note_number(self)

    # asked by ATen

    def is_int(self) -> bool:
        return self.kind is int

    def is_float(self) -> bool:
        return self.kind is float

    def is_bool(self) -> bool:
        return self.kind is bool

    def is_symbolic(self) -> bool:
        return True

    def is_constant(self) -> bool:
        return False

    def is_nested_int(self) -> bool:
        return False

    def has_hint(self) -> bool:
        return self.hint is not None

    def maybe_as_int(self) -> int | None:
        return None

    def maybe_as_float(self) -> float | None:
        return None

    def maybe_as_bool(self) -> bool | None:
        return None

    def guard_int(self, file: str, line: int) -> int:
        return int(self.scope.specialize(self))

    def guard_float(self, file: str, line: int) -> float:
        return float(self.scope.specialize(self))

    def guard_bool(self, file: str, line: int) -> bool:
        return bool(self.scope.specialize(self))

    def expect_true(self, file: str, line: int) -> bool:
        return self.scope.expect(self)

    guard_size_oblivious = guard_or_false = guard_or_true = statically_known_true = guard_bool

    def expect_size(self, file: str, line: int) -> bool:
        return int(self.scope.specialize(self)) >= 0

    def known(self) -> Number:
        """The number, which is looked at."""
        return self.scope.specialize(self)

    def text(self, spec: str = "") -> str:
        """What the number is formatted as."""
        return self.scope.text_of(self, spec)

    def int_(self) -> int:
        return self.guard_int("", 0)

    def bool_(self) -> bool:
        return self.guard_bool("", 0)

    def clone(self) -> HostNode:
        return self

    def _graph_repr(self) -> str:
        return f"<traced {self.kind.__name__} %{self.value.name}>"

    __repr__ = __str__ = _graph_repr

    def wrap_int(self, number: Number) -> HostConstant:
        return HostConstant(self.scope, number)

    wrap_float = wrap_bool = wrap_int

    def sym_float(self) -> HostNode:
        return self.convert(float)

    # arithmetic

    def convert(self, kind: type) -> HostNode:
        """`float(x)`, `int(x)` (towards zero) or `bool(x)` without looking at the value."""
        if kind is self.kind:
            return self
        value = self.scope.host_op("cast:" + _DTYPES[kind].name, self.value)
        return HostNode(self.scope, value, kind, None if self.hint is None else kind(self.hint), self.leaves)

    def unary(self, name: str) -> HostNode:
        """A scalar op of one operand."""
        operand = self if self.kind is not bool else self.convert(int)
        hint = None if operand.hint is None else _UNARY[name](operand.hint)
        return HostNode(self.scope, self.scope.host_op(name, operand.value), operand.kind, hint, self.leaves)

    def binary(self, name: str, other: HostNode | Number, swap: bool = False) -> HostNode:
        """A scalar op of two operands with Python's promotion; `swap` puts `other` first."""
        other = other.number if isinstance(other, HostConstant) else other
        kind = float if name == "div" else max(self.kind, _kind_of(other), key=_RANK.__getitem__)
        if kind is bool and name not in _LOGICAL:
            kind = int
        pair: list[HostNode | Number] = [_as(self, kind), _as(other, kind)]
        if swap:
            pair.reverse()
        value = self.scope.host_op(name, *(p.value if isinstance(p, HostNode) else p for p in pair))
        hints = [p.hint if isinstance(p, HostNode) else p for p in pair]
        hint = None if None in hints else _BINARY[name](*hints)
        leaves = self.leaves | (other.leaves if isinstance(other, HostNode) else frozenset())
        return HostNode(self.scope, value, bool if name in _COMPARISONS else kind, hint, leaves)

    def choose(self, first: HostNode | Number, second: HostNode | Number) -> HostNode:
        """`first if self else second`, of a bool, without a decision; both become numbers of one kind."""
        pair = (first, second)
        kind = max(map(_kind_of, pair), key=_RANK.__getitem__)
        given = [_as(item, kind) for item in pair]
        value = self.scope.host_op("where", self.value, *(p.value if isinstance(p, HostNode) else p for p in given))
        hints = [item.hint if isinstance(item, HostNode) else item for item in given]
        hint = None if self.hint is None else hints[0] if self.hint else hints[1]
        leaves = self.leaves.union(*(item.leaves for item in pair if isinstance(item, HostNode)))
        return HostNode(self.scope, value, kind, hint, leaves)


class HostConstant(HostNode):
    """A plain number among traced ones, where ATen asks for a node."""

    def __init__(self, scope: HostScope, number: Number) -> None:
        self.scope, self.kind, self.hint, self.leaves = scope, type(number), number, frozenset()

    def is_constant(self) -> bool:
        return True

    def _graph_repr(self) -> str:
        return repr(self.hint)

    __repr__ = __str__ = _graph_repr

    def maybe_as_int(self) -> int | None:
        return int(self.number) if self.kind is int else None

    def known(self) -> Number:
        return bound(self.number)

    def text(self, spec: str = "") -> str:
        return format(self.known(), spec)

    @property
    def number(self) -> Number:
        """The number itself."""
        assert self.hint is not None
        return self.hint

    def guard_int(self, file: str, line: int) -> int:
        return int(self.number)

    def guard_float(self, file: str, line: int) -> float:
        return float(self.number)

    def guard_bool(self, file: str, line: int) -> bool:
        return bool(self.number)

    guard_size_oblivious = guard_or_false = guard_or_true = statically_known_true = expect_true = guard_bool

    def expect_size(self, file: str, line: int) -> bool:
        return bool(self.number >= 0)

    def sym_not(self) -> HostNode:
        return HostConstant(self.scope, not self.number)

    def maybe_as_float(self) -> float | None:
        return float(self.number) if self.kind is float else None

    def maybe_as_bool(self) -> bool | None:
        return bool(self.number) if self.kind is bool else None

    def convert(self, kind: type) -> HostNode:
        return self if kind is self.kind else constant(self.scope, kind(self.number))

    def unary(self, name: str) -> HostNode:
        return constant(self.scope, _UNARY[name](self.number))

    def binary(self, name: str, other: HostNode | Number, swap: bool = False) -> HostNode:
        if isinstance(other, HostNode) and not isinstance(other, HostConstant):
            return other.binary(name, self.number, not swap)
        pair = [self.number, other.number if isinstance(other, HostConstant) else other]
        return constant(self.scope, _BINARY[name](*(reversed(pair) if swap else pair)))


class SizeNode(HostConstant):
    """A size of a tensor that stands for many: see `graphc.ir.sizes`. Whoever looks at it binds it, and is noted."""

    def __init__(self, scope: HostScope, number: Size | SizedFloat) -> None:
        super().__init__(scope, number)
        self.kind = int if isinstance(number, int) else float
        scope.note_size(self)

    def is_constant(self) -> bool:
        return False

    def maybe_as_int(self) -> int | None:
        return None

    def leave(self) -> None:
        """The capture has come to nothing: for who keeps the size it is a number like any other from now on."""
        number = self.number
        self.hint = plain(number) if isinstance(number, int) else float.__add__(number, 0.0)


def constant(scope: HostScope, number: Number) -> HostConstant:
    """The node of a number that is known, or of a size."""
    return SizeNode(scope, number) if depends_on_sizes(number) else HostConstant(scope, number)  # type: ignore[arg-type]


def sized(scope: HostScope, number: int) -> Any:
    """A size as the user's Python and ATen get it; a plain int as it is."""
    return HostInt(SizeNode(scope, number)) if type(number) is Size else number


def known(item: Any) -> Any:
    """An argument or result as it is, but sizes as the graph gets them."""
    if type(item) is torch.Size:
        return torch.Size(map(known, item)) if any(map(is_traced, item)) else item
    node = getattr(item, "node", None)
    return node.number if isinstance(node, HostConstant) else item


def is_traced(item: Any) -> bool:
    """Whether something is a number of ours: one that data decide, or a size."""
    return isinstance(item, _HostNumber)


def size_of(item: Any) -> int:
    """A size as the graph gets it: a plain int, or a `Size`. Data that decide one are looked at."""
    node = getattr(item, "node", None)
    number = node.number if type(node) is SizeNode else item
    return number if isinstance(number, Size) else int(number)


_RANK = {bool: 0, int: 1, float: 2}
_LOGICAL = ("bitwise_and", "bitwise_or", "bitwise_xor", "eq", "ne")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": lambda a: -a, "abs": abs, "floor": math.floor, "ceil": math.ceil, "trunc": math.trunc, "round": round,
    "bitwise_not": lambda a: ~a,
    **{name: getattr(math, name) for name in ("sqrt", "exp", "log", "log2", "log10", "log1p")},
    **{name: getattr(math, name) for name in ("sin", "cos", "tanh", "atan")},
}  # fmt: skip
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
    "floordiv": lambda a, b: a // b, "remainder": lambda a, b: a % b, "pow": lambda a, b: a**b,
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b, "bitwise_and": lambda a, b: a & b,
    "bitwise_or": lambda a, b: a | b, "bitwise_xor": lambda a, b: a ^ b, "maximum": max, "minimum": min,
}  # fmt: skip


def _kind_of(value: HostNode | Number) -> type:
    return value.kind if isinstance(value, HostNode) else type(value)


def _as(value: HostNode | Number, kind: type) -> HostNode | Number:
    return value.convert(kind) if isinstance(value, HostNode) else kind(value)


class _HostNumber:
    """Python's arithmetic, shared by the three classes."""

    node: HostNode

    def __bool__(self) -> bool:
        return self.node.bool_()

    def __int__(self) -> int:
        return self.node.guard_int("", 0)

    __index__ = __int__

    def __float__(self) -> float:
        return self.node.guard_float("", 0)

    def __hash__(self) -> int:
        return hash(self.node.known())

    def __repr__(self) -> str:
        """As text, `repr` in containers included; of the graph's value for graphc itself."""
        return repr(self.node) if is_graphc_code(sys._getframe(1).f_code) else str(self)

    def __str__(self) -> str:
        return self.node.text()

    def __format__(self, spec: str) -> str:
        return self.node.text(spec)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __trunc__(self) -> Any:
        return wrap(self.node.unary("trunc").convert(int))

    def __floor__(self) -> Any:
        return wrap(self.node.unary("floor").convert(int)) if self.node.kind is float else self

    def __ceil__(self) -> Any:
        return wrap(self.node.unary("ceil").convert(int)) if self.node.kind is float else self

    def __round__(self, digits: int | None = None) -> Any:
        if digits is not None:
            return round(float(self), digits)
        return wrap(self.node.unary("round").convert(int)) if self.node.kind is float else self

    def __pos__(self) -> Any:
        return self

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """A function of numpy's: arithmetic with plain numbers is recorded, all else takes the value."""
        operation = _UFUNCS.get(ufunc.__name__)
        if operation is not None and method == "__call__" and not options and None not in map(_operand, inputs):
            return operation(*inputs)
        given = (item.node.known() if isinstance(item, _HostNumber) else item for item in inputs)
        return getattr(ufunc, method)(*given, **options)

    def is_integer(self) -> Any:
        return self == wrap(self.node.unary("trunc")) if self.node.kind is float else True


def _operand(other: object) -> HostNode | Number | None:
    node = getattr(other, "node", None)
    if isinstance(node, HostNode):
        return node
    if isinstance(other, (Size, SizedFloat)):
        return other
    return next((kind(other) for kind in (bool, int, float) if isinstance(other, kind)), None)


def _recorded(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The same with numbers of numpy's as Python's own, whose methods let a traced number take over."""
    return lambda *items: operation(*(item if isinstance(item, _HostNumber) else _operand(item) for item in items))


def _float_function(name: str) -> Callable[[Any], Any]:
    """A function of numpy's, which raises for no number."""
    return lambda item: wrap(item.node.convert(float).unary(name))


_UFUNCS = {
    "add": _recorded(operator.add), "subtract": _recorded(operator.sub), "multiply": _recorded(operator.mul),
    "divide": _recorded(operator.truediv), "negative": _recorded(operator.neg), "absolute": _recorded(abs),
    **{name: _float_function(name) for name in ("sqrt", "exp", "log", "log2", "log10", "log1p", "sin", "cos", "tanh")},
}  # fmt: skip


def _binary(name: str, swap: bool) -> Callable[[_HostNumber, object], Any]:
    def method(self: _HostNumber, other: object) -> Any:
        operand = _operand(other)
        return NotImplemented if operand is None else wrap(self.node.binary(name, operand, swap))

    return method


def _unary(name: str) -> Callable[[_HostNumber], Any]:
    def method(self: _HostNumber) -> Any:
        return wrap(self.node.unary(name))

    return method


_METHODS = {
    "add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "floordiv": "floordiv", "mod": "remainder",
    "pow": "pow", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
}  # fmt: skip
_ARITHMETIC: dict[str, Any] = {
    **{f"__{python}__": _binary(name, False) for python, name in _METHODS.items()},
    **{f"__r{python}__": _binary(name, True) for python, name in _METHODS.items()},
    **{f"__{name}__": _binary(name, False) for name in _COMPARISONS},
    "__neg__": _unary("neg"),
    "__abs__": _unary("abs"),
    "__invert__": _unary("bitwise_not"),
    "__sym_float__": lambda self: wrap(self.node.convert(float)),
    "__sym_int__": lambda self: wrap(self.node.convert(int)),
    "__sym_max__": _binary("maximum", False),
    "__sym_min__": _binary("minimum", False),
    "__sym_sqrt__": lambda self: wrap(self.node.convert(float).unary("sqrt")),
    "__hash__": _HostNumber.__hash__,
}


def _number_class(kind: type, base: type) -> Any:
    """The class of traced numbers of one kind; `isinstance` takes them for numbers of Python, as in eager, too."""
    return type(
        f"Host{kind.__name__.title()}", (_HostNumber, base), {**_ARITHMETIC, "__class__": property(lambda _: kind)}
    )


HostInt = _number_class(int, torch.SymInt)
HostFloat = _number_class(float, torch.SymFloat)
HostBool = _number_class(bool, torch.SymBool)
_CLASSES: dict[type, Any] = {int: HostInt, float: HostFloat, bool: HostBool}
_OPERATORS: dict[str, str] = {
    "add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "float_truediv": "div", "int_truediv": "div",
    "floordiv": "floordiv", "int_floordiv": "floordiv", "mod": "remainder", "pow": "pow", "float_pow": "pow",
    "pow_by_natural": "pow", "eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge",
    "and_": "bitwise_and", "or_": "bitwise_or", "sym_and": "bitwise_and", "sym_or": "bitwise_or",
    "sym_max": "maximum", "sym_min": "minimum",
}  # fmt: skip


def _node_method(name: str) -> Callable[[HostNode, HostNode | Number], HostNode]:
    return lambda self, other: self.binary(name, other)


for _name, _op in _OPERATORS.items():  # ATen calls these on the node of an operand
    setattr(HostNode, _name, _node_method(_op))
HostNode.str = lambda self: repr(self)  # type: ignore[attr-defined]  # under this name ATen asks for a description
for _name in ("neg", "floor", "ceil", "trunc", "round"):
    setattr(HostNode, _name, lambda self, name=_name: self.unary(name))


def wrap(node: HostNode) -> Any:
    """The Python object the user gets for a traced number."""
    if type(node) is HostConstant:
        return node.number
    return _CLASSES[node.kind](node)


def node_of(value: object) -> HostNode | None:
    """The node of a number of ours that data decide, else None."""
    node = getattr(value, "node", None) if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) else None
    return node if isinstance(node, HostNode) and not isinstance(node, HostConstant) else None


def refuse(what: str, location: Location) -> DataDependentError:
    """The error for Python looking at data of tensors."""
    return DataDependentError(
        f"{what} depends on the data of a tensor, which one graph cannot hold: graphc.compile makes a program per "
        "path. For one graph use torch.where (or torch.clamp, masks, ...) instead of a Python branch, keep `.item()` "
        "results in tensor arithmetic, or compute this outside the function",
        location,
    )
