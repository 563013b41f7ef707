"""Arguments that are only read may overlap, whatever else is written."""

import torch


def first():
    s = torch.arange(8.0)
    return s[:6], s[3:], torch.ones(6)


def program(a, b, c):
    c.sub_(a)
    return (a.sum() + b.sum(),)
