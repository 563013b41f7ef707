"""Eager hands out a view made under `no_grad` whose memory is then written, and raises when asked for its history."""

import torch


def first():
    return (torch.ones(3).data.requires_grad_(),)


def program(a):
    with torch.no_grad():
        v = a.expand_as(a)
    a.detach().add_(v)
    return (v,)
