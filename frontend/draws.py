"""What a function draws from the random generators of Python and numpy: drawn again for every call, as eager would.

`lam = np.random.beta(1.0, 1.0)` in a function is a number of one call. While it is captured the number is drawn and
becomes an input; the guard function, once all else holds, draws for its call. Where a call then turns out to run
another program, or eager, the generators go back to where the call has found them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphc.errors import EagerOnlyError
from graphc.frontend.guards import GuardBuilder, same
from graphc.frontend.python_random import refused, set_state, state_of

if TYPE_CHECKING:
    from graphc.frontend.host import HostNode
    from graphc.frontend.python_random import PythonRandom
    from graphc.frontend.recorder import Recorder
    from graphc.ir.types import Location

FEW = 8
"""Outcomes of a draw that Python may look at, each of which is another program."""


@dataclass(frozen=True)
class Draw:
    """A call of a method of a generator.

    Args:
        name: as the user writes it, such as `random.uniform`.
        function: the method.
        args, kwargs: plain values.
        outcomes: how many results there may be; 0 = too many to count.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outcomes: int = 0

    def make(self) -> Any:
        """Draw: a number of Python's, or something else as it is."""
        return _plain(self.function(*self.args, **self.kwargs))

    def is_like(self, other: Draw) -> bool:
        """The same call."""
        return self is other or (
            (self.function, self.outcomes) == (other.function, other.outcomes)
            and same(self.args, other.args)
            and same(self.kwargs, other.kwargs)
        )


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's own."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value


class Drawn(threading.local):
    """What the call that runs on this thread has drawn so far."""

    def __init__(self) -> None:
        self._draws: list[Draw] = []
        self._values: list[Any] = []
        self._states: dict[int, tuple[Any, Any]] = {}  # generators that have been drawn from, as they were before

    def begin(self) -> None:
        """A call begins."""
        if self._draws:
            self._draws, self._values, self._states = [], [], {}

    def rewind(self) -> None:
        """The generators go back to where the call has found them."""
        for generator, state in self._states.values():
            set_state(generator, state)
        self.begin()

    def value(self, place: int, draw: Draw) -> Any:
        """The result of the call's draw number `place`, drawn now if it has not been yet.

        What was drawn from there on by a program that does not go on, if that was another draw, is drawn back.
        """
        if place < len(self._draws) and not self._draws[place].is_like(draw):
            self.keep(place)
        if place == len(self._draws):
            generator = draw.function.__self__  # type: ignore[attr-defined]  # it is a method
            if id(generator) not in self._states:
                self._states[id(generator)] = generator, state_of(generator)
            self._values.append(draw.make())  # which may raise what eager raises
            self._draws.append(draw)
        return self._values[place]

    def keep(self, count: int) -> None:
        """Draw back all but the first draws."""
        if count < len(self._draws):
            kept = self._draws[:count]
            self.rewind()
            for place, draw in enumerate(kept):
                self.value(place, draw)


class Draws:
    """The draws of one capture.

    Args:
        recorder: of the capture.
        drawn: of the compiled function; None: it must not draw.
        constants: keys of draws that are to be constants, since Python has looked at them.
        generators: watched for what else draws from them.

    Attributes:
        stand_ins: by id of a generator, what the function has in its place.
    """

    def __init__(
        self, recorder: Recorder, drawn: Drawn | None, constants: Collection[Hashable], generators: PythonRandom
    ) -> None:
        self._recorder, self._drawn, self._constants, self._generators = recorder, drawn, constants, generators
        self._made: list[tuple[Draw, Any]] = []
        self.stand_ins: dict[int, Any] = {}

    def draw(self, draw: Draw) -> Any:
        """What the function gets: a traced number.

        Raises:
            EagerOnlyError: a program cannot draw it.
        """
        if self._drawn is None:
            raise refused(draw.name, self.location())
        self._generators.check()
        place = len(self._made)
        value = self._drawn.value(place, draw)
        self._generators.accept()
        if type(value) not in (int, float):
            raise refused(draw.name, self.location())
        self._made.append((draw, value))
        if self._key(place) in self._constants:
            return value
        return self._recorder.drawn_input(value, draw.name, place, self._key(place))

    def _key(self, place: int) -> Hashable:
        return ("drawn", place)

    def check_look(self, node: HostNode) -> None:
        """Python looks at a number.

        Raises:
            EagerOnlyError: it is made of a draw that has too many outcomes for a program each.
        """
        for place, (draw, _) in enumerate(self._made):
            if self._key(place) in node.leaves and not 0 < draw.outcomes <= FEW:
                raise EagerOnlyError(
                    f"Python looks at what {draw.name}() has drawn, and {draw.outcomes or 'any number of'} outcomes "
                    "would take a program each; draw outside and pass the number, or draw with torch",
                    self.location(),
                )

    def guards(self, g: GuardBuilder) -> None:
        """The last lines of a guard function: it draws."""
        for place, (draw, value) in enumerate(self._made):
            g.let(f"{local(place)} = {g.hold(self._drawn)}.value({place}, {g.hold(draw)})", f"{draw.name}()")
            what = f"what {draw.name}() has drawn"
            if self._key(place) in self._constants:
                g.equals(local(place), value, what)
            else:
                g.check(f"type({local(place)}) is {type(value).__name__}", f"type of {what}")
        if self._made:
            g.let(f"{g.hold(self._drawn)}.keep({len(self._made)})")

    def count(self) -> int:
        """How many draws there have been."""
        return len(self._made)

    def location(self) -> Location:
        """The user's line that runs now."""
        return self._recorder.locator.here()


def local(place: int) -> str:
    """The name of a draw in a guard function."""
    return f"drawn{place}"
