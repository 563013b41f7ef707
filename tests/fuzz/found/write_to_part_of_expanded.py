"""Parts of an expanded tensor can be written, and the same number to all of it, as each is one place in memory."""

import torch


def first():
    return (torch.tensor([0.5, 1.5]), torch.arange(4.0))


def program(a, b):
    v = a.expand(3, 2)
    v[1, 0] = 3.0
    w = v.t().reshape(2, 3)
    w[1:, 2:] += 1.0
    u = b[1:3].as_strided((3, 2), (1, 1))
    u[1] *= 2.0
    y = b[3:].expand(5)
    y.fill_(7.0)
    y.fill_(a[0])
    return (a, b, v, u, y)
