"""An operand of another dtype is copied, and so made dense, before strides are chosen."""

import torch


def first():
    return torch.arange(8).int().as_strided((3, 2, 2), (1, 0, 3)), torch.arange(12.0).reshape(3, 2, 2)


def program(a, b):
    return torch.logical_or(a, b), a + b, a / a, torch.where(b > 3, a, b)
