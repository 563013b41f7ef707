"""What a model of the zoo is: a net, batches made from a seed, a loss, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

Size = Literal["tiny", "full"]
"""`tiny` for tests; `full` is the tutorials' own size, with batches that two CPU cores take in less than a second."""
Batch = tuple[torch.Tensor, ...]
Step = Callable[..., torch.Tensor]
T = TypeVar("T")


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


def momentum(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)


def classify(net: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(net(x), labels)


@dataclass
class Training:
    """Optimizers and a whole training step: `step(*batch)` gives the loss, detached."""

    optimizers: list[torch.optim.Optimizer]
    step: Step


@dataclass
class Workload:
    """A model with what it takes to run and to train it.

    Args:
        net: the model.
        batch: from a seed to the tensors of one batch.
        loss: `loss(net, *batch)`.
        takes: how many tensors of the batch, from the first, the net itself is called with.
        optimizer: of the parameters.
        forward: `forward(net, *batch)`, what inference is; None = the net on what it takes.
        train: makes another training step than the plain one, such as one with two optimizers.
        draws: whether random numbers are drawn, so that only `numerics="eager"` agrees with eager.
        programs: captures that the batches of seeds 0, 1 and 2 take, of `forward` and of `step`; more than one where
            Python looks at data, or where an optimizer makes its state of the first gradients.
    """

    net: nn.Module
    batch: Callable[[int], Batch]
    loss: Callable[..., torch.Tensor] = classify
    takes: int = 1
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = adam
    forward: Callable[..., Any] | None = None
    train: Callable[[nn.Module], Training] | None = None
    draws: bool = False
    programs: dict[str, int] = field(default_factory=dict)

    def run(self, net: Any, *batch: torch.Tensor) -> Any:
        """Inference."""
        return self.forward(net, *batch) if self.forward is not None else net(*batch[: self.takes])

    def training(self, called: Any = None) -> Training:
        """The training of the net.

        Args:
            called: what the loss gets in place of the net, such as the net compiled; not with a step of its own.
        """
        if self.train is not None:
            assert called is None, "a training step of its own calls the net itself"
            return self.train(self.net)
        optimizer = self.optimizer(self.net.parameters())
        called = called if called is not None else self.net

        def step(*batch: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            loss = self.loss(called, *batch)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return Training([optimizer], step)


@dataclass(frozen=True)
class Entry:
    """One model of the zoo, not built yet."""

    name: str
    family: str
    make: Callable[[Size], Workload]

    def build(self, size: Size = "tiny") -> Workload:
        """The model, initialised from the seed that is set, in the default dtype."""
        return self.make(size)


ENTRIES: dict[str, Entry] = {}


def entry(make: Callable[[Size], Workload]) -> Callable[[Size], Workload]:
    """Add a model; the file it stands in is its family."""
    ENTRIES[make.__name__] = Entry(make.__name__, make.__module__.rpartition(".")[2], make)
    return make


def pick(size: Size, tiny: T, full: T) -> T:
    return tiny if size == "tiny" else full


def floats(seed: int, *shape: int) -> torch.Tensor:
    """Normal numbers of the default dtype."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.get_default_dtype())


def labels(seed: int, high: int, *shape: int) -> torch.Tensor:
    """Integers below `high`, int64."""
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def images(classes: int, *shape: int) -> Callable[[int], Batch]:
    """Batches of noise of one shape (B, ...), with a class each."""
    return lambda seed: (floats(seed, *shape), labels(seed, classes, shape[0]))
