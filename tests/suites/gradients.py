"""Backward passes of samples: results, and gradients by random cotangents, inside a compiled function or outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from graphc.frontend import tree


def differentiable(value: Any) -> list[torch.Tensor]:
    """The tensors of a nested structure that autograd goes through, in order."""
    return [leaf for leaf in tree.flatten(value)[0] if isinstance(leaf, torch.Tensor) and leaf.requires_grad]


def cotangents(results: Any) -> list[torch.Tensor]:
    """Random ones for each result that can be differentiated, from torch's generator."""
    return [torch.randn_like(result.detach()) for result in differentiable(results)]


def with_gradients(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of (args, places, cotangents) that gives results and the gradients of the leaves at `places` of args.

    Args are plain tensors: what is differentiated is made inside, as in a whole step.
    """

    def step(args: tuple[Any, ...], places: Sequence[int], given: Sequence[torch.Tensor]) -> Any:
        leaves, node = tree.flatten(args)
        for place in places:
            leaves[place] = leaves[place].detach().requires_grad_()
        results = fn(*tree.rebuild(node, iter(leaves)))
        torch.autograd.backward(differentiable(results), list(given))
        return _detached(results), [leaves[place].grad for place in places]

    return step


def backward_outside(given: Sequence[torch.Tensor]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Around a function of leaves, compiled or not: its results, and the `.grad` that a backward pass leaves behind.

    Args:
        given: cotangents of the results that can be differentiated.
    """

    def around(fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            wanted = differentiable(args)
            if isinstance(fn, torch.nn.Module):
                wanted += [parameter for parameter in fn.parameters() if parameter.requires_grad]
            results = fn(*args)
            differentiated = differentiable(results)
            seeds = [seed.to(result.dtype) for seed, result in zip(given, differentiated, strict=True)]
            torch.autograd.backward(differentiated, seeds)
            return _detached(results), [leaf.grad for leaf in wanted]

        return call

    return around


def _detached(results: Any) -> Any:
    leaves, node = tree.flatten(results)
    return tree.rebuild(node, iter([leaf.detach() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]))
