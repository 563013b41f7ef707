"""Layouts that values take from their neighbours."""

from __future__ import annotations

from graphc.ir.parser import parse
from graphc.passes.base import PassContext
from graphc.passes.carry_layout import CarryLayout

LAST = "strides=[1296, 1, 144, 16]"
GRAPH = f"""
graph residual(
    %x: bf16[8, 16, 9, 9] arg "x" {LAST},
    %y: f32[8, 16, 9, 9] arg "y" {LAST},
    %z: f32[8, 16, 9, 9] arg "z"
) {{
  %0: f32[8, 16, 9, 9] = cast(%x) {{dtype=f32}}
  %1: f32[8, 16, 9, 9] = add(%0, %y)
  %2: f32[8, 16, 9, 9] {LAST} = abs(%1)
  %3: f32[8, 16, 9, 9] = add(%1, %z)
  %4: f32[8, 16, 9, 9] = mul(%1, 2.0)
  return %2, %3, %4
}}
"""


def layouts(target: str) -> dict[str, bool]:
    graph = parse(GRAPH)
    CarryLayout().run(graph, PassContext(target=target))
    return {op.result.name: op.result.strides is not None for op in graph.ops}


def test_inner_values_lie_like_their_operands() -> None:
    # %3 has operands of two layouts, and eager's layout of %4 is what the user sees
    assert layouts("gpu") == {"0": True, "1": True, "2": True, "3": False, "4": False}


def test_on_a_cpu_all_stays_as_it_is() -> None:
    assert layouts("cpu") == {"0": False, "1": False, "2": True, "3": False, "4": False}
