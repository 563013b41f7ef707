"""How far rounding can take eager's results: the same calls, each rounded at random to a number near the exact one.

Eager's own error is one draw of many. Where all digits of a result cancel it may be nil by chance, and a program whose
kernels round at other places is then further off without being less accurate. Source: Monte Carlo arithmetic with
random rounding (Parker, 1997).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

DRAWS = 16
"""Runs with random rounding that are looked at."""
WIDE = {
    torch.float16: torch.float64, torch.bfloat16: torch.float64, torch.float32: torch.float64,
    torch.complex32: torch.complex128, torch.complex64: torch.complex128,
}  # fmt: skip
"""Dtypes that round, with those in which a call is exact in comparison."""


def draws() -> Iterator[RandomRounding]:
    """Modes to run eager code under, one after the other; always the same ones."""
    return map(RandomRounding, range(DRAWS))


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
        wide_args, wide_kwargs = tree.tree_map(_widened, (args, kwargs))  # before the call, which may write to them
        result = func(*args, **kwargs)
        written = _written(func, args, kwargs)
        if not any(_rounds(item) for item in tree.tree_leaves([result, written])):
            return result
        try:
            exact = func(*wide_args, **wide_kwargs)
        except (RuntimeError, TypeError):  # there is none in float64
            return result
        wide_leaves = tree.tree_leaves([exact, _written(func, wide_args, wide_kwargs)])
        pairs = zip(tree.tree_leaves([result, written]), wide_leaves, strict=True)
        for native, wide in {id(pair[0]): pair for pair in pairs}.values():
            if _rounds(native) and native.shape == wide.shape:
                self._draw(native, wide)
        return result

    def _draw(self, native: torch.Tensor, wide: torch.Tensor) -> None:
        if native.is_complex():
            native, wide = torch.view_as_real(native.resolve_conj()), torch.view_as_real(wide.resolve_conj())
        kept = native.double()
        half = torch.finfo(native.dtype).eps / 2 * wide.abs().clamp_min(torch.finfo(native.dtype).tiny)
        radius = torch.maximum(half, (kept - wide).abs())
        part = torch.rand(wide.shape, generator=self._generator, dtype=torch.float64) * 2 - 1
        drawn = (wide + part * radius).to(native.dtype)
        exact = (kept == wide) | ~torch.isfinite(kept) | ~torch.isfinite(wide)
        if not bool(exact.all()):  # exact ones may have several elements in one place, which cannot be written
            native.copy_(torch.where(exact, native, drawn))


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that a call writes to."""
    declared = func._schema.arguments
    named = [*zip(declared, args, strict=False), *((a, kwargs[a.name]) for a in declared if a.name in kwargs)]
    return [value for a, value in named if a.alias_info is not None and a.alias_info.is_write]


def _rounds(item: Any) -> bool:
    if not isinstance(item, torch.Tensor) or item.dtype not in WIDE or item.layout != torch.strided:
        return False
    return item.device.type == "cpu" and not item._is_zerotensor()  # autograd has zeros without memory


def _widened(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return item.to(WIDE[item.dtype]) if item.dtype in WIDE else item.clone()
    return WIDE.get(item, item) if isinstance(item, torch.dtype) else item
