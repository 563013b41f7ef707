"""A convolutional GAN on digits: two networks and two optimizers in one compiled step.

python examples/dcgan.py [--eager] [--resume]

The score says how far generated images are, as a crowd, from real ones: the distance between the means and deviations
of their pixels.
"""

from __future__ import annotations

import torch
from digits import digit_dataset
from fit import Options, Result, example, finish, fit, loaders
from torch import nn
from torch.nn import functional as F

import graphc

LATENT = 16


class Generator(nn.Module):
    """Noise (B, 16, 1, 1) -> images (B, 1, 8, 8) in [-1, 1]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(LATENT, 2 * width, 4, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(True),
            nn.ConvTranspose2d(2 * width, 1, 4, stride=2, padding=1, bias=False),
            nn.Tanh(),
        )

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.main(noise)


class Discriminator(nn.Module):
    """Images (B, 1, 8, 8) -> logits (B,): real or made."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(2 * width, 1, 4, bias=False),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.main(images).flatten()


def init_weights(module: nn.Module) -> None:
    """The published start: normal weights of deviation 0.02."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


@example(epochs=25, samples=1797, patience=15)
def main(options: Options) -> Result:
    data = loaders(digit_dataset(options.samples), 64, options)
    generator, discriminator = Generator().apply(init_weights), Discriminator().apply(init_weights)
    generator_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    criterion = nn.BCEWithLogitsLoss()

    @graphc.compile
    def train_step(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        real = 2 * images - 1
        discriminator.zero_grad()
        verdict = discriminator(real)
        loss_real = criterion(verdict, torch.full_like(verdict, 0.9))
        loss_real.backward()
        fake = generator(torch.randn(len(real), LATENT, 1, 1))
        verdict = discriminator(fake.detach())
        loss_fake = criterion(verdict, torch.zeros_like(verdict))
        loss_fake.backward()
        discriminator_optimizer.step()

        generator.zero_grad()
        verdict = discriminator(fake)
        loss = criterion(verdict, torch.ones_like(verdict))
        loss.backward()
        generator_optimizer.step()
        return (loss_real + loss_fake + loss).detach()

    same_noise = torch.randn(256, LATENT, 1, 1)

    @graphc.compile
    @torch.no_grad()
    def sample() -> torch.Tensor:
        return (generator(same_noise) + 1) / 2

    def distance(batches) -> float:
        real = torch.cat([images for images, _ in batches])
        made = sample()
        return float(F.mse_loss(made.mean(0), real.mean(0)) + F.mse_loss(made.std(0), real.std(0)))

    result = fit(
        options, generator, train_step, data.train, lambda: distance(data.valid), lower_is_better=True,
        keep={
            "discriminator": discriminator,
            "generator_optimizer": generator_optimizer,
            "discriminator_optimizer": discriminator_optimizer,
        },
    )  # fmt: skip
    return finish(result, distance(data.test), train_step, sample)


if __name__ == "__main__":
    main()
