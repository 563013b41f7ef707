"""Sums of rows that a label makes zero but at one place, where a great many conditions hold together."""

from __future__ import annotations

from graphc.ir import parse
from graphc.passes.one_hot import ShrinkOneHots
from graphc.passes.pipeline import PassContext, run_pass

MANY = 3000


def test_conditions_beyond_the_depth_of_the_stack() -> None:
    lines = ['graph f(%y: i64[6, 1] arg "y", %m: bool[6, 1] arg "m", %x: f32[6, 1] arg "x") {']
    lines.append('  %0: i64[40] = iota() {size=40, start=0, step=1, dtype=i64, device="cpu"}')
    lines.append("  %1: bool[6, 40] = eq(%y, %0)")
    lines += [f"  %{number}: bool[6, 40] = logical_and(%{number - 1}, %m)" for number in range(2, MANY)]
    lines.append(f"  %{MANY}: bool[6, 40] = logical_and(%{MANY - 1}, %{MANY - 1})")
    lines.append(f"  %{MANY + 1}: f32[6, 40] = where(%{MANY}, %x, 0.0)")
    lines.append(f"  %{MANY + 2}: f32[6] = sum(%{MANY + 1}) {{dims=[1], keepdim=False}}")
    graph = parse("\n".join([*lines, f"  return %{MANY + 2}", "}"]))
    run_pass(ShrinkOneHots(), graph, PassContext())
    assert "sum(" not in str(graph)
