"""The random generators of Python and numpy around a capture.

What a function draws from them by ways that `drawing` does not see is a constant to the capture, and would be the same
number in every call. So such a function runs eager, and its capture leaves the generators as they were.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterable
from typing import Any

from graphc.errors import EagerOnlyError
from graphc.ir.types import Location


class PythonRandom:
    """The states of the global generators, and of those given, when it is made.

    Args:
        objects: what the function is seen to reach; those that are generators are watched.
    """

    def __init__(self, objects: Iterable[Any]) -> None:
        numpy = sys.modules.get("numpy.random")
        found: list[Any] = [random, *([] if numpy is None else [numpy])]
        found += [i for i in objects if isinstance(i, generators()) and not isinstance(i, random.SystemRandom)]
        self._states = [(generator, state_of(generator)) for generator in found]

    def check(self) -> None:
        """Raises:
        EagerOnlyError: something has been drawn unseen.
        """
        for generator, then in self._states:
            if pickle.dumps(state_of(generator)) != pickle.dumps(then):
                raise refused(getattr(generator, "__name__", type(generator).__name__))

    def accept(self) -> None:
        """What has been drawn so far shall have been."""
        self._states = [(generator, state_of(generator)) for generator, _ in self._states]

    def restore(self) -> None:
        """Set them as they were."""
        for generator, then in self._states:
            set_state(generator, then)


def refused(name: str, location: Location | None = None) -> EagerOnlyError:
    """The error for what a program cannot draw.

    Args:
        name: of a generator, or of its method.
    """
    return EagerOnlyError(
        f"the function draws from {name}, which a compiled program would not do again; draw outside and pass the "
        "numbers, or draw with torch",
        location,
    )


def generators() -> tuple[type, ...]:
    """The classes of generators."""
    numpy: Any = sys.modules.get("numpy.random")
    return random.Random, *(() if numpy is None else (numpy.Generator, numpy.RandomState))


def state_of(generator: Any) -> Any:
    """The state of a generator, to compare and to set again."""
    if hasattr(generator, "getstate"):
        return generator.getstate()
    if hasattr(generator, "get_state"):
        return generator.get_state(legacy=False)
    return generator.bit_generator.state


def set_state(generator: Any, state: Any) -> None:
    """Set the state of a generator."""
    if hasattr(generator, "setstate"):
        generator.setstate(state)
    elif hasattr(generator, "set_state"):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state
