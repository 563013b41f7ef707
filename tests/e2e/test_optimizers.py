"""Updates of many parameters as one op: dtypes and layouts mixed, options that change, calls on lists."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import graphc
import graphc.errors
import graphc.ir
from tests.support import assert_contract

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
SHAPES = [(3, 5), (7,), (1,), (2, 3, 4), (0, 3), (13, 2), (), (4, 4), (9,), (1, 6), (300, 70), (5,)]


def make(seed: int = 0, dtypes: tuple[torch.dtype, ...] = (torch.float64,)) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    count = len(SHAPES) * len(dtypes)
    return [
        nn.Parameter(torch.randn(SHAPES[n % len(SHAPES)], generator=generator).to(dtypes[n // len(SHAPES)]))
        for n in range(count)
    ]


class Pair:
    """The same parameters and optimizer twice: one compiled, one in eager."""

    def __init__(self, build: Callable[[list[nn.Parameter]], Any], params: Callable[[], list[nn.Parameter]] = make):
        self.ours, self.theirs = params(), params()
        self.mine, self.other = build(self.ours), build(self.theirs)
        self.compiled = graphc.compile(lambda: self.mine.step())

    def step(self, number: int, without: int = -1) -> None:
        generator = torch.Generator().manual_seed(number)
        for at, (mine, other) in enumerate(zip(self.ours, self.theirs, strict=True)):
            grad = torch.randn(mine.shape, generator=generator).to(mine.dtype)
            for param in (mine, other):
                param.grad = None if at == without else torch.empty_like(param).copy_(grad)
        self.compiled()
        self.other.step()

    def check(self, compiles: int = 1) -> None:
        assert self.compiled.stats().compiles == compiles
        assert self.compiled.stats().eager_calls == 0
        assert " = foreach(" in str(self.compiled.graph())
        for mine, other in zip(self.ours, self.theirs, strict=True):
            same(mine, other)
            assert self.mine.state[mine].keys() == self.other.state[other].keys()
            for key, item in self.other.state[other].items():
                same(self.mine.state[mine][key], item)


def same(mine: Any, other: Any) -> None:
    """Equal but for the last places; a bfloat16 may be rounded the other way."""
    if not isinstance(other, torch.Tensor):
        assert mine == other
        return
    assert mine.stride() == other.stride()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[other.dtype]
    torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("foreach", [False, True])
def test_one_kernel_for_all(foreach: bool) -> None:
    pair = Pair(lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True, foreach=foreach))
    for number in range(3):
        pair.step(number)
    pair.check()
    assert pair.compiled.explain().stats["kernel_calls"] < len(SHAPES)  # half are of the 0-d one


def test_mixed_dtypes() -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    pair = Pair(lambda p: torch.optim.Adam(p, 1e-2, weight_decay=0.1), lambda: make(dtypes=dtypes))
    for number in range(3):
        pair.step(number)
    pair.check()
    assert str(pair.compiled.graph()).count(" = foreach(") == 3


def test_groups_of_other_options_and_a_schedule() -> None:
    def build(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.RMSprop([{"params": params[::2]}, {"params": params[1::2], "lr": 1e-3, "momentum": 0.5}])

    pair = Pair(build, lambda: make() + make(1))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (pair.mine, pair.other)]
    for number in range(4):
        pair.step(number)
        for schedule in schedules:
            schedule.step()
    pair.check()


def test_tensor_learning_rate() -> None:
    pair = Pair(lambda p: torch.optim.Adam(p, torch.tensor(1e-2)))
    for number in range(2):
        pair.step(number)
        for optimizer in (pair.mine, pair.other):
            optimizer.param_groups[0]["lr"].mul_(0.5)
    pair.check()


@pytest.mark.parametrize("count", [3, 12])
@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.RAdam(p, 1e-2, weight_decay=0.1),
        lambda p: torch.optim.RAdam(p, 1e-2, betas=(0.9, 0.5), decoupled_weight_decay=True, weight_decay=0.1),
        lambda p: torch.optim.ASGD(p, 1e-2, t0=3, weight_decay=0.1),
        lambda p: torch.optim.ASGD(p, 1e-2, t0=3, foreach=True, maximize=True),
    ],
)
def test_steps_that_branch_on_their_number(build: Callable[[list[nn.Parameter]], Any], count: int) -> None:
    """What decides is the count of each parameter: both sides are in the one op, and one program is all."""
    pair = Pair(build, lambda: make()[:count])
    for number in range(8):
        pair.step(number, without=1 if number in (2, 3) else -1)
    assert pair.compiled.stats().compiles == 2  # with a gradient for that parameter, and without
    graph = str(pair.compiled.graph())
    assert (" = foreach(" in graph) == (count == 12)
    for mine, other in zip(pair.ours, pair.theirs, strict=True):
        same(mine, other)
        for key, item in pair.other.state[other].items():
            same(pair.mine.state[mine][key], item)


def nested(p: torch.Tensor, g: torch.Tensor) -> None:
    if p.sum() > 0:
        p.add_(g, alpha=-0.5) if g.sum() > 0 else p.mul_(0.5)
    else:
        p.sub_(p.abs().max() * 0.1)


def number_behind(p: torch.Tensor, g: torch.Tensor) -> None:
    if p.sum() > 0:
        p.mul_(2.0)
    p.add_(g, alpha=-0.1 * round(float(g.sum())))


def number_before(p: torch.Tensor, g: torch.Tensor) -> None:
    scale = -0.1 * round(float(g.sum()))
    if p.sum() > 0:
        p.add_(g, alpha=scale)


def many_branches(p: torch.Tensor, g: torch.Tensor) -> None:
    for number in range(4):
        if p.sum() > number / 10:
            p.mul_(0.9)


def elementwise(p: torch.Tensor, g: torch.Tensor) -> None:
    if g.reshape(-1)[0] > 0:
        p.copy_(p * 2 - g)
        g.neg_()


@pytest.mark.parametrize("body", [nested, number_behind, number_before, many_branches, elementwise])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_branches_of_other_kinds(body: Callable[..., None], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an update asks of data, it gets the answer of its own parameter."""

    def update(params: list[torch.Tensor], grads: list[torch.Tensor], *rest: Any, **options: Any) -> None:
        for param, grad in zip(params, grads, strict=True):
            body(param, grad)

    monkeypatch.setattr(sys.modules["torch.optim.sgd"], "_single_tensor_sgd", update)
    monkeypatch.setenv("GRAPHC_MAX_PATHS", "300")
    generator = torch.Generator().manual_seed(1)
    params = [nn.Parameter(torch.randn(2, 3, generator=generator)) for _ in range(count)]
    others = [nn.Parameter(p.detach().clone()) for p in params]
    mine = torch.optim.SGD(params, 0.1, foreach=False)
    other = torch.optim.SGD(others, 0.1, foreach=False)
    compiled = graphc.compile(lambda: mine.step(), backend="interpret")
    for _ in range(3):
        for a, b in zip(params, others, strict=True):
            a.grad = torch.randn(2, 3, generator=generator)
            b.grad = a.grad.clone()
        compiled()
        other.step()
        for a, b in zip(params, others, strict=True):
            torch.testing.assert_close(a, b)
            torch.testing.assert_close(a.grad, b.grad)


def test_a_parameter_without_gradient_comes_and_goes() -> None:
    pair = Pair(lambda p: torch.optim.Adamax(p, 1e-2))
    pair.step(0)
    pair.step(1, without=3)
    pair.step(2)
    pair.check(compiles=2)


def test_momentum_starts_with_the_first_step() -> None:
    pair = Pair(lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9, nesterov=True))
    for number in range(3):
        pair.step(number)
    pair.check(compiles=2)


def test_transposed_parameters_and_other_layouts() -> None:
    def params() -> list[nn.Parameter]:
        return [nn.Parameter(p.detach().t() if p.dim() == 2 else p.detach()) for p in make()]

    pair = Pair(lambda p: torch.optim.Adam(p, 1e-2), params)
    for number in range(2):
        pair.step(number)
    pair.check()


def test_parameters_that_share_memory() -> None:
    """Views of one tensor: what eager does one after the other."""

    def params() -> list[nn.Parameter]:
        flat = torch.arange(60.0, dtype=torch.float64)
        return [nn.Parameter(flat[6 * n : 6 * n + 6]) for n in range(10)]

    ours, theirs = params(), params()
    mine, other = torch.optim.Adam(ours, 1e-2), torch.optim.Adam(theirs, 1e-2)
    compiled = graphc.compile(lambda: mine.step())
    for number in range(3):
        for at, param in enumerate([*ours, *theirs]):
            param.grad = torch.full((6,), float(number + at % 10), dtype=torch.float64)
        compiled()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        same(a, b)


def test_calls_on_lists() -> None:
    def average(shadow: list[torch.Tensor], new: list[torch.Tensor]) -> list[torch.Tensor]:
        torch._foreach_lerp_(shadow, new, 0.1)
        torch._foreach_add_(shadow, new, alpha=2)
        torch._foreach_addcmul_(shadow, new, new, [float(n) for n in range(len(new))])
        return list(torch._foreach_maximum(torch._foreach_exp(new), shadow)) + list(torch._foreach_norm(new))

    def lists() -> tuple[list[torch.Tensor], ...]:
        return [p.detach() for p in make()], [p.detach() for p in make(1)]

    ours, theirs = lists(), lists()
    compiled = graphc.compile(average)
    for _ in range(2):
        for a, b in zip(compiled(*ours), average(*theirs), strict=True):
            same(a, b)
    for a, b in zip(ours[0], theirs[0], strict=True):
        same(a, b)
    assert " = foreach(" in str(compiled.graph(*ours))


def test_a_whole_step_updates_in_place() -> None:
    """Twelve layers: gradients are computed and used in one program, and kept as `.grad`."""

    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(6, 6, dtype=torch.float64) for _ in range(12)))

    ours, theirs = build(), build()
    mine, other = (torch.optim.Adam(net.parameters(), 1e-3) for net in (ours, theirs))

    def step(net: nn.Module, optimizer: Any, x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        optimizer.step()
        return loss.detach()

    compiled = graphc.compile(lambda x: step(ours, mine, x))
    before = [param.data_ptr() for param in ours.parameters()]
    for number in range(4):
        x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        same(compiled(x), step(theirs, other, x))
    assert before == [param.data_ptr() for param in ours.parameters()]
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9)
    assert " = foreach(" in str(compiled.graph(x))


def clipping(norm: float) -> Callable[..., Any]:
    def clip(params: list[nn.Parameter], optimizer: Any) -> torch.Tensor:
        total = nn.utils.clip_grad_norm_(params, 0.5, norm_type=norm)
        nn.utils.clip_grad_value_(params, 0.1)
        optimizer.step()
        return total

    return clip


@pytest.mark.parametrize("norm", [2.0, 1.0, 3.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_clipped_gradients(norm: float, dtype: torch.dtype) -> None:
    """Norms of many gradients are one op, whatever their shapes: empty, 0-d, transposed ones among them."""
    clip = clipping(norm)

    def params() -> list[nn.Parameter]:
        return [*make(dtypes=(dtype,)), nn.Parameter(torch.ones(3, 70, dtype=dtype).t())]

    ours, theirs = params(), params()
    mine, other = torch.optim.SGD(ours, 1e-2), torch.optim.SGD(theirs, 1e-2)
    compiled = graphc.compile(lambda: clip(ours, mine))
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.empty_like(a).copy_(torch.randn(a.shape, generator=generator))
            b.grad = a.grad.clone()
        exact = torch.cat([a.grad.double().flatten() for a in ours]).norm(norm)  # type: ignore[union-attr]
        mine_now, theirs_now = compiled(), clip(theirs, other)
        if dtype == torch.float64:
            same(mine_now, theirs_now)
        else:
            assert_contract(mine_now, theirs_now, exact)
        for a, b in zip(ours, theirs, strict=True):
            same(a, b)
            same(a.grad, b.grad)
    assert compiled.stats().compiles == 1
    assert "like=[-1]" in str(compiled.graph())
    assert compiled.explain().stats["kernel_calls"] < 2 * len(ours)  # each is read or changed by five calls


def test_a_norm_over_no_elements_is_refused_as_in_eager() -> None:
    lists = [torch.ones(3 + n % 2, 2) for n in range(9)]
    compiled = graphc.compile(lambda given: torch._foreach_norm(given, float("inf")))
    for a, b in zip(compiled(lists), torch._foreach_norm(lists, float("inf")), strict=True):
        same(a, b)
    with pytest.raises(RuntimeError, match="does not have an identity"):
        torch._foreach_norm([*lists, torch.ones(0, 2)], float("inf"))
    with pytest.raises(RuntimeError, match="does not have an identity"):
        compiled([*lists, torch.ones(0, 2)])


def test_norms_are_tensors_of_their_own() -> None:
    def norms(given: list[torch.Tensor]) -> list[torch.Tensor]:
        found = list(torch._foreach_norm(given))
        found[1].mul_(2)
        return [*found, torch.stack(found), torch.stack(found[::-1]), torch.stack(found[:4])]

    lists = [torch.arange(2.0 + n).double() for n in range(9)]
    compiled = graphc.compile(norms)
    for a, b in zip(compiled(lists), norms(lists), strict=True):
        same(a, b)
    assert " = foreach(" in str(compiled.graph(lists))


def test_gradients_made_in_the_step_are_clipped_by_one_op() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))

    def step(x: torch.Tensor) -> torch.Tensor:
        net.zero_grad()
        net(x).square().sum().backward()
        return nn.utils.clip_grad_norm_(net.parameters(), 0.1)

    compiled, x = graphc.compile(step), torch.ones(2, 4)
    found = compiled(x)
    grads = [param.grad.clone() for param in net.parameters()]  # type: ignore[union-attr]
    same(found, step(x))
    for grad, param in zip(grads, net.parameters(), strict=True):
        same(grad, param.grad)
    assert "like=[-1]" in str(compiled.graph(x))


@pytest.mark.parametrize("ends", [("[1, 4]", "[3, 1]"), ("[1, 4]", "[1, 4]")])
def test_rows_of_a_foreach_that_end_in_other_layouts(ends: tuple[str, str]) -> None:
    """What is updated decides how a row lies; an updated tensor that lies otherwise is copied, and the copy updated."""
    graph = graphc.ir.parse(f"""
graph f(%p: f32[4, 3] param "p" strides={ends[0]}, %q: f32[4, 3] param "q" strides={ends[1]}, %x: f32[4, 3] arg "x") {{
  %0: f32[4, 3] = exp(%x)
  %1: f32[4, 3] = sin(%x)
  %2: f32[4, 3] = cos(%x)
  %3: f32[4, 3] = tanh(%x)
  %4: f32[4, 3] strides={ends[0]}, %5: f32[4, 3], %6: f32[4, 3] strides={ends[1]}, %7: f32[4, 3] = \
foreach(%0, %1, %2, %3) {{count=2, mutates=[0, 1], like=[]}}
    body graph body(%x: f32[] arg "x", %g: f32[] arg "g") {{
      %0: f32[] = mul(%x, %g)
      %1: f32[] = sub(%0, %g)
      return %0, %1
    }}
  %8: f32[4, 3] = mul(%4, %5)
  %9: f32[4, 3] = mul(%6, %7)
  write %p <- %8
  write %q <- %9
  return %4, %6, %5
}}
""")
    given = [torch.randn(4, 3) for _ in graph.inputs]
    for number, input in enumerate(graph.inputs):
        given[number] = torch.empty_strided((4, 3), input.strides or (3, 1)).copy_(given[number])
    ours, theirs = copy.deepcopy((given, given))
    found = graphc.run(graph, *ours, backend="c")
    torch.testing.assert_close([*found, *ours], [*graphc.ir.run(graph, theirs), *theirs])


def test_sparse_gradients_run_eager_wherever_they_come_from() -> None:
    def train(compiler: Callable[..., Any], whole: bool) -> tuple[nn.Embedding, Any]:
        torch.manual_seed(0)
        table = nn.Embedding(10, 3, sparse=True)
        optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.1)

        def backward(rows: torch.Tensor) -> None:
            optimizer.zero_grad()
            table(rows).square().sum().backward()

        def step(rows: torch.Tensor) -> None:
            if whole:
                backward(rows)
            optimizer.step()

        run = compiler(step)
        for number in range(3):
            if not whole:
                backward(torch.tensor([number, 5]))
            run(torch.tensor([number, 5]))
        return table, run

    for whole in (True, False):
        with pytest.warns(graphc.errors.FallbackWarning, match="sparse"):
            ours, run = train(graphc.compile, whole)
        assert run.stats().eager_calls == 3
        torch.testing.assert_close(ours.weight, train(lambda fn: fn, whole)[0].weight)
