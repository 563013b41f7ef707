"""Data decide where in memory one result lies, and another one has a gradient."""

import torch


def first():
    return (torch.arange(3.0), torch.ones(1).data.requires_grad_(), torch.tensor(1))


def second():
    return (torch.arange(3.0), torch.ones(1).data.requires_grad_(), torch.tensor(2))


def program(a, b, c):
    return (b.sin(), a[c])
