"""The gradient of an argument whose storage is an input of its own goes to the argument."""

import torch


def first():
    return (torch.arange(8.0).as_strided((3, 3), (0, 1)).data.requires_grad_(),)


def program(a):
    v = a.as_strided(a.shape, a.stride())
    (a * a).sum().backward()
    return (v.detach() + 1,)
