"""A view that requires grad, at a place that data decide, cannot be made again after a run."""

import torch

GRADIENTS = True


def first():
    return torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True), torch.tensor(1)


def program(a, b):
    return (a[b],)


def backward(results):
    torch.autograd.backward(results, [torch.ones(2)])
