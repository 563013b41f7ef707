"""Expressions of random programs: elementwise functions."""

from __future__ import annotations

import torch

from tests.fuzz.draw import Draw
from tests.fuzz.environments import Rejected

SMOOTH = (
    "sin",
    "cos",
    "tan",
    "tanh",
    "sigmoid",
    "erf",
    "erfc",
    "exp",
    "expm1",
    "log1p",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "square",
    "atan",
    "asinh",
    "acosh",
    "atanh",
    "sinh",
    "cosh",
    "log",
    "log2",
    "log10",
    "exp2",
    "acos",
    "asin",
    "lgamma",
    "digamma",
    "logit",
    "erfinv",
    "sinc",
    "neg",
    "positive",
    "deg2rad",
    "i0",
)
SMOOTH_LAYERS = (
    "F.softplus({})",
    "F.silu({})",
    "F.gelu({})",
    'F.gelu({}, approximate="tanh")',
    "F.mish({})",
    "F.elu({}, 0.5)",
    "F.logsigmoid({})",
    "F.tanhshrink({})",
    "torch.special.ndtr({})",
    "torch.special.entr({})",
    "torch.special.i1({})",
    "torch.special.log_ndtr({})",
    "F.celu({})",
    "torch.special.xlog1py({}, 0.5)",
    "torch.special.erfcx({})",
)
KINKED = (
    "torch.abs({})",
    "torch.relu({})",
    "F.relu6({})",
    "F.hardtanh({})",
    "F.leaky_relu({}, 0.1)",
    "F.softshrink({}) + 0.0",
    "F.hardswish({})",
    "F.hardsigmoid({})",
    "{}.clamp(-1, 1)",
    "{}.clamp(min=0.5)",
    "{}.clamp(max=0)",
    "F.selu({})",
    "F.softsign({})",
    "torch.nan_to_num({}, 1.0, 2.0, -2.0)",
    "F.threshold({}, 0.5, 2.0)",
    "F.hardshrink({})",
)
STEPS = (
    "torch.floor({})",
    "torch.ceil({})",
    "torch.round({})",
    "torch.trunc({})",
    "torch.sign({})",
    "torch.frac({})",
    "torch.round({}, decimals=1)",
    "torch.signbit(torch.nan_to_num({}) + 0.0)",
    "torch.isnan({})",
    "torch.isfinite({})",
    "torch.isinf({})",
    "{}.logical_not()",
    "{}.bool()",
    "torch.sgn({})",
    "torch.isposinf({})",
    "F.hardshrink({})",
    "torch.isreal({})",
)
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")


def smooth(g: Draw) -> str:
    x = g.smooth()
    if g.chance(4):
        return g.random.choice(SMOOTH_LAYERS).format(x)
    return f"torch.{g.random.choice(SMOOTH)}({x})"


def kinked(g: Draw) -> str:
    x = g.kinked()
    made = g.random.choice(KINKED).format(x)
    if "shrink" in made and any(bool(run.names[x].isnan().any()) for run in g.environments.native):
        raise Rejected  # eager's gradient at NaN is one or another by where in memory it lies
    return made


def steps(g: Draw) -> str:
    return g.random.choice(STEPS).format(g.any(exact=True))


def arithmetic(g: Draw) -> str:
    x = g.any()
    y = g.operand(x)
    if g.chance(6) and not g[x].requires_grad:
        x, y = y, x
    return g.one(f"{x} + {y}", f"{x} - {y}", f"{x} * {y}", f"{x} * {y}", f"{x} / {y}", f"torch.rsub({x}, {y})")


def alpha(g: Draw) -> str:
    x = g.any()
    return f"torch.{g.one('add', 'sub')}({x}, {g.beside(x)}, alpha={g.one('2', '-1', '0.5')})"


def extremes(g: Draw) -> str:
    x = g.kinked()
    y = g.beside(x, exact=g[x].requires_grad)
    return f"torch.{g.one('maximum', 'minimum', 'fmax', 'fmin')}({x}, {y})"


def division(g: Draw) -> str:
    """Of floats, and of integers by what is not zero; eager's quotient of the least integer and -1 ends the process."""
    x = g.real(exact=True)
    y = g.beside(x, exact=True, accept=lambda t: not t.is_complex()) if g.random.randrange(2) else g.number(x)
    if not g[x].is_floating_point():
        y = f"({y}).to(torch.int64).bitwise_or(1)" if not y[-1].isdigit() else g.one("2", "-3", "5", "0.5")
    return g.one(
        f"{x} // {y}",
        f"{x} % {y}",
        f"torch.fmod({x}, {y})",
        f'torch.div({x}, {y if y[-1].isdigit() else f"({y}).abs()"}, rounding_mode="trunc")',
        f'torch.div({x}, {y}, rounding_mode="floor")',
        f"torch.remainder({x}, {y})",
        f"torch.floor_divide({x}, {y})",
    )


def power(g: Draw) -> str:
    x = g.any()
    if g.chance(3):
        return f"{g.one('2', '0.5', '-1', '1.5')} ** {x}"
    return f"{x} ** {g.one('2', '3', '0', '1', '0.5', '2.0', g.beside(x))}"


def two(g: Draw) -> str:
    x = g.real()
    y = g.beside(x)
    z = g.beside(x)
    wide = torch.float64  # for which eager's logaddexp2 has a constant in float32; near 0 it shows in all dtypes
    return g.one(
        f"torch.hypot({x}, {y})",
        f"torch.logaddexp({x}, {y})",
        f"torch.logaddexp2({x}, {y}) + 9" if wide not in (g[x].dtype, g[y].dtype) else f"torch.logaddexp({x}, {y})",
        f"torch.xlogy({x}, {y})",
        f"torch.lerp({x}, {y}, {g.one('0.25', '0.5', z)})",
        f"torch.addcmul({x}, {y}, {z}, value={g.number(x)})",
        f"torch.addcdiv({x}, {y}, {z}, value=0.5)",
        f"torch.ldexp({x}, {y})",
        f"F.mse_loss({x}, {y}, reduction='none')",
        f"torch.dist({x}, {y})",
        f"F.prelu({x}, torch.tensor([0.25], dtype=torch.float32))",
        f"F.binary_cross_entropy_with_logits({x}, {y})",
        f"F.smooth_l1_loss({x}, {y}, beta=0.5)",
        f"F.huber_loss({x}, {y})",
        f"F.kl_div({x}, {y}, reduction='sum')",
    )


def jumps(g: Draw) -> str:
    """Functions of two tensors that jump."""
    x = g.real(exact=True)
    y = g.beside(x, exact=True)
    return g.one(
        f"torch.copysign({x}, {y})",
        f"torch.atan2({x}, {y})",
        f"torch.heaviside({x}, {y})",
        f"torch.nextafter({x}, {y})",
        f"torch.isclose({x}, {y})",
        f"torch.equal({x}, {y})",
        f"torch.float_power({x}, 2)",
        f"torch.gcd({x}.clamp(-99, 99), {y}.clamp(-99, 99))",  # of the least integer and -1, eager ends the process
        f"torch.lcm({x}.clamp(-99, 99), {y}.clamp(-99, 99))",
        f"torch.clamp({x}, {y}, {g.beside(x, exact=True)})",
        f"torch.isin({x}, {y})",
    )


def compare(g: Draw) -> str:
    x = g.any(exact=True)
    y = g.operand(x, exact=True)
    if g.chance(4) and not y[0].isdigit() and y[0] != "-":
        return f"torch.{g.one('lt', 'le', 'gt', 'ge', 'eq', 'ne')}({x}, {y})"
    return f"{x} {g.random.choice(COMPARISONS)} {y}"


def logic(g: Draw) -> str:
    x = g.any(exact=True)
    return f"torch.logical_{g.one('and', 'or', 'xor')}({x}, {g.beside(x, exact=True)})"


def bits(g: Draw) -> str:
    x = g.integral()
    whole = lambda t: not t.is_floating_point() and not t.is_complex()
    y = g.beside(x, accept=whole) if g.random.randrange(2) else g.one("1", "3", "2", "0")
    return g.one(f"{x} & {y}", f"{x} | {y}", f"{x} ^ {y}", f"~{x}", f"{x} << {y}", f"{x} >> {y}", f"{x} << 1")


def where(g: Draw) -> str:
    x = g.any()
    condition = _places(g, x) if g[x].dim() and g.chance(3) else g.mask(x)
    y = g.operand(x)
    return g.one(
        f"torch.where({condition}, {x}, {y})",
        f"torch.where({condition}, {y}, {x})",
        f"{x}.masked_fill({condition}, {g.number(x)})",
    )


def _places(g: Draw, x: str) -> str:
    """A mask by places in the last dim."""
    return f"(torch.arange({g.size(x, -1)}) {g.random.choice(COMPARISONS)} {g.one(0, 1, 2, 3)})"


def cast(g: Draw) -> str:
    if g.random.randrange(3):
        x = g.any()
        if g[x].is_complex():
            raise Rejected
        return g.one(
            f"{x}.to({g.float_dtype()})",
            f"{x}.type_as({g.floats()})",
            f"{x} + torch.zeros((), dtype={g.float_dtype()})",
        )
    x = g.any(exact=True)
    if g[x].is_complex() or not g.finite(x):
        raise Rejected
    return g.one(f"{x}.to({g.int_dtype()})", f"{x}.to(torch.bool)", f"{x}.to(torch.int64)")


def complexes(g: Draw) -> str:
    if g.chance(3):
        x = g.pick(lambda t: t.dtype in (torch.float32, torch.float64))
        y = g.beside(x, accept=lambda t: t.dtype == g[x].dtype)
        return g.one(f"torch.complex({x}, {y})", f"torch.polar({x}, {y})")
    x = g.complexes()
    return g.one(
        f"{x}.conj().clone()",
        f"{x}.real.clone()",
        f"{x}.imag.clone()",
        f"{x}.abs()",
        f"{x}.angle()",
        f"torch.view_as_real({x}).clone()",
        f"{x}.conj_physical()",
        f"{x} * 1j",
        f"{x}.resolve_conj()",
        f"torch.conj({x}) * {g.beside(x)}",
    )


FAMILIES = (
    (12, smooth),
    (7, kinked),
    (5, steps),
    (16, arithmetic),
    (2, alpha),
    (4, extremes),
    (4, division),
    (3, power),
    (5, two),
    (3, jumps),
    (6, compare),
    (3, logic),
    (4, bits),
    (7, where),
    (5, cast),
    (3, complexes),
)
"""(how often, makes an expression)"""
