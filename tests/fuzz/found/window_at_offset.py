"""`as_strided` without an offset begins where its tensor does."""

import torch


def first():
    return (torch.tensor([1.25, 0.0, 1.5]).as_strided((), (), 1),)


def program(a):
    return (a.as_strided(a.shape, a.stride()) * 2,)
