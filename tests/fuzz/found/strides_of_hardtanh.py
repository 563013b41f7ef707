"""Operators that fill an `empty_like` of their operand keep its dense strides to the letter, also of dims of size 1."""

import torch
import torch.nn.functional as F


def first():
    return (
        torch.arange(6.0).as_strided((1, 2, 3, 1), (6, 1, 2, 1)),
        torch.arange(4).as_strided((2, 1, 1, 2), (2, 2, 1, 1)),
    )


def program(a, b):
    return (F.hardtanh(a), F.relu6(b), a.nan_to_num(), F.huber_loss(a, a + 1, reduction="none"), F.huber_loss(a, a))
