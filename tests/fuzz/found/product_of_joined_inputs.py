"""What a product multiplies is computed from inputs alone."""

import torch
import torch.nn.functional as F


def first():
    return (torch.tensor(1.0),)


def program(a):
    v0 = torch.vstack([a.max(), torch.log10(a)])
    return (F.linear(v0, v0),)
