"""A copy that is returned keeps what it held when a library call writes to the original."""

import torch


def first():
    return (torch.tensor([1.0, 2.0]),)


def program(a):
    v0 = a + 1
    v1 = v0.clone()
    v0.index_reduce_(0, torch.tensor([0]), torch.tensor([5.0]), "prod")
    return (v1, v0)
