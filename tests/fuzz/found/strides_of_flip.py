"""`flip` preserves dense strides to the letter, also of dims of size 1."""

import torch


def first():
    return (torch.arange(30.0).as_strided((2, 3, 5), (1, 10, 2)), torch.arange(2.0).expand(3, 1, 1, 2))


def program(a, b):
    return (a[None].flip((2,)), a.flip((0, 1)), b.flip((0, 3)), b[:, :, :, :1].flip((1,)))
