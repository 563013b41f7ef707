"""What `benchmarks/gpu.py` measures: programs of the sizes that people run on a GPU, each made anew per contender.

A case makes a function and arguments on a device, the same ones for the same seed. Made `exact` it computes the same in
float64, which tells the error of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_programs import attend, experts, gradients, grouped_mm
from torch import nn
from torch.nn import functional as F
from zoo import build
from zoo.text import GPT
from zoo.vision import Bottleneck, ResNet

BF16 = torch.bfloat16


@dataclass
class Made:
    """A program made for one contender.

    Args:
        fn: what is compiled and timed.
        args: for it.
        state: tensors that a call changes and that are results too, such as parameters.
        inner: the forward pass, where `fn` is its result and its gradients.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    state: list[torch.Tensor] = field(default_factory=list)
    inner: Callable[..., torch.Tensor] | None = None


def with_gradients(inner: Callable[..., torch.Tensor], args: tuple[torch.Tensor, ...]) -> Made:
    """A function of floats, with the gradients of all of them; the cotangent is the last argument."""
    return Made(gradients(inner), args, inner=inner)


@dataclass(frozen=True)
class Case:
    """One row of the goals.

    Args:
        name: of the program.
        make: (device, exact, small) -> what is measured; `small` for a dry run on a CPU.
        goal: in words.
        seconds: for a phase of the measurement, after which no further round begins.
        moved: least bytes that one call moves at full size, 0 when memory is not what limits it.
        flops: floating-point operations of one call, 0 likewise.
        contenders: beside eager and graphc, the most important first.
    """

    name: str
    make: Callable[[torch.device, bool, bool], Made]
    goal: str
    seconds: float
    moved: int = 0
    flops: int = 0
    contenders: tuple[str, ...] = ("default", "max-autotune-no-cudagraphs", "max-autotune")


CASES: dict[str, Case] = {}


def case(goal: str, seconds: float, **more: Any) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    def add(make: Callable[..., Made]) -> Callable[..., Made]:
        CASES[make.__name__] = Case(make.__name__, make, goal, seconds, **more)
        return make

    return add


def floats(device: torch.device, exact: bool, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers that `dtype` can hold, in `dtype` or, exactly those, in float64."""
    made = (torch.randn(*shape, device=device) * scale).to(dtype)
    return made.double() if exact else made


def autocast(device: torch.device, exact: bool) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, BF16, enabled=not exact)


# ------------------------------------------------------------------------------------------- limited by the memory

SIDE, WIDE, LONG = 8192, 4096, 50304
MEMORY = ("default", "max-autotune-no-cudagraphs")


def _square(small: bool) -> tuple[int, int]:
    return (64, 64) if small else (SIDE, SIDE)


def _rows(small: bool, columns: int = WIDE) -> tuple[int, int]:
    return (32, 256) if small else (16384 * WIDE // columns * 2, columns)


@case(">= 90 % of the copy", 20, moved=3 * SIDE * SIDE * 4, contenders=MEMORY)
def pointwise_chain(device: torch.device, exact: bool, small: bool) -> Made:
    def run(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x) * torch.tanh(y) + F.gelu(x) - torch.exp(-y.abs())

    return Made(run, tuple(floats(device, exact, torch.float32, *_square(small)) for _ in range(2)))


@case(">= 90 % of the copy", 20, moved=2 * 32768 * WIDE * 2, contenders=MEMORY)
def softmax(device: torch.device, exact: bool, small: bool) -> Made:
    return Made(lambda x: torch.softmax(x, -1), (floats(device, exact, BF16, *_rows(small)),))


@case(">= 90 % of the copy", 25, moved=5 * 32768 * WIDE * 2, contenders=MEMORY)
def layer_norm_grad(device: torch.device, exact: bool, small: bool) -> Made:
    """Forward and backward, the gradients of weight and bias included."""
    rows, width = _rows(small)
    shapes = ((rows, width), (width,), (width,), (rows, width))
    args = tuple(floats(device, exact, BF16, *shape) for shape in shapes)
    return with_gradients(lambda x, w, b: F.layer_norm(x, (width,), w, b), args)


@case(">= 90 % of the copy", 25, moved=3 * 8192 * LONG * 2, contenders=MEMORY)
def cross_entropy_grad(device: torch.device, exact: bool, small: bool) -> Made:
    """8,192 tokens, 50,304 classes."""
    rows, classes = (32, 500) if small else (8192, LONG)
    labels = torch.randint(0, classes, (rows,), device=device)
    cotangent = torch.ones((), dtype=torch.float64 if exact else BF16, device=device)
    return with_gradients(F.cross_entropy, (floats(device, exact, BF16, rows, classes), labels, cotangent))


_UPDATED = 25 * sum(math.prod(s) for s in ((1024, 1024), (1024,), (4096, 1024), (4096,), (1024, 4096), (1024,)))


@case(">= 90 % of the copy", 25, moved=7 * 4 * _UPDATED, contenders=("default",))
def adamw_150(device: torch.device, exact: bool, small: bool) -> Made:
    """AdamW's update of 150 parameters of 236M elements; torch's own is its foreach form."""
    width = 32 if small else 1024
    shapes = [(width, width), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    parameters = [nn.Parameter(floats(device, exact, torch.float32, *shape)) for shape in shapes * (2 if small else 25)]
    for parameter in parameters:
        parameter.grad = floats(device, exact, torch.float32, *parameter.shape)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    def step() -> None:
        optimizer.step()

    return Made(step, (), [p.detach() for p in parameters])


# ------------------------------------------------------------------------------------------- limited by arithmetic


@case(">= 1.0x cuBLAS and a separate epilogue", 40, flops=2 * SIDE**3)
def matmul_gelu(device: torch.device, exact: bool, small: bool) -> Made:
    side = 64 if small else SIDE
    x, w = (floats(device, exact, BF16, side, side, scale=side**-0.25) for _ in range(2))
    return Made(lambda x, w, b: F.gelu(x @ w + b), (x, w, floats(device, exact, BF16, side)))


def grouped_exactly(rows: torch.Tensor, matrices: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """`torch._grouped_mm` of float64, which it does not take."""
    found = ends.tolist()
    return torch.cat([rows[i:j] @ matrix for matrix, i, j in zip(matrices, [0, *found], found)])


@case(">= 1.0x torch.compile", 40, flops=3 * 2 * 32768 * 3 * 2048 * 1024, contenders=("default",))
def experts_grad(device: torch.device, exact: bool, small: bool) -> Made:
    """64 experts of width 2,048 and 1,024, 32,768 rows of uneven shares, forward and backward."""
    count, rows, width = (4, 64, 32) if small else (64, 32768, 2048)
    shares = torch.rand(count, generator=torch.Generator().manual_seed(0)).cumsum(0)
    ends = (shares / shares[-1] * rows).round().to(device, torch.int32)
    x, cotangent = (floats(device, exact, BF16, rows, width) for _ in range(2))
    up = floats(device, exact, BF16, count, width, width, scale=width**-0.5)
    down = floats(device, exact, BF16, count, width // 2, width, scale=width**-0.5)
    weights = floats(device, exact, BF16, rows, 1)
    return with_gradients(experts(grouped_exactly if exact else grouped_mm), (x, up, down, weights, ends, cotangent))


@case(">= 0.9x SDPA, >= 5x eager", 45, flops=7 * 2 * 16 * 4096 * 4096 * 128 // 2, contenders=("sdpa", "default"))
def attention(device: torch.device, exact: bool, small: bool) -> Made:
    """Forward and backward of 16 heads of 4,096 tokens of width 128, written by hand."""
    shape = (2, 32, 16) if small else (16, 4096, 128)
    return with_gradients(attend, tuple(floats(device, exact, BF16, *shape) for _ in range(4)))


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What `attend` computes, by torch's own function."""
    return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]


# ------------------------------------------------------------------------------------------------------------ steps


def _step(
    net: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, exact: bool, mixed: bool = True
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def step(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        with autocast(device, exact or not mixed):
            logits = net(x)
            loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _initialised(net: nn.Module, exact: bool) -> nn.Module:
    return net.double() if exact else net


@case(">= 1.0x max-autotune", 90, flops=6 * 124_000_000 * 16 * 1024, contenders=("default", "max-autotune"))
def gpt2_step(device: torch.device, exact: bool, small: bool) -> Made:
    """GPT-2 of 124M parameters, 16 x 1,024 tokens, bfloat16 autocast, AdamW."""
    batch, tokens, layers, width = (1, 16, 1, 48) if small else (16, 1024, 12, 768)
    with device:
        net = _initialised(GPT(layers, width, 12, LONG, 1024), exact)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    ids = torch.randint(0, LONG, (batch, tokens + 1), device=device)
    args = (ids[:, :-1].clone(), ids[:, 1:].clone())
    return Made(_step(net, optimizer, device, exact), args, [p.detach() for p in net.parameters()])


@case(">= 1.0x torch.compile", 75, flops=3 * 128 * 8_200_000_000, contenders=("default",))
def resnet50_step(device: torch.device, exact: bool, small: bool) -> Made:
    """channels_last, bfloat16 autocast, batch 128, SGD with momentum."""
    batch, side = (2, 32) if small else (128, 224)
    with device:
        net = ResNet(Bottleneck, (1, 1) if small else (3, 4, 6, 3), (64, 128, 256, 512)[: 2 if small else 4], 1000)
    net = _initialised(net, exact).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    x = floats(device, exact, torch.float32, batch, 3, side, side).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=device)
    return Made(_step(net, optimizer, device, exact), (x, labels), [p.detach() for p in net.parameters()])


def _tutorial(name: str) -> Callable[[torch.device, bool, bool], Made]:
    def make(device: torch.device, exact: bool, small: bool) -> Made:
        work = build(name, "full")
        work.net = _initialised(work.net.to(device), exact)
        moved = (x.to(device) for x in work.batch(0))
        batch = tuple(x.double() if exact and x.is_floating_point() else x for x in moved)
        return Made(work.training().step, batch, [p.detach() for p in work.net.parameters()])

    make.__name__ = f"{name}_step"
    return make


for _name, _seconds in (("mlp", 25.0), ("mnist_cnn", 30.0), ("hand_written_lstm", 45.0)):
    case(">= 5x eager, >= 1.5x reduce-overhead", _seconds, contenders=("reduce-overhead",))(_tutorial(_name))


@case("<= 25 % of eager's memory, >= 1.0x its speed", 40, flops=6 * 8192 * 4096 * 131072, contenders=("default",))
def linear_cross_entropy(device: torch.device, exact: bool, small: bool) -> Made:
    """8,192 tokens of width 4,096, 131,072 classes, forward and backward."""
    tokens, width, classes = (64, 16, 500) if small else (8192, 4096, 131072)

    x = floats(device, exact, BF16, tokens, width)
    weight = floats(device, exact, BF16, classes, width, scale=width**-0.5)
    labels = torch.randint(0, classes, (tokens,), device=device)
    cotangent = torch.ones((), dtype=torch.float64 if exact else BF16, device=device)
    return with_gradients(lambda x, w, labels: F.cross_entropy(F.linear(x, w), labels), (x, weight, labels, cotangent))
