"""Every error class of graphc.

Each error carries a message template and, when known, the user's own source location, so that the user can act on it
without reading graphc. Classes are small and many: tests assert the class and the line.
"""

from __future__ import annotations

import builtins
from typing import Protocol


class HasPosition(Protocol):
    """Anything that names a place in the user's source, such as `graphc.ir.types.Location`."""

    @property
    def file(self) -> str: ...

    @property
    def line(self) -> int: ...


class HasLines(Protocol):
    """Anything that names lines of the user's source, such as `graphc.frontend.loop_bodies.LoopBody`."""

    @property
    def line(self) -> int: ...

    @property
    def last_line(self) -> int: ...


class GraphcError(Exception):
    """Base of all errors raised by graphc.

    Args:
        message: what happened, where, and what to do about it.
        location: the user's source line that caused it, when known.
    """

    def __init__(self, message: str, location: HasPosition | None = None) -> None:
        self.message = message
        self.location = location
        where = f"\n  at {location.file}:{location.line}" if location is not None and location.line else ""
        super().__init__(message + where)


class UnsupportedError(GraphcError):
    """The program uses something that graphc does not compile; the message says what to do instead."""


class EagerOnlyError(UnsupportedError):
    """A function does what only eager does, which it can go on doing: its calls run eager, counted, with a warning."""


class EagerCallError(EagerOnlyError):
    """As `EagerOnlyError`, for this very call, because of what it is given; others may run compiled."""


class EagerOnceError(EagerCallError):
    """As `EagerCallError`, because of what a function may do in its first calls alone, such as filling a cache.

    One that goes on doing it is not captured any more.
    """


class DataLoopError(EagerOnlyError):
    """A function goes through the items of a data loader, which are other ones in every run.

    Args:
        reason: as the message of the others.
        line: of the compiled function, which leads there.
    """

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line

    def is_there(self, loop: HasLines) -> bool:
        """Whether it is this loop that goes through the items."""
        return loop.line <= self.line <= loop.last_line


class ResizesError(UnsupportedError):
    """An operator gives a tensor that it writes to another shape."""


class DataDependentError(UnsupportedError):
    """Python control flow or a shape depends on the data of a tensor."""


class AssumptionError(GraphcError):
    """Data lead to a place where the user's function raises; the call is run by eager, which does so itself."""


class CaptureError(GraphcError):
    """The user's function could not be captured (a leaked traced tensor, a generator, a tensor subclass, ...)."""


class UninitializedError(CaptureError):
    """A lazy module has no parameters yet; its first call, which makes them, runs eager."""


class InternalError(GraphcError):
    """A fault of graphc's own; the message names the operator it has to do with, and asks to report it."""


class InvalidGraphError(GraphcError):
    """A graph or kernel breaks an invariant of its IR; raised by the verifiers with a window of lines."""


class ParseError(GraphcError):
    """Malformed IR text.

    Args:
        reason: what was expected.
        line: 1-based line in the text.
        column: 1-based column in the text.
        source_line: the offending line, shown with a caret.
    """

    def __init__(self, reason: str, line: int, column: int, source_line: str = "") -> None:
        self.reason, self.line, self.column = reason, line, column
        caret = f"\n  {source_line}\n  {' ' * (column - 1)}^" if source_line else ""
        super().__init__(f"line {line}, column {column}: {reason}{caret}")


class LoweringError(GraphcError):
    """An operator could not be lowered to loop IR or to a program step; a bug in graphc or a missing rule."""


class CodegenError(GraphcError):
    """A kernel could not be written in the target language."""


class CompilerError(GraphcError):
    """The C compiler or the Triton compiler failed or is missing; carries its output."""


class CacheError(GraphcError):
    """The disk cache could not be read or written; callers degrade to building in a temporary folder with a warning."""


class BackendUnavailableError(GraphcError):
    """The requested backend cannot run on this machine (no GPU and no TRITON_INTERPRET=1, no C compiler, ...)."""


class SettingsError(GraphcError):
    """A setting or environment variable has a value that cannot be understood."""


class GraphcWarning(UserWarning):
    """Base of all warnings raised by graphc."""


class FallbackWarning(GraphcWarning):
    """Something ran slower than asked for (no compiler, autograd needed, read-only cache); says why and what to do."""


def data_error(name: str) -> type[Exception]:
    """The class of what a program raises for its data: a builtin one, as eager raises, or `AssumptionError`."""
    found: type[Exception] = AssumptionError if name == "AssumptionError" else getattr(builtins, name)
    return found


def add_location(error: BaseException, location: HasPosition | None) -> None:
    """Say in an error's message which line of the user's program it comes from; its class stays."""
    if location is None or not location.line or isinstance(error, GraphcError):
        return
    where = f"  at {location.file}:{location.line}"
    if len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{where}",)
    else:
        error.add_note(where)
