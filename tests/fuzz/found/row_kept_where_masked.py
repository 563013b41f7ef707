"""What a pass over a row keeps for the next one it computes everywhere, also where a mask hides it from its own sum."""

import torch

GRADIENTS = False


def first():
    return (torch.linspace(-1, 1, 3 * 37).reshape(3, 37),)


def program(a):
    b, place = torch.exp(a), torch.arange(37)
    return b / torch.where(place < 20, b, 0.0).sum(-1, keepdim=True)
