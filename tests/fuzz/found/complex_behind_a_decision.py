"""A complex value laid out otherwise behind a decision on data is copied by a call: no kernel holds complex numbers."""

import torch

GRADIENTS = False


def first():
    return torch.tensor([complex(-0.75, 1.0), complex(1.75, -2.0)]).as_strided((1, 2, 1), (2, 1, 2)), torch.tensor([1])


def program(a, b):
    c = a.clone()
    d = c.masked_fill(torch.tensor([True]), 2)
    if b.sum() > 0:
        return d, c
    return c
