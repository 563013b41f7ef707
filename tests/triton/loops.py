"""Loops over time that are one kernel, and some that cannot be."""

from __future__ import annotations

from collections.abc import Callable

import torch

from graphc.driver import capture, plan_for
from graphc.options import make_options
from graphc.program.loops import LoopStep
from graphc.program.plan import Plan
from graphc.report.placed import place


def lstm_by_hand(x: torch.Tensor, w: torch.Tensor, u: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """x (T, B, D), w (D, 4 H), u (H, 4 H), b (4 H) -> (T, B, H)."""
    h = c = x.new_zeros(x.shape[1], u.shape[0])
    outs = []
    for t in range(x.shape[0]):
        i, f, o, z = (x[t] @ w + h @ u + b).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        h = torch.sigmoid(o) * torch.tanh(c)
        outs.append(h)
    return torch.stack(outs)


def mixing(x: torch.Tensor, w: torch.Tensor, u: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Each row needs all rows of the turn before: the batch's mean state."""
    h = x.new_zeros(x.shape[1], u.shape[0])
    outs = []
    for t in range(x.shape[0]):
        h = torch.tanh(x[t] @ w[:, : u.shape[0]] + (h @ u[:, : u.shape[0]]).flip(0))
        outs.append(h)
    return torch.stack(outs)


def operands(turns: int, rows: int, inner: int, hidden: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = (turns, rows, inner), (inner, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)
    return [(torch.randn(shape) * 0.3).to(dtype) for shape in shapes]


def training(net: torch.nn.Module) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """The loss and all gradients of a recurrent network, as one program."""

    def step(x: torch.Tensor) -> list[torch.Tensor]:
        out, _ = net(x)
        loss = out.square().mean()
        return [loss.detach(), *torch.autograd.grad(loss, list(net.parameters()))]

    return step


class LanguageModel(torch.nn.Module):
    """An LSTM whose state is handed from call to call. x (T, B) -> (T * B, words), and the state."""

    def __init__(self, words: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(words, width)
        self.lstm = torch.nn.LSTM(width, hidden)
        self.decoder = torch.nn.Linear(hidden, words)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out, (h, c) = self.lstm(self.embedding(x), (h, c))
        return self.decoder(out).flatten(0, 1), h, c


def language_step(net: LanguageModel) -> Callable[..., list[torch.Tensor]]:
    """A step of training as the tutorial of word language models makes it: the loss, and the state to go on with."""
    parameters = list(net.parameters())

    def step(x: torch.Tensor, y: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> list[torch.Tensor]:
        for parameter in parameters:
            parameter.grad = None
        logits, h, c = net(x, h.detach(), c.detach())
        loss = torch.nn.functional.cross_entropy(logits, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.25)
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.data.add_(parameter.grad, alpha=-0.5)
        return [loss.detach(), h, c]

    return step


def language_data(turns: int, rows: int, words: int, hidden: int) -> tuple[torch.Tensor, ...]:
    x, y = torch.randint(0, words, (turns, rows)), torch.randint(0, words, (turns * rows,))
    return x, y, torch.randn(1, rows, hidden) / 2, torch.randn(1, rows, hidden) / 2


def placed(function: Callable[..., object], *args: torch.Tensor) -> Plan:
    """The plan of a function on a GPU that need not be there."""
    options = make_options(function, backend="triton")
    graph = capture(function, args, {}, options, frozenset()).graph
    place(graph, "cuda:0")
    return plan_for(graph, options, "triton")


def rows(plan: Plan) -> list[int]:
    return [step.rows for step in plan.steps if isinstance(step, LoopStep)]
