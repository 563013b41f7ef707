"""Special functions all along the real line, in units of eager's error in the neighbourhood.

The contract asks for the largest error of a tensor. Here it is asked of every few numbers in a row, so that poles and
large results do not hide what happens at roots and where a function is near a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import torch
import torch.nn.functional as F

import graphc
from graphc.report.numerics import FACTOR, ULPS
from graphc.settings import override

NEIGHBOURS = 16
"""Points to each side whose largest error eager's is taken to be: its error at one point may be nil by chance."""
ROOTS = (1.4616321449683622, -0.504083008264455, -1.573498473162390, -2.610720868444145, -2.457024738, -2.747682646)
"""Roots of digamma and of lgamma, besides those at integers."""
PLACES = (0.0, 1.0, 2.0, 3.0, -1.0, -2.0, -10.0, 10.0, 0.5, -0.5, 0.7, 1.5, math.pi, 4.0, 20.0, 88.0, *ROOTS)

Function = Callable[[torch.Tensor], torch.Tensor]
COMPOSED: dict[str, Function] = {
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
    "polygamma": lambda x: torch.polygamma(1, x),
    "zeta": lambda x: torch.special.zeta(x + 1, x.abs()),
    "erfinv": torch.erfinv,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,
    "sinc": torch.sinc,
    "logit": torch.logit,
    "entr": torch.special.entr,
    "xlogy": lambda x: torch.xlogy(x, x),
    "xlog1py": lambda x: torch.special.xlog1py(x, x),
    "logaddexp": lambda x: torch.logaddexp(x, 1 - x),
    "log_ndtr": torch.special.log_ndtr,
    "erfcx": torch.special.erfcx,
    "gradient of lgamma": lambda x: _gradient(torch.lgamma, x),
    "gradient of erfinv": lambda x: _gradient(torch.erfinv, x),
    "gradient of tanh, far out": lambda x: _gradient(torch.tanh, 9.02 + x.abs()),
    "gradient of softplus": lambda x: _gradient(F.softplus, x),
}
"""What we write out ourselves, be it as text or as a formula, and what is called."""
EXACT: dict[str, Callable[[Any], Any]] = {
    "lgamma": lambda x: mpmath.log(abs(mpmath.gamma(x))),
    "digamma": mpmath.digamma,
    "erfinv": mpmath.erfinv,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "logsigmoid": lambda x: -mpmath.log1p(mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)) if x <= 20 else x,
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
}
"""Those that float64 is held to as well, in arithmetic of many digits."""


def _gradient(function: Function, x: torch.Tensor) -> torch.Tensor:
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


def points(dtype: torch.dtype) -> torch.Tensor:
    """Numbers in ascending order: everywhere, and closer and closer to roots and poles."""
    generator = torch.Generator().manual_seed(0)

    def drawn(count: int) -> torch.Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64)

    parts = [drawn(300) * 20 - 10, drawn(100) * 200 - 100, torch.linspace(-5, 5, 161, dtype=torch.float64)]
    widths = (1e-1, 1e-3, 1e-5) if dtype == torch.float32 else (1e-1, 1e-5, 1e-9, 1e-14)
    parts += [place + (drawn(16) * 2 - 1) * width for place in PLACES for width in widths]
    parts += [sign * 10 ** (drawn(60) * 60 - 30) for sign in (1, -1)]
    return torch.cat(parts).to(dtype).unique()


def misses(backend: str, dtype: torch.dtype) -> list[str]:
    """Where a backend is worse than the contract allows among neighbours, a line per function."""
    x = points(dtype)
    functions = {name: COMPOSED[name] for name in (COMPOSED if dtype == torch.float32 else EXACT)}

    def program(x: torch.Tensor) -> list[torch.Tensor]:
        return [function(x) for function in functions.values()]

    with override(cache=False, templates="always"):
        ours = graphc.compile(program, backend=backend)(x)
    theirs = program(x)
    wide = program(x.double())
    found = []
    for number, name in enumerate(functions):
        mine, other, exact = ours[number], theirs[number], wide[number]
        if dtype == torch.float32:
            distances = [(result.double() - exact).abs() for result in (mine, other)]
        else:
            numbers = _exact(EXACT[name], x, other)
            distances = [_distances(result, numbers) for result in (mine, other)]
        found.append(_miss(x, mine, other, exact, *distances))
    return [f"{name}: {miss}" for name, miss in zip(functions, found, strict=True) if miss]


def _exact(function: Callable[[Any], Any], x: torch.Tensor, eager: torch.Tensor) -> list[Any]:
    """The function in forty digits where eager has a number."""
    with mpmath.workdps(40):
        return [
            function(mpmath.mpf(point)) if math.isfinite(value) else math.nan
            for point, value in zip(x.tolist(), eager.tolist(), strict=True)
        ]


def _distances(result: torch.Tensor, exact: list[Any]) -> torch.Tensor:
    with mpmath.workdps(40):
        return torch.tensor([float(abs(value - number)) for value, number in zip(result.tolist(), exact, strict=True)])


def _miss(
    x: torch.Tensor, ours: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, error: torch.Tensor,
    eager_error: torch.Tensor,
) -> str:  # fmt: skip
    """Where the error of a result is largest next to what is allowed among neighbours; empty when it is not above."""
    finite = eager.isfinite() & exact.isfinite()
    rest = (ours == eager) | (ours.isnan() & eager.isnan()) | (ours == exact.to(ours.dtype))
    if not bool((finite | rest).all()):
        return f"{ours[~finite & ~rest][:4].tolist()}, eager {eager[~finite & ~rest][:4].tolist()}"
    near = F.max_pool1d(eager_error[finite][None, None].double(), 2 * NEIGHBOURS + 1, 1, NEIGHBOURS)[0, 0]
    limits = torch.finfo(ours.dtype)
    allowed = FACTOR * near + ULPS * limits.eps * exact[finite].double().abs().clamp_min(limits.tiny)
    ratio = error[finite].double().nan_to_num(math.inf) / allowed
    worst = int(ratio.argmax())
    if ratio[worst] <= 1:
        return ""
    place, value = float(x[finite][worst]), float(exact[finite][worst])
    return f"error {float(ratio[worst] * allowed[worst]):.3g} above {float(allowed[worst]):.3g} at {place!r}: {value!r}"
