"""Device functions that generated Triton modules carry with them, as text.

A module gets only the ones it uses. Each runs compiled and under Triton's interpreter. The names of the combine
functions of reductions and scans (`_maximum`, `_minimum`, `_product`, `_argmax`, `_argmin`) are known to
`graphc.runtime.triton_interpreter`, which reduces with numpy instead of element by element.
"""

from __future__ import annotations

from graphc.codegen.triton.special_helpers import SPECIAL

_TEXT: dict[str, tuple[tuple[str, ...], str]] = {
    # combine functions
    "_maximum": (
        (),
        """\
def _maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
""",
    ),
    "_minimum": (
        (),
        """\
def _minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
""",
    ),
    "_product": (
        (),
        """\
def _product(a, b):
    return a * b
""",
    ),
    "_argmax": (
        (),
        """\
def _argmax(a, i, b, j):
    # NaN is above every number; the first of equals wins
    same = (a == b) | ((a != a) & (b != b))
    left = (a > b) | ((a != a) & (b == b)) | (same & (i < j))
    return tl.where(left, a, b), tl.where(left, i, j)
""",
    ),
    "_argmin": (
        (),
        """\
def _argmin(a, i, b, j):
    # NaN is below every number; the first of equals wins
    same = (a == b) | ((a != a) & (b != b))
    left = (a < b) | ((a != a) & (b == b)) | (same & (i < j))
    return tl.where(left, a, b), tl.where(left, i, j)
""",
    ),
    # where what is below 2^-126 may be 0
    "_flushed_exp2": (
        (),
        """\
def _flushed_exp2(a):
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [a], dtype=tl.float32, is_pure=True, pack=1)
""",
    ),
    "_flushed_reciprocal": (
        (),
        """\
def _flushed_reciprocal(a):
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [a], dtype=tl.float32, is_pure=True, pack=1)
""",
    ),
    # inverses to multiply with: twice, so that neither factor leaves the range of normal numbers
    "_inverse": (
        (),
        """\
def _inverse(a):
    unit = tl.where(tl.abs(a) < 1e-30, 1e20, tl.where(tl.abs(a) > 1e30, 1e-20, 1.0))
    return unit, tl.div_rn(1.0, a * unit)
""",
    ),
    # integer division: 0 where the divisor is 0
    "_int_truncdiv": (
        (),
        """\
def _int_truncdiv(a, b):
    quotient = a // tl.where(b == 0, b + 1, b)
    return tl.where(b == 0, b, quotient)
""",
    ),
    "_int_fmod": (
        (),
        """\
def _int_fmod(a, b):
    rest = a % tl.where(b == 0, b + 1, b)
    return tl.where(b == 0, b, rest)
""",
    ),
    "_int_floordiv": (
        ("_int_truncdiv", "_int_fmod"),
        """\
def _int_floordiv(a, b):
    rest = _int_fmod(a, b)
    quotient = _int_truncdiv(a, b)
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), quotient - 1, quotient)
""",
    ),
    "_int_remainder": (
        ("_int_fmod",),
        """\
def _int_remainder(a, b):
    rest = _int_fmod(a, b)
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)
""",
    ),
    "_int_pow": (
        (),
        """\
def _int_pow(a, b, BITS: tl.constexpr):
    # square and multiply, wrapping; negative exponents leave only the powers of 1 and -1
    result = a * 0 + 1
    base = a
    for bit in tl.static_range(BITS):
        result = tl.where(((b >> bit) & 1) != 0, result * base, result)
        base = base * base
    odd = (b & 1) != 0
    of_minus_one = tl.where(odd, a, -a)
    fraction = tl.where(a == 1, a, tl.where(a == -1, of_minus_one, a * 0))
    return tl.where(b < 0, fraction, result)
""",
    ),
    "_uint_pow": (
        (),
        """\
def _uint_pow(a, b, BITS: tl.constexpr):
    result = a * 0 + 1
    base = a
    for bit in tl.static_range(BITS):
        result = tl.where(((b >> bit) & 1) != 0, result * base, result)
        base = base * base
    return result
""",
    ),
    # float division by torch's rules
    "_divide": (
        (),
        """\
def _divide(a, b):
    # correctly rounded; plain / on float32 is not
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)
""",
    ),
    "_float_floordiv": (
        ("_divide",),
        """\
def _float_floordiv(a, b):
    rest = libdevice.fmod(a, b)
    quotient = _divide(a - rest, b)
    quotient = tl.where((rest != 0) & ((b < 0) != (rest < 0)), quotient - 1, quotient)
    floor = tl.floor(quotient)
    floor = tl.where(quotient - floor > 0.5, floor + 1, floor)
    ratio = _divide(a, b)
    floor = tl.where(quotient != 0, floor, libdevice.copysign(ratio * 0, ratio))
    return tl.where(b == 0, ratio, floor)
""",
    ),
    "_float_remainder": (
        (),
        """\
def _float_remainder(a, b):
    rest = libdevice.fmod(a, b)
    return tl.where((rest != 0) & ((b < 0) != (rest < 0)), rest + b, rest)
""",
    ),
    # shifts by any amount; the mask keeps LLVM from leaving it to a shift that looks at the lower 32 bits of it alone
    "_shl": (
        (),
        """\
def _shl(a, b, BITS: tl.constexpr):
    return tl.where((b >= 0) & (b < BITS), a << (b & (BITS - 1)), a * 0)
""",
    ),
    "_shr": (
        (),
        """\
def _shr(a, b, BITS: tl.constexpr):
    return a >> tl.where((b >= 0) & (b < BITS), b, b * 0 + (BITS - 1))
""",
    ),
    "_ushr": (
        (),
        """\
def _ushr(a, b, BITS: tl.constexpr):
    return tl.where(b < BITS, a >> (b & (BITS - 1)), a * 0)
""",
    ),
    **SPECIAL,
    # word `number` of the stream of a key: word number % 4 of Philox4x32-10's block number // 4
    "_philox_word": (
        (),
        """\
def _philox_word(key, number):
    block = number >> 2
    low = block.to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(key, low, (block >> 32).to(tl.uint32), low * 0, low * 0)
    even = tl.where((number & 2) != 0, w2, w0)
    odd = tl.where((number & 2) != 0, w3, w1)
    return tl.where((number & 1) != 0, odd, even)
""",
    ),
    # index arithmetic on values that may be negative, by a positive number
    "_index_floordiv": (
        (),
        """\
def _index_floordiv(a, b):
    return a // b - ((a % b) < 0).to(tl.int32)
""",
    ),
    "_index_mod": (
        (),
        """\
def _index_mod(a, b):
    return (a % b + b) % b
""",
    ),
}


def needed(names: set[str]) -> list[str]:
    """`names` and what they call, each after what it calls."""
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        for callee in _TEXT[name][0]:
            visit(callee)
        order.append(name)

    for name in _TEXT:
        if name in names:
            visit(name)
    return order


def text_of(names: set[str]) -> str:
    """The definitions of helpers `names` and of what they call, ready to stand in a module."""
    return "".join(f"@triton.jit\n{_TEXT[name][1]}\n\n" for name in needed(names))
