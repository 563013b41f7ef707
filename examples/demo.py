"""Train a CNN eager and compiled from the same seed, compare, and look inside.

    python examples/demo.py --out out/demo

Trains the tutorials' CNN on handwritten digits twice: in eager PyTorch, and with the whole step, Adam included, as one
program. Both start from the same seed and see the same batches; there is no dropout, so nothing random is drawn in the
step and the losses are the same but for rounding. Plots both loss curves, shows inference of eager, graphc and
torch.compile side by side, checks the accuracies, and leaves the IR of every stage and the generated C and Triton
sources in the output folder.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from digits import Digits, load_digits
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.cli.inspect import dump_stages
from graphc.report.bench import BenchTable, bench_target, describe_machine
from graphc.report.plot import plot_curves
from graphc.report.targets import Target

EPOCHS, BATCH, LEARNING_RATE = 25, 64, 1e-3
WANTED_ACCURACY = 0.97
INSIDE = {
    "1_captured.txt": "graph IR as captured",
    "2_optimized.txt": "graph IR after all passes",
    "3_scheduled.txt": "plan of memory and calls, and the kernels in loop IR",
    "explain.txt": "what was fused, what is a library call and why",
    ".c": "generated C",
}
"""What the files of the inference program are; the others are its Triton kernels."""


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


@dataclass(frozen=True)
class Trained:
    """A model after training, with the mean loss and the seconds of each epoch. The first compiled one compiles."""

    model: CNN
    losses: list[float]
    seconds: list[float]

    @property
    def epoch_seconds(self) -> float:
        """Median over all epochs but the first."""
        return statistics.median(self.seconds[1:])


def train(
    data: Digits, compiler: Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]], how: str
) -> Trained:
    """Train with Adam from the same seed; `compiler` is given the step and gives what is run."""
    torch.manual_seed(0)
    model = CNN()
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data.train_images, data.train_labels),
        BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )

    def train_step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    step, losses, seconds = compiler(train_step), [], []
    for _ in track(range(EPOCHS), f"training {how}", console=Console(stderr=True)):
        start = time.perf_counter()
        total = torch.stack([step(images, labels) for images, labels in batches])
        losses.append(float(total.mean()))
        seconds.append(time.perf_counter() - start)
    return Trained(model.eval(), losses, seconds)


def predictions(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Predicted classes (N,), computed in batches as an evaluation loop does."""
    with torch.no_grad():
        return torch.cat([model(batch).argmax(1) for batch in images.split(BATCH)])


def accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    return float((predicted == labels).float().mean())


def compare_training(data: Digits, out: Path) -> dict[str, Trained]:
    """Train both ways, print the table, plot the curves."""
    runs = {"eager": train(data, lambda step: step, "eager"), "graphc": train(data, graphc.compile, "compiled")}
    title = f"training: {len(data.train_images)} images, {EPOCHS} epochs, the same seed"
    columns = ("last loss", "test accuracy", "first epoch, compiles", "usual epoch", "speed vs eager")
    table = Table("", *columns, title=title)
    for how, run in runs.items():
        right = accuracy(predictions(run.model, data.test_images), data.test_labels)
        table.add_row(
            how, f"{run.losses[-1]:.5f}", f"{right:.2%}", f"{run.seconds[0]:.2f} s", f"{run.epoch_seconds:.3f} s",
            f"{runs['eager'].epoch_seconds / run.epoch_seconds:.2f}x",
        )  # fmt: skip
    Console(width=100).print(table)
    curves = {f"{how}, {run.epoch_seconds:.3f} s per epoch": run.losses for how, run in runs.items()}
    title = "Handwritten digits, eager and compiled from the same seed"
    path = plot_curves(curves, out / "training.png", title, "epoch", "mean training loss (logarithmic)")
    print(f"both loss curves: {path}" if path else "loss curves: not plotted, since matplotlib is not installed")
    return runs


def compare(model: CNN, data: Digits, out: Path) -> None:
    """Print and keep the table of inference by eager, graphc and torch.compile on one batch."""
    batch = data.test_images[:BATCH]
    console = Console(stderr=True)
    target = Target(":cnn", model, lambda: ((batch,), {}))
    with console.status("comparing") as status:
        rows = bench_target(target, ["eager", "inductor"], cold=False, progress=status.update)
    table = BenchTable(rows, describe_machine())
    print(f"\ninference: one batch of {BATCH} images, eager, compiled by graphc, and by torch.compile")
    print(table)
    for path in table.save(out):
        print(f"  {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    data = load_digits()
    runs = compare_training(data, out)
    model = runs["eager"].model
    compiled = graphc.compile(model, name="cnn")
    eager, ours = predictions(model, data.test_images), predictions(compiled, data.test_images)
    differing = int((eager != ours).sum())
    print(f"inference on {len(eager)} images: predictions of graphc that differ from eager's: {differing}")

    compare(model, data, out)
    batch = data.test_images[:BATCH]
    written = list(dump_stages(compiled, lambda: ((batch,), {}), out))
    for_gpu = graphc.compile(model, backend="triton", name="cnn")
    with torch.no_grad():
        for name, text in for_gpu.source(batch).items():
            written.append(out / name)
            written[-1].write_text(text)
    print("\nlook inside:")
    for path in written:
        what = INSIDE.get(".c" if path.suffix == ".c" else path.name, "generated Triton, for a GPU")
        print(f"  {path!s:<32} {what}")
    accuracies = [accuracy(predictions(run.model, data.test_images), data.test_labels) for run in runs.values()]
    good = torch.equal(eager, ours) and min(accuracies) >= WANTED_ACCURACY
    wanted = f"the same predictions compiled as eager, both accuracies at least {WANTED_ACCURACY:.0%}"
    print(f"\npassed: {wanted}" if good else f"\nFAILED: wanted {wanted}", file=sys.stdout if good else sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
