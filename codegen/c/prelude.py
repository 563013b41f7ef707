"""Small C functions that kernels call, emitted only when used, and the prototypes of vector mathematics.

Names end in the short dtype name (`gc_max_f32`). All are branch-free where that lets gcc vectorise the caller's loop.
Functions of libm get our own `simd` prototypes, so that gcc calls libmvec (`_ZGVdN8v_expf`) without -ffast-math; those
libmvec lacks stay scalar calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from graphc.codegen.c.random_text import HELPERS as RANDOM_HELPERS
from graphc.codegen.c.special_text import HELPERS as SPECIAL_HELPERS

C_TYPES: dict[str, str] = {
    "f64": "double", "f32": "float", "f16": "uint16_t", "bf16": "uint16_t",
    "i64": "int64_t", "i32": "int32_t", "i16": "int16_t", "i8": "int8_t",
    "u64": "uint64_t", "u32": "uint32_t", "u16": "uint16_t", "u8": "uint8_t", "bool": "_Bool",
}  # fmt: skip
"""C types of values. bf16 and f16 are held as bits; in memory bool is a byte (`MEMORY_TYPES`)."""

MEMORY_TYPES: dict[str, str] = {**C_TYPES, "bool": "uint8_t"}
"""C types of elements in memory."""

VECTOR_UNARY = frozenset(
    (
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
        "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc",
    )
)  # fmt: skip
"""Functions of one operand that libmvec has, for float and double."""

VECTOR_BINARY = frozenset(("pow", "atan2", "hypot"))

_SUFFIX = {"f32": "f", "f64": ""}
_BITS = {"f32": "uint32_t", "f64": "uint64_t"}


def libm_name(function: str, dtype: str) -> str:
    """Name in libm: `expf` for f32, `exp` for f64."""
    return function + _SUFFIX[dtype]


def prelude(helpers: Iterable[str]) -> str:
    """C text that declares and defines helpers, with what they need, each once.

    Args:
        helpers: names as collected in `CKernel.helpers`.

    Returns:
        Text that starts with the includes it needs; may be empty of helpers.

    Raises:
        KeyError: no such helper.
    """
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        for needed in _needs(name):
            visit(needed)
        order.append(name)

    for name in sorted(helpers):
        visit(name)
    return "\n".join(("#include <stdint.h>", "#include <string.h>", *(helper_text(name) for name in order))) + "\n"


@lru_cache(maxsize=1024)
def _needs(name: str) -> tuple[str, ...]:
    text = helper_text(name)
    mentioned = re.findall(r"\b(?:gc_\w+|[a-z]\w*(?=\())", text)
    return tuple(dict.fromkeys(word for word in mentioned if word != name and is_helper(word)))


def is_helper(name: str) -> bool:
    """True when the prelude can give `name`."""
    return _find(name) is not None


def helper_text(name: str) -> str:
    """Definition or prototype of one helper.

    Raises:
        KeyError: no such helper.
    """
    text = _find(name)
    if text is None:
        raise KeyError(f"no C helper named {name}")
    return text


@lru_cache(maxsize=1024)
def _find(name: str) -> str | None:
    if not name.startswith("gc_"):
        return _prototype(name)
    if name in _FIXED:
        return _FIXED[name].strip()
    match = re.fullmatch(r"gc_(\w+)_(f64|f32|i64|i32|i16|i8|u64|u32|u16|u8)", name)
    if match is None:
        return None
    operation, dtype = match.groups()
    family = _FLOAT if dtype in _SUFFIX else _SIGNED if dtype[0] == "i" else _UNSIGNED
    text = family.get(operation)
    if text is None:
        return None
    text = text.replace("SUFFIX", _SUFFIX.get(dtype, "")).replace("BITS", _BITS.get(dtype, C_TYPES[dtype]))
    width = str(8 * {"64": 8, "32": 4, "16": 2, "8": 1}[dtype[1:]])
    return text.replace("DTYPE", dtype).replace("WIDTH", width).replace("T ", C_TYPES[dtype] + " ").replace(
        "(T)", f"({C_TYPES[dtype]})"
    ).strip()  # fmt: skip


def _prototype(name: str) -> str | None:
    for dtype, suffix in _SUFFIX.items():
        base = name[: len(name) - len(suffix)] if name.endswith(suffix) else name
        t = C_TYPES[dtype]
        if libm_name(base, dtype) != name:
            continue
        if base in VECTOR_UNARY:
            return f'__attribute__((simd("notinbranch"), const)) {t} {name}({t});'
        if base in VECTOR_BINARY:
            return f'__attribute__((simd("notinbranch"), const)) {t} {name}({t}, {t});'
        if base in ("fmod", "nextafter"):
            return f"__attribute__((const)) {t} {name}({t}, {t});"
        if base == "lgamma":  # the reentrant form: lgamma itself writes the global signgam
            return None
    if name in ("lgammaf_r", "lgamma_r"):
        t = "float" if name == "lgammaf_r" else "double"
        return f"{t} {name}({t}, int *);"
    return None


# Templates: T is the C type, DTYPE the short name, SUFFIX that of libm and of constants, BITS the unsigned integer of
# the same width, WIDTH the number of bits.
_FLOAT: dict[str, str] = {
    # both sides are computed, so that calls stay vector calls
    "either": "static inline T gc_either_DTYPE(_Bool c, T a, T b) { return c ? a : b; }",
    # a NaN on either side wins; two selects, since gcc does not vectorise a select on `|` of comparisons
    "max": "static inline T gc_max_DTYPE(T a, T b) { const T m = a > b ? a : b; return a != a ? a : m; }",
    "min": "static inline T gc_min_DTYPE(T a, T b) { const T m = a < b ? a : b; return a != a ? a : m; }",
    # the number wins over a NaN
    "fmax": "static inline T gc_fmax_DTYPE(T a, T b) { const T m = a > b ? a : b; return b != b ? a : m; }",
    "fmin": "static inline T gc_fmin_DTYPE(T a, T b) { const T m = a < b ? a : b; return b != b ? a : m; }",
    "bits": """
static inline BITS gc_bits_DTYPE(T a) { union { T value; BITS bits; } u = {a}; return u.bits; }""",
    "from_bits": """
static inline T gc_from_bits_DTYPE(BITS a) { union { BITS bits; T value; } u = {a}; return u.value; }""",
    # the sign of b, as in Python
    "remainder": """
static inline T gc_remainder_DTYPE(T a, T b) {
  const T rest = fmodSUFFIX(a, b);
  return (rest != 0) & ((b < 0) != (rest < 0)) ? rest + b : rest;
}""",
    # c10's div_floor_floating, after CPython's float floor division
    "floordiv": """
static inline T gc_floordiv_DTYPE(T a, T b) {
  const T rest = fmodSUFFIX(a, b), ratio = a / b;
  T quotient = (a - rest) / b;
  quotient = (rest != 0) & ((b < 0) != (rest < 0)) ? quotient - 1 : quotient;
  T whole = __builtin_floorSUFFIX(quotient);
  whole = quotient - whole > (T)0.5 ? whole + 1 : whole;
  whole = quotient != 0 ? whole : __builtin_copysignSUFFIX((T)0, ratio);
  return b == 0 ? ratio : whole;
}""",
    "lgamma": "static inline T gc_lgamma_DTYPE(T a) { int sign; return lgammaSUFFIX_r(a, &sign); }",
    # in double: what the Newton steps correct is small against 1, and the gradient is the exponential of the square
    "erfinv": "static inline T gc_erfinv_DTYPE(T a) { return (T)gc_erfinv_forWIDTH(a); }",
    # libmvec's is an ulp below 1 up to 10, and 1 - y * y is the gradient
    "tanh": """
static inline T gc_tanh_DTYPE(T a) {
  const T y = tanhSUFFIX(a);
  return __builtin_fabsSUFFIX(a) > (T)9.0109135 ? __builtin_copysignSUFFIX((T)1, a) : y;
}""",
    # in double too
    "digamma": "static inline T gc_digamma_DTYPE(T a) { return (T)gc_digamma(a); }",
}

_SIGNED: dict[str, str] = {
    # division by zero gives 0; the lowest number divided by -1 wraps instead of trapping
    "truncdiv": """
static inline T gc_truncdiv_DTYPE(T a, T b) {
  const T safe = (b == 0) | (b == -1) ? 1 : b;
  const T quotient = (T)(a / safe);
  return b == 0 ? 0 : b == -1 ? (T)-a : quotient;
}""",
    "fmod": """
static inline T gc_fmod_DTYPE(T a, T b) {
  const T safe = (b == 0) | (b == -1) ? 1 : b;
  return (T)(a % safe);
}""",
    "remainder": """
static inline T gc_remainder_DTYPE(T a, T b) {
  const T rest = gc_fmod_DTYPE(a, b);
  return (rest != 0) & ((rest ^ b) < 0) ? (T)(rest + b) : rest;
}""",
    "floordiv": """
static inline T gc_floordiv_DTYPE(T a, T b) {
  const T rest = gc_fmod_DTYPE(a, b), quotient = gc_truncdiv_DTYPE(a, b);
  return (rest != 0) & ((rest ^ b) < 0) ? (T)(quotient - 1) : quotient;
}""",
    "pow": """
static inline T gc_pow_DTYPE(T a, T b) {
  if (b < 0) return a == 1 ? 1 : a == -1 ? (b & 1 ? -1 : 1) : 0;
  T result = 1;
  for (; b; b >>= 1, a = (T)(a * a)) result = b & 1 ? (T)(result * a) : result;
  return result;
}""",
    "shl": """
static inline T gc_shl_DTYPE(T a, T b) {
  const _Bool valid = (b >= 0) & (b < WIDTH);
  const T moved = (T)(a << (b & (WIDTH - 1)));
  return valid ? moved : 0;
}""",
    "shr": """
static inline T gc_shr_DTYPE(T a, T b) {
  const _Bool valid = (b >= 0) & (b < WIDTH);
  return (T)(a >> (valid ? b : WIDTH - 1));
}""",
}

_UNSIGNED: dict[str, str] = {
    "truncdiv": """
static inline T gc_truncdiv_DTYPE(T a, T b) {
  const T quotient = (T)(a / (b == 0 ? (T)1 : b));
  return b == 0 ? 0 : quotient;
}""",
    "fmod": "static inline T gc_fmod_DTYPE(T a, T b) { return (T)(a % (b == 0 ? (T)1 : b)); }",
    "remainder": "static inline T gc_remainder_DTYPE(T a, T b) { return gc_fmod_DTYPE(a, b); }",
    "floordiv": "static inline T gc_floordiv_DTYPE(T a, T b) { return gc_truncdiv_DTYPE(a, b); }",
    "pow": """
static inline T gc_pow_DTYPE(T a, T b) {
  T result = 1;
  for (; b; b >>= 1, a = (T)(a * a)) result = b & 1 ? (T)(result * a) : result;
  return result;
}""",
    "shl": """
static inline T gc_shl_DTYPE(T a, T b) {
  const T moved = (T)(a << (b & (WIDTH - 1)));
  return b < WIDTH ? moved : 0;
}""",
    "shr": """
static inline T gc_shr_DTYPE(T a, T b) {
  const T moved = (T)(a >> (b & (WIDTH - 1)));
  return b < WIDTH ? moved : 0;
}""",
}

_WHOLE = """
static inline T gc_whole_INT_DTYPE(T a) {
  const T whole = __builtin_truncSUFFIX(a) + 0;
  return (a LOWER) & (a < LIMIT) ? whole : -LIMIT;
}"""

_FIXED: dict[str, str] = {
    **RANDOM_HELPERS,
    **SPECIAL_HELPERS,
    # a cell becomes the maximum of itself and a value, whatever other threads do
    "gc_cell_max": """
static __attribute__((noinline, cold)) void gc_cell_max(int64_t *cell, int64_t value) {
  int64_t seen = __atomic_load_n(cell, __ATOMIC_RELAXED);
  while (seen < value && !__atomic_compare_exchange_n(cell, &seen, value, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}""",
    # to an integer and back, without the negative zeros of trunc
    **{
        f"gc_whole_{integer}_{dtype}": _WHOLE.replace("T ", f"{C_TYPES[dtype]} ")
        .replace("INT", integer)
        .replace("DTYPE", dtype)
        .replace("SUFFIX", _SUFFIX[dtype])
        .replace("LOWER", "> -0x1p31 - 1" if (integer, dtype) == ("i32", "f64") else ">= -LIMIT")
        .replace("LIMIT", f"0x1p{63 if integer == 'i64' else 31}{_SUFFIX[dtype]}")
        for integer in ("i32", "i64")
        for dtype in ("f32", "f64")
    },
    "gc_bf16_to_f32": """
static inline float gc_bf16_to_f32(uint16_t a) { return gc_from_bits_f32((uint32_t)a << 16); }""",
    # round half to even; NaN becomes 0x7fc0
    "gc_f32_to_bf16": """
static inline uint16_t gc_f32_to_bf16(float a) {
  const uint32_t bits = gc_bits_f32(a), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (uint16_t)(a != a ? 0x7fc0u : rounded);
}""",
    # the exponent is moved by a multiplication, which is exact for subnormal numbers too
    "gc_f16_to_f32": """
static inline float gc_f16_to_f32(uint16_t a) {
  const uint32_t wide = a, sign = (wide & 0x8000u) << 16, body = (wide & 0x7fffu) << 13;
  const uint32_t finite = gc_bits_f32(gc_from_bits_f32(body) * 0x1p112f);
  return gc_from_bits_f32(sign | ((wide & 0x7c00u) == 0x7c00u ? body | 0x7f800000u : finite));
}""",
    # round half to even; a subnormal result is rounded by adding 0.5, whose last place is the smallest f16
    "gc_f32_to_f16": """
static inline uint16_t gc_f32_to_f16(float a) {
  const uint32_t bits = gc_bits_f32(a), sign = (bits >> 16) & 0x8000u, body = bits & 0x7fffffffu;
  const uint32_t normal = (body - (112u << 23) + 0xfffu + ((body >> 13) & 1u)) >> 13;
  const uint32_t small = gc_bits_f32(gc_from_bits_f32(body) + 0.5f) - 0x3f000000u;
  const uint32_t special = body > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = body < (113u << 23) ? small : normal;
  return (uint16_t)(sign | (body >= 0x47800000u ? special : finite));
}""",
    # to integers as eager on x86: out of range gives the lowest i32 or i64
    "gc_f32_to_i32": """
static inline int32_t gc_f32_to_i32(float a) { return (a >= -0x1p31f) & (a < 0x1p31f) ? (int32_t)a : INT32_MIN; }""",
    "gc_f64_to_i32": """
static inline int32_t gc_f64_to_i32(double a) { return (a > -0x1p31 - 1) & (a < 0x1p31) ? (int32_t)a : INT32_MIN; }""",
    "gc_f32_to_i64": """
static inline int64_t gc_f32_to_i64(float a) { return (a >= -0x1p63f) & (a < 0x1p63f) ? (int64_t)a : INT64_MIN; }""",
    "gc_f64_to_i64": """
static inline int64_t gc_f64_to_i64(double a) { return (a >= -0x1p63) & (a < 0x1p63) ? (int64_t)a : INT64_MIN; }""",
    "gc_f32_to_u64": """
static inline uint64_t gc_f32_to_u64(float a) { return gc_f64_to_u64(a); }""",
    "gc_f64_to_u64": """
static inline uint64_t gc_f64_to_u64(double a) {
  const _Bool high = (a >= 0x1p63) & (a < 0x1p64);
  return high ? (uint64_t)gc_f64_to_i64(a - 0x1p63) + (1ull << 63) : (uint64_t)gc_f64_to_i64(a);
}""",
    # a number of which the compiler knows nothing
    "gc_plain": """
static inline int64_t gc_plain(int64_t a) {
  __asm__("" : "+r"(a));
  return a;
}""",
    "gc_min_index": """
static inline int64_t gc_min_index(int64_t a, int64_t b) { return a < b ? a : b; }""",
    "gc_max_index": """
static inline int64_t gc_max_index(int64_t a, int64_t b) { return a > b ? a : b; }""",
    # Euclid's floor division and modulo for index expressions with positive denominators
    "gc_div_index": """
static inline int64_t gc_div_index(int64_t a, int64_t b) { return a / b - (a % b < 0); }""",
    "gc_mod_index": """
static inline int64_t gc_mod_index(int64_t a, int64_t b) { const int64_t r = a % b; return r < 0 ? r + b : r; }""",
    # the error of a sum, exactly (Knuth)
    "gc_two_sum": """
static inline double gc_two_sum(double a, double b, double total) {
  const double part = total - a;
  return (a - (total - part)) + (b - part);
}""",
}
