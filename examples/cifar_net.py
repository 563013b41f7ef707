"""Colour images with batch norm and dropout, as one trains on CIFAR: SGD; learning rate and momentum in cycles.

python examples/cifar_net.py [--eager] [--resume]

The images are generated: a bright figure (disc, square, cross, stripes, ...) of random colour and place, on noise.
"""

from __future__ import annotations

import torch
from fit import Options, Result, accuracy, example, finish, fit, loaders
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import graphc

SIZE, CLASSES = 16, 6


def figures(samples: int, seed: int) -> TensorDataset:
    """Images (N, 3, 16, 16) float32, labels (N,) int64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    place = torch.randint(5, SIZE - 5, (samples, 2, 1, 1), generator=generator)
    colour = torch.rand(samples, 3, 1, 1, generator=generator) + 0.5
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    y, x = rows - place[:, 0], columns - place[:, 1]
    inside = (y.abs() <= 4) & (x.abs() <= 4)
    masks = torch.stack(
        [
            y**2 + x**2 <= 16,  # disc
            inside,  # square
            inside & ((y.abs() <= 1) | (x.abs() <= 1)),  # cross
            inside & (y % 3 == 0),  # stripes lying
            inside & (x % 3 == 0),  # stripes standing
            inside & ((y == x) | (y == -x)),  # the letter x
        ]
    )
    figure = masks[labels, torch.arange(samples)].unsqueeze(1) * colour
    noise = torch.randn(samples, 3, SIZE, SIZE, generator=generator) * 0.4
    return TensorDataset(figure + noise, labels)


class Block(nn.Module):
    """conv 3x3, batch norm, relu, and half the height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)


class Net(nn.Module):
    """Images (B, 3, 16, 16) -> logits (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(Block(3, 16), Block(16, 32), Block(32, 64))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 2 * 2, CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


@example(epochs=8, samples=2000)
def main(options: Options) -> Result:
    data = loaders(figures(options.samples, options.seed), 64, options)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr=0.002, max_lr=0.05, step_size_up=3, step_size_down=5, base_momentum=0.85, max_momentum=0.95
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)

    @graphc.compile
    def train_step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    @graphc.compile
    @torch.no_grad()
    def predict(images: torch.Tensor) -> torch.Tensor:
        return model(images).argmax(1)

    result = fit(
        options, model, train_step, data.train, lambda: accuracy(predict, data.valid),
        keep={"optimizer": optimizer}, schedule=schedule,
    )  # fmt: skip
    return finish(result, accuracy(predict, data.test), train_step, predict)


if __name__ == "__main__":
    main()
