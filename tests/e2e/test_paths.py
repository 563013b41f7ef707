"""Functions that branch on data, compiled: eager's results, writes, aliasing and random state on every path."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

import graphc
from graphc.errors import CaptureError, DataDependentError, FallbackWarning, UnsupportedError
from graphc.settings import override
from tests.e2e.path_programs import PATH_PROGRAMS, PathProgram
from tests.e2e.test_programs import _leaves, _shared, _state, _to_double, compare


def _run(program: PathProgram, wrap: Any, double: bool = False) -> tuple[list[Any], list[list[tuple[int, int]]]]:
    """What each call returns, does to its arguments and the module's state, and leaves of the random state."""
    torch.manual_seed(1)
    fn = program.make()
    if double and isinstance(fn, nn.Module):
        fn.double()
    call = wrap(fn)
    seen: list[Any] = []
    shared = []
    for given in program.calls():
        arguments = tree_map(_to_double, given) if double else given
        result = _leaves(call(*arguments))
        shared.append(_shared([*result, *_leaves(arguments)]))
        seen += result + _leaves(arguments) + [t.detach().clone() for t in _state(fn)] + [torch.rand(2)]
    return seen, shared


def _exact(program: PathProgram) -> list[Any] | None:
    """The same calls in float64, or None where the program cannot run in it."""
    try:
        return _run(program, lambda fn: fn, double=True)[0]
    except RuntimeError:  # it mixes in float32 of its own
        return None


@pytest.mark.parametrize("backend", ["c", "interpret"])
@pytest.mark.parametrize("program", PATH_PROGRAMS, ids=lambda p: p.name)
def test_same_as_eager(program: PathProgram, backend: str) -> None:
    compiled: list[Any] = []

    def wrap(fn: Any) -> Any:
        compiled.append(
            graphc.compile(fn, backend=backend, numerics="eager" if "random" in program.name else "default")
        )
        return compiled[0]

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        eager, eager_shared = _run(program, lambda fn: fn)
        ours, shared = _run(program, wrap)
        exact = _exact(program)
    compare(ours, eager, exact if exact is not None and len(exact) == len(eager) else None)
    assert shared == eager_shared
    stats = compiled[0].stats()
    assert stats.eager_calls == 0
    if program.paths >= 0:
        assert stats.paths == program.paths, stats
        assert stats.hits > 0, stats


def test_triton() -> None:
    script = (
        "import torch, graphc\n"
        "def f(x):\n"
        "    y = x * 2\n"
        "    if y.sum() > 3:\n"
        "        return y + 1\n"
        "    x.add_(1)\n"
        "    return y[y < 0]\n"
        "g = graphc.compile(f, backend='triton')\n"
        "for k in (1., -1., 2., -2.):\n"
        "    a, b = torch.ones(3) * k, torch.ones(3) * k\n"
        "    assert torch.equal(g(a), f(b)) and torch.equal(a, b)\n"
        "assert (g.stats().paths, g.stats().hits) == (2, 2), g.stats()\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=120)


# errors


def fail(error: Exception) -> None:
    raise error


def test_a_path_that_raises_raises_each_time_and_leaves_what_eager_leaves() -> None:
    def fn(x):
        x.add_(torch.rand(3))
        if x.sum() < 0:
            fail(ValueError("negative"))  # a branch that plainly raises is no decision
        if (x > 100).any():
            fail(KeyError("large"))
        return x * 2

    compiled = graphc.compile(fn, numerics="eager")  # its random numbers
    for factor in (1, -5, 200, -5, 200, 1):
        ours, eager, seen = torch.ones(3) * factor, torch.ones(3) * factor, []
        for call, x in ((fn, eager), (compiled, ours)):
            torch.manual_seed(factor)
            try:
                seen.append(call(x))
            except (ValueError, KeyError) as error:
                seen.append(repr(error))
            seen.append(torch.rand(1))
        assert type(seen[0]) is type(seen[2])
        assert torch.equal(ours, eager)
        assert torch.equal(seen[1], seen[3])
        assert torch.equal(seen[0], seen[2]) if isinstance(seen[0], torch.Tensor) else seen[0] == seen[2]
    stats = compiled.stats()
    assert (stats.eager_calls, stats.paths, stats.hits) == (4, 1, 1)


def test_a_path_that_needs_memory_of_a_tensor_runs_eager_and_is_named_with_its_line() -> None:
    @graphc.compile(numerics="eager")
    def fn(x):
        y = torch.rand(3)
        if x.sum() > 0:
            return y.numpy()
        return y

    draws = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    with pytest.warns(FallbackWarning, match=r"Tensor.numpy needs the data[\s\S]*test_paths.py:\d+"):
        first = fn(torch.ones(3))
    assert (first == torch.rand(3, generator=draws).numpy()).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (fn(torch.ones(3)) == torch.rand(3, generator=draws).numpy()).all()
        assert torch.equal(fn(-torch.ones(3)), torch.rand(3, generator=draws))
    assert (fn.stats().eager_calls, fn.stats().paths) == (2, 1)


def test_a_capture_that_fails_where_eager_does_not_runs_eager_and_says_so() -> None:
    def fn(x):
        if x.sum() > 0 and type(x) is not torch.Tensor:
            raise KeyError("only while captured")
        return x + 1

    compiled = graphc.compile(fn)
    with pytest.warns(FallbackWarning, match="only while captured"):
        assert torch.equal(compiled(torch.ones(3)), torch.ones(3) + 1)


def test_python_randomness_is_refused() -> None:
    turn = ContextVar("turn", default=1)

    def fn(x):
        y = x * turn.get()
        turn.set(turn.get() + 1)
        return y if y.sum() > 0 else -y

    with pytest.raises(CaptureError, match="not deterministic"):
        graphc.compile(fn)(torch.ones(3))


def test_one_graph_cannot_hold_a_branch() -> None:
    def fn(x):
        return x if x.sum() > 0 else -x

    with pytest.raises(DataDependentError, match=r"graphc\.compile makes a program per path"):
        graphc.trace(fn, torch.ones(2))
    with override(max_paths=0), pytest.raises(DataDependentError):
        graphc.compile(fn)(torch.ones(2))


# bounds


def test_a_number_that_is_always_another_runs_eager_after_a_while() -> None:
    def fn(x):
        return x * float(x[0]) + torch.rand(3)

    compiled = graphc.compile(fn, numerics="eager")
    with pytest.warns(FallbackWarning, match="a float that Python looks at was another one in each of 8 calls") as seen:
        for number in range(40):
            x = torch.full((3,), float(number))
            torch.manual_seed(number)
            ours = compiled(x)
            torch.manual_seed(number)
            torch.testing.assert_close(ours, fn(x))
    assert len(seen) == 1
    assert __file__ in str(seen[0].message)
    stats = compiled.stats()
    assert (stats.paths, stats.eager_calls) == (8, 32)
    with pytest.raises(UnsupportedError, match="runs eager for these inputs"):
        compiled.explain(x)


def test_turns_of_a_loop_are_built_once() -> None:
    @graphc.compile
    def fn(x):
        while x.max() > 1:
            x = x - 1
        return x

    fn(torch.ones(3) * 20)
    assert fn.stats().compiles <= 4


# the rest


def test_gradients_on_one_path() -> None:
    layer = nn.Linear(3, 3)

    def fn(x):
        return layer(x) if x.sum() > 0 else x

    compiled, x = graphc.compile(fn), torch.ones(3)
    assert torch.equal(compiled(-x), -x)
    for _ in range(2):
        compiled(x).square().sum().backward()
    found, layer.weight.grad = layer.weight.grad, None
    for _ in range(2):
        fn(x).square().sum().backward()
    torch.testing.assert_close(found, layer.weight.grad)
    assert compiled.stats().eager_calls == 0 and compiled.stats().paths == 2


def _doubled(x, flag):
    if flag.sum() > 0:
        x.mul_(2)
    return (x * 3).sum()


def _views_of_argument(x, flag):
    if flag.sum() > 0:
        return x[1:], x * 2
    return x[:-1], x + 1


def _views_of_result(x, flag):
    h = x * 2
    if flag.sum() > 0:
        h = h + 1
    return h, h[0], h.t()


@pytest.mark.parametrize("backend", ["interpret", "c"])
@pytest.mark.parametrize("fn", [_doubled, _views_of_argument, _views_of_result], ids=lambda fn: fn.__name__)
def test_writes_and_views_behind_a_branch_under_autograd(fn: Any, backend: str) -> None:
    def use(call: Any, sign: float) -> list[torch.Tensor]:
        weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
        x = weight * 1.5
        given = call(x, torch.tensor([sign]))
        results = given if isinstance(given, tuple) else (given,)
        (sum(result.square().sum() for result in results) + x.sum()).backward()
        facts = torch.tensor([*(float(result._base is x) for result in results), float(x._version)])
        strides = [torch.tensor(result.stride()) for result in results]
        assert weight.grad is not None
        return [weight.grad, x.detach(), *(result.detach() for result in results), facts, *strides]

    compiled = graphc.compile(fn, backend=backend)
    for sign in (1.0, -1.0, 1.0):
        for ours, theirs in zip(use(compiled, sign), use(fn, sign), strict=True):
            assert torch.equal(ours, theirs)
    assert (compiled.stats().eager_calls, compiled.stats().paths) == (0, 2)


def test_arguments_that_overlap() -> None:
    def fn(x, y):
        if x.sum() > 0:
            x.add_(1)
            return y * 2
        return y

    compiled = graphc.compile(fn)
    for sign in (1, -1, 1):
        ours, eager = torch.arange(8.0) * sign, torch.arange(8.0) * sign
        assert torch.equal(compiled(ours[:6], ours[2:]), fn(eager[:6], eager[2:]))
        assert torch.equal(ours, eager)
        assert torch.equal(compiled(ours[:6], ours[2:].clone()), fn(eager[:6], eager[2:].clone()))
        assert torch.equal(ours, eager)


def test_a_flag_read_after_the_decision_is_guarded() -> None:
    class Late:
        def __init__(self):
            self.scale = 2.0

    late = Late()

    @graphc.compile
    def fn(x):
        return x * late.scale if x.sum() > 0 else x

    assert torch.equal(fn(torch.ones(3)), torch.ones(3) * 2)
    late.scale = 3.0
    assert torch.equal(fn(torch.ones(3)), torch.ones(3) * 3)


def test_threads() -> None:
    def fn(x):
        if x.sum() > 2:
            return x * 2
        return x * 3 if x.sum() > 1 else x * 4

    compiled, wrong = graphc.compile(fn), []

    def work(number: int) -> None:
        for turn in range(10):
            x = torch.full((3,), ((number + turn) % 4) / 3)
            if not torch.equal(compiled(x), fn(x)):
                wrong.append(x)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert compiled.stats().paths == 3


def test_programs_come_from_the_disk_cache() -> None:
    def fn(x):
        return x.exp() + 0.125 if x.sum() > 0 else -x

    graphc.compile(fn)(torch.ones(5))
    again = graphc.compile(fn)
    again(torch.ones(5))
    assert again.explain(torch.ones(5)).cached


def test_reports_show_the_tree() -> None:
    @graphc.compile
    def fn(x):
        x.add_(1)
        if x.sum() > 3:
            fail(ValueError("too much"))
        return x[x > 0]

    x = torch.tensor([1.0, -2.0, 0.0])
    report = fn.explain(x)
    assert torch.equal(x, torch.tensor([1.0, -2.0, 0.0]))
    graphs = fn.graph(x)
    assert len(graphs) == len(report.programs) == 3
    assert "gt" in str(graphs[0]) and str(graphs[-1]).count("write %x") == 1
    with pytest.raises(ValueError, match="too much"):
        fn(torch.ones(3))
    text = str(fn.explain(x))
    assert "if x.sum() > 3:" in text and __file__ in text
    assert "True -> eager: the function raises ValueError: too much" in text
    assert "a bool that Python looks at" in text and "shape of a result of aten.index.Tensor" in text
    assert any(name.startswith("0/") for name in fn.source(x))
    with pytest.raises(UnsupportedError, match="runs eager for these inputs: the function raises ValueError"):
        fn.graph(torch.ones(3))
    assert torch.equal(x, torch.tensor([1.0, -2.0, 0.0]))


def test_calls_that_keep_to_one_path_run_one_program() -> None:
    def fn(x, y):
        x.add_(torch.rand(3))
        if (x < 0).any():
            raise ValueError("negative")
        if y.sum() > 3:
            return x * 2
        y.mul_(2)
        return y + 1

    compiled = graphc.compile(fn, numerics="eager")  # its random numbers
    ran: list[str] = []
    for turn, size in enumerate((1, 1, 1, 1, -5, 1, 1, 1, 5, 5, 5, 5, 1, 5)):
        seen = []
        for call in (fn, compiled):
            x, y = torch.ones(3) * (size if size < 0 else 1), torch.ones(3) * size
            torch.manual_seed(turn)
            try:
                result = call(x, y)
            except ValueError:
                result = torch.zeros(0)
            seen.append((result, x, y, torch.rand(1)))
        torch.testing.assert_close(*seen)
        tree = compiled._entries[0].tree
        ran.append(tree.last_call)
    assert ran[2:4] == ["one program", "one program"] and ran[11] == "one program"
    assert ran[4] == ran[8] == ran[12] == "walk"
    assert compiled.stats().eager_calls == 1


def test_a_branch_in_training_costs_one_program_per_call() -> None:
    layer = nn.Linear(3, 3)

    @graphc.compile
    def fn(x):
        y = layer(x)
        return (y * 2).sum() if y.isfinite().all() else y.sum()

    for _ in range(4):
        fn(torch.ones(3)).backward()
    assert fn._entries[0].tree.last_call == "one program"
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 8.0))


def test_functions_without_decisions_have_no_tree() -> None:
    compiled = graphc.compile(lambda x: x.mul_(2) + x.sum().item())
    compiled(torch.ones(3))
    assert isinstance(compiled.graph(torch.ones(3)), graphc.ir.Graph)
    assert compiled.stats().paths == 0


def test_a_mask_beside_other_indices() -> None:
    def targets(logits, matched, labels):
        foreground = matched >= 0
        found = torch.zeros_like(logits)
        found[foreground, labels[matched[foreground]]] = 1.0
        return (found - logits).square().sum() / max(1, foreground.sum())

    compiled = graphc.compile(targets)
    logits, labels = torch.randn(6, 4), torch.tensor([1, 3])
    for matched in ([0, -1, 1, 1, -1, -1], [-1, 1, 0, 0, -1, -1], [-1] * 6):
        args = logits, torch.tensor(matched), labels
        torch.testing.assert_close(compiled(*args), targets(*args))
    assert not compiled.stats().eager_calls


def test_complex_numbers() -> None:
    """`.item()` of a complex tensor is a Python number, so that each one met is a path."""

    def scaled(x: torch.Tensor) -> tuple[complex, torch.Tensor]:
        total = x.sum().item()
        return total, torch.view_as_real(x * total)

    compiled, x = graphc.compile(scaled), torch.tensor([1 + 2j, 3 - 1j])
    for given in (x, x.conj(), x):
        (number, ours), (other, theirs) = compiled(given), scaled(given)
        assert type(number) is complex and number == other
        torch.testing.assert_close(ours, theirs)
    assert compiled.stats().eager_calls == 0


@pytest.mark.parametrize("write", [lambda b: b.mul_(2), lambda b: b.masked_fill_(b.real > 1, -1)], ids=["mul", "fill"])
def test_complex_arguments_are_written_after_a_decision(write) -> None:
    """No kernel stores them: the last program of the path does it by a call."""

    def step(b, x):
        write(b)
        return b, (x * 2 if x.sum() > 0 else x)

    compiled = graphc.compile(step)
    for x in (torch.ones(3), -torch.ones(3), torch.ones(3)):
        mine, other = (torch.tensor([[1 + 2j, 3, 4j]], dtype=torch.complex64) for _ in range(2))
        for found, expected in zip(compiled(mine, x), step(other, x), strict=True):
            assert torch.equal(found, expected)
        assert torch.equal(mine, other)
