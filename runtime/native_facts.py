"""Guards on tensors and tables, checked in C in nanoseconds each: a program's own, or that of a small library.

The C function knows nothing beforehand: what it compares is a table made here, for every capture that the program runs.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from graphc.errors import BackendUnavailableError, CompilerError
from graphc.program.facts import EntryFact, FactCheck, TensorFact
from graphc.program.torch_text import GUARD_LIBRARY, GUARD_SYMBOLS
from graphc.runtime.library import bind, key_set_offset, libtorch, tensor_offset, type_offset
from graphc.runtime.small_library import small_library

_FLAGS = ("-O2", "-shared", "-fPIC")
_MOST_ARGUMENTS = 64  # each is compared with all tensors, since none may be given twice


class _Entry(ctypes.Structure):
    _fields_ = (("table", ctypes.c_void_p), ("key", ctypes.c_void_p), ("value", ctypes.c_void_p))


class _Metadata(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_void_p),
        ("keys", ctypes.c_uint64),
        ("rank", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("requires_grad", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("sizes", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
    )
    kept: Any  # what `sizes` and `strides` point to


class _Expected(ctypes.Structure):
    _fields_ = (("object", ctypes.c_void_p), ("metadata", ctypes.c_void_p))


class _Facts(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_ssize_t),
        ("handle", ctypes.c_ssize_t),
        ("keys", ctypes.c_ssize_t),
        ("entry_count", ctypes.c_int64),
        ("argument_count", ctypes.c_int64),
        ("tensor_count", ctypes.c_int64),
        ("entries", ctypes.c_void_p),
        ("tensors", ctypes.c_void_p),
    )
    kept: tuple[Any, ...]  # what the addresses above point to


def native_check(library: ctypes.CDLL, entries: Sequence[EntryFact], tensors: Sequence[TensorFact]) -> FactCheck | None:
    """A check of facts by the library's C; see `graphc.program.facts.FactChecker`.

    Returns:
        None where that is not possible: the library has no such function, this torch keeps its tensors in another way
        than can be found out, or there are too many arguments.
    """
    places = (type_offset(), tensor_offset(), key_set_offset())
    arguments = sum(fact.tensor is None for fact in tensors)
    if not hasattr(library, "graphc_guard") or None in places or arguments > _MOST_ARGUMENTS:
        return None
    if any(_dtype_code(fact.dtype) is None for fact in tensors):
        return None
    shared: dict[Any, _Metadata] = {}  # tensors that are alike share one record: less memory to walk through
    rows = []
    for fact in tensors:
        alike = (fact.cls, fact.keys, fact.dtype, fact.device, fact.shape, fact.strides, fact.requires_grad)
        record = shared.get(alike) or shared.setdefault(alike, _metadata(fact))
        rows.append(_Expected(None if fact.tensor is None else id(fact.tensor), ctypes.addressof(record)))
    entries = _in_table_order(entries)
    entry_table = (_Entry * len(entries))(*[_Entry(id(e.table), id(e.key), id(e.item)) for e in entries])
    tensor_table = (_Expected * len(rows))(*rows)
    counts = (len(entries), arguments, len(rows))
    facts = _Facts(*places, *counts, ctypes.addressof(entry_table), ctypes.addressof(tensor_table))
    facts.kept = (shared, entry_table, tensor_table, tuple(entries), tuple(tensors))
    address = ctypes.cast(library.graphc_guard, ctypes.c_void_p).value or 0
    # a PYFUNCTYPE keeps the interpreter's lock during the call
    function = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.py_object)(address)
    return functools.partial(function, ctypes.byref(facts))


def guard_library() -> ctypes.CDLL | None:
    """A library that checks guards and does nothing else, compiled once and kept in the disk cache.

    Returns:
        None where there is no C compiler, or this torch lacks a function that it calls.
    """
    try:
        return _guard_library()
    except (CompilerError, BackendUnavailableError):
        return None


@functools.cache
def _guard_library() -> ctypes.CDLL:
    found = small_library("guards", GUARD_LIBRARY, _FLAGS)
    bind(found, tuple(GUARD_SYMBOLS))
    return found


def _metadata(fact: TensorFact) -> _Metadata:
    rank = len(fact.shape)
    numbers = (ctypes.c_int64 * (2 * rank))(*fact.shape, *fact.strides)
    sizes = ctypes.addressof(numbers)
    grad = -1 if fact.requires_grad is None else int(fact.requires_grad)
    device = -1 if fact.device.index is None else fact.device.index  # of which kind it is, the keys say
    record = _Metadata(id(fact.cls), fact.keys, rank, _dtype_code(fact.dtype), grad, device, sizes, sizes + 8 * rank)
    record.kept = numbers
    return record


def _in_table_order(entries: Sequence[EntryFact]) -> list[EntryFact]:
    """Entries of one table together, in its order, with the very keys it has."""
    groups: dict[int, list[EntryFact]] = {}
    for entry in entries:
        groups.setdefault(id(entry.table), []).append(entry)
    found: list[EntryFact] = []
    for group in groups.values():
        places = {key: (place, key) for place, key in enumerate(list(group[0].table))}
        own = sorted((entry for entry in group if entry.key in places), key=lambda entry: places[entry.key][0])
        found += [replace(entry, key=places[entry.key][1]) for entry in own]
        found += [entry for entry in group if entry.key not in places]
    return found


@functools.cache
def _dtype_code(dtype: Any) -> int | None:
    """The number by which libtorch's C shim knows a dtype."""
    code = getattr(libtorch(), f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}", None)
    return None if code is None else int(code())
