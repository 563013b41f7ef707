"""A stored choice of 16 bits was rounded, and what it was chosen from was not: their difference was the rounding."""

import torch
import torch.nn.functional as F

NUMERICS, GRADIENTS = "default", False


def first():
    return (torch.tensor(0.25, dtype=torch.bfloat16), torch.tensor([0.3, -0.4, 0.7], dtype=torch.bfloat16))


def second():
    return (torch.tensor(-0.75, dtype=torch.bfloat16), torch.tensor([0.9, 0.1, -0.2], dtype=torch.bfloat16))


def program(a, b):
    v0 = torch.atanh(a)
    v1 = torch.where(a.bool(), v0.repeat((3,)), a)
    v2 = torch.atanh(b)
    v3 = torch.maximum(v2, -v2).flip(0)
    return (F.huber_loss(v1, v0), v1, v3 - v2.abs().flip(0), v3)
