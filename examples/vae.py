"""A variational autoencoder on digits: reparametrised noise, the evidence bound as the score.

python examples/vae.py [--eager] [--resume]
"""

from __future__ import annotations

import torch
from digits import digit_dataset
from fit import Options, Result, example, finish, fit, loaders
from torch import nn
from torch.nn import functional as F

import graphc


class VAE(nn.Module):
    """Images (B, 64) in [0, 1] -> logits of the reconstruction (B, 64), mean and log variance (B, latent)."""

    def __init__(self, latent: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Linear(64, 256)
        self.mean, self.log_variance = nn.Linear(256, latent), nn.Linear(256, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, 256), nn.ReLU(), nn.Linear(256, 64))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = F.relu(self.encoder(images))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        if self.training:
            latent = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        else:
            latent = mean
        return self.decoder(latent), mean, log_variance


def bound(model: VAE, images: torch.Tensor) -> torch.Tensor:
    """The negative evidence lower bound per image, in nats: () float32."""
    images = images.flatten(1)
    logits, mean, log_variance = model(images)
    reconstruction = F.binary_cross_entropy_with_logits(logits, images, reduction="sum")
    divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
    return (reconstruction + divergence) / len(images)


@example(epochs=15, samples=1797)
def main(options: Options) -> Result:
    data = loaders(digit_dataset(options.samples), 64, options)
    model = VAE()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    @graphc.compile
    def train_step(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = bound(model, images)
        loss.backward()
        optimizer.step()
        return loss.detach()

    @graphc.compile
    @torch.no_grad()
    def test_step(images: torch.Tensor) -> torch.Tensor:
        return bound(model, images)

    def mean_bound(batches) -> float:
        total = sum(float(test_step(images)) * len(images) for images, _ in batches)
        return total / len(batches.dataset)

    result = fit(
        options, model, train_step, data.train, lambda: mean_bound(data.valid),
        keep={"optimizer": optimizer}, lower_is_better=True,
    )  # fmt: skip
    return finish(result, mean_bound(data.test), train_step, test_step)


if __name__ == "__main__":
    main()
