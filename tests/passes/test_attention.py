"""Attention written by hand as a library call: which forms, which not, and that the numbers are right end to end.

The library is the CPU's here, asked for as that of a GPU would be: the same passes, plans and calls, another overload.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphc import driver
from graphc.ir import Graph, run
from graphc.options import make_options
from graphc.passes.base import PassContext
from graphc.passes.partition import partition
from graphc.passes.pipeline import optimize, prepare_split
from graphc.passes.plan import make_plan
from graphc.passes.templates import ALWAYS, AUTO, NEVER, Templates
from graphc.program.plan import AtenStep, GemmStep
from graphc.settings import Settings
from tests.plan_interpreter import run_plan
from tests.support import assert_contract
from tests.triton.attentions import FORMS, inputs

CPU = {"cpu": ("cpu",)}
TEMPLATES = Templates(policy=NEVER, libraries=CPU)
CONTEXT = PassContext(settings=Settings(verify_passes=True), target="gpu", templates=TEMPLATES)
NONE = float("-inf")
T, Fn = torch.Tensor, Callable[..., torch.Tensor]


def with_gradients(form: Fn) -> Callable[..., tuple[torch.Tensor, ...]]:
    def step(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (x.detach().requires_grad_() for x in args[:3])
        out = form(q, k, v, *args[3:])
        return out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))

    return step


def captured(function: Callable[..., Any], args: tuple[Any, ...]) -> Graph:
    return driver.capture(function, args, {}, make_options(function, backend="triton"), frozenset()).graph


def optimized(function: Callable[..., Any], args: tuple[Any, ...], context: PassContext = CONTEXT) -> Graph:
    graph = captured(function, args)
    optimize(graph, context)
    return graph


def names(graph: Graph) -> list[str]:
    """Of ops that are attention, or parts of it."""
    return [op.name for op in graph.ops if op.name in ("attention", "attention_gradient", "exp", "softmax")]


def heads(*shape: int, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(len(shape))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for _ in range(3))


def tril(q: T, k: T, diagonal: int = 0) -> T:
    return torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(diagonal)


def causal(q: T, k: T, v: T) -> T:
    return (q @ k.mT * 0.2).masked_fill(~tril(q, k), NONE).softmax(-1) @ v


def added_mask(q: T, k: T, v: T) -> T:
    hidden = torch.full((q.shape[-2], k.shape[-2]), NONE, dtype=q.dtype).triu(1)
    return F.softmax(q @ k.mT / 3 + hidden, -1) @ v


def from_arange(q: T, k: T, v: T) -> T:
    place = torch.arange(q.shape[-2])
    return torch.where(place[:, None] >= place, q @ k.mT * 0.3, NONE).softmax(-1) @ v


def cut_from_larger(q: T, k: T, v: T) -> T:
    mask = torch.tril(torch.ones(1, 1, 64, 64))[:, :, : q.shape[-2], : k.shape[-2]]
    return (q @ k.mT * 0.3).masked_fill(mask == 0, torch.finfo(q.dtype).min).softmax(-1) @ v


def scaled_query(q: T, k: T, v: T) -> T:
    return ((q * 0.25) @ k.mT).softmax(-1) @ v


def scaled_behind_mask(q: T, k: T, v: T) -> T:
    return ((q @ k.mT).masked_fill(~tril(q, k), NONE) * 0.25).softmax(-1) @ v


def heads_in_the_middle(q: T, k: T, v: T) -> T:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, S, H, D), as projections give them
    return causal(q, k, v).transpose(1, 2).flatten(2)


def under_autocast(q: T, k: T, v: T) -> T:
    with torch.autocast("cpu", torch.bfloat16):
        return F.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


def safe(q: T, k: T, v: T) -> T:
    return torch.ops.aten._safe_softmax(q @ k.mT * 0.3, -1) @ v


TAKEN: dict[str, Fn] = {
    "plain": FORMS["plain"][0], "causal": FORMS["causal"][0], "einsum": FORMS["einsum"][0],
    "softmax in f32": FORMS["softmax in f32"][0], "grouped": FORMS["grouped"][0], "added mask": added_mask,
    "from arange": from_arange, "cut from larger": cut_from_larger, "scaled query": scaled_query,
    "scaled behind mask": scaled_behind_mask, "heads in the middle": heads_in_the_middle, "autocast": under_autocast,
    "safe": safe, "no scale": lambda q, k, v: (q @ k.mT).softmax(-1) @ v,
}  # fmt: skip


OF_HEADS = ("grouped", "heads in the middle", "cut from larger", "einsum")


@pytest.mark.parametrize("name, rank", [(n, rank) for n in TAKEN for rank in ((4,) if n in OF_HEADS else (2, 3, 4))])
def test_forms_that_people_write(name: str, rank: int) -> None:
    args = heads(*(2, 3, 16, 16)[4 - rank :]) if name != "heads in the middle" else heads(2, 16, 3, 16)
    step = with_gradients(TAKEN[name])
    graph = optimized(step, args)
    assert names(graph) == ["attention", "attention_gradient"]
    plan = make_plan(graph, backend="triton", templates=TEMPLATES)
    assert not any(isinstance(item, GemmStep) for item in plan.steps)
    found = run_plan(plan, list(args))
    exact = step(*(x.double() for x in args)) if name != "autocast" else _without_autocast(args)
    for mine, theirs, true in zip(found, step(*args), exact, strict=True):
        assert mine.stride() == theirs.stride()
        assert_contract(mine, theirs, true)


def _without_autocast(args: tuple[T, ...]) -> tuple[T, ...]:
    return with_gradients(TAKEN["plain"])(*(x.double() for x in args))


@pytest.mark.parametrize("name", ["plain", "causal"])
def test_inference_is_one_call(name: str) -> None:
    args = heads(2, 3, 16, 16, dtype=torch.float16)
    graph = optimized(TAKEN[name], args)
    assert names(graph) == ["attention"]
    plan = make_plan(graph, backend="triton", templates=TEMPLATES)
    (step,) = plan.steps
    assert isinstance(step, AtenStep) and step.outs[1] == -1  # nobody needs the sums
    (found,) = run_plan(plan, list(args))
    assert_contract(found, TAKEN[name](*args), TAKEN[name](*(x.double() for x in args)))


def shifted(q: T, k: T, v: T) -> T:
    return (q @ k.mT).masked_fill(~tril(q, k, 1), NONE).softmax(-1) @ v


def hides_itself(q: T, k: T, v: T) -> T:
    return (q @ k.mT).masked_fill(~tril(q, k, -1), NONE).softmax(-1) @ v


def hides_what_is_past(q: T, k: T, v: T) -> T:
    return (q @ k.mT).masked_fill(tril(q, k, -1), NONE).softmax(-1) @ v


def prefix(q: T, k: T, v: T) -> T:
    seen = tril(q, k) | (torch.arange(k.shape[-2]) < 2)
    return (q @ k.mT).masked_fill(~seen, NONE).softmax(-1) @ v


def mildly_hidden(q: T, k: T, v: T) -> T:
    return (q @ k.mT).masked_fill(~tril(q, k), -10.0).softmax(-1) @ v


def by_tensor(q: T, k: T, v: T, scale: T) -> T:
    return (q @ k.mT * scale).softmax(-1) @ v


def of_queries(q: T, k: T, v: T) -> T:
    return (q @ k.mT).softmax(-2) @ v


def scores_too(q: T, k: T, v: T) -> T:
    scores = q @ k.mT
    return scores.softmax(-1) @ v + scores.sum()


def turned_round_twice(q: T, k: T, v: T) -> T:
    return ((q @ k.mT * -1.0).masked_fill(~tril(q, k), NONE) * -1.0).softmax(-1) @ v


def shown_by_a_factor(q: T, k: T, v: T) -> T:
    return ((q @ k.mT).masked_fill(~tril(q, k), torch.finfo(q.dtype).min) * 1e-38).softmax(-1) @ v


def negative(q: T, k: T, v: T) -> T:
    return (q @ k.mT * -0.5).softmax(-1) @ v


def sigmoid(q: T, k: T, v: T) -> T:
    return (q @ k.mT).sigmoid() @ v


LEFT: dict[str, tuple[Fn, tuple[T, ...]]] = {
    **{name: (FORMS[name][0], tuple(inputs(name, torch.bfloat16, queries=37, width=16)[3:]))
       for name in ("softcap", "window", "alibi")},
    "causal with a buffer": (FORMS["causal with a buffer"][0], (torch.ones(40, 40).tril(),)),
    "bias": (FORMS["bias"][0], (torch.randn(3, 37, 37).bfloat16(),)),
    **{f.__name__: (f, ()) for f in (shifted, hides_itself, hides_what_is_past, prefix, mildly_hidden, of_queries,
                                    scores_too, negative, sigmoid, turned_round_twice, shown_by_a_factor)},
    "scale by a tensor": (by_tensor, (torch.tensor(0.3, dtype=torch.bfloat16),)),
    "dropout": (lambda q, k, v: F.dropout((q @ k.mT).softmax(-1), 0.4) @ v, ()),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_near_misses_stay_as_they_are(name: str) -> None:
    form, others = LEFT[name]
    args = (*heads(2, 3, 37, 16), *others)
    assert "attention" not in names(optimized(form, args))
    assert "attention" not in names(optimized(with_gradients(form), args))


@pytest.mark.parametrize(
    ("q", "k", "dtype", "form"),
    [
        ((2, 3, 16, 16), (2, 3, 24, 16), torch.bfloat16, causal),  # another alignment of the mask
        ((2, 3, 16, 16), (2, 3, 16, 16), torch.float32, causal),
        ((2, 3, 16, 12), (2, 3, 16, 12), torch.bfloat16, causal),  # no multiple of 8
        ((2, 3, 1, 16), (2, 3, 16, 16), torch.bfloat16, TAKEN["plain"]),  # a product of a row
        ((2, 3, 16, 264), (2, 3, 16, 264), torch.bfloat16, causal),
    ],
)  # fmt: skip
def test_sizes_that_libraries_do_not_take(q: Any, k: Any, dtype: torch.dtype, form: Fn) -> None:
    args = (heads(*q, dtype=dtype)[0], *heads(*k, dtype=dtype)[1:])
    assert "attention" not in names(optimized(form, args))


def test_more_keys_than_queries_without_a_mask() -> None:
    args = (heads(2, 3, 16, 16)[0], *heads(2, 3, 24, 16)[1:])
    assert names(optimized(with_gradients(TAKEN["plain"]), args)) == ["attention", "attention_gradient"]


def test_weights_that_are_returned() -> None:
    def both(q: T, k: T, v: T) -> tuple[T, T]:
        weights = (q @ k.mT).softmax(-1)
        return weights @ v, weights

    assert "attention" not in names(optimized(both, heads(2, 3, 16, 16)))


def test_gradients_of_some() -> None:
    """Only values are trained: of the backward call one result is left."""

    def step(q: T, k: T, v: T) -> T:
        v = v.detach().requires_grad_()
        return torch.autograd.grad(causal(q, k, v).square().sum(), v)[0]

    args = heads(2, 3, 16, 16)
    graph = optimized(step, args)
    assert names(graph) == ["attention", "attention_gradient"]
    plan = make_plan(graph, backend="triton", templates=TEMPLATES)
    assert [step.outs[:2] for step in plan.steps if isinstance(step, AtenStep)][-1] == (-1, -1)
    (found,) = run_plan(plan, list(args))
    assert_contract(found, step(*args), step(*(x.double() for x in args)))


@pytest.mark.parametrize(
    ("templates", "numerics", "is_call"),
    [
        (Templates(policy=ALWAYS, libraries=CPU), "default", False),
        (Templates(policy=NEVER), "default", False),  # no library is there
        (TEMPLATES, "eager", False),  # eager rounds the scores
        (Templates("cuda:90", policy=AUTO, libraries=CPU), "default", False),  # few scores
        (Templates(policy=NEVER, libraries=CPU, deterministic=True), "default", True),  # without a gradient
        (TEMPLATES, "default", True),
    ],
)
def test_settings(templates: Templates, numerics: str, is_call: bool) -> None:
    context = PassContext(target="gpu", templates=templates, numerics=numerics)
    assert ("attention" in names(optimized(causal, heads(2, 3, 16, 16), context))) == is_call


@pytest.mark.parametrize(
    ("target", "there", "found"),
    [
        ("cuda:90", ("cudnn", "flash"), "cudnn"),
        ("cuda:90", ("flash",), ""),  # is not faster than a template there
        ("cuda:100", ("cudnn", "flash"), "cudnn"),
        ("cuda:80", ("cudnn", "flash"), ""),
        ("hip:gfx942", (), ""),
    ],
)
def test_the_model_chooses_by_chip(target: str, there: tuple[str, ...], found: str) -> None:
    templates = Templates(target, libraries={"cuda": there})
    library = templates.library_for_attention("cuda:0", _bf16(), (1, 16, 4096, 128), 4096, True, True)
    assert library == found
    if there:
        assert templates.asked == {"attention bf16 [1, 16, 4096, 128], 4096 keys, causal": not found}
        measured = Templates(target, libraries={"cuda": there}, choices=dict.fromkeys(templates.asked, bool(found)))
        other = measured.library_for_attention("cuda:0", _bf16(), (1, 16, 4096, 128), 4096, True, True)
        assert bool(other) != bool(found)


@pytest.mark.parametrize(("shape", "trains"), [((1, 1 << 16, 64, 64), False), ((1, 16, 4096, 128), True)])
def test_what_libraries_could_not_do(shape: tuple[int, ...], trains: bool) -> None:
    """More heads than a grid has programs; the same sums in each run."""
    templates = Templates("cuda:90", libraries={"cuda": ("cudnn",)}, deterministic=trains)
    assert not templates.library_for_attention("cuda:0", _bf16(), shape, shape[2], True, trains)


def test_the_device_is_asked() -> None:
    asked: list[Any] = []

    def runs(*facts: Any) -> bool:
        asked.append(facts)
        return facts[0] != "cudnn"

    templates = Templates("cuda:90", policy=NEVER, libraries={"cuda": ("cudnn", "flash")}, runs=runs)
    shape = (1, 16, 4096, 128)
    assert templates.library_for_attention("cuda:0", _bf16(), shape, 4096, True, False) == "flash"
    assert asked == [(name, _bf16(), shape, 4096, True, False) for name in ("cudnn", "flash")]


def _bf16() -> Any:
    from graphc.ir.types import bf16

    return bf16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: T) -> T:
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in self.qkv(x).split(32, -1))
        y = causal(q, k, v).transpose(1, 2)
        return self.out(y.reshape(x.shape))


def _split_block() -> tuple[Block, T, Any]:
    """A block, its input, and its two halves."""
    torch.manual_seed(0)
    block, x = Block().bfloat16(), torch.randn(3, 24, 32).bfloat16()
    capture = driver.capture(block, (x,), {}, make_options(block, backend="triton"), frozenset())
    joint = capture.joint
    assert joint is not None
    graph = joint.graph.copy()
    again = prepare_split(graph, CONTEXT)
    split = partition(graph, len(joint.results), len(joint.wanted), again, joint.overwritten)
    return block, x, split


def test_what_is_kept_for_a_backward_pass_of_its_own() -> None:
    """The result and a number per row; both programs have their call."""
    block, x, split = _split_block()
    saved = [output.value for output in split.forward.outputs[1:]]
    assert all(tuple(value.shape[-2:]) != (24, 24) for value in saved)
    assert [str(value.dtype) for value in saved].count("f32") == 1
    gradients = _run_split(split, block, x, CONTEXT)
    exact = _gradients(Block().double(), block, x.double())
    for mine, theirs, true in zip(gradients, _gradients(block, block, x), exact, strict=True):
        assert_contract(mine, theirs, true)


def _gradients(net: Block, like: Block, x: T) -> list[T]:
    net.load_state_dict(like.state_dict())
    y = net(x)
    return list(torch.autograd.grad(y, list(net.parameters()), torch.ones_like(y)))


def _run_split(split: Any, block: Block, x: T, context: PassContext) -> list[T]:
    """Both halves by their plans."""
    inputs = _inputs(split.forward, block, x)
    results = []
    for graph, given in ((split.forward, inputs), (split.backward, None)):
        if given is None:
            saved = [results[0][number] for number in split.saved_from]
            given = [*saved, *(inputs[number] for number in split.reused), torch.ones_like(results[0][0])]
        copy = graph.copy()
        optimize(copy, context)
        expected = "attention" if graph is split.forward else "attention_gradient"
        assert (expected in names(copy)) == (context.templates.policy == NEVER)  # type: ignore[union-attr]
        results.append(run_plan(make_plan(copy, backend="triton", templates=context.templates), given))
    return results[1]


def _inputs(graph: Graph, block: Block, x: T) -> list[T]:
    named = dict(block.named_parameters())
    return [named[item.path].detach() if item.path in named else x for item in graph.inputs]


def test_calls_of_a_split_program_may_be_written_out_again() -> None:
    """As when a template was measured to be faster: kernels of products of products, and no scores in memory."""
    block, x, split = _split_block()
    context = PassContext(target="gpu", templates=Templates(policy=ALWAYS, libraries=CPU))
    gradients = _run_split(split, block, x, context)
    exact = _gradients(Block().double(), block, x.double())
    for mine, theirs, true in zip(gradients, _gradients(block, block, x), exact, strict=True):
        assert_contract(mine, theirs, true)
    for half in (split.forward, split.backward):
        copy = half.copy()
        optimize(copy, context)
        plan = make_plan(copy, backend="triton", templates=context.templates)
        assert all(spec.shape[-2:] != (24, 24) for spec in plan.buffers)
        assert not any(isinstance(step, GemmStep | AtenStep) for step in plan.steps)


@pytest.mark.parametrize("causally", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_gradient_op_is_what_autograd_gives(causally: bool, groups: int) -> None:
    """Reference and expansion, in float64."""
    from graphc import ops

    q = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, groups, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    wide = (t.repeat_interleave(3 // groups, 1) for t in (k, v))
    out = F.scaled_dot_product_attention(q, *wide, is_causal=causally, scale=0.4)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, (q, k, v), grad)
    attrs = {"causal": causally, "scale": 0.4}
    with torch.no_grad():
        tensors = [t.detach() for t in (q, k, v)]
        results = ops.get("attention").reference(*tensors, mask=False, **attrs)
        given = [grad, *tensors, *results]
        for found in _both_ways("attention_gradient", given, attrs):
            for mine, true in zip(found, expected, strict=True):
                torch.testing.assert_close(mine, true)


def _both_ways(name: str, given: list[T], attrs: dict[str, Any]) -> tuple[Sequence[T], Sequence[T]]:
    """Results of an op by its reference and by its expansion."""
    from graphc import ops
    from graphc.ir.graph import Builder, Output
    from tests.ops.expansion import graph_of

    definition = ops.get(name)
    assert definition.expand is not None
    graph, _, op = graph_of(name, given, attrs)
    graph.outputs = [Output(value) for value in definition.expand(Builder(graph, ops.infer), op)]
    return definition.reference(*given, **attrs), run(graph, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("keys", "causally", "size"), [(16, True, 1.0), (1, False, 1.0), (16, False, 1000.0)])
def test_a_query_that_sees_one_key_has_no_gradient(dtype: torch.dtype, keys: int, causally: bool, size: float) -> None:
    """The first one behind a causal mask, those with one key, and those for which one key weighs all but nothing."""
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(2, 3, rows, 32).to(dtype) for rows in (16, keys, keys, 16))
    q, attrs = q * size, {"causal": causally, "scale": 0.2}
    scores = q.double() @ k.double().mT * 0.2
    if causally:
        scores = scores.masked_fill(torch.ones(16, keys).triu(1).bool(), -torch.inf)
    first, second = [*scores.topk(min(2, keys), -1).values.unbind(-1), scores.new_full((), -torch.inf)][:2]
    single = first - second > 110 + first.abs() / 64  # also where scores are rounded, and to the last of a float32
    forward = _both_ways("attention", [q, k, v], {**attrs, "mask": False})
    for way, results in enumerate(forward):
        dq, dk, _ = _both_ways("attention_gradient", [grad, q, k, v, *results], attrs)[way]
        assert single.any() and not dq[single].any()
        assert bool(dk.any()) == bool(dq.any()) == (keys > 1)
        dq = _both_ways("attention_gradient", [grad * torch.inf, q, k, v, *results], attrs)[way][0]
        assert not dq[single].isfinite().any(), "infinities show"
