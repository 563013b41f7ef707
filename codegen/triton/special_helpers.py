"""Device functions of special mathematics, as text; a part of the table in `graphc.codegen.triton.helpers`."""

from __future__ import annotations

from functools import reduce

from graphc.codegen import digamma
from graphc.codegen.digamma import polynomial

ODDS = (
    3.2558156105, 0.29651850235, -5.3202278243e-4, -1.80544091e-3, 2.5885387655e-4, -1.7270658379e-5, 4.5863374938e-7,
)  # fmt: skip
"""log2((1 + erf(y)) / (1 - erf(y))) / y by powers of y * y: 1 + erf(y) comes out with an absolute error of 2^-24.

Source: fitted for |y| <= 4.2, weighted by the derivative of 1 + erf(y), with Lawson's weights. The last one is
positive, so that 1 + erf(y) goes to 0 and 2 beyond. The quotient is that of the probabilities that a normal variable is
below and above sqrt(2) y.
"""


def _odds() -> str:
    """Horner's scheme for -ODDS at y = x * SCALE, times y."""
    terms = [f"{-number!r} * SCALE**{2 * power + 1}" for power, number in enumerate(ODDS)]
    return reduce(lambda inner, term: f"tl.fma({inner}, z, {term})", reversed(terms[:-1]), terms[-1])


SPECIAL: dict[str, tuple[tuple[str, ...], str]] = {
    "_erf_odds": (
        (),
        f"""\
def _erf_odds(x, SCALE: tl.constexpr):
    # log2 of (1 - erf(y)) / (1 + erf(y)) for y = x * SCALE
    z = x * x
    return x * {_odds()}
""",
    ),
    "_digamma": (
        ("_divide",),
        f"""\
def _digamma(x):
    # between 1 and 2 from the root on, up to there by recurrence, far from 0 by the asymptotic series
    FAR: tl.constexpr = {digamma.FAR} if x.dtype == tl.float64 else {digamma.FAR_32}
    reflected = x < 0
    z = tl.where(reflected, 1 - x, x)
    far, near = z >= FAR, z < 1
    y = tl.where(far, z * 0 + 1.5, tl.where(near, z + 1, z))
    total = tl.where(near, _divide(z * 0 - 1, z), z * 0)
    for _ in tl.static_range(FAR - 2):
        above = y > 2
        y = tl.where(above, y - 1, y)
        total = total + tl.where(above, _divide(y * 0 + 1, y), y * 0)
    t = y - 1.5
    fraction = x - libdevice.trunc(x)
    r = tl.where(fraction < -0.5, fraction + 1, fraction)
    squared = r * r
    if x.dtype == tl.float64:
        from_root = y - {digamma.ROOT[0]} - {digamma.ROOT[1]}
        slope = {polynomial("t", digamma.RATIO[0])} / {polynomial("t", digamma.RATIO[1])}
        rest = {polynomial("squared", digamma.COTANGENT[0])} / {polynomial("squared", digamma.COTANGENT[1])}
    else:
        from_root = y - {digamma.ROOT_32[0]} - {digamma.ROOT_32[1]}
        slope = _divide({polynomial("t", digamma.RATIO_32[0])}, {polynomial("t", digamma.RATIO_32[1])})
        rest = {polynomial("squared", digamma.COTANGENT_32)}
    inverse = _divide(z * 0 + 1, z * z)
    series = {polynomial("inverse", digamma.SERIES)}
    value = tl.where(far, libdevice.log(z) - _divide(z * 0 + 0.5, z) - series, from_root * slope + total)
    # digamma(x) = digamma(1 - x) - pi * cot(pi * x)
    value = tl.where(reflected, value - (_divide(r * 0 + 1, r) - r * rest), value)
    infinity = tl.where(x != x, x, float("inf"))
    value = tl.where(reflected & (r == 0), infinity - infinity, value)
    value = tl.where(x == float("inf"), infinity, value)
    return tl.where(x == 0, libdevice.copysign(infinity, x * -1), value)
""",
    ),
}
