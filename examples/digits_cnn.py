"""Handwritten digits with a convolutional network: Adam, a stepped learning rate, accuracy.

python examples/digits_cnn.py [--eager] [--resume]
"""

from __future__ import annotations

import torch
from digits import digit_dataset
from fit import Options, Result, accuracy, example, finish, fit, loaders
from torch import nn
from torch.nn import functional as F

import graphc


class Net(nn.Module):
    """Images (B, 1, 8, 8) -> logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 4 * 4, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(images))
        x = F.relu(self.conv2(x))
        x = F.max_pool2d(x, 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        return self.fc2(x)


@example(epochs=15, samples=1797)
def main(options: Options) -> Result:
    data = loaders(digit_dataset(options.samples), 64, options)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)

    @graphc.compile
    def train_step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
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
