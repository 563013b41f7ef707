"""A draw `like` a value fills memory in the value's order, also where what made the value is simplified away."""

import torch

NUMERICS = "eager"


def first():
    return (torch.arange(14.0).as_strided((1, 2, 3), (12, 2, 4), 1),)


def program(a):
    v = torch.kron(a, a)
    w = torch.fmax(v, v)
    return (torch.randint_like(w, 5).to(torch.int64), v + 1)
