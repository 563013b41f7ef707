"""Losses as graphs against eager."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.modules.checks import check, externs
from tests.ops.expansion import ordinary

REDUCTIONS = ["none", "mean", "sum"]
X, Y = ordinary(4, 8), ordinary(4, 8, seed=1)
P, Q = X.sigmoid(), Y.sigmoid()
TARGET = torch.tensor([3, 0, 7, 3])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "loss", [nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.KLDivLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
             nn.SoftMarginLoss, nn.PoissonNLLLoss],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:reduction")
def test_elementwise(loss, reduction):
    assert not externs(check(loss(reduction=reduction), P, Q))


@pytest.mark.parametrize("loss", [F.mse_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy_with_logits])
def test_strides(loss):
    check(lambda a, b: loss(a, b, reduction="none"), P.t(), Q.t())
    check(lambda a, b: loss(a, b, reduction="none"), P, Q.t().contiguous().t())


@pytest.mark.parametrize("loss", [F.mse_loss, F.smooth_l1_loss, F.huber_loss])
def test_promotion(loss):
    check(lambda a, b: loss(a, b.double()), X, Y)
    check(lambda a, b: loss(a, b.bfloat16()), X, Y)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"weight": torch.rand(8, generator=torch.Generator().manual_seed(0))}, {"ignore_index": 3},
     {"label_smoothing": 0.1}],
)  # fmt: skip
def test_cross_entropy(settings, reduction):
    loss = nn.CrossEntropyLoss(reduction=reduction, **settings)
    assert not externs(check(loss, X, TARGET))
    if "label_smoothing" not in settings:
        check(loss, ordinary(2, 8, 3, 3), TARGET.repeat(5)[:18].reshape(2, 3, 3))
    check(loss, ordinary(2, 8, 5), TARGET.repeat(3)[:10].reshape(2, 5))


def test_cross_entropy_special_cases():
    check(nn.CrossEntropyLoss(), X, Q)
    check(nn.NLLLoss(), X[0], TARGET[0])
    check(nn.NLLLoss(reduction="none"), X[0], TARGET[0])
    check(nn.CrossEntropyLoss(ignore_index=0), X, torch.zeros(4, dtype=torch.int64))
    check(nn.CrossEntropyLoss(), X.bfloat16(), TARGET)


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: F.hinge_embedding_loss(a, b.sign()),
        lambda a, b: F.margin_ranking_loss(a, b, b.sign()),
        lambda a, b: F.cosine_embedding_loss(a, b, torch.ones(4)),
        lambda a, b: F.triplet_margin_loss(a, b, a * 2),
        F.cosine_similarity,
        F.pairwise_distance,
        F.multilabel_soft_margin_loss,
        lambda a, b: F.normalize(a) * b,
    ],
)
def test_decomposed(loss):
    assert not externs(check(loss, X, Y))


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_ctc(zero_infinity):
    log_probs = ordinary(6, 2, 5).log_softmax(-1)
    targets, lengths = torch.tensor([[1, 2, 3], [4, 4, 4]]), torch.tensor([3, 3])
    loss = nn.CTCLoss(zero_infinity=zero_infinity)
    check(loss, log_probs, targets, torch.tensor([6, 4]), lengths)
    check(lambda x, t: F.ctc_loss(x, t, (6, 6), (3, 2), reduction="sum"), log_probs, targets)
