"""Cuts a failing program down to the smallest one that still fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.fuzz.generate import fits
from tests.fuzz.program import Inputs, Program, Storage, View

TRIES = 200


def shrink(program: Program, still: Callable[[Program], bool], tries: int = TRIES) -> Program:
    """The smallest program found.

    Args:
        program: one that fails.
        still: whether a smaller one fails too; asked only about programs that eager runs.
        tries: most programs to ask about.
    """
    asked = 0
    progress = True
    while progress:
        progress = False
        for smaller in _smaller(program):
            if asked >= tries:
                return program
            if not fits(smaller):
                continue
            asked += 1
            if still(smaller):
                program, progress = smaller, True
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    """Programs with one thing less, the largest things first."""
    for number in reversed(range(len(program.statements) - program.fails)):
        yield replace(program, statements=program.statements[:number] + program.statements[number + 1 :])
    for number in range(len(program.results) if len(program.results) > 1 else 0):
        yield replace(program, results=program.results[:number] + program.results[number + 1 :])
    if program.backward:
        yield replace(program, backward=False)
    if program.numerics != "default":
        yield replace(program, numerics="default")
    if program.calls[0] != program.calls[1]:
        yield replace(program, calls=(program.calls[0], program.calls[0]), resized=False)
    for name in [view.name for view in program.calls[0].views]:
        if len(program.calls[0].views) > 1:
            yield _with_calls(program, lambda call: _without(call, name))
        yield _with_calls(program, lambda call: _changed(call, name, requires_grad=False))
        yield _with_calls(program, lambda call: _plain(call, name))
        yield _with_calls(program, lambda call: _flat(call, name))


def _with_calls(program: Program, change: Callable[[Inputs], Inputs]) -> Program:
    first, second = program.calls
    changed = replace(program, calls=(change(first), change(second)))
    return changed if changed != program else replace(program, statements=("raise ValueError",))


def _without(call: Inputs, name: str) -> Inputs:
    return replace(call, views=tuple(view for view in call.views if view.name != name))


def _changed(call: Inputs, name: str, **facts: object) -> Inputs:
    return replace(call, views=tuple(replace(v, **facts) if v.name == name else v for v in call.views))  # type: ignore


def _plain(call: Inputs, name: str) -> Inputs:
    """An input in memory of its own, of contiguous ones and twos."""
    view = next(view for view in call.views if view.name == name)
    strides, length = [], 1
    for size in reversed(view.shape):
        strides.insert(0, length)
        length *= max(size, 1)
    dtype = call.storages[view.storage].dtype
    values = tuple(
        bool(n % 2) if dtype == "bool" else n % 2 + 1 if "int" in dtype else n % 2 + 1.0 for n in range(length)
    )
    made = View(name, len(call.storages), view.shape, tuple(strides), 0, view.requires_grad)
    if call.storages[view.storage] == Storage(dtype, values):
        return call
    return Inputs((*call.storages, Storage(dtype, values)), tuple(made if v.name == name else v for v in call.views))


def _flat(call: Inputs, name: str) -> Inputs:
    """An input of one dim less."""
    view = next(view for view in call.views if view.name == name)
    return _changed(call, name, shape=view.shape[1:], strides=view.strides[1:])
