"""Composite layers through the whole compiler: results, and how many kernels they become."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphc
from tests.modules.checks import Call, leaves
from tests.ops.expansion import ordinary, wide
from tests.support import assert_contract

X, IMAGE = ordinary(16, 40), ordinary(2, 8, 10, 9)
TARGET = torch.arange(16) % 40
CL = torch.channels_last

CASES = {
    # kernels, target, argument
    "softmax": (1, nn.Softmax(-1), X),
    "layer_norm": (1, nn.LayerNorm(40), X),
    "rms_norm": (1, nn.RMSNorm(40), X),
    "log_softmax": (1, nn.LogSoftmax(-1), X),
    "add, gelu, layer_norm": (1, lambda x: F.layer_norm(x + F.gelu(x), (40,)), X),
    "cross_entropy per row": (1, lambda x: F.cross_entropy(x, TARGET, reduction="none"), X),
    "cross_entropy": (2, lambda x: F.cross_entropy(x, TARGET), X),
    "mse": (1, lambda x: F.mse_loss(x, x * 2), X),
    "instance_norm": (1, nn.InstanceNorm2d(8), IMAGE),
    "batch_norm, relu, max_pool": (1, nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)).eval(), IMAGE),
    "avg_pool": (1, nn.AvgPool2d(3, 2, 1), IMAGE),
    "upsample, silu": (1, nn.Sequential(nn.Upsample(scale_factor=2), nn.SiLU()), IMAGE),
    "conv, batch_norm": (1, nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)).eval(), IMAGE),
    "conv of channels_last": (1, nn.Sequential(nn.Conv2d(8, 4, 3), nn.Mish()), IMAGE.to(memory_format=CL)),
    "attention": (0, lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), IMAGE),
}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_kernels(name):
    kernels, target, x = CASES[name]
    module = target if isinstance(target, nn.Module) else Call(target)
    compiled = graphc.compile(copy.deepcopy(module), backend="c")
    exact = leaves(copy.deepcopy(module).double()(wide(x)))
    for ours, eager, precise in zip(leaves(compiled(x)), leaves(module(x)), exact, strict=True):
        assert_contract(ours, eager, precise)
        assert ours.stride() == eager.stride()
    assert len(compiled.graph(x, stage="scheduled").kernels) == kernels


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
@torch.no_grad()
def test_running_statistics_and_masks():
    """A training-mode net under no_grad: running statistics move as in eager, dropout draws eager's masks."""
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.4), nn.MaxPool2d(2)).train()
    eager, compiled = copy.deepcopy(net), graphc.compile(net, backend="c", numerics="eager")
    torch.manual_seed(3)
    expected = [eager(IMAGE) for _ in range(3)]
    state = torch.get_rng_state()
    torch.manual_seed(3)
    answers = [compiled(IMAGE) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(answers, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    for (key, ours), (_, theirs) in zip(net.state_dict().items(), eager.state_dict().items(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, key=key: f"{key}: {text}")
