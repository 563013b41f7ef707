"""Train a CNN in eager PyTorch, compile it, compare, and look inside.

    python examples/demo.py --out out/demo

Trains the tutorials' CNN on handwritten digits, compiles its evaluation with graphc, shows eager, graphc and
torch.compile side by side, checks that accuracy is the same, and leaves the IR of every stage and the generated C and
Triton sources in the output folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from digits import Digits, load_digits
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.cli.inspect import dump_stages
from graphc.report.bench import BenchTable, bench_target, describe_machine
from graphc.report.targets import Target

EPOCHS, BATCH, LEARNING_RATE = 25, 64, 1e-3
WANTED_ACCURACY = 0.97


class CNN(nn.Module):
    """conv 3x3, relu, conv 3x3, relu, linear 128, relu, linear 10: images (B, 1, 8, 8) -> logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * 4 * 4, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(images))
        x = F.relu(self.conv2(x))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc2(x)


def train(model: nn.Module, data: Digits) -> float:
    """Train with Adam in eager mode; gives the mean loss of the last epoch."""
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data.train_images, data.train_labels),
        BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    total = 0.0
    for _ in track(range(EPOCHS), "training in eager mode", console=Console(stderr=True)):
        total = 0.0
        for images, labels in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / len(batches)


def predictions(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Predicted classes (N,), computed in batches as an evaluation loop does."""
    with torch.no_grad():
        return torch.cat([model(batch).argmax(1) for batch in images.split(BATCH)])


def accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    return float((predicted == labels).float().mean())


def trained_cnn() -> tuple[CNN, Digits]:
    """The model after training, and the data."""
    torch.manual_seed(0)
    model, data = CNN(), load_digits()
    loss = train(model, data)
    print(f"trained {EPOCHS} epochs on {len(data.train_images)} images, last epoch's mean loss {loss:.4f}")
    return model.eval(), data


def compare(model: CNN, data: Digits, out: Path) -> None:
    """Print and keep the table of eager, graphc and torch.compile on one batch."""
    batch = data.test_images[:BATCH]
    console = Console(stderr=True)
    target = Target(":cnn", model, lambda: ((batch,), {}))
    with console.status("comparing") as status:
        rows = bench_target(target, ["eager", "inductor"], cold=False, progress=status.update)
    table = BenchTable(rows, describe_machine())
    print(table)
    table.save(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    model, data = trained_cnn()
    compiled = graphc.compile(model, name="cnn")
    eager, ours = predictions(model, data.test_images), predictions(compiled, data.test_images)
    print(f"test accuracy on {len(eager)} images: eager {accuracy(eager, data.test_labels):.2%}, ", end="")
    print(f"graphc {accuracy(ours, data.test_labels):.2%}; predictions that differ: {int((eager != ours).sum())}")

    compare(model, data, out)
    batch = data.test_images[:BATCH]
    written = list(dump_stages(compiled, lambda: ((batch,), {}), out))
    for_gpu = graphc.compile(model, backend="triton", name="cnn")
    with torch.no_grad():
        for name, text in for_gpu.source(batch).items():
            written.append(out / name)
            written[-1].write_text(text)
    print("look inside:")
    for path in written:
        print(f"  {path}")
    same = torch.equal(eager, ours) and accuracy(ours, data.test_labels) >= WANTED_ACCURACY
    if not same:
        print(f"FAILED: wanted the same predictions as eager and at least {WANTED_ACCURACY:.0%}", file=sys.stderr)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
