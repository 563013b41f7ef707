"""What is built for several sizes, here and in the disk cache: another process fills in the numbers of its own sizes.

Builds of one family are entries that are numbered from 0 on, under a key for what its graphs have in common.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphc.errors import CacheError, ParseError
from graphc.ir.dims import Expr
from graphc.ir.generalize import General, Inverse, Outline, Source
from graphc.ir.parser import parse_dim
from graphc.ir.sizes import Conditions
from graphc.program.record import Program
from graphc.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from graphc.runtime.sized_library import SizedLibrary

_BUILD = "build.json"
_MOST = 16
"""Builds of one family that are kept."""


@dataclass(frozen=True)
class Build:
    """What is built for several sizes.

    Attributes:
        program: its record, with a `Size` where a number depends on sizes.
        library: what its sources were built to; empty where that is done when a program is loaded.
        conditions: under which it is right.
        general: the graph that it is of. What another one, made of more samples, says of a graph is no matter here.
    """

    program: Program
    library: bytes
    conditions: Conditions
    general: General

    @functools.cached_property
    def loaded(self) -> SizedLibrary | None:
        """The library, for all programs that do not go to the disk cache; None where it is empty."""
        from graphc.runtime.sized_library import SizedLibrary

        return SizedLibrary(self.library, self.program.name, self.program.symbols) if self.library else None

    def program_for(self, sizes: Mapping[str, int]) -> Program:
        """The program where inputs have these sizes."""
        from graphc.passes.arena import at_offset, place_contents

        program = self.program.for_sizes(self.conditions.all_sizes(sizes))
        program.stats = {**program.stats, "sizes": dict(sizes)}
        if program.arena_blocks:
            where, program.arena_bytes = place_contents(program.arena_blocks)
            program.arena_blocks = ()
            program.buffers = [at_offset(s, where[s.index]) if s.index in where else s for s in program.buffers]
        return program


def store_build(build: Build, facts: str) -> None:
    """Keep a build for other processes, where there are not many of its kind yet.

    Args:
        facts: all that its code depends on beside the graph.
    """
    if not settings().cache:
        return
    from graphc.runtime.cache import disk_cache
    from graphc.runtime.load import LIBRARY, RECORD

    cache = disk_cache()
    key = next((key for key in _keys(build.general.first, facts) if cache.get(key) is None), None)
    if key is None:
        return
    body = {
        "sizes": dict(build.general.sizes),
        "exprs": [_plain(source) for source in build.general.exprs],
        "conditions": build.conditions.to_plain(),
    }
    files = {_BUILD: json.dumps(body).encode(), RECORD: build.program.to_json().encode()}
    cache.put(key, files | ({LIBRARY: build.library} if build.library else {}))


def find_build(found: Outline, facts: str) -> Build | None:
    """A build for a graph, by any process; None where there is none, or none that is right for its sizes."""
    if not settings().cache:
        return None
    from graphc.runtime.cache import disk_cache

    cache = disk_cache()
    for key in _keys(found, facts):
        folder = cache.get(key)
        if folder is None:
            return None
        try:
            build = _read(folder, found)
        except (CacheError, OSError, ParseError, KeyError, TypeError, ValueError) as error:
            if folder.is_dir():  # else another process has thrown it out meanwhile
                cache.discard(key, str(error))
            return None
        if build is not None:
            return build
    return None


def _keys(found: Outline, facts: str) -> Iterator[str]:
    from graphc.runtime.cache import program_key

    for number in range(_MOST):
        yield program_key(repr(found.rest), {"facts": facts, "build": number})


def _read(folder: Path, found: Outline) -> Build | None:
    """A stored build, or None where it is not right for a graph of its family."""
    from graphc.runtime.cache import read_entry
    from graphc.runtime.load import LIBRARY, RECORD

    body = json.loads(read_entry(folder, _BUILD))
    general = General(found, body["sizes"], tuple(map(_source, body["exprs"])))
    sizes = general.sizes_of(found)
    conditions = Conditions.from_plain(body["conditions"], parse_dim)
    if sizes is None or not conditions.hold(sizes):
        return None
    program = Program.from_json(read_entry(folder, RECORD).decode(), lambda text: conditions.sized(parse_dim(text)))
    library = read_entry(folder, LIBRARY) if (folder / LIBRARY).exists() else b""
    return Build(program, library, conditions, general)


def _plain(source: Source) -> Any:
    """What a number is made of, in JSON: text for an expression, in a list where it is one over that."""
    if isinstance(source, Inverse):
        return [str(source.expr)]
    return str(source) if isinstance(source, Expr) else source if isinstance(source, int) else {"float": source.hex()}


def _source(body: Any) -> Source:
    if isinstance(body, list):
        expr = parse_dim(body[0])
        if not isinstance(expr, Expr):
            raise CacheError(f"one over {body[0]}, which is no expression")
        return Inverse(expr)
    if isinstance(body, str):
        return parse_dim(body)
    return float.fromhex(body["float"]) if isinstance(body, dict) else int(body)
