"""Programs around products of matrices group by group, for the tests of templates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

import graphc
from graphc.passes.base import PassContext
from graphc.passes.pipeline import optimize
from graphc.passes.plan import make_plan
from graphc.passes.templates import ALWAYS, Templates
from graphc.program.plan import Plan


@dataclass(frozen=True)
class Case:
    """A function of matrices and the ends of groups, which come last.

    Args:
        function: of tensors.
        shapes: of all but the ends.
        ends: of groups of rows.
        kernels: kernels that hold a product when every product is a template.
    """

    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    kernels: int = 1

    def inputs(self, dtype: torch.dtype) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(5)
        found = [torch.randn(shape, generator=generator).to(dtype) for shape in self.shapes]
        return [*found, torch.tensor(self.ends, dtype=torch.int32)]


def exact(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """`torch._grouped_mm` in any dtype, zeros where that leaves memory as it finds it."""
    bounds = list(zip([0, *ends.tolist()], ends.tolist()))
    if b.ndim == 2:
        return torch.stack([a[:, start:end] @ b[start:end] for start, end in bounds])
    result = a.new_zeros(a.shape[0], b.shape[2])
    for matrix, (start, end) in zip(b, bounds):
        result = torch.cat([result[:start], a[start:end] @ matrix, result[end:]])
    return result


def _plain(product: Callable[..., torch.Tensor], a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return product(a, b, ends)


def _slots(
    product: Callable[..., torch.Tensor], a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """A row's operand and its result are scaled, as by a router, and go through an activation."""
    return F.silu(product(torch.relu(a), b, ends)) * scale


def _turned(product: Callable[..., torch.Tensor], a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return product(a, b.mT, ends) + 1


def _sums(product: Callable[..., torch.Tensor], a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return product(a.mT, torch.relu(b), ends) * 2


def _experts(
    product: Callable[..., torch.Tensor], x: torch.Tensor, up: torch.Tensor, down: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    gate, value = product(x, up, ends).chunk(2, -1)
    return product(F.silu(gate) * value, down, ends)


def _gradients(
    product: Callable[..., torch.Tensor], a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, ends: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    inputs = [item.detach().requires_grad_() for item in (a, b)]
    result = product(*inputs, ends)
    return result.detach(), *torch.autograd.grad(result, inputs, c)


CASES: dict[str, Case] = {
    "plain": Case(_plain, ((40, 24), (3, 24, 16)), (13, 30, 40)),
    "borders of blocks": Case(_plain, ((64, 16), (4, 16, 8)), (16, 32, 48, 64)),
    "empty groups": Case(_plain, ((40, 24), (5, 24, 16)), (0, 13, 13, 40, 40)),
    "one group": Case(_plain, ((24, 24), (1, 24, 16)), (24,)),
    "a row each": Case(_plain, ((8, 16), (8, 16, 16)), tuple(range(1, 9))),
    "rows behind the last group": Case(_plain, ((40, 24), (3, 24, 16)), (5, 9, 20)),
    "no rows at all": Case(_plain, ((40, 24), (3, 24, 16)), (0, 0, 0)),
    "slots": Case(_slots, ((40, 24), (3, 24, 16), (40, 1)), (13, 30, 40)),
    "transposed": Case(_turned, ((40, 24), (3, 16, 24)), (13, 30, 40)),
    "sums": Case(_sums, ((40, 24), (40, 16)), (13, 13, 40)),
    "sums without the last rows": Case(_sums, ((70, 24), (70, 16)), (1, 33, 64)),
    "experts": Case(_experts, ((40, 16), (3, 16, 64), (3, 32, 24)), (13, 30, 40), 2),
    "gradients": Case(_gradients, ((40, 24), (3, 24, 16), (40, 16)), (13, 30, 40), 3),
}


def grouped(case: Case) -> Callable[..., Any]:
    """The case with torch's product."""

    def run(*args: torch.Tensor) -> Any:
        return case.function(lambda a, b, ends: torch._grouped_mm(a, b, offs=ends), *args)

    return run


def plan_of(case: Case, dtype: torch.dtype, templates: Templates | None = None) -> Plan:
    """The plan with every product a template, or as the policy says."""
    found = templates or Templates(policy=ALWAYS)
    graph = graphc.trace(grouped(case), *case.inputs(dtype))
    optimize(graph, PassContext(target="gpu", templates=found))
    return make_plan(graph, backend="triton", templates=found)


def products(plan: Plan) -> int:
    """Kernels that hold a product."""
    return sum(bool(kernel.contractions) for kernel in plan.kernels.values())
