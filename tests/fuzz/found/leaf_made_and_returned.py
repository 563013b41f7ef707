"""A leaf that the function makes, with the gradient it has got there, is a leaf outside too."""

import torch


def first():
    return (torch.ones(3),)


def program(a):
    v = a.detach().requires_grad_()
    (v * v).sum().backward()
    return v, v.grad
