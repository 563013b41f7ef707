"""Losses: type rule, reference and expansion against eager and float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from graphc.errors import InvalidGraphError
from tests.ops.expansion import check, graph_of, op_names, ordinary, special

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
REDUCTIONS = ["none", "mean", "sum"]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("name", "eager", "attrs"),
    [
        ("mse_loss", F.mse_loss, {}),
        ("smooth_l1_loss", F.smooth_l1_loss, {"beta": 0.7}),
        ("smooth_l1_loss", F.smooth_l1_loss, {"beta": 0.0}),
        ("huber_loss", F.huber_loss, {"delta": 0.7}),
        ("soft_margin_loss", F.soft_margin_loss, {}),
    ],
)
def test_elementwise(name, eager, attrs, reduction, dtype):
    for shape in ((5, 7), (1,), (), (0, 3)):
        tensors = [ordinary(*shape, dtype=dtype), ordinary(*shape, dtype=dtype, seed=1)]
        check(name, tensors, lambda x, y: eager(x, y, reduction=reduction, **attrs), reduction=reduction, **attrs)
    # eager's soft_margin_loss overflows between its steps in float16
    if reduction == "none" and (name, dtype) != ("soft_margin_loss", torch.float16):
        x = special(dtype)
        check(
            name, [x, x.roll(3)], lambda x, y: eager(x, y, reduction=reduction, **attrs), reduction=reduction, **attrs
        )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [False, True])
def test_binary_cross_entropy(reduction, weight, dtype):
    tensors = [ordinary(4, 6, dtype=dtype).sigmoid(), ordinary(4, 6, dtype=dtype, seed=1).sigmoid()]
    tensors[0][0, :2] = torch.tensor([0.0, 1.0])
    tensors += [ordinary(4, 6, dtype=dtype, seed=2)] if weight else []
    check("binary_cross_entropy", tensors, lambda x, y, *w: F.binary_cross_entropy(x, y, *w, reduction=reduction),
          weight=weight, reduction=reduction)  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("weight", "pos_weight"), [(False, False), (True, False), (False, True), (True, True)])
def test_bce_with_logits(reduction, weight, pos_weight, dtype):
    tensors = [ordinary(4, 6, dtype=dtype) * 20, ordinary(4, 6, dtype=dtype, seed=1).sigmoid()]
    tensors += [ordinary(6, dtype=dtype, seed=s).abs() for s, there in ((2, weight), (3, pos_weight)) if there]

    def eager(x, y, *rest):
        scale = rest[0] if weight else None
        positive = rest[-1] if pos_weight else None
        return F.binary_cross_entropy_with_logits(x, y, scale, reduction=reduction, pos_weight=positive)

    check("binary_cross_entropy_with_logits", tensors, eager, weight=weight, pos_weight=pos_weight, reduction=reduction)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 1])
def test_nll(reduction, weight, ignore_index, dtype):
    number = REDUCTIONS.index(reduction)
    for shape in ((6, 4), (2, 4, 3, 3)):
        target = torch.randint(0, 4, (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(0))
        target.view(-1)[0] = ignore_index
        tensors = [torch.log_softmax(ordinary(*shape, dtype=dtype), 1), target]
        tensors += [ordinary(4, dtype=dtype, seed=2).abs()] if weight else []
        call = torch.ops.aten.nll_loss_forward if len(shape) == 2 else torch.ops.aten.nll_loss2d_forward

        def eager(x, t, *w):
            return call(x, t, *(*w, None)[:1], number, ignore_index)

        results = 1 if reduction == "none" and len(shape) == 4 else None
        check("nll_loss", tensors, eager, results=results,
              weight=weight, reduction=reduction, ignore_index=ignore_index)  # fmt: skip


def test_nll_of_nothing_is_nan():
    target = torch.full((3,), -100)
    graph = check("nll_loss", [ordinary(3, 4), target], lambda x, t: F.nll_loss(x, t), results=1,
                  weight=False, reduction="mean", ignore_index=-100)  # fmt: skip
    assert "gather" in op_names(graph)


def test_ignored_rows_may_hold_nan():
    x, target = ordinary(3, 4), torch.tensor([1, -100, 2])
    x[1] = float("nan")
    check("nll_loss", [x, target], lambda x, t: F.nll_loss(x, t), results=1,
          weight=False, reduction="mean", ignore_index=-100)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tensors", "attrs", "message"),
    [
        ("mse_loss", [torch.zeros(2), torch.zeros(2)], {"reduction": "product"}, "reduction is one of"),
        ("mse_loss", [torch.zeros(2), torch.zeros(3)], {"reduction": "sum"}, "broadcast"),
        ("mse_loss", [torch.zeros(2), torch.zeros(2).double()], {"reduction": "sum"}, "different dtypes"),
        ("nll_loss", [torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)],
         {"weight": False, "reduction": "mean", "ignore_index": -100}, "target is"),
        ("nll_loss", [torch.zeros(2, 3), torch.zeros(2)],
         {"weight": False, "reduction": "mean", "ignore_index": -100}, "class numbers"),
    ],
)  # fmt: skip
def test_refused(name, tensors, attrs, message):
    with pytest.raises(InvalidGraphError, match=message):
        graph_of(name, tensors, attrs)
