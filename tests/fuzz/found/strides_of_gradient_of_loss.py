"""Gradients of losses by distance are contiguous whatever they are of; that of `logsigmoid` lies as what comes in."""

import torch
import torch.nn.functional as F


def first():
    return (torch.arange(12.0).reshape(3, 4).t().requires_grad_(),)


def program(a):
    b = a.detach() + 1
    losses = F.smooth_l1_loss(a, b), F.mse_loss(a, b), F.huber_loss(a, b), F.logsigmoid(a).sum()
    return [torch.autograd.grad(loss, a)[0] for loss in losses]
