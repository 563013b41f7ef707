"""Guards: the facts a capture assumed, checked on every call by one generated Python function.

The function walks the arguments, compares what must not change, and returns the program's inputs, or None. A second
reading of the same lines, one by one, says which fact failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Describe: TypeAlias = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Check:
    """One line of the guard function: `if not (test): return None`.

    Args:
        test: a Python expression over locals and held constants.
        describe: given the locals at that line, says what changed.
    """

    test: str
    describe: Describe


@dataclass(frozen=True)
class Let:
    """One line of the guard function: an assignment."""

    line: str


class GuardSet:
    """Facts, compiled.

    Args:
        lines: in order; they may use `args` and `kwargs`.
        constants: names for objects they refer to.
        result: expression for the list of program inputs.
    """

    def __init__(self, lines: list[Check | Let], constants: dict[str, Any], result: str) -> None:
        self._lines, self._constants, self._result = lines, constants, result
        self.match: Callable[[Sequence[Any], dict[str, Any]], list[Any] | None] = self._compile()

    def __len__(self) -> int:
        return sum(isinstance(line, Check) for line in self._lines)

    def source(self) -> str:
        """Text of the guard function."""
        body = []
        run: list[str] = []
        for line in [*self._lines, None]:
            if isinstance(line, Check):
                run.append(line.test)
                if len(run) < 64:
                    continue
            if run:
                body.append("if not (" + "\n            and ".join(run) + "):\n            return None")
                run = []
            if isinstance(line, Let):
                body.append(line.line)
        text = "\n        ".join([*body, f"return {self._result}"])
        return f"def match(args, kwargs):\n    try:\n        {text}\n    except _MISS:\n        return None\n"

    def _compile(self) -> Callable[[Sequence[Any], dict[str, Any]], list[Any] | None]:
        namespace = {**self._constants, "_MISS": MISS}
        exec(compile(self.source(), "<graphc guards>", "exec"), namespace)
        found: Callable[[Sequence[Any], dict[str, Any]], list[Any] | None] = namespace["match"]
        return found

    def explain(self, args: Sequence[Any], kwargs: dict[str, Any]) -> str:
        """The first fact that does not hold for a call; empty when all do."""
        scope: dict[str, Any] = {**self._constants, "args": args, "kwargs": kwargs}
        for line in self._lines:
            try:
                if isinstance(line, Let):
                    exec(line.line, scope)
                elif not eval(line.test, scope):
                    return line.describe(scope)
            except MISS as error:
                return line.describe(scope) if isinstance(line, Check) else f"the structure of the arguments ({error})"
        return ""


MISS = (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError)
"""What looking at changed objects may raise; each means that a fact does not hold."""


class GuardBuilder:
    """Collects facts.

    Attributes:
        lines: facts so far, in the order they will be checked.
    """

    def __init__(self) -> None:
        self.lines: list[Check | Let] = []
        self._constants: dict[str, Any] = {"_same": same, "_device": torch.device}
        self._names: dict[int, str] = {}
        self._seen: set[str] = set()

    def hold(self, item: Any) -> str:
        """A name for an object in the guard function."""
        name = self._names.get(id(item))
        if name is None:
            name = self._names[id(item)] = f"C{len(self._names)}"
            self._constants[name] = item
        return name

    def let(self, line: str) -> None:
        """Add an assignment."""
        self.lines.append(Let(line))

    def check(self, test: str, describe: Describe | str) -> None:
        """Add a fact; one that is there already is not added again."""
        if test in self._seen:
            return
        self._seen.add(test)
        self.lines.append(Check(test, describe if callable(describe) else lambda scope, text=describe: text))  # type: ignore[misc]

    def is_object(self, expression: str, item: Any, what: str) -> None:
        """The expression gives this very object."""
        if item is None or isinstance(item, bool):
            self.check(f"{expression} is {item!r}", self._changed(expression, item, what))
        else:
            self.check(f"{expression} is {self.hold(item)}", f"{what} is another object than when compiled")

    def equals(self, expression: str, item: Any, what: str) -> None:
        """The expression gives an equal value of the same type."""
        if item is None or isinstance(item, bool):
            return self.is_object(expression, item, what)
        name = self.hold(snapshot(item))
        test = f"{expression} is {name} or _same({expression}, {name})"
        self.check(f"({test})", self._changed(expression, item, what))

    def _changed(self, expression: str, item: Any, what: str) -> Describe:
        def describe(scope: dict[str, Any]) -> str:
            try:
                now = repr(eval(expression, scope))
            except MISS:
                now = "gone"
            return f"{what}: {now}, compiled for {item!r}"

        return describe

    def build(self, result: str) -> GuardSet:
        """The guard function."""
        return GuardSet(self.lines, self._constants, result)


def same(now: Any, then: Any) -> bool:
    """Equal, of the same type down to the parts of containers; NaN is like NaN."""
    if now is then:
        return True
    if type(now) is not type(then):
        return False
    if isinstance(then, (list, tuple)):
        return len(now) == len(then) and all(same(a, b) for a, b in zip(now, then, strict=True))
    if isinstance(then, dict):
        return list(now) == list(then) and all(same(now[key], then[key]) for key in then)
    if _is_array(then):
        return now.dtype == then.dtype and now.shape == then.shape and bool(now.tobytes() == then.tobytes())
    if isinstance(then, float):
        return (now == then and str(now) == str(then)) or (now != now and then != then)
    return bool(now == then)


PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
_PLAIN_LIMIT = 64


def is_plain(value: Any, depth: int = 3) -> bool:
    """A value that guards compare: numbers, strings, torch constants, enum members, small containers of these."""
    if isinstance(value, PLAIN) or _is_array(value):
        return True
    if type(value) in (list, tuple, set, frozenset, torch.Size) and depth:
        return len(value) <= _PLAIN_LIMIT and all(is_plain(item, depth - 1) for item in value)
    if type(value) is dict and depth:
        return len(value) <= _PLAIN_LIMIT and all(is_plain(k, 0) and is_plain(v, depth - 1) for k, v in value.items())
    import enum

    return isinstance(value, enum.Enum)


def _is_array(value: Any) -> bool:
    """A numpy array or number: its data are constants of the program."""
    return type(value).__module__ == "numpy" and hasattr(value, "tobytes")


def snapshot(value: Any) -> Any:
    """A copy of a plain value that later changes of it do not reach."""
    if type(value) is list:
        return [snapshot(item) for item in value]
    if type(value) is dict:
        return {key: snapshot(item) for key, item in value.items()}
    if _is_array(value):
        return value.copy()
    return set(value) if type(value) is set else value
