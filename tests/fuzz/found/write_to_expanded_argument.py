"""An argument whose elements are one place in memory is written as eager does: once for all."""

import torch


def first():
    return (torch.arange(5.0).as_strided((1, 4, 3), (3, 0, 1)),)


def program(a):
    v = a.select(2, 0)
    v.view(-1)[0] = 0.5
    return (a, v * 2)
