"""Attention, transformers and recurrent layers as graphs against eager."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.modules.checks import check, externs
from tests.ops.expansion import ordinary

Q = ordinary(2, 4, 6, 8)
MASK = torch.ones(6, 6, dtype=torch.bool).tril()


def _heads_of_packed(x):
    """Query, key and value as GPT code makes them: slices of one projection, heads moved to the front."""
    return tuple(part.view(2, 6, 4, 2).transpose(1, 2) for part in x.reshape(2, 6, 32)[..., :24].split(8, dim=2))


@pytest.mark.parametrize(
    "attend",
    [
        lambda q: F.scaled_dot_product_attention(q, q, q),
        lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.3),
        lambda q: F.scaled_dot_product_attention(q, q, q, MASK),
        lambda q: F.scaled_dot_product_attention(q, q, q, torch.where(MASK, 0.5, -1.0).to(q.dtype)),
        lambda q: F.scaled_dot_product_attention(q, q[:, :2], q[:, :2], enable_gqa=True),
        lambda q: F.scaled_dot_product_attention(q[0], q[0], q[0]),
        lambda q: F.scaled_dot_product_attention(q, q, q[..., :4]),
        lambda q: F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, q, q))),
        lambda q: F.scaled_dot_product_attention(q, q, q, MASK & False),
        lambda q: F.scaled_dot_product_attention(*_heads_of_packed(q)),
    ],
)
def test_attention(attend):
    assert not externs(check(attend, Q))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_reduced(dtype):
    check(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), Q.to(dtype), strides=True)


def test_multihead_attention():
    x, y = ordinary(2, 5, 8), ordinary(2, 7, 8, seed=1)
    module = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    assert externs(check(module, x, x, x)) == {"aten._native_multi_head_attention.default"}  # as eager
    check(module, x, y, y)
    check(nn.MultiheadAttention(8, 2, dropout=0.0).train(), x, x, x)


class MaskedEncoderLayer(nn.Module):
    """An encoder layer, called with masks that are kept here."""

    def __init__(self, layer, **masks):
        super().__init__()
        self.layer, self.masks = layer, masks

    def forward(self, x):
        return self.layer(x, **{k: m.to(x) if m.is_floating_point() else m for k, m in self.masks.items()})


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("masks", ["", "padding", "causal", "both", "numbers"])
def test_encoder_layer_is_written_out(norm_first, activation, masks):
    """What eager calls as one function: also a row that is all padding (NaN), and a mask of numbers, which hide."""
    x, places = ordinary(3, 5, 8), torch.arange(5)
    causal = places[None] > places[:, None]
    padding = places >= torch.tensor([5, 3, 0])[:, None]
    given = {
        "": {},
        "padding": {"src_key_padding_mask": padding},
        "causal": {"src_mask": causal},
        "both": {"src_mask": causal, "src_key_padding_mask": padding},
        "numbers": {"src_mask": causal * 0.5},
    }[masks]
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True, norm_first=norm_first)
    assert not externs(check(MaskedEncoderLayer(layer, **given).eval(), x))


@pytest.mark.parametrize("training", [False, True])
def test_transformer(training):
    x = ordinary(2, 5, 8)
    check(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).train(training), x)
    check(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, norm_first=True, activation="gelu").train(training), x)
    check(nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0).train(training), x, ordinary(3, 5, 8))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True}, {"num_layers": 2, "batch_first": True}])
def test_recurrent(kind, settings):
    torch.manual_seed(0)
    check(kind(4, 8, **settings), ordinary(5, 2, 4))


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cell(cell):
    torch.manual_seed(0)
    assert not externs(check(cell(4, 8), ordinary(3, 4)))
