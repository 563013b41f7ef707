"""The table of ATen import rules: how each overload becomes graph ops.

A rule is written once per functional overload; the in-place and `out=` overloads of the same operator are imported with
it and a write-back, so they need no rule of their own. An overload without any rule becomes an `extern` op.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

RuleFn: TypeAlias = Callable[..., Any]
Fn = TypeVar("Fn", bound=RuleFn)

POINTWISE, LIKE, CONTIGUOUS, AUTO = "pointwise", "like", "contiguous", "auto"


class Decline(Exception):
    """Raised by a rule for arguments it does not cover; the call is then imported as an `extern` op."""


class Erroneous(Exception):
    """Raised by a rule for arguments that eager refuses, whatever is in the tensors: eager then tells why."""


@dataclass(frozen=True)
class Rule:
    """How one overload is imported.

    Args:
        overload: `namespace.name.overload`, such as `aten.add.Tensor`.
        fn: `fn(imp, *args, **kwargs)` returning a Value, a tuple or list of Values, or None for a missing result.
        layout: the strides eager gives the results: `pointwise` (TensorIterator over all tensor arguments), `like` (as
            `empty_like` of the first one has them), `contiguous`, or `auto` (pointwise when the op that makes the
            result is, else contiguous). `Importer.with_strides` overrides it for one result.
        float8: it takes 8-bit floats.
    """

    overload: str
    fn: RuleFn
    layout: str = AUTO
    float8: bool = False


RULES: dict[str, Rule] = {}


def rule(*overloads: str, layout: str = AUTO, float8: bool = False) -> Callable[[Fn], Fn]:
    """Register a function as the import rule of the named overloads.

        @rule("aten.add.Tensor", "aten.add.Scalar")
        def add(imp: Importer, self: Value, other: Operand, alpha: Operand = 1) -> Value:
            (x, y), dtype = imp.promote(self, other)
            ...

    Parameters bear the schema's names and defaults: a call leaves out arguments that have their default value. Tensor
    arguments come as graph `Value`s, Python numbers as they are (or as host `Value`s when they are traced), dtypes,
    devices, layouts and memory formats as torch objects, lists as lists.

    Raises:
        ValueError: an overload already has a rule.
    """

    def add(fn: Fn) -> Fn:
        for overload in overloads:
            if overload in RULES:
                raise ValueError(f"{overload} has two import rules")
            RULES[overload] = Rule(overload, fn, layout, float8)
        return fn

    return add


def load_rules() -> None:
    """Import every rule family once, so that their rules register."""
    import importlib
    import pkgutil

    import graphc.frontend.aten as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
