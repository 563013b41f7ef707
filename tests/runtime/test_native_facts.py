"""Facts checked by native code: what holds, what does not, and where it must be left to Python."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graphc.ir.types import f32
from graphc.program.facts import EntryFact, FactCheck, TensorFact
from graphc.runtime import tensors as runtime_tensors
from graphc.runtime.library import key_set_offset, tensor_offset, type_offset
from graphc.runtime.native_facts import guard_library, native_check
from tests.runtime.plans import PlanBuilder, load

COPY = """static void copy(const float *x, float *y) {
  for (int i = 0; i < 4; i++) y[i] = x[i];
}
"""


class Small:
    """What programs do that have no C text of their own."""

    def fact_check(self, entries: Sequence[EntryFact], tensors: Sequence[TensorFact]) -> FactCheck | None:
        library = guard_library()
        assert library is not None
        return native_check(library, entries, tensors)


@pytest.fixture(scope="module", params=["its own", "a small library"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "a small library":
        return Small()
    builder = PlanBuilder()
    out = builder.output(f32, (4,))
    builder.kernel("copy", COPY, builder.input(torch.empty(4)), out)
    builder.returns(out)
    folder: Path = tmp_path_factory.mktemp("facts")
    return load(builder.program(), folder)


def fact(tensor: torch.Tensor, argument: bool = False, requires_grad: bool | None = None) -> TensorFact:
    keys = torch._C._dispatch_keys(tensor).raw_repr()
    shape, strides = tuple(tensor.shape), tensor.stride()
    held = None if argument else tensor
    return TensorFact(held, type(tensor), keys, tensor.dtype, tensor.device, shape, strides, requires_grad)


def checked(program: Any, entries: list[EntryFact], tensors: list[TensorFact]) -> FactCheck:
    found = program.fact_check(entries, tensors)
    assert found is not None
    return found


def test_where_things_are_is_known_here() -> None:
    assert None not in (type_offset(), tensor_offset(), key_set_offset())


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_entries(program: Any, kind: type) -> None:
    """Any order of facts, whatever happens to the order of the table."""
    items = {name: object() for name in "abcdef"}
    table, other = kind(items), {"x": None}
    facts = [EntryFact(table, name, items[name]) for name in "fbad"]
    holds = checked(program, [facts[0], EntryFact(other, "x", None), *facts[1:]], [])
    assert holds(()) == 1
    table["c"] = object()  # nothing was said about it
    assert holds(()) == 1
    for name in "abdf":
        table[name] = object()
        assert holds(()) == 0
        del table[name]
        assert holds(()) == 0
        table[name] = items[name]  # now it is the last one
        assert holds(()) == 1
    table["new"] = object()
    assert holds(()) == 1
    other["x"] = False
    assert holds(()) == 0
    other["x"] = None
    table.clear()
    assert holds(()) == 0


def test_contradicting_entries_never_hold(program: Any) -> None:
    table = {"a": True}
    for first, second in ((True, False), (False, True)):
        assert checked(program, [EntryFact(table, "a", first), EntryFact(table, "a", second)], [])(()) == 0


def test_equal_keys_that_are_other_objects(program: Any) -> None:
    key = "".join(["we", "ight"])
    assert checked(program, [EntryFact({"weight": 1}, key, 1)], [])(()) == 1
    assert checked(program, [EntryFact({}, key, 1)], [])(()) == 0


def test_requires_grad_only_where_it_matters(program: Any) -> None:
    tensor = torch.ones(2)
    minds = checked(program, [], [fact(tensor, requires_grad=False)])
    ignores = checked(program, [], [fact(tensor)])
    assert (minds(()), ignores(())) == (1, 1)
    tensor.requires_grad_()
    assert (minds(()), ignores(())) == (0, 1)
    assert checked(program, [], [fact(tensor * 1, argument=True, requires_grad=True)])((tensor * 2,)) == 1


def test_ranks_and_dtypes(program: Any) -> None:
    samples = [torch.ones(()), torch.ones(0), torch.ones(2, 3), torch.ones(2, 3, 1, 1, 1, 1, 2), torch.ones(2, 3).t()]
    samples += [torch.ones(2, dtype=dtype) for dtype in (torch.bool, torch.int64, torch.bfloat16, torch.complex128)]
    for number, one in enumerate(samples):
        holds = checked(program, [], [fact(one, argument=True)])
        assert [holds((torch.empty_like(other),)) for other in samples] == [
            int(number == index) for index in range(len(samples))
        ]


def test_devices(program: Any) -> None:
    here, elsewhere = torch.ones(2), torch.empty(2, device="meta")
    for one, wanted in ((here, (1, 0)), (elsewhere, (0, 1))):
        holds = checked(program, [], [fact(one, argument=True)])
        assert (holds((here.clone(),)), holds((elsewhere.clone(),))) == wanted
    numbered = replace(fact(here, argument=True), device=torch.device("cpu", 1))  # the CPU's tensors have no number
    assert checked(program, [], [numbered])((here.clone(),)) == 0


def test_a_tensor_may_be_given_once(program: Any) -> None:
    held = torch.ones(2)
    holds = checked(program, [], [fact(held, argument=True), fact(held, argument=True), fact(held)])
    one, two = torch.ones(2), torch.ones(2)
    assert holds((one, two)) == 1
    assert (holds((one, one)), holds((held, two)), holds((one, held))) == (0, 0, 0)


def test_other_objects_are_not_taken_for_tensors(program: Any) -> None:
    holds = checked(program, [], [fact(torch.ones(2), argument=True)])
    for other in (1.0, None, object(), "tensor", torch.nn.Parameter(torch.ones(2)), torch.ones(2).to_sparse()):
        assert holds((other,)) == 0


def test_what_is_left_to_python(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [fact(torch.ones(1), argument=True) for _ in range(65)]
    assert program.fact_check([], many[:64]) is not None
    assert program.fact_check([], many) is None
    for name in ("type_offset", "tensor_offset", "key_set_offset"):
        with monkeypatch.context() as patch:
            patch.setattr(f"graphc.runtime.native_facts.{name}", lambda: None)
            assert program.fact_check([], []) is None


def test_fresh_memory_without_the_quick_function(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (runtime_tensors.empty_strided, _slow_empty_strided(monkeypatch)):
        tensor = make((2, 3), (1, 2), torch.int32)
        assert (tensor.shape, tensor.stride(), tensor.dtype) == ((2, 3), (1, 2), torch.int32)


def _slow_empty_strided(monkeypatch: pytest.MonkeyPatch) -> runtime_tensors.EmptyStrided:
    with monkeypatch.context() as patch:
        patch.delattr(torch._C._dynamo.guards, "_empty_strided_cpu")
        slow = runtime_tensors._empty_strided()
    assert slow is not runtime_tensors.empty_strided
    return slow
