"""Handwritten digits: scikit-learn's 1,797 real images, 8x8, offline, as tensors split into training and test sets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.data import TensorDataset


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8) float32 in [0, 1] and labels (N,) int64, for training and for testing."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load_digits(test_share: float = 0.2, seed: int = 0) -> Digits:
    """The data set, shuffled by `seed`, with the last `test_share` of it kept for testing."""
    images, labels = _images_and_labels(seed)
    split = round(len(images) * (1 - test_share))
    return Digits(images[:split], labels[:split], images[split:], labels[split:])


def digit_dataset(samples: int = 1797, seed: int = 0) -> TensorDataset:
    """The first `samples` images and labels, shuffled by `seed`, as a data set of pairs."""
    images, labels = _images_and_labels(seed)
    return TensorDataset(images[:samples], labels[:samples])


def _images_and_labels(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All images and labels, shuffled by `seed`."""
    from sklearn.datasets import load_digits as load

    raw = load()
    images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order], labels[order]
