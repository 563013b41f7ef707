"""Small programs as people write them, each with its inputs: the end-to-end tests run all of them on every backend."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Program:
    """A function or module maker, and a maker of fresh arguments (called once per run, with the seed set before)."""

    name: str
    make: Callable[[], Callable[..., Any]]
    inputs: Callable[[], tuple[Any, ...]]


PROGRAMS: list[Program] = []


def program(*inputs: Callable[[], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a plain function; `inputs` make its arguments."""

    def add(fn: Callable[..., Any]) -> Callable[..., Any]:
        PROGRAMS.append(Program(fn.__name__, lambda: fn, lambda: tuple(make() for make in inputs)))
        return fn

    return add


def module(name: str, make: Callable[[], nn.Module], *inputs: Callable[[], Any]) -> None:
    PROGRAMS.append(Program(name, make, lambda: tuple(m() for m in inputs)))


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(*shape).to(dtype)


def randint(high: int, *shape: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randint(0, high, shape)


def constant(value: Any) -> Callable[[], Any]:
    return lambda: value


@program(randn(24, 32, dtype=torch.bfloat16))
def newton_schulz(x):
    """Scaled sums in a reduced dtype, again and again: one rounding too many in each shows."""
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x


# -- views and mutation --------------------------------------------------------------------------------------------


@program(randn(4, 5), randn(4))
def assign_column(x, y):
    x[:, 0] = y
    return x * 2


@program(randn(4, 4))
def add_through_transpose(x):
    x.t().add_(1)
    return x.sum(0)


@program(randn(3, 4), randn(3, 4))
def out_argument(x, y):
    result = torch.empty(3, 4, device=x.device)
    torch.add(x, y, out=result)
    return result


@program(randn(3, 4))
def relu_in_place(x):
    return F.relu_(x) + 1


@program(randn(3, 4), randn(4))
def copy_into_row(x, y):
    x[1].copy_(y)
    return x


@program(randn(2, 3, 4))
def view_of_input(x):
    return x.transpose(0, 2)[1:]


@program(randn(6))
def input_itself(x):
    return x


@program(randn(2, 6))
def views_of_one_result(x):
    y = x.exp()
    return y, y.view(3, 4), y[:, 2:]


@program(randn(5))
def mutate_then_read_old_view(x):
    head = x[:2]
    old = head.clone()
    x.mul_(3)
    return head - old


@program(randn(2, 3, 4))
def swap_halves(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([b, a], -1), torch.stack([a, b]), x.split([1, 3], -1)[1]


@program(randn(4, 6), randint(4, 3))
def index_and_masks(x, i):
    y = x[i]
    y[y > 0] = 0.5
    return y, x.masked_fill(x < 0, -1.0), torch.where(x > 0, x, x * 0.1), x[:, None, ::2]


@program(randn(2, 8, 4), randn(2, 1, 4))
def kv_cache_update(cache, new):
    cache[:, 3:4] = new
    return cache.sum(1)


@program(randn(4, 4), randn(4, 4))
def aliasing_after_swap(x, y):
    x, y = y + 1, x
    y.add_(x)
    return x, y


@program(randn(3, 3))
def fill_diagonal(x):
    x.diagonal().fill_(7)
    return x.clone(), x.triu(), x.tril(-1)


@program(randn(4, 3), randint(4, 6))
def scatter_and_index_add(x, i):
    out = torch.zeros(4, 3, device=x.device)
    out.index_add_(0, i, torch.ones(6, 3, device=x.device))
    return out + x, torch.zeros(4, device=x.device).scatter(0, i[:2], 1.0)


# -- pointwise, reductions, dtypes ---------------------------------------------------------------------------------


@program(randn(17, 33), randn(33), randn(17, 1))
def broadcasting_chain(x, b, c):
    return torch.sigmoid(x + b) * torch.tanh(c) + F.gelu(x) - torch.exp(-x.abs())


@program(randn(5, 7), randint(10, 5, 7))
def mixed_dtypes(x, n):
    return x + n, n // 3, n % 4, n / 2, x > n, (n > 5) & (x > 0), n.float().mean(), ~(n > 3)


@program(randn(6, 8, 10))
def reductions(x):
    return (
        x.sum(), x.sum(1), x.mean((0, 2)), x.amax(-1), x.min(), x.prod(0), x.var(1), x.std(-1, keepdim=True),
        x.argmax(1), x.argmin(), (x > 2).any(1), (x < 5).all(), x.logsumexp(1), x.norm(), x.sum(dtype=torch.float64),
    )  # fmt: skip


@program(randn(4, 9))
def scans_and_sorts(x):
    return x.cumsum(1), x.cumprod(0), x.sort(1).values, x.topk(3).indices, x.cummax(1).values


@program(randn(31, 65, dtype=torch.bfloat16), randn(65, dtype=torch.bfloat16))
def bfloat16_rows(x, w):
    return F.layer_norm(x, (65,), w) * torch.sigmoid(x), torch.softmax(x, -1), x.sum(0)


@program(randn(9, 16, dtype=torch.float16))
def float16_chain(x):
    return F.silu(x) * 2 + x.square().mean(-1, keepdim=True).rsqrt()


@program(randn(5, 6, dtype=torch.float64))
def float64_rows(x):
    return F.log_softmax(x, -1), x.exp() / (1 + x.exp())


@program(randn(0, 5), randn(5))
def empty_input(x, y):
    return x + y, x.sum(0), x.sum(), torch.cat([x, y[None]])


@program(lambda: torch.tensor(2.0), lambda: torch.tensor(3))
def zero_dimensional(x, n):
    return x * n, x.exp(), n + 1, x[None].expand(4)


@program(lambda: torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1.0]))
def special_values(x):
    return x.relu(), x.max(), x.clamp(-1, 1), x.isnan(), torch.sign(x), x + 0.0, x * 1, x.nan_to_num(), F.softmax(x, 0)


@program(lambda: torch.randn(8, 6).t())
def non_contiguous_input(x):
    return x * 2, x.sum(1), x.contiguous(), x.reshape(-1)


@program(lambda: torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
def channels_last_input(x):
    return F.relu(x) + 1, x.mean((2, 3))


@program(randn(3, 4), constant(0.5), constant("tanh"))
def python_arguments(x, scale, kind):
    return F.gelu(x * scale, approximate=kind)


@program(randn(5))
def item_as_scalar(x):
    return x * x.sum().item(), x.max().item()


@program(randn(2, 3, 4), randn(4, 5), randn(2, 5, 3))
def matmuls(x, w, y):
    return x @ w, torch.einsum("bij,jk->bik", x, w), torch.bmm(x @ w, y), w.t() @ x[0].t(), x[0] @ w[:, 0]


@program(randn(2, 5, 8), randn(2, 5, 8), randn(2, 5, 8))
def attention_by_hand(q, k, v):
    scores = (q @ k.transpose(-2, -1)) / 8**0.5
    mask = torch.ones(5, 5, dtype=torch.bool, device=q.device).tril()
    return torch.softmax(scores.masked_fill(~mask, float("-inf")), -1) @ v


@program(randn(2, 4, 6, 8), randn(2, 4, 6, 8), randn(2, 4, 6, 8))
def attention_functions(q, k, v):
    return F.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True)


@program(randn(8, 10), randint(10, 8))
def losses(x, t):
    return (
        F.cross_entropy(x, t), F.nll_loss(F.log_softmax(x, 1), t, reduction="sum"), F.mse_loss(x, x * 0.5),
        F.smooth_l1_loss(x, x * 3), F.binary_cross_entropy_with_logits(x, torch.sigmoid(x)), F.l1_loss(x, -x),
        F.cross_entropy(x, t, label_smoothing=0.1),
        F.kl_div(F.log_softmax(x, 1), F.softmax(-x, 1), reduction="batchmean"),
    )  # fmt: skip


@program(randn(2, 6, 9, 9))
def image_functions(x):
    return (
        F.max_pool2d(x, 2), F.avg_pool2d(x, 3, 2), F.adaptive_avg_pool2d(x, 1), F.pad(x, (1, 2, 0, 1)),
        F.interpolate(x, scale_factor=2), F.group_norm(x, 3), F.pixel_shuffle(x[:, :4], 2),
        F.pad(x, (1, 1, 2, 2), mode="reflect"),
    )  # fmt: skip


# -- structures ----------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    count: int


@program(lambda: {"a": torch.randn(3), "b": [torch.randn(3), 2.0]}, lambda: Pair(torch.randn(3), torch.randn(3)))
def pytrees(d, pair):
    return OrderedDict(x=d["a"] + d["b"][0] * d["b"][1]), Pair(pair.left * 2, "label"), [None, (pair.right, 3)]


@program(randn(2, 3))
def returns_dataclass(x):
    return Result(x.sigmoid(), 3)


_TABLE = torch.arange(12, dtype=torch.float32).reshape(3, 4)


@program(randint(3, 5))
def reads_global_tensor(i):
    return _TABLE[i] + torch.tensor([1.0, 2.0, 3.0, 4.0])


# -- modules -------------------------------------------------------------------------------------------------------


class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return F.relu(x + self.norm(self.conv(x)))


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", torch.zeros(4, 3))

    def forward(self, x):
        self.steps += 1
        self.cache[1:2] = x
        return self.cache * self.steps


module("mlp", lambda: nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3)), randn(5, 12))
module("tied_weights", TiedWeights, randint(20, 2, 6))
module("residual_train", lambda: Residual().train(), randn(2, 4, 6, 6))
module("residual_eval", lambda: Residual().eval(), randn(2, 4, 6, 6))
module("counter", Counter, randn(1, 3))
module("lstm", lambda: nn.LSTM(6, 5, num_layers=2, batch_first=True), randn(2, 7, 6))
module("gru", lambda: nn.GRU(6, 5, bidirectional=True), randn(7, 2, 6))
module("rnn_cell", lambda: nn.RNNCell(6, 5), randn(3, 6))
module("encoder_layer", lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(), randn(2, 5, 16))
module("multihead", lambda: nn.MultiheadAttention(16, 4), randn(5, 2, 16), randn(5, 2, 16), randn(5, 2, 16))
module("conv1d", lambda: nn.Conv1d(3, 6, 3, stride=2, dilation=2), randn(2, 3, 20))
module("conv_transpose", lambda: nn.ConvTranspose2d(3, 4, 3, stride=2), randn(2, 3, 5, 5))
module("depthwise", lambda: nn.Conv2d(6, 6, 3, groups=6, bias=False), randn(1, 6, 8, 8))
module("batch_norm_1d", lambda: nn.BatchNorm1d(7), randn(9, 7))
module("dropout_eval", lambda: nn.Dropout(0.5).eval(), randn(4, 4))
module("dropout_train", lambda: nn.Dropout(0.5).train(), randn(40, 4))
module("rms_norm", lambda: nn.RMSNorm(8), randn(3, 8))
module("embedding_bag", lambda: nn.EmbeddingBag(10, 4), randint(10, 3, 5))
