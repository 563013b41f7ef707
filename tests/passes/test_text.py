"""Runs the text tests of this folder: structure by FileCheck-like lines, meaning by the interpreter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from graphc.ir import Graph, Location, parse, run, verify
from graphc.passes.base import PassContext
from graphc.passes.pipeline import ADD_UP, BOUND, CLEAN_UP, LABELS, LAY_OUT, PREPARE, REGROUP, ROLL, ROUND, run_pass
from graphc.passes.row_chunks import ChunkRows
from graphc.passes.templates import ALWAYS, NEVER, Templates
from graphc.settings import Settings
from tests.filecheck import Case, check, load
from tests.strategies import random_inputs
from tests.support import assert_contract

PASSES = {
    item.name: item
    for item in (*ROLL, *PREPARE, *CLEAN_UP, *REGROUP, *LABELS, *ADD_UP, *ROUND, *BOUND, *LAY_OUT, ChunkRows(rows=2))
}
CASES = [case for path in sorted(Path(__file__).parent.glob("*.ir")) for case in load(path)]
CONTEXT = PassContext(settings=Settings(verify_passes=True))
GPU = replace(CONTEXT, target="gpu", templates=Templates(policy=ALWAYS))
CALLS = replace(GPU, templates=Templates(policy=NEVER, libraries={"cpu": ("cpu",)}))
ON_GPU = {
    "find-attention": CALLS,
    "bound-masks": GPU,
    "carry-layout": GPU,
    "pad-rows": GPU,
    "convolutions-as-products": GPU,
    "name-groups-of-rows": GPU,
}  # passes that do nothing for a CPU


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    graph = parse(case.text)
    verify(graph)
    _locate(graph)
    assert case.passes, "no RUN line"
    for name in case.passes:
        run_pass(PASSES[name], graph, ON_GPU.get(name, CONTEXT))
    check(_without_locations(graph), case.checks)
    _check_locations(graph)
    for seed in (0, 1):
        _compare(case, graph, seed)


def _locate(graph: Graph) -> None:
    for number, op in enumerate(graph.ops):
        op.location = Location("case.py", number + 1, "f")
        for body in op.attrs.values():
            if isinstance(body, Graph):
                _locate(body)


def _check_locations(graph: Graph) -> None:
    lost = [op for op in graph.ops if op.location.file != "case.py"]
    assert not lost, f"ops without a location: {lost}"


def _without_locations(graph: Graph) -> str:
    copy = parse(str(graph))
    _forget_locations(copy)
    return str(copy)


def _forget_locations(graph: Graph) -> None:
    for op in graph.ops:
        op.location = Location()
        for body in op.attrs.values():
            if isinstance(body, Graph):
                _forget_locations(body)


def _compare(case: Case, after: Graph, seed: int) -> None:
    before = parse(case.text)
    inputs = random_inputs(before, seed, specials=not case.close)
    ours, theirs = [item.clone() for item in inputs], [item.clone() for item in inputs]
    torch.manual_seed(seed)
    expected = run(before, theirs)
    torch.manual_seed(seed)
    actual = run(after, ours)
    exact = _in_double(case, inputs) if case.close else [None] * (len(expected) + len(inputs))
    for left, right, reference in zip([*actual, *ours], [*expected, *theirs], exact, strict=True):
        assert left.stride() == right.stride()
        if case.close:
            assert_contract(left, right, reference)
        else:
            assert _bits(left) == _bits(right)
    assert _sharing(actual, ours) == _sharing(expected, theirs)


def _in_double(case: Case, inputs: list[torch.Tensor]) -> list[torch.Tensor | None]:
    text = case.text
    for name in ("bf16", "f32"):
        text = text.replace(f"{name}[", "f64[").replace(f"dtype={name}", "dtype=f64")
    wide = [item.double() if item.dtype.is_floating_point else item.clone() for item in inputs]
    return [*run(parse(text), wide), *wide]


def _bits(tensor: torch.Tensor) -> list[object]:
    """All elements, in a form in which NaNs are equal and zeros of other sign are not."""
    return [repr(item) for item in tensor.double().flatten().tolist()]


def _sharing(outputs: list[torch.Tensor], inputs: list[torch.Tensor]) -> list[int]:
    """For each output the first of inputs and outputs that lives in the same storage."""
    pointers = [item.untyped_storage().data_ptr() for item in (*inputs, *outputs)]
    return [pointers.index(pointer) if pointer else -1 for pointer in pointers]


def test_every_pass_has_cases() -> None:
    used = {name for case in CASES for name in case.passes}
    assert used == set(PASSES)
    for path in Path(__file__).parent.glob("*.ir"):
        assert len(load(path)) >= 4, path
