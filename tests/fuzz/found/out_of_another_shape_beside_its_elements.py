"""`out=` of another shape, beside an operand with the same elements in a tensor of its own, which keeps its shape."""

import torch

NUMERICS, GRADIENTS = "default", False


def first():
    return (torch.tensor([-0.5]),)


def second():
    return (torch.tensor([2.0]),)


def program(a):
    v0 = a.view(())
    v1 = torch.stack([a, a], 0)
    v2 = v0[...]
    torch.add(v2, v1, out=v0)
    return v0, v2 * 2
