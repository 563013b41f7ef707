"""A number that requires grad is put into a part of a tensor of integers."""

import torch


def first():
    return (torch.tensor([1.0, 2.0]),)


def program(a):
    v0 = a.detach().requires_grad_()
    v1 = torch.full((3,), 1, dtype=torch.uint8)
    v1[1:] = v0.sum()
    return (v1 > 2, v0.detach())
