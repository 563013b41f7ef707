"""The random generators of Python and numpy around a capture.

What a function draws from them is a constant to the capture, and would be the same number in every call. So a function
that is seen to draw runs eager, and its capture leaves the generators as they were.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Iterable
from typing import Any


class PythonRandom:
    """The states of the global generators, and of those given, when it is made.

    Args:
        objects: what the function is seen to reach; those that are generators are watched.
    """

    def __init__(self, objects: Iterable[Any]) -> None:
        numpy = sys.modules.get("numpy.random")
        found: list[Any] = [random, *([] if numpy is None else [numpy])]
        kinds = (random.Random, *(() if numpy is None else (numpy.Generator, numpy.RandomState)))
        found += [item for item in objects if isinstance(item, kinds)]
        self._states = [(generator, _state(generator)) for generator in found]

    def changed(self) -> str:
        """The name of a generator that has been drawn from, or nothing."""
        for generator, then in self._states:
            if pickle.dumps(_state(generator)) != pickle.dumps(then):
                return str(getattr(generator, "__name__", type(generator).__name__))
        return ""

    def restore(self) -> None:
        """Set them as they were."""
        for generator, then in self._states:
            _set_state(generator, then)


def _state(generator: Any) -> Any:
    if hasattr(generator, "getstate"):
        return generator.getstate()
    if hasattr(generator, "get_state"):
        return generator.get_state(legacy=False)
    return generator.bit_generator.state


def _set_state(generator: Any, state: Any) -> None:
    if hasattr(generator, "setstate"):
        generator.setstate(state)
    elif hasattr(generator, "set_state"):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state
