"""Normalizations: type rule, reference and expansion against eager and float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from graphc import ops
from graphc.errors import InvalidGraphError
from graphc.ops import Kind
from tests.ops.expansion import check, graph_of, kinds, op_names, ordinary

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("weight", "bias"), [(True, True), (True, False), (False, False)])
def test_layer_norm(dtype, weight, bias):
    for shape, dims in (((4, 16), 1), ((2, 3, 5), 2), ((3, 1), 1), ((2, 3), 2), ((0, 4), 1)):
        normalized = shape[len(shape) - dims :]
        parameters = [ordinary(*normalized, dtype=dtype, seed=s) for s in range(1, 1 + weight + bias)]

        def eager(x, *p):
            return torch.native_layer_norm(x, normalized, *(*p, None, None)[:2], 1e-5)

        graph = check(
            "layer_norm", [ordinary(*shape, dtype=dtype) * 3 + 1, *parameters], eager,
            dims=dims, eps=1e-5, weight=weight, bias=bias,
        )  # fmt: skip
    assert kinds(graph) == {Kind.POINTWISE, Kind.REDUCTION}
    assert "reshape" not in op_names(graph)


def test_layer_norm_of_large_offset():
    x = ordinary(8, 64) + 1e4
    check("layer_norm", [x], lambda t: torch.native_layer_norm(t, [64], None, None, 1e-5), results=1,
          dims=1, eps=1e-5, weight=False, bias=False)  # fmt: skip


def test_layer_norm_mixed_parameters():
    tensors = [ordinary(4, 8, dtype=torch.bfloat16), ordinary(8, seed=1), ordinary(8, seed=2)]
    (out, mean, rstd) = graph_of("layer_norm", tensors, {"dims": 1, "eps": 1e-5, "weight": True, "bias": True})[
        2
    ].results
    assert (out.dtype.name, mean.dtype.name, rstd.dtype.name) == ("bf16", "f32", "f32")
    check("layer_norm", tensors, lambda x, w, b: torch.native_layer_norm(x, [8], w, b, 1e-5),
          dims=1, eps=1e-5, weight=True, bias=True)  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weight", [True, False])
def test_rms_norm(dtype, weight):
    for shape, dims in (((4, 16), 1), ((2, 3, 5), 2), ((3, 1), 1)):
        normalized = shape[len(shape) - dims :]
        parameters = [ordinary(*normalized, dtype=dtype, seed=1)] if weight else []
        check("rms_norm", [ordinary(*shape, dtype=dtype), *parameters],
              lambda x, *p: F.rms_norm(x, normalized, *p, eps=1e-6), results=1,
              dims=dims, eps=1e-6, weight=weight)  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("weight", "bias"), [(True, True), (False, False)])
def test_group_norm(dtype, weight, bias):
    for shape, groups in (((2, 8, 3, 3), 2), ((2, 6, 5), 3), ((3, 4), 1), ((1, 4, 2, 2, 2), 4)):
        parameters = [ordinary(shape[1], dtype=dtype, seed=s) for s in range(1, 1 + weight + bias)]
        pixels = math.prod(shape[2:])

        def eager(x, *p):
            return torch.native_group_norm(x, *(*p, None, None)[:2], shape[0], shape[1], pixels, groups, 1e-5)

        graph = check("group_norm", [ordinary(*shape, dtype=dtype), *parameters], eager,
                      groups=groups, eps=1e-5, weight=weight, bias=bias)  # fmt: skip
    reduced = [op.attrs["dims"] for op in graph.ops if ops.get(op.name).kind is Kind.REDUCTION]
    assert reduced == [(2, 3, 4, 5)] * 2, "one row per group, so that one kernel computes it"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_train(dtype, affine):
    for shape in ((6, 4), (3, 4, 5), (2, 4, 3, 3), (1, 4, 6)):
        parameters = [ordinary(shape[1], dtype=dtype, seed=s) for s in (1, 2)] if affine else []

        def eager(x, *p):
            dims = tuple(d for d in range(x.dim()) if d != 1)
            var, mean = torch.var_mean(x.float() if x.dtype != torch.float64 else x, dims, correction=0)
            running = torch.zeros(x.shape[1], dtype=x.dtype), torch.ones(x.shape[1], dtype=x.dtype)
            out, _, _ = torch.native_batch_norm(x, *(*p, None, None)[:2], *running, True, 0.1, 1e-5)
            return out, mean, torch.rsqrt(var + 1e-5), var

        check("batch_norm_train", [ordinary(*shape, dtype=dtype) * 2 + 1, *parameters], eager,
              eps=1e-5, weight=affine, bias=affine)  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("weight", "bias"), [(True, True), (False, False), (False, True)])
def test_batch_norm_eval(dtype, weight, bias):
    for shape in ((6, 4), (3, 4, 5), (2, 4, 3, 3)):
        mean, var = ordinary(shape[1], dtype=dtype, seed=3), ordinary(shape[1], dtype=dtype, seed=4).abs() + 0.5
        parameters = [ordinary(shape[1], dtype=dtype, seed=s) for s in range(1, 1 + weight + bias)]

        def eager(x, m, v, *p):
            scale = p[0] if weight else None
            return F.batch_norm(x, m, v, scale, p[-1] if bias else None, False, 0.0, 1e-5)

        graph = check("batch_norm_eval", [ordinary(*shape, dtype=dtype), mean, var, *parameters], eager,
                      eps=1e-5, weight=weight, bias=bias)  # fmt: skip
    assert Kind.REDUCTION not in kinds(graph)


@pytest.mark.parametrize(
    ("name", "shapes", "attrs", "message"),
    [
        ("layer_norm", [(2, 3), (2,)], {"dims": 1, "eps": 0.1, "weight": True, "bias": False}, "a parameter is"),
        ("layer_norm", [(2, 3)], {"dims": 3, "eps": 0.1, "weight": False, "bias": False}, "the last 3 dims"),
        ("layer_norm", [(2, 3)], {"dims": 1, "eps": 0.1, "weight": True, "bias": False}, "do not agree"),
        ("group_norm", [(2, 3)], {"groups": 2, "eps": 0.1, "weight": False, "bias": False}, "do not divide"),
        ("batch_norm_train", [(3,)], {"eps": 0.1, "weight": False, "bias": False}, "takes .N, C"),
        ("batch_norm_eval", [(2, 3), (3,), (2,)], {"eps": 0.1, "weight": False, "bias": False}, "3 channels"),
    ],
)
def test_refused(name, shapes, attrs, message):
    with pytest.raises(InvalidGraphError, match=message):
        graph_of(name, [torch.zeros(shape) for shape in shapes], attrs)
