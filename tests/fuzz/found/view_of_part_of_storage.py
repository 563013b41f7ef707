"""A result is a view of an argument that requires grad and begins behind the start of its memory."""

import torch


def first():
    s0 = torch.arange(12.0)
    return (s0.as_strided((4,), (2,), 1).data.requires_grad_(),)


def program(a):
    v0 = a.view_as(a)
    v0.as_strided(v0.shape, v0.stride())
    return (v0,)
