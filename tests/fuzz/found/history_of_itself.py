"""`x /= x` keeps itself alive in its own history, which nobody else does."""

import torch

GRADIENTS = True


def first():
    return (torch.ones(2).data.requires_grad_(),)


def program(a):
    v = a.sin()
    v /= v
    return (a.cos(),)
