"""Products of matrices group by group: type rule, reference, torch's calls, and those of transformers."""

from __future__ import annotations

import pytest
import torch

import graphc
from graphc.settings import override
from tests.ops.core import check, random, refuses
from tests.ops.imports import CheckRules
from tests.support import assert_contract
from tests.triton.grouped import CASES, exact, grouped

ENDS = torch.tensor([3, 3, 8], dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_both_forms(dtype: torch.dtype) -> None:
    check("grouped_matmul", random((8, 16), dtype), random((3, 16, 24), dtype, seed=1), ENDS)
    check("grouped_matmul", random((8, 16), dtype).t(), random((8, 24), dtype, seed=1), ENDS)


def test_type_rule_refuses() -> None:
    a, b = random((8, 16)), random((3, 16, 24))
    refuses("grouped_matmul: .* has rows of 16, .* columns of 24", "grouped_matmul", a, b.mT.contiguous(), ENDS)
    refuses("grouped_matmul: .* does not say where the groups", "grouped_matmul", a, b, ENDS[:2])
    refuses("grouped_matmul: multiplies no", "grouped_matmul", b, a, ENDS)
    refuses("grouped_matmul: multiplies no", "grouped_matmul", a, b, ENDS.long())
    refuses("grouped_matmul: .* does not say to which group", "grouped_matmul", a, b, ENDS, ENDS.long())
    refuses("grouped_matmul: .* differ in dtype", "grouped_matmul", a, b.double(), ENDS)


def test_calls_are_imported() -> None:
    a, b, c = random((8, 16)), random((3, 16, 24)), random((8, 24))
    with CheckRules() as mode:
        torch._grouped_mm(a, b, offs=ENDS)
        torch._grouped_mm(a, b.mT.contiguous().mT, offs=ENDS)
        torch._grouped_mm(a.t(), c, offs=ENDS)
    assert not mode.mistakes and mode.used["aten._grouped_mm.default"] == 3
    with CheckRules() as mode:
        torch._grouped_mm(b, b.mT)  # no groups
    assert mode.declined["aten._grouped_mm.default"] == 1


def test_a_mixture_of_experts_of_transformers() -> None:
    pytest.importorskip("transformers.integrations.moe")
    a, b, c = random((8, 16)), random((3, 16, 24)), random((8, 24))
    call = torch.ops.transformers
    with CheckRules() as mode:
        call.grouped_mm_fallback(a, b, ENDS.long())
        call.grouped_mm_fallback(a, b, ENDS)
        call.grouped_mm_fallback_backward(a, b, ENDS, c)
        call.grouped_mm_fallback_backward(a, b.mT.contiguous().mT, ENDS, c)
    used = {name: count for name, count in mode.used.items() if name.startswith("transformers")}
    name = "transformers.grouped_mm_fallback"
    assert not mode.mistakes and used == {f"{name}.default": 2, f"{name}_backward.default": 2}
    with CheckRules() as mode:
        call.grouped_mm_fallback(a[:, :5], b[:, :5], ENDS)  # fine
        call.grouped_mm_fallback(a[:, :5].contiguous(), b[:, :5], ENDS)  # rows that the library does not take
    assert not mode.mistakes and mode.declined["transformers.grouped_mm_fallback.default"] == 1


@pytest.mark.parametrize("name", ["experts", "gradients", "slots"])
def test_a_program_for_the_cpu(name: str) -> None:
    """The product is a library call per expert, which the native program makes itself."""
    case = CASES[name]
    inputs = case.inputs(torch.float32)
    with override(cache=False):
        compiled = graphc.compile(grouped(case), backend="c")
        found = compiled(*inputs)
    true = case.function(exact, *(x.double() if x.is_floating_point() else x for x in inputs))
    theirs = grouped(case)(*inputs)
    for mine, eager, reference in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, theirs, true))):
        assert_contract(mine, eager, reference)
    graph = compiled.graph(*inputs, stage="optimized")
    assert sum(op.name == "grouped_matmul" for op in graph.ops) == case.kernels


def test_strides_that_eager_refuses_are_refused() -> None:
    a, b = random((8, 5)), random((3, 5, 24))
    with pytest.raises(RuntimeError, match="multiple of 16 bytes"):
        graphc.compile(lambda a, b, ends: torch._grouped_mm(a, b, offs=ends), backend="c")(a, b, ENDS)
