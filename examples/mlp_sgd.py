"""The quickstart: a multi-layer perceptron on digits, plain SGD, written with a compiled module and an eager loop.

python examples/mlp_sgd.py [--eager] [--resume]
"""

from __future__ import annotations

import torch
from digits import digit_dataset
from fit import Options, Result, accuracy, example, finish, fit, loaders
from torch import nn

import graphc


class NeuralNetwork(nn.Module):
    """Images (B, 1, 8, 8) -> logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear_relu_stack = nn.Sequential(
            nn.Linear(64, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_relu_stack(self.flatten(x))


@example(epochs=20, samples=1797)
def main(options: Options) -> Result:
    data = loaders(digit_dataset(options.samples), 64, options)
    model = graphc.compile(NeuralNetwork())
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = loss_fn(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    @torch.no_grad()
    def predict(images: torch.Tensor) -> torch.Tensor:
        return model(images).argmax(1)

    result = fit(
        options, model, train_step, data.train, lambda: accuracy(predict, data.valid), keep={"optimizer": optimizer}
    )
    return finish(result, accuracy(predict, data.test), model)


if __name__ == "__main__":
    main()
