"""The gradient of a product with a complex number conjugates the number."""

import torch

GRADIENTS = True


def first():
    return (torch.tensor(1.5 + 0.5j).data.requires_grad_(),)


def program(a):
    return (torch.tanh(a) * 1j,)
