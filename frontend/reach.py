"""What a function can reach in Python, compared before and after a capture: changes that no effect carries out.

The function runs once, while it is captured. What it binds in known places is bound again after each run, and put back
when the capture ends (`graphc.frontend.attributes`). This is the net below that: whatever is still not as it was (a set
that has grown, a numpy array that was written, a list in a list that was added to) would be changed once and never
again. It is put back, and the call runs eager.
"""

from __future__ import annotations

import array
import functools
import gc
import threading
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler

from graphc.frontend.inputs import GONE, bind, bound, names_of, slots_of
from graphc.frontend.locations import is_user_code
from graphc.frontend.names import code_names
from graphc.frontend.objects import is_traced
from graphc.frontend.reads import CACHED, is_own, own_classes
from graphc.frontend.shown import shows
from graphc.frontend.traced import TracedTensor

_LIMIT = 50_000
_BYTES = 1 << 24
"""Larger arrays are data, and are not looked at."""
_SHOWN = 60
"""Characters of a name that are printed."""
_SKIPPED = (
    torch.Tensor, torch.optim.Optimizer, LRScheduler, torch.amp.GradScaler, types.ModuleType, types.BuiltinFunctionType,
    torch.utils.data.DataLoader, np.random.Generator, np.random.RandomState, threading.Thread,
)  # fmt: skip
"""What has guards and effects of its own, is taken as fixed, or changes by itself, as a thread does."""
_OF_MODULES = frozenset(vars(torch.nn.Module()))
_COPIED = (list, deque, set, bytearray)
_EQUAL = (set, bytearray, array.array)


class Reach:
    """Everything reachable, as it was when this was made.

    Args:
        roots: the function, its arguments, modules.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self._before: list[tuple[Any, Any]] = []  # containers, with copies
        self._caches: list[tuple[Any, int]] = []
        self._kept: dict[int, Any] = {}
        waiting = deque(roots)
        while waiting and len(self._kept) < _LIMIT:
            item = waiting.popleft()
            if isinstance(item, torch.optim.Optimizer):
                waiting.extend(param for group in item.param_groups for param in group["params"])
            if type(item) in (torch.Tensor, torch.nn.Parameter):
                item = vars(item)
            if id(item) in self._kept or isinstance(item, (*_SKIPPED, str, int, float, complex, bytes, type(None))):
                continue
            if shows(item):
                continue
            self._kept[id(item)] = item
            if (copy := _copy(item)) is not None:
                self._before.append((item, copy))
            if isinstance(item, CACHED):
                self._caches.append((item, item.cache_info().misses))
            waiting.extend(_parts(item))

    def changed(self) -> str:
        """What is no longer as it was, in words; nothing when all is."""
        for item, before in self._before:
            if not _is_alike(item, before):
                kind = f"class {item.__name__}" if isinstance(item, type) else f"a {type(item).__name__}"
                return f"{kind} that it finds outside of itself{_where(item, before)}"
        for cache, misses in self._caches:
            if cache.cache_info().misses != misses and _keeps_traced(cache):
                return f"what {cache.__name__} keeps for further calls"
        return ""

    def restore(self) -> None:
        """Put everything back that `changed` tells of."""
        for item, before in self._before:
            if not _is_alike(item, before):
                _put_back(item, before)
        for cache, misses in self._caches:
            if cache.cache_info().misses != misses and _keeps_traced(cache):
                cache.cache_clear()


def _copy(item: Any) -> Any:
    """What to compare a container with later; None for what is none, or cannot change."""
    if isinstance(item, _COPIED):
        return type(item)(item) if type(item) in _COPIED else list(item) if isinstance(item, list) else None
    if isinstance(item, np.ndarray):
        can_change = item.flags.writeable and item.dtype != object and item.nbytes <= _BYTES
        return item.copy() if can_change else None
    if isinstance(item, array.array):
        return item[:]
    if isinstance(item, dict) or is_own(item) or (is_own(type(item)) and slots_of(type(item))):
        return names_of(item)
    return None


def _is_alike(item: Any, before: Any) -> bool:
    if isinstance(item, np.ndarray):
        return bool(item.shape == before.shape and item.tobytes() == before.tobytes())
    if isinstance(item, _EQUAL):
        return bool(item == before)
    if isinstance(item, (list, deque)):
        return len(item) == len(before) and all(map(_is_same, item, before))
    now = names_of(item)
    return all(
        _is_same(now.get(name, GONE), before.get(name, GONE))
        for name in {**before, **now}
        if not (name is TracedTensor and not is_traced(now.get(name)))  # a table by classes of tensors, as of einops
    )


def _is_same(now: Any, then: Any) -> bool:
    return now is then or (type(now) is type(then) and isinstance(now, (int, float, str)) and bool(now == then))


def _where(item: Any, before: Any) -> str:
    """Which names of something have changed, as far as they can be told in words."""
    if isinstance(item, (np.ndarray, list, deque, *_EQUAL)):
        return ""
    now = names_of(item)
    changed = [name for name in {**before, **now} if not _is_same(now.get(name, GONE), before.get(name, GONE))]
    return f" (under {_shown(changed[0])})"


def _shown(name: Any) -> str:
    text = repr(name)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _put_back(item: Any, before: Any) -> None:
    if isinstance(item, np.ndarray):
        item[...] = before
    elif isinstance(item, set):
        item.clear()
        item.update(before)
    elif isinstance(item, (list, bytearray, array.array)):
        item[:] = before
    elif isinstance(item, deque):
        item.clear()
        item.extend(before)
    else:
        for name in {**before, **names_of(item)}:
            then = before.get(name, GONE)
            if not _is_same(bound(item, name), then):
                bind(item, name, then)


def _parts(item: Any) -> Iterator[Any]:
    """What an object leads to; very long containers hold data."""
    if isinstance(item, (dict, list, tuple, set, frozenset, deque)):
        if len(item) <= _LIMIT:
            yield from list(dict.values(item) if isinstance(item, dict) else item)
    elif isinstance(item, types.CellType):
        found = bound(item, "")
        if found is not GONE:
            yield found
    elif isinstance(item, types.FunctionType):
        yield from (item.__defaults__, item.__kwdefaults__, item.__closure__, item.__dict__)
        if is_user_code(item.__code__):
            yield from (item.__globals__[name] for name in code_names(item.__code__) if name in item.__globals__)
    elif isinstance(item, (types.MethodType, classmethod, staticmethod)):
        yield from (item.__func__, getattr(item, "__self__", None))
    elif isinstance(item, property):
        yield item.fget
    elif isinstance(item, functools.partial):
        yield from (item.func, item.args, item.keywords)
    elif isinstance(item, CACHED):
        yield item.__wrapped__
    elif isinstance(item, type):
        for base in own_classes(item):
            yield from list(vars(base).values())
    elif isinstance(item, torch.nn.Module):
        yield type(item)
        yield from (value for name, value in vars(item).items() if name not in _OF_MODULES)
        yield from (item._modules, *(table for name, table in vars(item).items() if name.endswith("_hooks")))
    elif is_own(type(item)):
        yield type(item)
        yield getattr(item, "__dict__", None)
        yield from (getattr(item, name, None) for name in slots_of(type(item)))
    elif type(item) is types.SimpleNamespace:
        yield vars(item)


def _keeps_traced(cache: Any) -> bool:
    """A function under `functools.lru_cache` keeps a tensor or number of a capture."""
    waiting, seen = deque(gc.get_referents(cache)), set[int]()
    while waiting and len(seen) < _LIMIT:
        item = waiting.popleft()
        if is_traced(item):
            return True
        if id(item) not in seen and (isinstance(item, (dict, list, tuple)) or "lru" in type(item).__name__):
            seen.add(id(item))
            waiting.extend(gc.get_referents(item))
    return False
