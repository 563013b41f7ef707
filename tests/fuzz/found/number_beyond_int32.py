"""A number of a tensor that is too large for the integers beside it wraps around, as one of Python's does."""

import torch

GRADIENTS = False


def first():
    return (torch.tensor([-1, -2147483648], dtype=torch.int32),)


def program(a):
    return a * a.sum().item() - a
