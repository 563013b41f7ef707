"""Networks on images."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from .entry import Size, Workload, entry, floats, images, labels, momentum, pick


@entry
def mnist_cnn(size: Size) -> Workload:
    """Two convolutions, a pool and two affine layers on 28x28 digits, batch 64."""
    if size == "tiny":
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 5),
        )  # fmt: skip
        return Workload(net, images(5, 6, 1, 8, 8))
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    return Workload(net, images(10, 64, 1, 28, 28))


class CifarNet(nn.Module):
    """The first network on colour images: (B, 3, S, S) -> (B, 10)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5)
        left = ((side - 4) // 2 - 4) // 2
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * left**2, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


@entry
def cifar_net(size: Size) -> Workload:
    """conv5, pool, conv5, pool, three affine layers on 32x32 images, batch 32; SGD with momentum."""
    side, batch = pick(size, (16, 3), (32, 32))
    return Workload(CifarNet(side), images(10, batch, 3, side, side), optimizer=momentum, programs={"step": 2})


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut: (B, C, H, W) -> (B, O, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.short = shortcut(channels, out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(self.first(x)) + self.short(x))


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3, 1x1 and a shortcut: (B, C, H, W) -> (B, 4 O, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, 4 * out, 1, bias=False), nn.BatchNorm2d(4 * out),
        )  # fmt: skip
        self.short = shortcut(channels, 4 * out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.short(x))


def shortcut(channels: int, out: int, stride: int) -> nn.Module:
    """What is added to the end of a block: its input, brought to the same shape where it has another."""
    if channels == out and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class ResNet(nn.Module):
    """A residual network: (B, 3, H, W) -> (B, classes).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths, widths: blocks and channels per stage; each stage but the first halves the image.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], depths: tuple[int, ...], widths: tuple[int, ...], classes: int
    ) -> None:
        super().__init__()
        channels = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks: list[nn.Module] = []
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for number in range(depth):
                blocks.append(block(channels, width, 2 if stage and not number else 1))
                channels = width * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)))


@entry
def resnet18(size: Size) -> Workload:
    """ResNet-18 on images of 224x224, 1,000 classes, batch 4."""
    depths, widths = pick(size, ((1, 1), (4, 8)), ((2, 2, 2, 2), (64, 128, 256, 512)))
    side, batch, classes = pick(size, (17, 4, 5), (224, 4, 1000))
    return Workload(ResNet(BasicBlock, depths, widths, classes), images(classes, batch, 3, side, side))


@entry
def resnet50(size: Size) -> Workload:
    """ResNet-50 on images of 224x224, 1,000 classes, batch 2; SGD with momentum."""
    depths, widths = pick(size, ((1, 1), (2, 4)), ((3, 4, 6, 3), (64, 128, 256, 512)))
    side, batch, classes = pick(size, (17, 4, 5), (224, 2, 1000))
    return Workload(
        ResNet(Bottleneck, depths, widths, classes), images(classes, batch, 3, side, side),
        optimizer=momentum, programs={"step": 2},
    )  # fmt: skip


class Inception(nn.Module):
    """Four branches side by side: (B, C, H, W) -> (B, 11 width / 2, H, W)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        half = 3 * width // 2
        self.branch1x1 = nn.Conv2d(channels, width, 1)
        self.branch5x5 = nn.Sequential(nn.Conv2d(channels, width, 1), nn.Conv2d(width, half, 5, padding=2))
        self.branch3x3 = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.Conv2d(width, half, 3, padding=1), nn.Conv2d(half, half, 3, padding=1)
        )
        self.branch_pool = nn.Conv2d(channels, half, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([self.branch1x1(x), self.branch5x5(x), self.branch3x3(x), pooled], 1)


class InceptionNet(nn.Module):
    """Convolutions and inception blocks in turn: (B, 1, S, S) -> (B, 10)."""

    def __init__(self, first: int, second: int, width: int, side: int) -> None:
        super().__init__()
        joined = width + 3 * (3 * width // 2)
        self.conv1, self.conv2 = nn.Conv2d(1, first, 5), nn.Conv2d(joined, second, 5)
        self.incept1, self.incept2 = Inception(first, width), Inception(second, width)
        self.fc = nn.Linear(joined * (((side - 4) // 2 - 4) // 2) ** 2, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.incept1(F.relu(F.max_pool2d(self.conv1(x), 2)))
        x = self.incept2(F.relu(F.max_pool2d(self.conv2(x), 2)))
        return self.fc(x.flatten(1))


@entry
def inception(size: Size) -> Workload:
    """Two inception blocks on 28x28 digits, batch 64."""
    first, second, width, side, batch = pick(size, (3, 4, 2, 16, 3), (10, 20, 16, 28, 64))
    return Workload(InceptionNet(first, second, width, side), images(10, batch, 1, side, side))


class ViT(nn.Module):
    """A vision transformer: (B, 3, S, S) -> (B, 10)."""

    def __init__(self, side: int, patch: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2 + 1, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.encoder(x))[:, 0])


@entry
def vit(size: Size) -> Workload:
    """6 layers of width 192 on 32x32 images in patches of 4x4, dropout, batch 16."""
    side, patch, width, heads, layers, batch = pick(size, (8, 4, 8, 2, 2, 3), (32, 4, 192, 3, 6, 16))
    return Workload(ViT(side, patch, width, heads, layers), images(10, batch, 3, side, side), draws=True)


class DoubleConv(nn.Sequential):
    """Twice: convolution, batch norm, ReLU."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(
            nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True),
        )  # fmt: skip


class UNet(nn.Module):
    """Down and up again with skips: (B, 3, H, W) -> (B, classes, H, W)."""

    def __init__(self, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.first = DoubleConv(3, widths[0])
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in reversed(pairs))
        self.join = nn.ModuleList(DoubleConv(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(F.max_pool2d(x, 2))
        for up, join in zip(self.up, self.join):
            x = join(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


@entry
def unet(size: Size) -> Workload:
    """Four levels from 16 channels on, 2 classes per pixel, images of 96x96, batch 4."""
    widths, side, batch = pick(size, ((4, 6, 8), 8, 2), ((16, 32, 64, 128), 96, 4))
    return Workload(
        UNet(widths, 2), lambda seed: (floats(seed, batch, 3, side, side), labels(seed, 2, batch, side, side))
    )
