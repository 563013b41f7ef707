"""The program record: everything the runtime needs to run a compiled program, as plain serialisable data.

A `Program` is a `Plan` without its kernels in loop IR, plus the generated sources and what they need to be built and
bound. It travels to the disk cache and into artifacts as JSON; nothing in it is code that Python would execute, and
reading it back imports neither torch nor the compiler.

    Plan ── codegen ──> Program ── to_json ──> cache entry ── from_json ──> Program ── runtime ──> callable
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from graphc.errors import CacheError
from graphc.ir.dims import Expr
from graphc.ir.graph import Named, Ref
from graphc.ir.sizes import Reciprocal, Size, one_over, value_of
from graphc.ir.types import DTYPES, DType, Location
from graphc.program.loops import Binding, LoopStep
from graphc.program.plan import (
    ArenaBlock,
    AtenStep,
    BufferSpec,
    Check,
    ForeachStep,
    GemmStep,
    KernelStep,
    OutputSpec,
    RowArgument,
    Step,
    View,
)

FORMAT = 7
"""Version of the JSON form; a record of another version is not read."""

NATIVE, PYTHON = "native", "python"


@dataclass(frozen=True)
class Segment:
    """A run of consecutive steps executed in one go.

    Args:
        kind: NATIVE = one foreign call of `entry`; PYTHON = the runtime does the steps one by one.
        first, stop: the steps `Program.steps[first:stop]`.
        entry: name of the C function, empty for PYTHON.
    """

    kind: str
    first: int
    stop: int
    entry: str = ""


@dataclass
class Program:
    """A compiled program.

    Attributes:
        name: of the user's function.
        backend: `c` or `triton`.
        buffers, steps, outputs, written, copied, exposed, draws, arena_bytes, arena_blocks, checks, stats: as in
            `Plan`.
        segments: a partition of the steps, in order.
        sources: generated files by name, in the order in which they are built.
        kernels: per kernel name what its launcher needs, as plain data (grid, constants, ...); empty for C.
        symbols: functions of libtorch and its BLAS that native code calls, in the order of its function table.
        flags, libraries: C compiler flags, and the linker's (`-lm`).
        sizes: what generated code is told of the sizes of inputs, where it is for several.
    """

    name: str
    backend: str
    buffers: list[BufferSpec] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    outputs: list[OutputSpec] = field(default_factory=list)
    written: tuple[int, ...] = ()
    copied: tuple[int, ...] = ()
    exposed: tuple[int, ...] = ()
    draws: bool = False
    arena_bytes: int = 0
    arena_blocks: tuple[ArenaBlock, ...] = ()
    checks: dict[int, list[Check]] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, dict[str, Any]] = field(default_factory=dict)
    symbols: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    stats: dict[str, Any] = field(default_factory=dict)

    def for_sizes(self, values: Mapping[str, int]) -> Program:
        """The record with every `Size` in it as what it is where sizes have these values, by name in their order."""
        exprs, fills = self._template
        found = [value_of(expr, values) for expr in exprs]
        body = {name: getattr(self, name) if fill is None else fill(found) for name, fill in fills.items()}
        return Program(**{**body, "sizes": tuple(values.values())})

    @functools.cached_property
    def _template(self) -> tuple[tuple[Expr, ...], dict[str, Fill | None]]:
        """The expressions in the record, and what makes each field from their values."""
        places: dict[Expr, int] = {}
        fills = {name: _filled(getattr(self, name), places) for name in _FIELDS}
        return tuple(places), fills

    def to_json(self) -> str:
        """The record as JSON text; `Program.from_json` gives back an equal one.

        Raises:
            TypeError: the record holds a value that has no plain form (a symbolic dim, a live object).
        """
        body = {name: _encode(getattr(self, name)) for name in _FIELDS}
        return json.dumps({"format": FORMAT, **body}, separators=(",", ":"))

    @staticmethod
    def from_json(text: str, size: Callable[[str], int] | None = None) -> Program:
        """The record that `to_json` wrote.

        Args:
            size: gives the `Size` that a text stands for, of a record for several sizes.

        Raises:
            CacheError: the text is damaged or of another format version.
        """
        try:
            body = json.loads(text)
            if body["format"] != FORMAT:
                raise CacheError(f"program record of format {body['format']}, this graphc reads format {FORMAT}")
            return Program(**{name: _decode(body[name], size) for name in _FIELDS})
        except (KeyError, TypeError, ValueError) as error:
            raise CacheError(f"damaged program record: {type(error).__name__}: {error}") from error


_FIELDS = tuple(Program.__dataclass_fields__)

# A JSON object always has one key, which says what it is; an array is a tuple; text, null, true and exact numbers are
# themselves.
Json: TypeAlias = Any
_RECORDS: dict[str, type] = {
    record.__name__: record
    for record in (
        ArenaBlock, BufferSpec, Check, View, KernelStep, RowArgument, ForeachStep, GemmStep, AtenStep, LoopStep,
        Binding, OutputSpec, Segment, Location, Named, Ref,
    )
}  # fmt: skip
_PLAIN = frozenset((int, bool, str, type(None)))
"""Types that are JSON as they are."""
_RECORD_FIELDS: dict[type, tuple[str, ...]] = {
    record: tuple(record.__dataclass_fields__)  # type: ignore[attr-defined]
    for record in _RECORDS.values()
}


Fill: TypeAlias = "Callable[[list[int]], Any]"
"""Makes a part of a record from the values of all expressions in it."""


def _filled(item: Any, places: dict[Expr, int]) -> Fill | None:
    """What makes a part of a record for any sizes; None where there are none in it.

    Args:
        places: where the values of expressions are in the list of all; more are added.
    """
    kind = type(item)
    if kind is Size:
        return operator.itemgetter(places.setdefault(item.expr, len(places)))
    if kind is Reciprocal:
        place = places.setdefault(item.size.expr, len(places))
        return lambda values: 1 / values[place]
    if kind is dict:
        keys, parts = _filled(tuple(item), places), _filled(tuple(item.values()), places)
        if keys is None and parts is None:
            return None
        return lambda values: dict(
            zip(item if keys is None else keys(values), item.values() if parts is None else parts(values), strict=True)
        )
    names = _RECORD_FIELDS.get(kind)
    if names is None and kind is not tuple and kind is not list:
        return None
    parts_of = item if names is None else [getattr(item, name) for name in names]
    pairs = [(_filled(part, places), part) for part in parts_of]
    if all(fill is None for fill, _ in pairs):
        return None
    if names is None:
        return lambda values: kind([part if fill is None else fill(values) for fill, part in pairs])
    return lambda values: kind(*[part if fill is None else fill(values) for fill, part in pairs])


def _encode(value: Any) -> Json:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if value - value == 0.0 else {"float": repr(value)}
    if kind is tuple:
        return list(value) if {*map(type, value)} <= _PLAIN else [_encode(item) for item in value]
    if kind is list:
        return {"list": [_encode(item) for item in value]}
    if kind is dict:
        return {"dict": [[_encode(key), _encode(item)] for key, item in value.items()]}
    if kind is DType:
        return {"DType": value.name}
    if kind is complex:
        return {"complex": [_encode(value.real), _encode(value.imag)]}
    if kind is Size:
        return {"Size": str(value.expr)}
    if kind is Reciprocal:
        return {"Reciprocal": str(value.size.expr)}
    fields = _RECORD_FIELDS.get(kind)
    if fields is None:
        raise TypeError(f"a {kind.__name__} cannot stand in a program record: {value!r}")
    own = [getattr(value, name) for name in fields]
    return {kind.__name__: [item if type(item) in _PLAIN else _encode(item) for item in own]}


def _decode(value: Json, size: Callable[[str], int] | None) -> Any:
    if type(value) is list:
        return tuple([_decode(item, size) for item in value])
    if type(value) is not dict:
        return value
    ((tag, body),) = value.items()
    record = _RECORDS.get(tag)
    if record is not None:
        return record(*[_decode(item, size) for item in body])
    if tag == "DType":
        return DTYPES[body]
    if tag == "list":
        return [_decode(item, size) for item in body]
    if tag == "dict":
        return {_decode(key, size): _decode(item, size) for key, item in body}
    if tag == "float":
        return float(body)
    if tag == "complex":
        return complex(_decode(body[0], size), _decode(body[1], size))
    if tag in ("Size", "Reciprocal") and size is not None:
        found = size(body)
        return found if tag == "Size" else one_over(found)
    raise ValueError(f"unknown tag {tag!r}")
