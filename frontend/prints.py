"""What a function prints, logs or shows: `print(f"loss {loss.item():.3f}")`, `logger.info("norm %s", norm)`,
`bar.set_postfix(loss=loss.item())`.

It is not printed while the function is captured, but by each run, with the numbers of that run. A tensor or number that
is made part of a text is not known yet: the text has a mark there, and the mark's number goes in its place later.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import functools
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from graphc.frontend import host, tree
from graphc.frontend.guards import snapshot
from graphc.frontend.leaves import OutputLeaf
from graphc.frontend.objects import holders, is_traced
from graphc.frontend.shown import showing_methods
from graphc.frontend.traced import AS_REPR

if TYPE_CHECKING:
    from graphc.frontend.recorder import Recorder

_MARK = re.compile(r"<traced \w+ #\d+>")


@dataclass(frozen=True)
class _Mark:
    """A tensor or number in a text, and how it is formatted."""

    item: Any
    spec: str


@dataclass(frozen=True)
class PrintEffect:
    """A call that prints, made after each run.

    Args:
        call: is given the arguments, as one structure.
        node: of the arguments.
        leaves: of these: an output or a constant, or the parts of a text: outputs with a format between constants.
    """

    call: Callable[[Any], None]
    node: tree.Node
    leaves: tuple[OutputLeaf | tuple[str | tuple[int, str], ...], ...]

    def apply(self, outputs: list[Any], inputs: Sequence[Any]) -> None:
        """Print; `outputs` are the leaves of this run that are effects."""
        self.call(tree.rebuild(self.node, (self._leaf(leaf, outputs) for leaf in self.leaves)))

    def _leaf(self, leaf: OutputLeaf | tuple[str | tuple[int, str], ...], outputs: list[Any]) -> Any:
        if isinstance(leaf, OutputLeaf):
            return outputs[leaf.number] if leaf.number >= 0 else leaf.constant
        return "".join(part if isinstance(part, str) else _text(outputs[part[0]], part[1]) for part in leaf)


class Prints:
    """What one capture would have printed.

    Args:
        recorder: the capture.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._calls: list[tuple[Callable[[Any], None], list[Any], tree.Node]] = []
        self._marks: dict[str, _Mark] = {}

    @property
    def made(self) -> bool:
        """There are marks in texts."""
        return bool(self._marks)

    def number(self, node: host.HostNode, spec: str = "") -> str:
        """What stands for a number in a text."""
        return self._mark(node.kind.__name__, host.wrap(node), spec)

    def tensor(self, tensor: torch.Tensor, spec: str = "") -> str:
        """What stands for a tensor in a text."""
        return self._mark("tensor", _kept(tensor), spec)

    def _mark(self, kind: str, item: Any, spec: str) -> str:
        mark = f"<traced {kind} #{len(self._marks)}>"
        self._marks[mark] = _Mark(item, spec)
        return mark

    def note(self, call: Callable[[Any], None], given: Any) -> None:
        """A call that prints is made; its tensors are as they are now."""
        opened = holders(given, lambda item: isinstance(item, torch.Tensor) or is_traced(item))
        leaves, node = tree.flatten(given, lambda item: id(item) in opened)
        kept = [_kept(leaf) if isinstance(leaf, torch.Tensor) else snapshot(leaf) for leaf in leaves]
        self._calls.append((call, kept, node))

    def effects(self, first: int) -> tuple[list[PrintEffect], list[Any]]:
        """The calls, and the tensors and traced numbers that they take, numbered from `first`."""
        made: list[Any] = []

        def taken(item: Any) -> int:
            made.append(item)
            return first + len(made) - 1

        def leaf_of(leaf: Any) -> Any:
            if isinstance(leaf, str) and _MARK.search(leaf):
                parts = re.split(f"({_MARK.pattern})", leaf)
                return tuple(
                    (taken(self._marks[part].item), self._marks[part].spec) if part in self._marks else part
                    for part in parts
                )
            return OutputLeaf(taken(leaf)) if is_traced(leaf) else OutputLeaf(constant=leaf)

        effects = [PrintEffect(call, node, tuple(map(leaf_of, leaves))) for call, leaves, node in self._calls]
        return effects, made

    def is_in(self, leaves: list[Any], nodes: list[Any]) -> bool:
        """Whether a mark is in some text that a function leaves behind, or in a key there."""
        texts = [leaf for leaf in leaves if isinstance(leaf, str)] + list(map(repr, nodes if self._marks else ()))
        return any(mark in self._marks for text in texts for mark in _MARK.findall(text))

    def release(self) -> None:
        """Nothing of the capture is held any more."""
        self._calls.clear()
        self._marks.clear()


def _text(item: Any, spec: str) -> str:
    return repr(item) if spec == AS_REPR else format(item, spec)


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone()


@contextlib.contextmanager
def _noted_methods(recorder: Callable[[], Recorder | None]) -> Iterator[None]:
    """For the block: objects that show things only note what they are given."""
    methods = showing_methods()

    def noting(original: Any) -> Any:
        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            current = recorder()
            if current is None:
                return original(self, *args, **kwargs)
            return current.prints.note(lambda given: original(self, *given[0], **given[1]), (args, kwargs))

        return method

    for cls, name, original in methods:
        setattr(cls, name, noting(original))
    try:
        yield
    finally:
        for cls, name, original in methods:
            setattr(cls, name, original)


@contextlib.contextmanager
def noted(recorder: Callable[[], Recorder | None]) -> Iterator[None]:
    """For the block: `print`, loggers and what shows things only note what they are given, on threads that capture.

    What torch and graphc log about themselves is not the user's, and goes on.
    """
    show, handle = builtins.print, logging.Logger.handle

    def noted_print(*args: Any, **kwargs: Any) -> None:
        current = recorder()
        if current is None:
            show(*args, **kwargs)
        else:
            current.prints.note(lambda given: show(*given[0], **given[1]), (args, kwargs))

    def noted_handle(self: logging.Logger, record: logging.LogRecord) -> None:
        current = recorder()
        if current is None or self.name.partition(".")[0] in ("torch", "graphc"):
            handle(self, record)
        else:
            blank = _filled(record, "", ())  # what is kept of it holds no tensor of the capture
            current.prints.note(lambda given: handle(self, _filled(blank, *given)), (record.msg, record.args))

    builtins.print = noted_print
    logging.Logger.handle = noted_handle  # type: ignore[method-assign]
    try:
        with _noted_methods(recorder):
            yield
    finally:
        builtins.print = show
        logging.Logger.handle = handle  # type: ignore[method-assign]


def _filled(record: logging.LogRecord, message: Any, args: Any) -> logging.LogRecord:
    anew = copy.copy(record)
    anew.msg, anew.args = message, args
    return anew
