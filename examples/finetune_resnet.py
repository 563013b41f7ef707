"""Transfer learning: a residual network learns the digits 0 to 4, is frozen, and a new head learns 5 to 9.

python examples/finetune_resnet.py [--eager] [--resume]

The body stays in evaluation mode in the second part, so that its batch norms keep their statistics; its last block is
trained along at a smaller rate.
"""

from __future__ import annotations

import torch
from digits import digit_dataset
from fit import Options, Result, accuracy, example, finish, fit, loaders
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import graphc


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut: (B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """Images (B, 1, 8, 8) -> logits (B, 5)."""

    def __init__(self, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            Residual(width, width), Residual(width, 2 * width, 2), Residual(2 * width, 2 * width)
        )
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def pretrain(model: nn.Module, data: TensorDataset, epochs: int = 3) -> None:
    """Train all of the model on `data`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    @graphc.compile
    def pretrain_step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    model.train()
    for _ in range(epochs):
        for images, labels in DataLoader(data, 64, shuffle=True, drop_last=True):
            pretrain_step(images, labels)
    optimizer.zero_grad()


@example(epochs=8, samples=1797)
def main(options: Options) -> Result:
    images, labels = digit_dataset(options.samples).tensors
    first = labels < 5
    model = ResNet()
    pretrain(model, TensorDataset(images[first], labels[first]))

    for parameter in model.parameters():
        parameter.requires_grad = False
    for parameter in model.blocks[-1].parameters():
        parameter.requires_grad = True
    model.fc = nn.Linear(model.fc.in_features, 5)
    data = loaders(TensorDataset(images[~first], labels[~first] - 5), 64, options)
    optimizer = torch.optim.SGD(
        [{"params": model.blocks[-1].parameters(), "lr": 0.01}, {"params": model.fc.parameters()}],
        lr=0.1, momentum=0.9,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)

    @graphc.compile
    def train_step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        model.eval()  # the statistics of the batch norms stay
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
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
