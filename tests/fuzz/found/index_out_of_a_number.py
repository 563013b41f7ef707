"""A tensor of no dims has one place to select from."""

import torch


def first():
    return torch.tensor(3), torch.tensor(-6)


def program(a, b):
    return a.index_select(0, b)
