"""How far rounding can take eager's results: the same calls, each rounded at random to a number near the exact one.

Eager's own error is one draw of many. Where all digits of a result cancel it may be nil by chance, and a program whose
kernels round at other places is then further off without being less accurate. Source: Monte Carlo arithmetic with
random rounding (Parker, 1997).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

from graphc.report.numerics import Errors, errors_of

DRAWS = 16
"""Runs with random rounding that are looked at."""
WIDE = {
    torch.float16: torch.float64, torch.bfloat16: torch.float64, torch.float32: torch.float64,
    torch.complex32: torch.complex128, torch.complex64: torch.complex128,
}  # fmt: skip
"""Dtypes that round, with those in which a call is exact in comparison."""
NARROW = {torch.float64: torch.float32, torch.complex128: torch.complex64}
"""Those with no wider one: how far they are off is told by that of the narrower one, in units of either."""
_UNIT = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


def draws() -> Iterator[RandomRounding]:
    """Modes to run eager code under, one after the other; always the same ones."""
    return map(RandomRounding, range(DRAWS))


class RandomRuns:
    """Runs with random rounding, made as they are asked for.

    Args:
        run: gives results of eager calls, the same at each call.
        exact: the same results in float64.
    """

    def __init__(self, run: Callable[[], Sequence[Any]], exact: Sequence[Any]) -> None:
        self._run, self._exact, self._left = run, exact, draws()
        self._furthest: list[torch.Tensor | None] = [None] * len(exact)

    def errors(self, ours: Sequence[Any], eager: Sequence[Any]) -> list[Errors]:
        """Errors per result; a miss that stays is one by what any of the runs gives for eager's error.

        Numerics: of each element the largest error counts, eager's own or a drawn one, so what is far beyond rounding
        is a miss as before. Results in float64 are compared with others that are as far off: they may be twice apart.
        """
        found = [errors_of(*each) for each in zip(ours, eager, self._exact, strict=True)]
        for _ in range(DRAWS + 1):
            missing = [number for number, each in enumerate(found) if each.miss and _may_be_chance(eager[number])]
            for number in missing:
                far = self._far(number, eager[number])
                again = errors_of(ours[number], far, self._exact[number])
                found[number] = replace(found[number], miss=again.miss, by_rounding=0.0 if again.miss else again.eager)
            if not any(found[number].miss for number in missing) or not self._draw():
                break
        return found

    def _far(self, number: int, eager: torch.Tensor) -> torch.Tensor:
        """Eager's result, each element as far off as it is or as a run has taken it."""
        exact, drawn = self._exact[number], self._furthest[number]
        if drawn is None or exact.shape != eager.shape:
            return eager
        own = eager.to(exact.dtype) - exact
        error = torch.where(drawn.abs() > own.abs(), drawn, own)
        return torch.where(torch.isfinite(eager) & torch.isfinite(exact), (exact + error).to(eager.dtype), eager)

    def _draw(self) -> bool:
        """One more run, if there is one."""
        rounding = next(self._left, None)
        if rounding is None:
            return False
        with rounding:
            results = self._run()
        for number, (result, exact) in enumerate(zip(results, self._exact, strict=True)):
            if not _may_be_chance(result) or result.shape != exact.shape:
                continue
            error = (result.to(exact.dtype) - exact) * (2 if result.dtype == exact.dtype else 1)
            error = torch.where(torch.isfinite(error), error, 0)
            before = self._furthest[number]
            self._furthest[number] = error if before is None else torch.where(error.abs() > before.abs(), error, before)
        return True


def _may_be_chance(result: Any) -> bool:
    return isinstance(result, torch.Tensor) and (result.is_floating_point() or result.is_complex())


class RandomRounding(TorchDispatchMode):
    """For the block, each result of an ATen call lies as far from the exact one as eager's, or half a unit in the last
    place, at random; what is exact in eager stays so.

    Args:
        seed: of the draw.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_view(func) or torch.Tag.nondeterministic_seeded in func.tags or "empty" in func._schema.name:
            return func(*args, **kwargs)
        wide = tree.tree_map(_widened, (args, kwargs))  # before the call, which may write to them
        has_doubles = any(map(_is_double, tree.tree_leaves((args, kwargs))))
        narrow = tree.tree_map(_narrowed, (args, kwargs)) if has_doubles else None
        result = func(*args, **kwargs)
        leaves = _leaves(func, args, kwargs, result)
        if any(_rounds(item, WIDE) for item in leaves):
            self._draw_around(leaves, _run(func, *wide))
        if narrow is not None and any(_rounds(item, NARROW) for item in leaves):
            right = tree.tree_map(_widened, narrow)
            self._draw_doubles(leaves, _run(func, *narrow), _run(func, *right))
        return result

    def _draw_around(self, leaves: list[Any], exact: list[Any] | None) -> None:
        """Draw results around those of float64; where there are none, they stay."""
        for native, wide in _pairs(leaves, exact):
            if _rounds(native, WIDE) and native.shape == wide.shape:
                native, wide = _real(native), _real(wide)
                kept = native.double()
                self._draw(native, wide, (kept - wide).abs(), kept == wide)

    def _draw_doubles(self, leaves: list[Any], rough: list[Any] | None, right: list[Any] | None) -> None:
        """Draw results in float64 around themselves, by how far float32 is off for numbers next to the operands."""
        if rough is None or right is None or not len(leaves) == len(rough) == len(right):
            return
        for native, narrow, wide in {id(each[0]): each for each in zip(leaves, rough, right)}.values():
            if _rounds(native, NARROW) and native.shape == narrow.shape == wide.shape:
                native, narrow, wide = _real(native), _real(narrow).double(), _real(wide)
                self._draw(native, native.clone(), (narrow - wide).abs() * _UNIT, narrow == wide)

    def _draw(self, native: torch.Tensor, around: torch.Tensor, error: torch.Tensor, exact: torch.Tensor) -> None:
        limits = torch.finfo(native.dtype)
        half = limits.eps / 2 * around.abs().clamp_min(limits.tiny)
        radius = torch.maximum(half, torch.where(torch.isfinite(error), error, 0))
        part = torch.rand(around.shape, generator=self._generator, dtype=torch.float64) * 2 - 1
        drawn = (around + part.to(around.device) * radius).to(native.dtype)
        exact = exact | ~torch.isfinite(native) | ~torch.isfinite(around)
        if not bool(exact.all()):  # exact ones may have several elements in one place, which cannot be written
            native.copy_(torch.where(exact, native, drawn))


def _run(func: Any, args: Any, kwargs: Any) -> list[Any] | None:
    """What a call gives and writes; None where there is no such call in that dtype."""
    try:
        return _leaves(func, args, kwargs, func(*args, **kwargs))
    except (RuntimeError, TypeError):
        return None


def _leaves(func: Any, args: Any, kwargs: Any, result: Any) -> list[Any]:
    found: list[Any] = tree.tree_leaves([result, _written(func, args, kwargs)])
    return found


def _pairs(leaves: list[Any], exact: list[Any] | None) -> list[tuple[Any, Any]]:
    """Each result once, with the exact one."""
    return [] if exact is None else list({id(pair[0]): pair for pair in zip(leaves, exact, strict=True)}.values())


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _is_double(item: Any) -> bool:
    return item in NARROW if isinstance(item, torch.dtype) else isinstance(item, torch.Tensor) and item.dtype in NARROW


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that a call writes to."""
    declared = func._schema.arguments
    named = [*zip(declared, args, strict=False), *((a, kwargs[a.name]) for a in declared if a.name in kwargs)]
    return [value for a, value in named if a.alias_info is not None and a.alias_info.is_write]


def _rounds(item: Any, dtypes: dict[torch.dtype, torch.dtype]) -> bool:
    if not isinstance(item, torch.Tensor) or item.dtype not in dtypes or item.layout != torch.strided:
        return False
    return item.device.type in ("cpu", "cuda") and not item._is_zerotensor()  # autograd has zeros without memory


def _widened(item: Any) -> Any:
    return _converted(item, WIDE)


def _narrowed(item: Any) -> Any:
    return _converted(item, NARROW)


def _converted(item: Any, dtypes: dict[torch.dtype, torch.dtype]) -> Any:
    if isinstance(item, torch.Tensor):
        return item.to(dtypes[item.dtype]) if item.dtype in dtypes else item.clone()
    return dtypes.get(item, item) if isinstance(item, torch.dtype) else item
