"""The fill value of `full` went through libtorch's C interface as a double, which wraps around in no integer dtype."""

import torch

NUMERICS, GRADIENTS = "default", False


def first():
    return (torch.tensor([1, 2], dtype=torch.int8),)


def second():
    return (torch.tensor([-1, 2], dtype=torch.int8),)


def program(b):
    return torch.full((2,), -1, dtype=torch.uint8), torch.full((2,), -255, dtype=torch.uint8) + b
