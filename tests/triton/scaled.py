"""Programs around products of 8-bit floats, for the tests of templates."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import graphc
from graphc.passes.base import PassContext
from graphc.passes.pipeline import optimize
from graphc.passes.plan import make_plan
from graphc.passes.templates import Templates
from graphc.program.plan import Plan

E4, E5 = torch.float8_e4m3fn, torch.float8_e5m2


def by_matrix(x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.silu(torch._scaled_mm(x, w.t(), a[0, 0], b[0, 0], bias=bias, out_dtype=torch.bfloat16))


def by_row(x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch._scaled_mm(x, w.t(), a, b.t(), out_dtype=torch.bfloat16) + bias


def inputs(rows: int, inner: int, columns: int, left: torch.dtype = E4, right: torch.dtype = E4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, w = (torch.randn(size, inner, generator=generator) for size in (rows, columns))
    a, b = (torch.rand(size, 1, generator=generator) for size in (rows, columns))
    return [x.to(left), w.to(right), a, b, torch.randn(columns, generator=generator).bfloat16()]


def plan_of(function: object, given: list[torch.Tensor], templates: Templates) -> Plan:
    graph = graphc.trace(function, *given)  # type: ignore[arg-type]
    optimize(graph, PassContext(target="gpu", templates=templates))
    return make_plan(graph, backend="triton", templates=templates)
