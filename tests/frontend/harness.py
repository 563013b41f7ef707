"""Capture a call, run its graph with the interpreter, and compare everything a user could see with eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from graphc.frontend import tree
from graphc.frontend.capture import capture
from graphc.frontend.captured import Captured
from graphc.ir.interpreter import run
from graphc.ir.parser import parse
from graphc.ir.verifier import verify


def check(fn: Callable[..., Any], *args: Any, calls: int = 2, exact: bool = False, **kwargs: Any) -> Captured:
    """Assert that the captured program does what eager does, on several calls in a row.

    Compared: results (values, dtypes, strides, nesting), which results share memory with arguments and each other, and
    the contents of arguments and of the function's own tensors afterwards.
    """
    eager_fn, eager_args, eager_kwargs = copy.deepcopy((fn, args, kwargs))
    captured = capture(fn, args, kwargs)
    verify(captured.graph)
    assert parse(str(captured.graph)) == captured.graph
    for _ in range(calls):
        expected = eager_fn(*eager_args, **eager_kwargs)
        actual = call(captured, *args, **kwargs)
        compare(actual, expected, exact)
        compare((args, kwargs, state(fn)), (eager_args, eager_kwargs, state(eager_fn)), exact)
        assert sharing((actual, args, kwargs)) == sharing((expected, eager_args, eager_kwargs))
        kept = identities(actual, (args, kwargs, state(fn)))
        assert kept == identities(expected, (eager_args, eager_kwargs, state(eager_fn)))
    return captured


def call(captured: Captured, *args: Any, **kwargs: Any) -> Any:
    """One call of the captured program."""
    inputs = captured.match(args, kwargs)
    assert inputs is not None, captured.explain_miss(args, kwargs)
    return captured.rebuild(run(captured.graph, inputs), inputs, (args, kwargs))


def state(fn: Any) -> list[torch.Tensor]:
    """Parameters and buffers of a module or of a method's module."""
    owner = fn if isinstance(fn, torch.nn.Module) else getattr(fn, "__self__", None)
    if not isinstance(owner, torch.nn.Module):
        return []
    return [*owner.parameters(), *owner.buffers()]


def compare(actual: Any, expected: Any, exact: bool) -> None:
    """Equal structure and leaves; tensors equal in everything but memory."""
    ours, our_node = tree.flatten(actual)
    theirs, their_node = tree.flatten(expected)
    assert our_node == their_node
    for mine, other in zip(ours, theirs, strict=True):
        if not isinstance(other, torch.Tensor):
            if not isinstance(other, torch.nn.Module) and "object at" not in repr(other):
                assert type(mine) is type(other)
                assert mine == other or (mine != mine and other != other)
            continue
        assert isinstance(mine, torch.Tensor)
        assert (mine.shape, mine.dtype, mine.device) == (other.shape, other.dtype, other.device)
        assert mine.stride() == other.stride(), f"strides {mine.stride()}, eager {other.stride()}"
        if exact or not other.dtype.is_floating_point:
            torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)
        else:
            torch.testing.assert_close(mine, other, equal_nan=True)


def sharing(value: Any) -> list[tuple[int, int]]:
    """Pairs of leaves that lie in one storage."""
    leaves = [leaf for leaf in tree.flatten(value)[0] if isinstance(leaf, torch.Tensor)]
    keys = [leaf.untyped_storage()._cdata for leaf in leaves]
    return [(i, j) for i in range(len(keys)) for j in range(i) if keys[i] == keys[j]]


def identities(result: Any, given: Any) -> list[tuple[int, int]]:
    """Which result leaves are the very tensors given."""
    results, tensors = tree.flatten(result)[0], tree.flatten(given)[0]
    return [
        (i, j) for i, r in enumerate(results) for j, t in enumerate(tensors) if r is t and isinstance(r, torch.Tensor)
    ]
