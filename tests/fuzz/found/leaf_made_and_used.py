"""What can be differentiated by a leaf of the function's own still can."""

import torch


def first():
    return (torch.ones(3).data.requires_grad_(),)


def program(a):
    v = a.detach().requires_grad_()
    return v, v * 2
