"""Eager's own errors: a call that failed to import is made on real zeros, so that the user sees eager's exception.

The user's line is appended to its message.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from graphc.errors import GraphcError, UnsupportedError
from graphc.frontend.aten import extern
from graphc.ir.types import Location

if TYPE_CHECKING:
    from graphc.frontend.aten.importer import Importer

_LIMIT_BYTES = 1 << 30


def raise_as_eager(imp: Importer, func: Any, args: Sequence[Any], kwargs: dict[str, Any], location: Location) -> None:
    """Make a call on zeros, or large ones on tensors without data; return when eager accepts it.

    Args:
        args, kwargs: with Values for tensors, whose strides `imp` knows.

    Raises:
        Exception: what eager raises, of the same class, with the user's line.
    """
    large = extern.operand_bytes(args, kwargs) > _LIMIT_BYTES
    call = extern.call_on_fakes if large else extern.call_on_zeros
    with located(location), contextlib.suppress(UnsupportedError):
        call(imp, func, args, kwargs)


@contextlib.contextmanager
def located(location: Location) -> Iterator[None]:
    """Append the user's line to exceptions of the block that do not come from graphc."""
    try:
        yield
    except GraphcError:
        raise
    except Exception as error:
        raise with_location(error, location) from None


def with_location(error: Exception, location: Location) -> Exception:
    """The same exception with the user's line at the end of its message."""
    if not location or getattr(error, "_graphc_located", False):
        return error
    where = f"{location.file}:{location.line}"
    try:
        new = type(error)(f"{error}\n  at {where}")
    except TypeError:  # its class takes other arguments
        error.add_note(f"at {where}")
        new = error
    new._graphc_located = True  # type: ignore[attr-defined]
    return new
