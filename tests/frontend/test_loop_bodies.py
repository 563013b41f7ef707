"""Functions with their loops split: run with plain Python turns they do what they did before."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader

from graphc.data_loops import DataLoops, data_loops
from graphc.frontend.loop_bodies import split_loops
from graphc.options import Options

LOG: list[Any] = []


class PlainTurn:
    """A turn that is not compiled, and says what it is given."""

    def __init__(self, function: Any, options: Options) -> None:
        self.function, self.name = function, options.name
        self.given: list[tuple[str, ...]] = []

    def expect_changes(self, find: Callable[[], set[int]]) -> None:
        self.leaves = find()

    def __call__(self, *args: Any) -> Any:
        code = self.function.__code__
        self.given.append(code.co_varnames[: code.co_argcount])
        return self.function(*args)


def loader(*items: Any) -> DataLoader[Any]:
    return DataLoader(list(items or range(1, 6)), batch_size=None)  # type: ignore[arg-type]


def split(function: Callable[..., Any]) -> tuple[DataLoops, list[PlainTurn]]:
    turns: list[PlainTurn] = []

    def compile(turn: Callable[..., Any], options: Options) -> PlainTurn:
        turns.append(PlainTurn(turn, options))
        return turns[-1]

    found = data_loops(function, lambda body: "data" in body.through, Options("f"), compile)
    assert found is not None
    return found, turns


def check(function: Callable[..., Any], *args: Callable[[], Any]) -> list[PlainTurn]:
    """The function does the same turn by turn: results, errors, what it logs."""
    loops, turns = split(function)
    outcomes = []
    for run in (function, loops.run):
        LOG.clear()
        try:
            result = run(*(make() for make in args))
        except Exception as error:
            result = type(error), str(error)
        outcomes.append((result, list(LOG)))
    assert outcomes[0] == outcomes[1]
    return turns


def totals(data: Any) -> tuple[int, int, int]:
    total = count = 0
    for number, x in enumerate(data):
        y = x * 2
        total += y
        count = number + 1
    return total, count, x


def test_names_that_are_read_later_come_back() -> None:
    (turn,) = check(totals, loader)
    assert turn.given == [("number", "total", "x")] * 5  # neither y, nor count, which is bound before it is read
    assert turn.name == f"totals_line_{totals.__code__.co_firstlineno + 2}"


def endings(data: Any, stop: int, answer: int) -> Any:
    seen = []
    for x in data:
        if x == 2:
            continue
        for y in range(5):
            if y == 3:
                break
            if y == 1:
                continue
            seen.append((x, y))
        else:
            seen.append("never")
        if x == answer:
            return "found", x, seen
        if x == stop:
            break
    else:
        seen.append("to the end")
    return seen


@pytest.mark.parametrize("stop, answer", [(4, 9), (9, 9), (9, 3), (1, 9)])
def test_turns_end_as_loops_do(stop: int, answer: int) -> None:
    check(endings, loader, lambda: stop, lambda: answer)


def epochs(data: Any, other: Any, count: int) -> list[Any]:
    history = []
    best = None
    for epoch in range(count):
        losses, seen = [], 0
        for x in data:
            losses.append(x + epoch)
            seen += 1
        total = 0
        for x in other:
            total += x
            if total > 5:
                best = (epoch, total)
        history.append((sum(losses), seen, total))
    return [history, best]


def test_loops_in_loops() -> None:
    turns = check(epochs, loader, lambda: loader(2, 3, 4), lambda: 3)
    first, second = (turn.given[0] for turn in turns)
    assert first == ("epoch", "seen", "x")  # the list that grows is a free variable
    assert second == ("epoch", "total", "x")


def unbound(data: Any) -> Any:
    for x in data:
        if x > 1:
            last = before  # noqa: F821
        before = x
        if x == 1:
            del before
    return last


def sometimes(data: Any) -> Any:
    for x in data:
        if x > 3:
            found = x
        if x > 4:
            found = found + 10
    return found


def never(data: Any) -> Any:
    for x in data:
        if x > 30:
            found = x
    return found


def no_items(data: Any) -> Any:
    for x in data:
        pass
    return x


@pytest.mark.parametrize("function", [unbound, sometimes, never])
def test_unbound_names_stay_unbound(function: Callable[..., Any]) -> None:
    check(function, loader)


def test_no_turn() -> None:
    check(no_items, lambda: DataLoader([], batch_size=None))  # type: ignore[arg-type]


@contextlib.contextmanager
def noted(name: Any) -> Iterator[None]:
    LOG.append(("in", name))
    try:
        yield
    finally:
        LOG.append(("out", name))


def blocks(data: Any) -> Any:
    with noted("all"):
        for x in data:
            try:
                with noted(x):
                    if x == 2:
                        continue
                    if x == 3:
                        raise ValueError(x)
                    if x == 5:
                        return x
            except ValueError as error:
                LOG.append(str(error))
            finally:
                LOG.append("finally")
    return None


def fails(data: Any) -> Any:
    for x in data:
        if x == 3:
            raise KeyError(x)
    return x


def suppressed(data: Any) -> Any:
    last = 0
    for x in data:
        with contextlib.suppress(ValueError):
            if x % 2:
                raise ValueError(x)
            last = x
        LOG.append(last)
    return last


@pytest.mark.parametrize("function", [blocks, fails, suppressed])
def test_blocks_and_errors(function: Callable[..., Any]) -> None:
    check(function, loader)


def patterns(data: Any) -> Any:
    kinds = {"even": 0, "odd": 0}
    for index, (x, [a, *rest]) in enumerate((x, [x, x + 1, x + 2]) for x in data):
        if (half := x // 2) * 2 == x:
            kinds["even"] += half + sum(r for r in rest)
        else:
            kinds["odd"] += a + index
        squares = {k: k * x for k in range(3)}
        function = lambda k, x=x: k + x + half
        kinds["last"] = function(squares[2])
    return kinds, half, rest


def test_targets_comprehensions_and_functions_in_a_turn() -> None:
    check(patterns, loader)


def unlike(data: Any, mode: str, /, *more: int, scale: int = 3, **rest: int) -> Any:
    total: int = 0
    for x in data:
        match x:
            case 1 | 2 as small:
                total += small
            case _ if x > 4:
                total += scale * len(more)
            case _:
                total -= 1
        while total > 100:
            total //= 2
    else:
        total += rest.get("bonus", 0)
    import math as numbers

    return numbers.floor(total), mode


def test_signatures() -> None:
    loops, _ = split(unlike)
    for arguments, named in (((loader(), "m"), {}), ((loader(), "m", 1, 2), {"scale": 5, "bonus": 7})):
        assert loops.run(*arguments, **named) == unlike(*arguments, **named)  # type: ignore[arg-type]


def counting(step: int) -> Callable[..., Any]:
    state = {"calls": 0}

    def run(data: Any) -> int:
        total = 0
        for x in data:
            state["calls"] += 1
            total += step * x
        return total

    return run


def test_free_variables() -> None:
    function = counting(3)
    check(function, loader)
    loops, _ = split(function)
    state = inspect.getclosurevars(function).nonlocals["state"]
    before = state["calls"]
    assert loops.run(loader()) == 45 and state["calls"] == before + 5


def generator(data: Any) -> Iterator[Any]:
    for x in data:
        yield x + 1


def shares(data: Any) -> Any:
    def twice() -> int:
        return 2 * x

    for x in data:
        print(twice())


def counts(data: Any) -> Any:
    for x in data:
        print(locals())


def rebinds() -> Callable[..., Any]:
    total = 0

    def run(data: Any) -> int:
        nonlocal total
        for x in data:
            total += x
        return total

    return run


def straight(data: Any) -> Any:
    return list(data)


class Private:
    def run(self, data: Any) -> Any:
        for x in data:
            self.__last = x


@pytest.mark.parametrize("function", [generator, shares, counts, rebinds(), straight, Private.run])
def test_what_is_not_split(function: types.FunctionType) -> None:
    assert split_loops(function) is None


def text(data: Any) -> str:
    found = ""
    for x in data:
        found += f"""
  {x}:
      two lines
"""
    return found


def test_lines_of_strings_stay_as_they_are() -> None:
    def inside(data: Any) -> str:
        found = ""
        for x in data:
            found += f"""
            {x}
  """
        return found

    check(text, loader)
    check(inside, loader)


def test_what_has_no_source() -> None:
    scope: dict[str, Any] = {}
    exec("def run(data):\n    for x in data:\n        pass\n", scope)
    assert split_loops(scope["run"]) is None


def test_items_of_a_loader_are_found_out() -> None:
    data, (loops, _) = loader(), split(totals)

    def endless() -> Iterator[Any]:
        while True:
            yield from data

    started = endless()
    next(started)
    through = (data, iter(data), enumerate(data), zip(range(3), data, strict=False), started, map(str, data))
    assert all(loops.is_data(-1, items) for items in through)
    assert not any(loops.is_data(-1, items) for items in ([1, 2], range(3), "abc", {"a": 1}, enumerate([1]), iter(())))


def test_lines_are_those_of_the_file() -> None:
    loops, turns = split(fails)
    with pytest.raises(KeyError) as found:
        loops.run(loader())
    lines = [(entry.name, entry.lineno - fails.__code__.co_firstlineno) for entry in found.traceback if entry.path]
    assert lines[-1][1] == 2 and lines[-1][0] == turns[0].name
