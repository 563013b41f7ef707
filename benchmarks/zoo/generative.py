"""Networks that make data."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from .entry import Size, Training, Workload, entry, floats, pick


class Vae(nn.Module):
    """A variational autoencoder: (B, pixels) -> reconstruction (B, pixels), mean and log-variance (B, latent)."""

    def __init__(self, pixels: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.enc, self.mu, self.logvar = nn.Linear(pixels, hidden), nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.dec = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, pixels))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = torch.relu(self.enc(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return torch.sigmoid(self.dec(z)), mu, logvar


def _bound(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out, mu, logvar = net(x)
    divergence = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return F.binary_cross_entropy(out, x, reduction="sum") + divergence


@entry
def vae(size: Size) -> Workload:
    """784-400-20 and back, batch 128."""
    pixels, hidden, latent, batch = pick(size, (10, 16, 3, 6), (784, 400, 20, 128))
    return Workload(
        Vae(pixels, hidden, latent), lambda seed: (torch.sigmoid(floats(seed, batch, pixels)),), _bound, draws=True
    )


@entry
def autoencoder(size: Size) -> Workload:
    """A convolution down and a transposed one up again, on 28x28 digits, batch 64."""
    width, side, batch = pick(size, (4, 8, 4), (32, 28, 64))
    net = nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1), nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
    )  # fmt: skip
    return Workload(net, lambda seed: (floats(seed, batch, 1, side, side),), lambda net, x: F.mse_loss(net(x), x))


class Dcgan(nn.Module):
    """A generator and a discriminator; called, it makes images: noise (B, latent, 1, 1) -> (B, 3, side, side)."""

    def __init__(self, latent: int, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in reversed(range(levels))]
        made: list[nn.Module] = [nn.ConvTranspose2d(latent, widths[0], 4, bias=False)]
        judged: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for a, b in pairwise(widths):
            made += [nn.BatchNorm2d(a), nn.ReLU(True), nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False)]
        for a, b in pairwise(widths[::-1]):
            judged += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2, inplace=True)]
        made += [nn.BatchNorm2d(width), nn.ReLU(True), nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh()]
        self.generator = nn.Sequential(*made)
        self.discriminator = nn.Sequential(*judged, nn.Conv2d(widths[0], 1, 4, bias=False), nn.Flatten(0))

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.generator(noise)


def _adversaries(net: nn.Module) -> Training:
    maker, judge = net.generator, net.discriminator
    maker_optimizer, judge_optimizer = (
        torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999)) for part in (maker, judge)
    )
    criterion = nn.BCEWithLogitsLoss()

    def step(noise: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        judge_optimizer.zero_grad()
        verdict = judge(real)
        loss_real = criterion(verdict, torch.ones_like(verdict))
        loss_real.backward()
        fake = maker(noise)
        verdict = judge(fake.detach())
        loss_fake = criterion(verdict, torch.zeros_like(verdict))
        loss_fake.backward()
        judge_optimizer.step()
        maker_optimizer.zero_grad()
        verdict = judge(fake)
        loss_maker = criterion(verdict, torch.ones_like(verdict))
        loss_maker.backward()
        maker_optimizer.step()
        return torch.stack([(loss_real + loss_fake).detach(), loss_maker.detach()])

    return Training([maker_optimizer, judge_optimizer], step)


@entry
def dcgan(size: Size) -> Workload:
    """Images of 64x64 from noise of 100, 32 channels and more, two optimizers, batch 8."""
    latent, width, levels, batch = pick(size, (3, 4, 2, 4), (100, 32, 4, 8))
    side = 4 * 2**levels
    return Workload(
        Dcgan(latent, width, levels),
        lambda seed: (floats(seed, batch, latent, 1, 1), torch.tanh(floats(seed + 1, batch, 3, side, side))),
        train=_adversaries,
    )


class ModulatedConv(nn.Module):
    """A convolution whose weights a style scales, image by image: (B, C, H, W), (B, style) -> (B, O, H, W)."""

    def __init__(self, channels: int, out: int, style: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, channels, 3, 3) / math.sqrt(9 * channels))
        self.affine = nn.Linear(style, channels)
        self.noise, self.bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(out))

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        weight = self.weight * (1 + self.affine(w))[:, None, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        x = x.reshape(1, batch * channels, height, width)
        x = F.conv2d(x, weight.flatten(0, 1), padding=1, groups=batch).view(batch, -1, height, width)
        x = x + self.noise * torch.randn_like(x[:, :1])
        return F.leaky_relu(x + self.bias[:, None, None], 0.2) * math.sqrt(2)


class StyleBlock(nn.Module):
    """A mapping network and synthesis blocks: latent (B, style) -> images (B, 3, 8 * 2^blocks, same)."""

    def __init__(self, style: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers = [nn.Linear(style, style), nn.LeakyReLU(0.2), nn.Linear(style, style), nn.LeakyReLU(0.2)]
        self.mapping = nn.Sequential(*layers)
        self.start = nn.Parameter(torch.randn(1, widths[0], 8, 8))
        self.first = nn.ModuleList(ModulatedConv(a, b, style) for a, b in pairwise(widths))
        self.second = nn.ModuleList(ModulatedConv(b, b, style) for b in widths[1:])
        self.image = nn.ModuleList(nn.Conv2d(b, 3, 1) for b in widths[1:])

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        w = self.mapping(z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8))
        x, image = self.start.expand(z.shape[0], -1, -1, -1), 0
        for first, second, to_image in zip(self.first, self.second, self.image):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = second(first(x, w), w)
            if not isinstance(image, int):
                image = F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
            image = image + to_image(x)
        return image


@entry
def style_block(size: Size) -> Workload:
    """Two blocks with modulated convolutions and noise, 64 and 32 channels, images of 32x32, batch 4."""
    style, widths, batch = pick(size, (6, (4, 4), 2), (128, (64, 64, 32), 4))
    side = 8 * 2 ** (len(widths) - 1)
    return Workload(
        StyleBlock(style, widths),
        lambda seed: (floats(seed, batch, style), torch.tanh(floats(seed + 1, batch, 3, side, side))),
        lambda net, z, image: F.mse_loss(net(z), image), draws=True,
    )  # fmt: skip


class Denoiser(nn.Module):
    """Guesses the noise in images: (B, 1, H, W), time (B,) -> (B, 1, H, W)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.first, self.down = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, 2, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(groups, width), nn.GroupNorm(groups, width)
        self.middle, self.last = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(2 * width, 1, 3, padding=1)

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        half = self.width // 2
        frequency = torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
        angle = t[:, None] * frequency.to(self.first.weight)[None]
        return self.time(torch.cat([angle.sin(), angle.cos()], 1))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        skip = F.silu(self.norm1(self.first(x)))
        x = self.down(skip) + self.embed(t)[:, :, None, None]
        x = F.silu(self.norm2(x))
        x = F.interpolate(x + self.middle(x), scale_factor=2, mode="nearest")
        return self.last(torch.cat([skip, x], 1))


class Diffusion(nn.Module):
    """A denoiser with its schedule of noise over `times` steps."""

    def __init__(self, width: int, groups: int, times: int) -> None:
        super().__init__()
        self.denoiser, self.times = Denoiser(width, groups), times
        kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, times), 0)
        self.register_buffer("signal", kept.sqrt())
        self.register_buffer("spread", (1 - kept).sqrt())

    def guess(self, x: torch.Tensor) -> torch.Tensor:
        """The noise in images of the last time step."""
        return self.denoiser(x, torch.full((x.shape[0],), self.times - 1, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The loss of one step: how far the guess is from noise added at random times."""
        t = torch.randint(0, self.times, (x.shape[0],))
        noise = torch.randn_like(x)
        noisy = self.signal[t][:, None, None, None] * x + self.spread[t][:, None, None, None] * noise
        return F.mse_loss(self.denoiser(noisy, t), noise)


@entry
def diffusion(size: Size) -> Workload:
    """A small denoiser of 64 channels with a sinusoidal embedding of time, 28x28 digits, 300 time steps, batch 16."""
    width, groups, side, times, batch = pick(size, (8, 2, 8, 10, 3), (64, 8, 28, 300, 16))
    return Workload(
        Diffusion(width, groups, times), lambda seed: (floats(seed, batch, 1, side, side),), lambda net, x: net(x),
        forward=lambda net, x: net.guess(x), draws=True,
    )  # fmt: skip
