"""What a GPU's programs do at the same time, watched where an interpreter runs them one after the other.

Programs of one launch run in any order and side by side. So what one of them stores, no other may load or store in the
same launch, unless both do so atomically; and none may touch memory that the launch was not handed. The interpreter's
order hides the first, and luck the second: here every access of a launch is noted, by program, and judged at its end.
What a mask hides is rubbish, unless the load says what it is, where the interpreter would give zeros.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

RUBBISH = 0xA5
"""Bytes that masked loads give where nothing was said."""
Addresses = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass
class Accesses:
    """Addresses of one kind of access, with the number of the program that made it."""

    addresses: list[Addresses] = field(default_factory=list)
    programs: list[Addresses] = field(default_factory=list)

    def add(self, addresses: Addresses, program: int) -> None:
        self.addresses.append(addresses)
        self.programs.append(np.full(addresses.shape, program, np.uint64))

    def joined(self) -> tuple[Addresses, Addresses]:
        empty = np.zeros(0, np.uint64)
        return np.concatenate([empty, *self.addresses]), np.concatenate([empty, *self.programs])


@dataclass
class Launch:
    """The accesses of a launch.

    Args:
        name: of the function.
        memory: first and last address of what the launch was handed; empty where it finds addresses in memory.
    """

    name: str
    memory: list[tuple[int, int]]
    loads: Accesses = field(default_factory=Accesses)
    stores: Accesses = field(default_factory=Accesses)
    atomics: Accesses = field(default_factory=Accesses)

    def judge(self) -> list[str]:
        """What is wrong."""
        loads, stores, atomics = (kind.joined() for kind in (self.loads, self.stores, self.atomics))
        found = [
            f"{self.name}: a program {verb} what another one {other}"
            for verb, mine, other, theirs in (
                ("loads", loads, "stores", stores),
                ("stores", stores, "stores", stores),
                ("loads", loads, "adds to", atomics),
                ("stores", stores, "adds to", atomics),
            )
            if _met(mine, theirs)
        ]
        if self.memory and not all(map(self._is_inside, (loads[0], stores[0], atomics[0]))):
            found.append(f"{self.name}: an access outside of the memory that it was handed")
        return found

    def _is_inside(self, addresses: Addresses) -> bool:
        inside = np.zeros(addresses.shape, bool)
        for first, last in self.memory:
            inside |= (addresses >= first) & (addresses <= last)
        return bool(inside.all())


def _met(mine: tuple[Addresses, Addresses], theirs: tuple[Addresses, Addresses]) -> bool:
    """Whether some address was accessed by one program in one way and by another in the other way."""
    if not len(mine[0]) or not len(theirs[0]):
        return False
    lowest, highest = (_per_address(*theirs, by) for by in (np.minimum, np.maximum))
    at = np.searchsorted(lowest[0], mine[0])
    at[at == len(lowest[0])] = 0
    known = lowest[0][at] == mine[0]
    others = (lowest[1][at] != mine[1]) | (highest[1][at] != mine[1])
    return bool((known & others).any())


def _per_address(addresses: Addresses, programs: Addresses, by: Any) -> tuple[Addresses, Addresses]:
    """Sorted addresses, each with the lowest or highest program that accessed it."""
    order = np.argsort(addresses, kind="stable")
    unique, starts = np.unique(addresses[order], return_index=True)
    return unique, by.reduceat(programs[order], starts)


def install() -> list[str]:
    """Watch all launches of this process's interpreter from now on; gives the list that what is wrong is added to."""
    from triton.runtime import interpreter

    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    current: list[Launch] = []
    wrong: list[str] = []

    def note(kind: str, pointers: Any, mask: Any) -> None:
        if current:
            x, y, z = builder.grid_idx
            _, height, depth = builder.grid_dim
            chosen = mask if isinstance(mask, np.ndarray) else mask.data  # an array, where blocks are described
            touched = np.unique(pointers.data[np.broadcast_to(chosen.astype(bool), pointers.data.shape)])
            getattr(current[-1], kind).add(touched.astype(np.uint64), (x * height + y) * depth + z)

    load, store, rmw = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    semantic, said = interpreter.TritonSemantic, [False]
    plain_load = semantic.load

    def load_with(self: Any, ptr: Any, mask: Any, other: Any, *rest: Any, **more: Any) -> Any:
        said[0] = other is not None  # what is said is not passed on below where it is one 0, which counts as false
        return plain_load(self, ptr, mask, other, *rest, **more)

    @functools.wraps(load)
    def noted_load(ptrs: Any, mask: Any, other: Any, *rest: Any, **more: Any) -> Any:
        note("loads", ptrs, mask)
        found = load(ptrs, mask, other, *rest, **more)
        if other is None and not said[0]:  # what a mask hides is then anything
            found.data.view(np.uint8).reshape(*mask.data.shape, -1)[~mask.data.astype(bool)] = RUBBISH
        return found

    @functools.wraps(store)
    def noted_store(ptrs: Any, value: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        note("stores", ptrs, mask)
        return store(ptrs, value, mask, *rest, **more)

    @functools.wraps(rmw)
    def noted_rmw(op: Any, ptr: Any, value: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        note("atomics", ptr, mask)
        return rmw(op, ptr, value, mask, *rest, **more)

    builder.create_masked_load, builder.create_masked_store = noted_load, noted_store
    builder.create_atomic_rmw, semantic.load = noted_rmw, load_with
    plain = executor.__call__

    def watched(self: Any, *args: Any, **kwargs: Any) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        current.append(Launch(self.fn.__name__, _memory(tensors)))
        try:
            plain(self, *args, **kwargs)
        finally:
            wrong.extend(current.pop().judge())

    executor.__call__ = watched
    return wrong


def _memory(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    """The storages of tensors; nothing is known where one of them may be a table of addresses."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    places = [(found.data_ptr(), found.data_ptr() + found.nbytes() - 1) for found in storages if found.nbytes()]
    holds_addresses = any(tensor.dtype == torch.int64 and bool((tensor.abs() >> 40).any()) for tensor in tensors)
    return [] if holds_addresses else places
