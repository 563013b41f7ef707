"""The gradient of a result that is a view of an argument lies as the operators of the view make it lie."""

import torch

GRADIENTS = True


def first():
    a = torch.arange(16.0).as_strided((1, 1, 4, 4), (4, 16, 4, 1)).data.requires_grad_()
    return (a, torch.arange(16.0).as_strided((1, 2, 1, 4), (1, 4, 7, 1)).data.requires_grad_())


def program(a, b):
    return (a.squeeze(), b.squeeze().chunk(2)[1])
