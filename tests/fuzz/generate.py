"""Random programs from seeds: what each statement gives is seen in eager while the program is being made."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import torch

from tests.fuzz import calculus, statements
from tests.fuzz.draw import Draw
from tests.fuzz.environments import Environments, Rejected
from tests.fuzz.inputs import draw_inputs
from tests.fuzz.program import Program

LENGTHS = (2, 3, 4, 5, 6, 8, 10)
TRIES = 10
MISFITS = (Rejected, IndexError, RuntimeError, TypeError, ValueError)
"""What a maker raises when the tensors it drew are not of its kind."""


def generate(seed: int, focus: str = "") -> Program:
    """The program of a seed.

    Args:
        seed: decides everything.
        focus: `branches` for programs whose data decide where they go, `memory` for one view and write after the
            other; empty for everything, these among it.
    """
    random = Random(seed)
    kind = random.randrange(100)
    gradients, draws, fails = kind < 35, 35 <= kind < 45, 45 <= kind < 50
    branching = focus == "branches" or (not focus and 50 <= kind < 56)
    memory = focus == "memory" or (not focus and 56 <= kind < 64)
    resized = not random.randrange(6) and not fails
    calls = draw_inputs(random, resized, gradients)
    environments = Environments(calls)
    g = Draw(random, environments, resized)
    makers = _makers(gradients, draws, branching, memory)
    for _ in range(random.choice(LENGTHS)):
        _add(g, makers)
    made = Program(
        seed,
        calls,
        tuple(environments.statements),
        _results(g),
        resized=resized,
        numerics="eager" if draws or not random.randrange(6) else "default",
        branches=branching,
    )
    if fails:
        return _failing(g, made)
    if gradients and random.randrange(3) and environments.backward(made.results):
        return replace(made, backward=True)
    return replace(made, stuck=gradients and not environments.has_gradients(made.results))


def _makers(gradients: bool, draws: bool, branching: bool, memory: bool) -> tuple[tuple[int, statements.Maker], ...]:
    found: list[tuple[int, statements.Maker]] = [
        (80, _assignment(statements.expression)), (8, statements.write), (6, statements.assign), (4, statements.loop),
    ]  # fmt: skip
    if gradients:
        found.append((10, statements.gradient_control))
    if draws:
        found.append((30, _assignment(calculus.random)))
    if memory:
        found += [(120, _assignment(statements.view)), (60, statements.write), (60, statements.assign)]
    if branching:
        found.append((30, statements.branch))
    return tuple(found)


def _assignment(maker: statements.Maker) -> statements.Maker:
    return lambda g: f"{statements.fresh(g)} = {maker(g)}"


def _add(g: Draw, makers: tuple[tuple[int, statements.Maker], ...]) -> None:
    for _ in range(TRIES):
        try:
            g.environments.add(statements.chosen(g, makers)(g))
        except MISFITS:
            continue
        return


def _results(g: Draw) -> tuple[str, ...]:
    names = g.environments.tensors()
    made = [name for name in names if name[0] == "v"] or names
    found = [made[-1], *(g.random.choice(names + made + made[-4:]) for _ in range(g.random.choice((0, 1, 2, 3, 4))))]
    return tuple(dict.fromkeys(found))


def _failing(g: Draw, program: Program) -> Program:
    for _ in range(TRIES):
        statement = statements.failing(g)
        if g.environments.error_of(statement) is not None:
            # what nobody asks for is not computed, and then not refused either
            results = ("r",) if statement.startswith("r = ") else program.results
            return replace(program, statements=(*program.statements, statement), results=results, fails=True)
    return program


def fits(program: Program) -> bool:
    """Whether eager runs a program, and rounding decides nothing in it. Takes one that fails for what it is."""
    try:
        environments = Environments(program.calls)
        for number, statement in enumerate(program.statements):
            if program.fails and number == len(program.statements) - 1:
                return environments.error_of(statement) is not None
            environments.add(statement)
        if not all(isinstance(environments[name], torch.Tensor) for name in program.results):
            return False
        return not program.backward or environments.backward(program.results)
    except (Rejected, KeyError):
        return False
