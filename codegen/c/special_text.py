"""C text of special functions, computed in double; without loops and jumps, so that the loops around are vectorised."""

from __future__ import annotations

from graphc.codegen import digamma
from graphc.codegen.digamma import polynomial

# The rational approximation of ATen's calc_erfinv, and two steps of Halley's method.
_ERFINV = """
static inline double gc_halley_forNUMBER(double x, double y) {
  const double newton = (MISS) / (1.12837916709551257390 * exp(-x * x));
  return x - newton / (1 + x * newton);
}
static inline double gc_erfinv_forNUMBER(double y) {
  const double y_abs = __builtin_fabs(y), z = y * y;
  const double central = y_abs * (((-0.140543331 * z + 0.914624893) * z - 1.645349621) * z + 0.886226899) /
                         ((((0.012229801 * z - 0.329097515) * z + 1.442710462) * z - 2.118377725) * z + 1);
  const double w = __builtin_sqrt(-log((1 - y_abs) / 2));
  const double tail = (((1.641345311 * w + 3.429567803) * w - 1.624906493) * w - 1.970840454) /
                      ((1.637067800 * w + 3.543889200) * w + 1);
  double x = y_abs <= 0.7 ? central : tail;
  x = gc_halley_forNUMBER(gc_halley_forNUMBER(x, y_abs), y_abs);
  x = y_abs == 1 ? __builtin_inf() : x;
  return y_abs > 1 ? __builtin_nan("") : __builtin_copysign(x, y);
}"""
# near 1 the error function has too few digits for a double
_ERFINV_MISSES = {"32": "erf(x) - y", "64": "gc_either_f64(y <= 0.7, erf(x) - y, (1 - y) - erfc(x))"}

_STEP = "  is_above = y > 2, y = is_above ? y - 1 : y, total += (is_above ? 1.0 : 0.0) / y;"
_DIGAMMA = f"""
static inline double gc_digamma_from_root(double z) {{
  _Bool is_above;
  double y = z < 1 ? z + 1 : z, total = (z < 1 ? -1.0 : 0.0) / z;
RECURRENCE
  const double t = y - 1.5, from_root = y - {digamma.ROOT[0]} - {digamma.ROOT[1]};
  return from_root * ({polynomial("t", digamma.RATIO[0])} /
                      {polynomial("t", digamma.RATIO[1])}) + total;
}}
static inline double gc_digamma(double x) {{
  const double z = x < 0 ? 1 - x : x, r = x - __builtin_rint(x), inverse = 1 / (z * z);
  const double series = {polynomial("inverse", digamma.SERIES)};
  const double far = log(z) - 0.5 / z - series, near = gc_digamma_from_root(z);
  const double rest = {polynomial("(r * r)", digamma.COTANGENT[0])} /
                      {polynomial("(r * r)", digamma.COTANGENT[1])};
  const double whole = z >= {digamma.FAR} ? far : near;
  const double mirrored = r == 0 ? __builtin_nan("") : whole - (1 / r - r * rest);
  return x == 0 ? __builtin_copysign(__builtin_inf(), -x) : x < 0 ? mirrored : whole;
}}""".replace("RECURRENCE", "\n".join([_STEP] * (digamma.FAR - 2)))

HELPERS: dict[str, str] = {
    **{f"gc_erfinv_for{n}": _ERFINV.replace("NUMBER", n).replace("MISS", miss) for n, miss in _ERFINV_MISSES.items()},
    "gc_digamma": _DIGAMMA,
}
"""Text by name, as in the prelude."""
