"""Guards: the facts a capture assumed, checked on every call by one generated Python function.

The function walks the arguments, compares what must not change, and returns the program's inputs, or None. A second
reading of the same lines, one by one, says which fact failed.

Most facts of a large module are of two kinds: a table has this very object under a name, a tensor has this metadata.
Once there is a program whose native code can check those, the function leaves them to it: one call for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch

from graphc.frontend.inputs import GONE, Access, bound
from graphc.program.facts import EntryFact, FactCheck, FactChecker, TensorFact

Describe: TypeAlias = Callable[[dict[str, Any]], str]
Match: TypeAlias = Callable[[Sequence[Any], dict[str, Any]], list[Any] | None]


@dataclass(frozen=True)
class Check:
    """One line of the guard function: `if not (test): return None`.

    Args:
        test: a Python expression over locals and held constants.
        describe: given the locals at that line, says what changed.
        fact: the same in a form that native code can check.
    """

    test: str
    describe: Describe
    fact: EntryFact | TensorFacts | None = None


@dataclass(frozen=True)
class TensorFacts:
    """Metadata of all tensors, each of which is there once.

    Args:
        tensors: those of arguments first.
        arguments: expressions for the arguments.
        rest: a test of what native code does not see of these tensors.
    """

    tensors: tuple[TensorFact, ...]
    arguments: tuple[str, ...]
    rest: str


@dataclass(frozen=True)
class Let:
    """One line of the guard function: an assignment.

    Args:
        what: is looked at; not the same as when compiled where that fails.
    """

    line: str
    what: str = "the structure of the arguments"


class GuardSet:
    """Facts, compiled.

    Args:
        lines: in order; they may use `args` and `kwargs`.
        constants: names for objects they refer to.
        result: expression for the list of program inputs.

    Attributes:
        match: the guard function: the program's inputs for a call, or None when a fact does not hold.
    """

    def __init__(self, lines: list[Check | Let], constants: dict[str, Any], result: str) -> None:
        self._lines, self._constants, self._result = lines, constants, result
        self._native: FactCheck | None = None
        self._tables_only = False  # native code looks at tables and not at tensors
        self.match: Match = self._first_match

    def use(self, checker: FactChecker) -> None:
        """Leave to native code what that can check; the other facts, and what explains a miss, stay as they are."""
        facts = [line.fact for line in self._lines if isinstance(line, Check) and line.fact is not None]
        tensors = next((fact.tensors for fact in facts if isinstance(fact, TensorFacts)), ())
        entries = [fact for fact in facts if isinstance(fact, EntryFact)]
        self._native = checker(entries, tensors)
        self._tables_only = self._native is None
        if self._tables_only and tensors and entries:  # there may be too many tensors that are found anew in each call
            self._native = checker(entries, ())
        self.match = self._first_match

    def _first_match(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any] | None:
        """The guard function is compiled when it is first called: by then it is known what is left to it."""
        self.match = self._compile()
        return self.match(args, kwargs)

    def __len__(self) -> int:
        return sum(isinstance(line, Check) for line in self._lines)

    def source(self) -> str:
        """Text of the guard function."""
        body = []
        run: list[str] = []
        for line in [*self._tested(), None]:
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

    def _tested(self) -> list[Check | Let]:
        """The lines of the guard function. One native test stands where the tensors are looked at, else at the end."""
        if self._native is None:
            return self._lines
        lines: list[Check | Let] = []
        test = "_native(())"
        for line in self._lines:
            if isinstance(line, Let) or line.fact is None or (self._tables_only and isinstance(line.fact, TensorFacts)):
                lines.append(line)
            elif isinstance(line.fact, TensorFacts):
                arguments = "".join(f"{argument}, " for argument in line.fact.arguments)
                lines += [replace(line, test=f"_native(({arguments}))"), replace(line, test=line.fact.rest)]
                test = ""
        return [*lines, Check(test, _nothing)] if test else lines

    def _compile(self) -> Match:
        namespace = {**self._constants, "_MISS": MISS, "_native": self._native}
        exec(compile(self.source(), "<graphc guards>", "exec"), namespace)
        found: Match = namespace["match"]
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
                return line.describe(scope) if isinstance(line, Check) else f"{line.what} ({error})"
        return ""


MISS = (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError)
"""What looking at changed objects may raise; each means that a fact does not hold."""


def _nothing(scope: dict[str, Any]) -> str:
    return ""


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

    def let(self, line: str, what: str = Let.what) -> None:
        """Add an assignment."""
        self.lines.append(Let(line, what))

    def check(self, test: str, describe: Describe | str, fact: EntryFact | TensorFacts | None = None) -> None:
        """Add a fact; one that is there already is not added again."""
        if test in self._seen:
            return
        self._seen.add(test)
        said: Describe = describe if callable(describe) else lambda scope, text=describe: text  # type: ignore[misc]
        self.lines.append(Check(test, said, fact))

    def is_object(self, where: str | Access, item: Any, what: str) -> None:
        """What an expression or an access gives is this very object."""
        expression = self._expression(where)
        entry = where.entry() if isinstance(where, Access) else None
        fact = EntryFact(*entry, item) if entry is not None else None
        if item is None or isinstance(item, bool):
            self.check(f"{expression} is {item!r}", self._changed(expression, item, what), fact)
        else:
            self.check(f"{expression} is {self.hold(item)}", f"{what} is another object than when compiled", fact)

    def equals(self, where: str | Access, item: Any, what: str) -> None:
        """What an expression or an access gives is an equal value of the same type."""
        if item is None or isinstance(item, bool):
            return self.is_object(where, item, what)
        expression = self._expression(where)
        name = self.hold(snapshot(item))
        test = f"{expression} is {name} or _same({expression}, {name})"
        self.check(f"({test})", self._changed(expression, item, what))

    def is_absent(self, where: Access, key: Any, what: str) -> None:
        """There is nothing under a key of the dict that an access gives."""
        self.check(f"{self.hold(key)} not in {self._expression(where)}", f"{what} is there now")

    def lacks(self, where: Access, key: str, what: str) -> None:
        """The class, or object with slots, that an access gives has not this name."""
        found = f"{self.hold(bound)}({self._expression(where)}, {key!r})"
        self.check(f"{found} is {self.hold(GONE)}", f"{what} is there now")

    def _expression(self, where: str | Access) -> str:
        return where if isinstance(where, str) else f"{self.hold(where.root)}{where.suffix}"

    def _changed(self, expression: str, item: Any, what: str) -> Describe:
        def describe(scope: dict[str, Any]) -> str:
            try:
                now = _shown(eval(expression, scope))
            except MISS:
                now = "gone"
            return f"{what}: {now}, compiled for {item!r}"

        return describe

    def build(self, result: str) -> GuardSet:
        """The guard function."""
        return GuardSet(self.lines, self._constants, result)


GROWING = object()
"""In a value to compare with: a list, whatever is in it."""


@dataclass(frozen=True)
class AnyOf:
    """In a value to compare with: anything of a type, such as a number that is an input."""

    kind: type


def _shown(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def same(now: Any, then: Any) -> bool:
    """Equal, of the same type down to the parts of containers; NaN is like NaN."""
    if now is then:
        return True
    if then is GROWING:
        return isinstance(now, list)
    if type(then) is AnyOf:
        return isinstance(now, then.kind)
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
_COMPARED_LIMIT = 4096


def is_plain(value: Any, depth: int = 3) -> bool:
    """A value that guards compare: numbers, strings, torch constants, enum members, small containers of these."""
    if issubclass(type(value), PLAIN) or _is_array(value):  # traced numbers say that they are of Python's classes
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


def holds(items: Any, tensors: bool = True) -> Callable[[Any], bool]:
    """The test whether a container holds the same as `items`, a dict or a list of what it has held.

    Objects are to be the very same.

    Args:
        tensors: these too; else any tensor is like any other, as those that are used are looked at by themselves, and
            any tuple, as what is in it is.
    """
    keys, then = (tuple(items), list(items.values())) if type(items) is dict else ((), list(items))
    if not tensors:
        then = [AnyOf(torch.Tensor if isinstance(i, torch.Tensor) else tuple) if _is_apart(i) else i for i in then]
    if len(then) > _COMPARED_LIMIT:
        ids = [id(item) for item in then]  # which `then` keeps valid
        return lambda now: bool(then) and list(map(id, dict.values(now) if keys else now)) == ids

    def same_items(now: Any) -> bool:
        if keys and tuple(dict.keys(now)) != keys:
            return False
        found = list(dict.values(now)) if isinstance(now, dict) else list(now)
        return len(found) == len(then) and all(map(_is_same, found, then))

    return same_items


def _is_apart(item: Any) -> bool:
    return isinstance(item, torch.Tensor) or (type(item) is tuple and not is_plain(item))


def _is_same(now: Any, then: Any) -> bool:
    return now is then or ((type(then) is AnyOf or then is GROWING or is_plain(then)) and same(now, then))


def snapshot(value: Any) -> Any:
    """A copy of a plain value that later changes of it do not reach."""
    if type(value) is list:
        return [snapshot(item) for item in value]
    if type(value) is dict:
        return {key: snapshot(item) for key, item in value.items()}
    if _is_array(value):
        return value.copy()
    return set(value) if type(value) is set else value
