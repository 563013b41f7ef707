"""Programs of GPU-like sizes for `benchmarks/gpu_static.py`: what their kernels become is looked at, nothing is run.

Each entry makes a function and arguments for it, on the CPU and mostly untouched memory. Programs of training give
gradients, or are whole steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import kernels
import torch
import training
from torch import nn
from torch.nn import functional as F
from zoo.text import GPT
from zoo.vision import Bottleneck

Program = tuple[Callable[..., Any], tuple[Any, ...]]
PROGRAMS: dict[str, Callable[[], Program]] = {}
SMALL = (
    "pointwise_chain", "softmax", "layer_norm_grad", "transpose", "embedding_grad", "attention_grad", "adamw_200",
)  # fmt: skip
"""What `make check` looks at."""
AS_TEMPLATES = ("attention_grad", "float8_linear", "odd_vocabulary")
"""Planned with GRAPHC_TEMPLATES=always: kernels that a library's call would take the place of."""


def program(make: Callable[[], Program]) -> Callable[[], Program]:
    PROGRAMS[make.__name__] = make
    return make


def gradients(fn: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """A function of floats that gives its result and, for a cotangent given last, the gradients of all floats."""

    def call(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *inputs, cotangent = args
        wanted = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
        result = fn(*wanted)
        floats = [x for x in wanted if x.requires_grad]
        return result.detach(), *torch.autograd.grad(result, floats, cotangent)

    return call


def half(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16)


def single(*shape: int) -> torch.Tensor:
    return torch.empty(*shape)


# ------------------------------------------------------------------------------------------------------- pointwise


@program
def pointwise_chain() -> Program:
    """Eight pointwise operators over 64M elements."""
    return kernels.pointwise_chain, (single(8192, 8192), single(8192, 8192))


@program
def bias_gelu() -> Program:
    """The epilogue of a first feed-forward layer, bfloat16."""
    return lambda x, b: F.gelu(x + b), (half(16384, 4096), half(4096))


@program
def bias_gelu_grad() -> Program:
    return gradients(lambda x, b: F.gelu(x + b)), (half(16384, 4096), half(4096), half(16384, 4096))


@program
def swiglu() -> Program:
    """A gate and its half, slices of one product."""

    def run(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    return run, (half(16384, 8192),)


@program
def dropout_grad() -> Program:
    """Dropout and a residual, forward and backward."""
    return gradients(lambda x, r: F.dropout(x, 0.1) + r), (half(16384, 4096), half(16384, 4096), half(16384, 4096))


@program
def odd_sizes() -> Program:
    """Rows that begin at no multiple of 16 bytes, read flat."""
    return lambda x, y: torch.tanh(x) * y, (single(4099, 5003), single(4099, 5003))


# ------------------------------------------------------------------------------------------------------------- rows


@program
def norm_softmax_rows() -> Program:
    return kernels.norm_softmax_rows, (single(65536, 1024),)


@program
def softmax() -> Program:
    return lambda x: torch.softmax(x, -1), (half(16384, 4096),)


@program
def softmax_grad() -> Program:
    return gradients(lambda x: torch.softmax(x, -1)), (half(16384, 4096), half(16384, 4096))


@program
def softmax_long() -> Program:
    """Rows that no program holds whole."""
    return lambda x: torch.softmax(x, -1), (half(2048, 65536),)


@program
def cross_entropy_grad() -> Program:
    """8,192 tokens, 50,304 classes."""
    logits, labels = half(8192, 50304), torch.zeros(8192, dtype=torch.int64)
    return gradients(F.cross_entropy), (logits, labels, torch.empty((), dtype=torch.bfloat16))


@program
def odd_vocabulary() -> Program:
    """The last layer and the loss of GPT-2, with its own 50,257 words: rows of no even length."""

    def step(x: torch.Tensor, w: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        wanted = [item.detach().requires_grad_() for item in (x, w)]
        loss = F.cross_entropy(F.linear(*wanted), y)
        return loss.detach(), *torch.autograd.grad(loss, wanted)

    return step, (half(2048, 768), half(50257, 768), torch.zeros(2048, dtype=torch.int64))


@program
def layer_norm_grad() -> Program:
    fn = gradients(lambda x, w, b: F.layer_norm(x, (4096,), w, b))
    return fn, (half(16384, 4096), half(4096), half(4096), half(16384, 4096))


@program
def rms_norm_grad() -> Program:
    fn = gradients(lambda x, w: F.rms_norm(x, (4096,), w))
    return fn, (half(16384, 4096), half(4096), half(16384, 4096))


@program
def group_norm_grad() -> Program:
    fn = gradients(lambda x, w, b: F.group_norm(x, 32, w, b))
    return fn, (half(32, 256, 64, 64), half(256), half(256), half(32, 256, 64, 64))


@program
def batch_norm_grad() -> Program:
    """Training mode, running statistics included."""
    norm = nn.BatchNorm2d(256)

    def run(x: torch.Tensor, cotangent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.detach().requires_grad_()
        result = norm(x)
        found = torch.autograd.grad(result, (x, norm.weight, norm.bias), cotangent)
        return result.detach(), *found

    return run, (single(64, 256, 56, 56), single(64, 256, 56, 56))


@program
def batch_norm_channels_last_grad() -> Program:
    fn, args = batch_norm_grad()
    return fn, tuple(x.to(memory_format=torch.channels_last) for x in args)


@program
def convolution_relu() -> Program:
    """Few channels side by side: bytes are what takes the time, so it is a product of windows with an epilogue."""
    convolution = nn.Conv2d(32, 32, 3, padding=1, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    return lambda x: convolution(x).relu(), (half(64, 32, 112, 112).to(memory_format=torch.channels_last),)


@program
def argmax() -> Program:
    return lambda x: x.argmax(-1), (half(8192, 50304),)


@program
def cumsum() -> Program:
    return lambda x: x.cumsum(-1), (single(16384, 4096),)


@program
def cumprod_strided() -> Program:
    """Along the outer dim."""
    return lambda x: x.cumprod(0), (single(512, 65536),)


@program
def cumsum_long() -> Program:
    return lambda x: x.cumsum(-1), (single(256, 262144),)


@program
def sum_of_all() -> Program:
    return lambda x: x.square().sum(), (single(8192, 8192),)


@program
def column_sum() -> Program:
    """A bias's gradient: tall and skinny."""
    return lambda x: x.sum(0), (half(65536, 1024),)


@program
def column_sum_narrow() -> Program:
    return lambda x: x.sum(0), (single(1 << 20, 64),)


# ------------------------------------------------------------------------------------------------ moving elements


@program
def transpose() -> Program:
    return lambda x: x.t().contiguous(), (single(8192, 8192),)


@program
def transpose_half() -> Program:
    return lambda x: x.t().contiguous(), (half(8192, 8192),)


@program
def heads_apart() -> Program:
    """(batch, tokens, heads, width) to (batch, heads, tokens, width)."""
    return lambda x: x.transpose(1, 2).contiguous(), (half(16, 1024, 16, 64),)


@program
def channels_to_last() -> Program:
    return lambda x: x.permute(0, 2, 3, 1).contiguous(), (half(64, 256, 56, 56),)


@program
def concat_pad_slice() -> Program:
    """Folded into loads and stores: one kernel."""

    def run(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.pad(torch.cat([x[:, :2048], y], 1), (0, 64)) * 2

    return run, (single(8192, 4096), single(8192, 2048))


@program
def concat() -> Program:
    return lambda x, y: torch.cat([x, y], 1), (single(8192, 4096), single(8192, 2048))


@program
def gather_rows() -> Program:
    return lambda x, rows: x[rows] * 2, (half(50304, 1024), torch.zeros(16384, dtype=torch.int64))


@program
def embedding_grad() -> Program:
    fn = gradients(lambda table, ids: F.embedding(ids, table))
    return fn, (single(50304, 1024), torch.zeros(16, 1024, dtype=torch.int64), single(16, 1024, 1024))


@program
def linear_gelu() -> Program:
    """The first feed-forward layer of GPT-2, 16,384 rows, bfloat16."""
    return lambda x, w, b: F.gelu(F.linear(x, w, b)), (half(16384, 768), half(3072, 768), half(3072))


@program
def float8_linear() -> Program:
    """A linear layer of 8-bit floats with a scale per row and per output, 16,384 rows."""

    def run(x: torch.Tensor, w: torch.Tensor, by_row: torch.Tensor, by_column: torch.Tensor) -> torch.Tensor:
        return F.silu(torch._scaled_mm(x, w.t(), by_row, by_column, out_dtype=torch.bfloat16))

    x, w = (torch.empty(shape, dtype=torch.float8_e4m3fn) for shape in ((16384, 4096), (4096, 4096)))
    return run, (x, w, single(16384, 1), single(1, 4096))


@program
def int8_linear() -> Program:
    """A linear layer of bytes with a scale per row and per output, 16,384 rows."""

    def run(x: torch.Tensor, w: torch.Tensor, by_row: torch.Tensor, by_column: torch.Tensor) -> torch.Tensor:
        return (torch._int_mm(x, w.t()).float() * by_row * by_column).bfloat16()

    x, w = (torch.zeros(shape, dtype=torch.int8) for shape in ((16384, 4096), (4096, 4096)))
    return run, (x, w, single(16384, 1), single(4096))


def experts(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A layer of experts, of rows in their order, weighed by a router.

    Args:
        product: of rows and matrices, group by group: `product(rows, matrices, ends)`.
    """

    def run(
        x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, weights: torch.Tensor, ends: torch.Tensor
    ) -> torch.Tensor:
        gate, value = product(x, up, ends).chunk(2, -1)
        return product(F.silu(gate) * value, down, ends) * weights

    return run


def grouped_mm(rows: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return torch._grouped_mm(rows, matrices, offs=ends)


@program
def experts_forward() -> Program:
    """64 experts of width 2,048 and 1,024, 32,768 rows, bfloat16, weighed in the second product."""
    shapes = (half(32768, 2048), half(64, 2048, 2048), half(64, 1024, 2048), half(32768, 1))
    return experts(grouped_mm), (*shapes, torch.zeros(64, dtype=torch.int32))


@program
def experts_grad() -> Program:
    """64 experts of width 2,048 and 1,024, 32,768 rows, bfloat16."""
    shapes = (half(32768, 2048), half(64, 2048, 2048), half(64, 1024, 2048), half(32768, 1))
    return gradients(experts(grouped_mm)), (*shapes, torch.zeros(64, dtype=torch.int32), half(32768, 2048))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention as people write it: (heads, tokens, width)."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    ahead = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(scores.masked_fill(ahead, -math.inf), -1) @ v


@program
def attention_grad() -> Program:
    """Written by hand, causal: 16 heads of 4,096 tokens of width 128, bfloat16; `attention` is the same, as chosen."""
    return gradients(attend), tuple(half(16, 4096, 128) for _ in range(4))


def attend_with_buffer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same with a mask that lies in memory, as modules register it."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(mask[: q.shape[-2], : k.shape[-2]] == 0, -math.inf)
    return torch.softmax(scores, -1) @ v


@program
def attention_buffer_grad() -> Program:
    """As `attention_grad`, with a mask in memory, which is data."""
    q, k, v, cotangent = (half(16, 4096, 128) for _ in range(4))
    return gradients(attend_with_buffer), (q, k, v, torch.empty(4096, 4096, dtype=torch.uint8), cotangent)


# ------------------------------------------------------------------------------------------------ optimizers, steps


def _update(optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer], clip: bool = False) -> Program:
    shapes = [(1024, 1024), (1024,), (4096, 1024), (4096,), (1024, 4096), (1024,), (3072, 1024), (3072,)] * 25
    parameters = [nn.Parameter(single(*shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = single(*parameter.shape)
    made = optimizer(parameters)

    def step() -> None:
        if clip:
            nn.utils.clip_grad_norm_(parameters, 1.0)
        made.step()

    return step, ()


@program
def adamw_200() -> Program:
    """AdamW's update of 200 parameters of 284M elements."""
    return _update(lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, foreach=False))


@program
def sgd_momentum_200() -> Program:
    return _update(lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, foreach=False))


@program
def clip_and_adamw_200() -> Program:
    return _update(lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, foreach=False), clip=True)


@program
def gpt_forward() -> Program:
    net, (ids,) = kernels.gpt_forward, kernels.gpt_forward.example_inputs()

    def forward(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return net(ids)

    return forward, (ids,)


@program
def gpt2_step() -> Program:
    """GPT-2 of 124M parameters, 16 x 1,024 tokens, bfloat16 autocast, AdamW."""
    with torch.device("meta"):
        net = GPT(layers=12, width=768, heads=12, vocabulary=50304, tokens=1024)
    net = net.to_empty(device="cpu")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, foreach=False)

    def step(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    ids = torch.zeros(16, 1024, dtype=torch.int64)
    return step, (ids, ids.clone())


@program
def resnet_blocks_step() -> Program:
    """Two residual blocks, channels_last, bfloat16 autocast, batch 128, SGD with momentum."""
    net = nn.Sequential(
        Bottleneck(256, 64), Bottleneck(256, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 1000)
    )
    net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, foreach=False)

    def step(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    x = single(128, 256, 56, 56).to(memory_format=torch.channels_last)
    return step, (x, torch.zeros(128, dtype=torch.int64))


def _workload(name: str) -> Callable[[], Program]:
    def make() -> Program:
        _, step, batch = training.WORKLOADS[name]()
        return step, batch

    return make


PROGRAMS.update({f"{name}_step": _workload(name) for name in training.WORKLOADS})
