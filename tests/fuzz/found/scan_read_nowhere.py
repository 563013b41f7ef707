"""Nothing is read of a quotient of running sums."""

import torch


def first():
    return (torch.tensor([[1], [2]], dtype=torch.int16),)


def program(a):
    v = a / a.cumsum(0, dtype=torch.float32)
    return (torch.take(v, torch.tensor([], dtype=torch.int64)),)
