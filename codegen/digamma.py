"""The numbers by which generated code computes digamma, and the polynomials made of them as text.

Between 1 and 2 it is a product with the distance from its root, so that it has all digits there; up to there it is
computed by recurrence, far from 0 by the asymptotic series, and below 0 by digamma(x) = digamma(1 - x) - pi cot(pi x).
Source: the ratios of polynomials are fitted to fifty digits (Lawson's weights); Abramowitz and Stegun, 6.3.
"""

from __future__ import annotations

from collections.abc import Sequence

ROOT = 1.4616321449683622, 9.549995429965698e-17
ROOT_32 = 1.4616317749023438, 3.7006601859126266e-07
"""The root in two numbers, the first of which is one of float64 or float32."""
FAR, FAR_32 = 10, 3
"""From where on the series has the digits of float64 or float32."""

RATIO_32 = (
    (0.9510558902548861, 0.5015972785983469, 0.02363834495129096, -0.0013471866362478357),
    (1.0, 0.9728396826894851, 0.20526501780524256),
)
RATIO = (
    (
        0.9510558760318328797, 1.167941557219441707, 0.5154424730360141958, 0.100435961641653583,
        0.008383139391552400852, 0.0002301021010631918685, 4.335604472499005584e-7,
    ),
    (
        1.0, 1.673475784768329059, 1.03446100788369774, 0.2991673974863961572, 0.04169066555509394366,
        0.002532818163623187417, 0.0000474926118307883267,
    ),
)  # fmt: skip
"""digamma(1.5 + t) / (1.5 + t - root) for |t| <= 0.5, by powers of t above and below; relative errors 2e-8, 2e-20."""

COTANGENT_32 = (
    3.289868174974902, 2.1646305165752, 2.0356846136225206, 1.984975424694986, 2.253585753279104, 0.6474630858437878,
    5.297187952806585,
)  # fmt: skip
COTANGENT = (
    (
        3.289868133696452833,
        -2.242426380584022881,
        0.3261583345585482451,
        -0.00770991920008340863,
        -7.918140191816204e-5,
    ),
    (1.0, -1.339589512074026094, 0.3620843958750648901, -0.02249486758778021882),
)
"""(1 / r - pi cot(pi r)) / r for |r| <= 0.5, by powers of r * r; relative errors 1.3e-8 and 1.2e-17."""

SERIES = (
    0.0, 8.33333333333333333333e-2, -8.33333333333333333333e-3, 3.96825396825396825397e-3, -4.16666666666666666667e-3,
    7.57575757575757575758e-3, -2.10927960927960927961e-2, 8.33333333333333333333e-2,
)  # fmt: skip
"""log(z) - 1 / (2 z) - digamma(z), by powers of 1 / (z * z); Bernoulli's numbers."""


def polynomial(variable: str, coefficients: Sequence[float]) -> str:
    """Horner's scheme as an expression that Python and C read alike.

    Args:
        variable: a name.
        coefficients: the constant term first.
    """
    text = repr(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        text = f"({text} * {variable} + {coefficient!r})"
    return text
