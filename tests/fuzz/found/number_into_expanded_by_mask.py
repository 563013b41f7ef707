"""What a mask writes to an expanded tensor is for eager to say: it comes to each place several times."""

import torch


def first():
    return (torch.tensor([[0.5], [-1.0]]), torch.tensor([[True, False], [False, False]]))


def program(a, b):
    v = a.expand(2, 2)
    v.masked_fill_(b, 3.0)
    return (a, v * 2)
