"""A view of a leaf made under `no_grad` is a leaf of its own; a result can be differentiated by that
alone."""

import torch


def first():
    return (torch.ones(3).data.requires_grad_(),)


def program(a):
    with torch.no_grad():
        v = a.view(3)
    return (v * 2,)
