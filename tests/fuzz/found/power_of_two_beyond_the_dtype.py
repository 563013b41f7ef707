"""`ldexp` takes exponents as C's int, and a power of two that is no number of the dtype where the result is one."""

import torch

GRADIENTS = False


def first():
    return torch.tensor([3.0, 1e-30, 5.0, 1.0, 2.0]), torch.tensor([2, 150, -150, 2**32 + 1, 2**31])


def program(a, b):
    return torch.ldexp(a, b), torch.ldexp(a.half(), b), torch.ldexp(a.double(), 10 * b), torch.ldexp(a[0], a.abs())
