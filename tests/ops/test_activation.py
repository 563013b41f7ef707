"""Activations: type rule, reference and expansion against eager, special values included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from graphc.errors import InvalidGraphError
from graphc.ops import Kind
from tests.ops.expansion import check, expanded, graph_of, kinds, op_names, ordinary, special

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

CASES = [
    ("relu", F.relu, {}),
    ("sigmoid", torch.sigmoid, {}),
    ("silu", F.silu, {}),
    ("gelu", F.gelu, {"approximate": "none"}),
    ("gelu", F.gelu, {"approximate": "tanh"}),
    ("elu", torch.ops.aten.elu, {"alpha": 1.0, "scale": 1.0, "input_scale": 1.0}),
    ("elu", torch.ops.aten.elu, {"alpha": 1.6732632423543772, "scale": 1.0507009873554805, "input_scale": 1}),
    ("elu", torch.ops.aten.elu, {"alpha": 0.5, "scale": 1.0, "input_scale": 2.0}),
    ("leaky_relu", F.leaky_relu, {"negative_slope": 0.01}),
    ("hardtanh", F.hardtanh, {"min_val": -1.0, "max_val": 1.0}),
    ("hardtanh", F.hardtanh, {"min_val": 0.0, "max_val": 6.0}),
    ("hardtanh", F.hardtanh, {"min_val": -0.1, "max_val": 0.3}),
    ("hardswish", F.hardswish, {}),
    ("hardsigmoid", F.hardsigmoid, {}),
    ("softplus", F.softplus, {"beta": 1, "threshold": 20}),
    ("softplus", F.softplus, {"beta": 0.5, "threshold": 3.0}),
    ("mish", F.mish, {}),
    ("logsigmoid", F.logsigmoid, {}),
    ("softshrink", F.softshrink, {"lambd": 0.5}),
    ("softshrink", F.softshrink, {"lambd": 0.0}),
    ("hardshrink", F.hardshrink, {"lambd": 0.5}),
    ("threshold", F.threshold, {"threshold": 0.1, "value": 20.0}),
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("name", "eager", "attrs"), CASES)
def test_float(name, eager, attrs, dtype):
    for x in (
        special(dtype),
        ordinary(7, 5, dtype=dtype) * 3,
        torch.empty(0, 3, dtype=dtype),
        torch.tensor(-0.5).to(dtype),
    ):
        graph = check(name, [x], lambda t: eager(t, **attrs), **attrs)
    assert kinds(graph) == {Kind.POINTWISE}


@pytest.mark.parametrize("name", ["relu", "hardtanh", "threshold"])
def test_integers(name):
    attrs = {"relu": {}, "hardtanh": {"min_val": -2, "max_val": 3}, "threshold": {"threshold": 1, "value": 9}}[name]
    x = torch.arange(-6, 6, dtype=torch.int32)
    expected = {"relu": x.clamp(min=0), "hardtanh": x.clamp(-2, 3), "threshold": torch.where(x <= 1, 9, x)}[name]
    check(name, [x], lambda _: expected.to(torch.int32), **attrs)


@pytest.mark.parametrize("name", ["relu", "hardtanh", "hardshrink"])
def test_zero_keeps_its_sign(name):
    attrs = {"relu": {}, "hardtanh": {"min_val": 0.0, "max_val": 6.0}, "hardshrink": {"lambd": -1.0}}[name]
    from graphc.ir import interpreter

    x = torch.tensor([-0.0, 0.0])
    (y,) = interpreter.run(expanded(name, [x], attrs), [x])
    eager = getattr(F, name)(x, **attrs)
    assert torch.equal(torch.signbit(y), torch.signbit(eager))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1,), (5, 1), (1, 5, 1)])
def test_prelu(dtype, shape):
    x, weight = ordinary(3, 5, 2, dtype=dtype), ordinary(*shape, dtype=dtype, seed=1)
    check("prelu", [x, weight], lambda x, w: torch.where(x > 0, x, w * x))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_glu(dtype, dim):
    graph = check("glu", [ordinary(4, 6, 2, dtype=dtype)], lambda x: F.glu(x, dim), dim=dim)
    assert op_names(graph).count("slice") == 2


@pytest.mark.parametrize("name", ["relu", "hardtanh", "hardshrink", "softshrink", "leaky_relu"])
def test_reduced_parameters(name):
    """Bounds that bf16 cannot represent act as in eager, on inputs right at them."""
    attrs = {"negative_slope": 0.1} if name == "leaky_relu" else {"lambd": 0.1} if "shrink" in name else {}
    if name == "hardtanh":
        attrs = {"min_val": -0.1, "max_val": 0.1}
    grid = torch.linspace(0.095, 0.105, 41).to(torch.bfloat16)
    check(name, [torch.cat([grid, -grid])], lambda x: getattr(F, name)(x, **attrs), **attrs)


@pytest.mark.parametrize(
    ("name", "tensors", "attrs", "message"),
    [
        ("gelu", [torch.zeros(2, dtype=torch.int64)], {"approximate": "none"}, "takes floats"),
        ("relu", [torch.zeros(2, dtype=torch.bool)], {}, "takes floats or integers"),
        ("prelu", [torch.zeros(2, 3), torch.zeros(2)], {}, "do not broadcast"),
        ("prelu", [torch.zeros(2), torch.zeros(2).double()], {}, "weight is"),
        ("glu", [torch.zeros(3)], {"dim": 0}, "halves dim 0"),
        ("glu", [torch.zeros(2)], {"dim": 1}, "halves dim 1"),
    ],
)
def test_refused(name, tensors, attrs, message):
    with pytest.raises(InvalidGraphError, match=message):
        graph_of(name, tensors, attrs)
