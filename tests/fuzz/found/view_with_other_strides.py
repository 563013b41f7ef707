"""`view_as` gives a dim of size 1 a stride of its own, which the argument's need not be."""

import torch


def first():
    return (torch.arange(62.0).as_strided((1, 4, 5, 3), (3, 15, 3, 1)),)


def program(a):
    return (a, a.view_as(a))
