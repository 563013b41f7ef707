"""Eager's gradient of `hardsigmoid` has a sixth of float32 in it, in float64 too."""

import torch

GRADIENTS = True


def first():
    return (torch.tensor([0.5, -2.0, 7.0], dtype=torch.float64).data.requires_grad_(),)


def program(a):
    return (torch.nn.functional.hardsigmoid(a),)
