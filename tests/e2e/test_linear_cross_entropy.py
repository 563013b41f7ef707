"""Linear and cross-entropy as people write it: right, and never with the logits whole in memory.

Every form runs without gradients, as a function in the user's own loop, and as a whole step; gradients and losses are
compared with eager and float64, and no buffer of a plan may be as large as the logits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.settings import override
from tests.support import assert_contract

ROWS, WIDTH, CLASSES, BATCH = 1024, 8, 600, 4
LENGTH = ROWS // BATCH
LOGITS = 4 * ROWS * CLASSES
"""Bytes in f32."""

Form = Callable[["Model", torch.Tensor, torch.Tensor], Any]
FORMS: dict[str, Form] = {}


class Model(nn.Module):
    """A layer, and a head whose weight may be that of an embedding: (N, WIDTH) -> (N, CLASSES)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.embedding = nn.Embedding(CLASSES, WIDTH)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.trunk(x))


def form(build: Form) -> Form:
    FORMS[build.__name__] = build
    return build


@form
def plain(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    return F.cross_entropy(m.head(m.hidden(x)), y)


@form
def module(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    return nn.CrossEntropyLoss(ignore_index=3, label_smoothing=0.1)(m.head(m.hidden(x)), y)


@form
def no_bias(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    return F.cross_entropy(m.hidden(x) @ m.head.weight.t(), y, reduction="sum")


@form
def tied(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    return F.cross_entropy(F.linear(m.hidden(x) + m.embedding(y), m.embedding.weight), y)


@form
def log_softmax(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    return F.nll_loss(F.log_softmax(m.head(m.hidden(x)), -1), y)


@form
def unreduced(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    losses = F.cross_entropy(m.head(m.hidden(x)), y, reduction="none")
    return (losses * torch.linspace(0, 1, ROWS, dtype=losses.dtype)).sum()


@form
def weighted(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    return F.cross_entropy(m.head(m.hidden(x)), y, weight=torch.linspace(0.5, 1.5, CLASSES, dtype=x.dtype))


@form
def temperature(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    return F.cross_entropy(m.head(m.hidden(x)) / 0.7, y)


@form
def soft_cap(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    return F.cross_entropy(30.0 * torch.tanh(m.head(m.hidden(x)) / 30.0), y)


@form
def squared(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    """The gradient depends on the loss: the logits are computed twice."""
    return F.cross_entropy(m.head(m.hidden(x)), y) ** 2


@form
def with_accuracy(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    logits = m.head(m.hidden(x))
    return F.cross_entropy(logits, y) + 0.01 * logits.logsumexp(-1).square().mean(), (logits.argmax(-1) == y).sum()


@form
def flattened(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    logits = m.head(m.hidden(x.view(BATCH, LENGTH, WIDTH)))
    return F.cross_entropy(logits.view(-1, CLASSES), y.view(BATCH, LENGTH).view(-1))


@form
def shifted(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    logits = m.head(m.hidden(x.view(BATCH, LENGTH, WIDTH)))[:, :-1].contiguous()
    return F.cross_entropy(logits.view(-1, CLASSES), y.view(BATCH, LENGTH)[:, 1:].reshape(-1))


@form
def shifted_in_one_batch(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    logits = m.head(m.hidden(x.view(1, ROWS, WIDTH)))[:, :-1]
    return F.cross_entropy(logits.reshape(-1, CLASSES), y.view(1, ROWS)[:, 1:].reshape(-1))


@form
def classes_second(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    logits = m.head(m.hidden(x.view(BATCH, LENGTH, WIDTH)))
    return F.cross_entropy(logits.transpose(1, 2), y.view(BATCH, LENGTH))


@form
def distilled(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    """Two products: the teacher's logits are no more whole than the student's."""
    teacher = F.softmax(x @ m.embedding.weight.t(), -1).detach()
    return F.cross_entropy(m.head(m.hidden(x)), teacher)


@form
def autocast(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.float32):
        return F.cross_entropy(m.head(m.hidden(x)), y)


@form
def autocast_then_float(m: Model, x: torch.Tensor, y: torch.Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.float32):
        logits = m.head(m.hidden(x))
    return F.cross_entropy(logits.to(x.dtype), y)


@pytest.fixture(autouse=True)
def _small_chunks() -> Iterator[None]:
    with override(chunk_bytes=LOGITS // 8, verify_passes=True):
        yield


def _inputs() -> tuple[Model, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    y = torch.randint(0, CLASSES, (ROWS,))
    y[::7] = 3  # ignored by one form
    return Model(), torch.randn(ROWS, WIDTH), y


def _loss(result: Any) -> torch.Tensor:
    loss = result[0] if isinstance(result, tuple) else result
    assert isinstance(loss, torch.Tensor)
    return loss


def _gradients(model: Model) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def _trained(
    run: Form, model: Model, x: torch.Tensor, y: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Results and gradients of a form in eager."""
    found = run(model, x, y)
    _loss(found).backward()
    results = list(found) if isinstance(found, tuple) else [found]
    return [item.detach() for item in results], _gradients(model)


def _assert_same(mine: Any, grads: list[torch.Tensor], run: Form) -> None:
    model, x, y = _inputs()
    exact, exact_grads = _trained(run, copy.deepcopy(model).double(), x.double(), y)
    eager, eager_grads = _trained(run, model, x, y)
    results = list(mine) if isinstance(mine, tuple) else [mine]
    assert len(grads) == len(eager_grads) and len(results) == len(eager)
    pairs = zip([*results, *grads], [*eager, *eager_grads], [*exact, *exact_grads], strict=True)
    for ours, theirs, reference in pairs:
        assert_contract(ours.detach(), theirs, reference)


def _assert_small(plan: Any) -> None:
    """No buffer holds as much as the logits in their smallest dtype, and all together are smaller than the logits."""
    assert max(spec.nbytes for spec in plan.buffers) <= LOGITS // 4
    assert plan.arena_bytes < 0.8 * LOGITS


@pytest.mark.suite
@pytest.mark.parametrize("name", FORMS)
def test_without_gradients(name: str) -> None:
    model, x, y = _inputs()
    compiled = graphc.compile(lambda x, y: FORMS[name](model, x, y))
    with torch.no_grad():
        found = compiled(x, y)
        _assert_small(compiled.graph(x, y, stage="scheduled"))
        eager = FORMS[name](model, x, y)
        exact = FORMS[name](model.double(), x.double(), y)
    assert_contract(_loss(found), _loss(eager), _loss(exact))


@pytest.mark.parametrize("name", FORMS)
def test_in_the_users_loop(name: str) -> None:
    model, x, y = _inputs()
    compiled = graphc.compile(lambda x, y: FORMS[name](model, x, y))
    found = compiled(x, y)
    _loss(found).backward()
    compilation = compiled._compilation((x, y), {})
    assert compilation.backward is not None
    _assert_small(compilation.stage("scheduled"))
    _assert_small(compilation.backward.stage("scheduled"))
    _assert_same(found, _gradients(model), FORMS[name])


@pytest.mark.parametrize("name", FORMS)
def test_whole_step(name: str) -> None:
    model, x, y = _inputs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x: torch.Tensor, y: torch.Tensor) -> Any:
        optimizer.zero_grad()
        found = FORMS[name](model, x, y)
        _loss(found).backward()
        optimizer.step()
        return found

    compiled = graphc.compile(step)
    found = compiled(x, y)
    _assert_same(found, _gradients(model), FORMS[name])
    _assert_small(compiled.graph(x, y, stage="scheduled"))


def test_one_product_more_only_where_a_gradient_depends_on_the_loss() -> None:
    """Forward, both gradients of the head, and two of the trunk; nothing is computed twice but for `squared`."""
    products = {}
    for name in ("plain", "squared"):
        model, x, y = _inputs()

        def step(x: torch.Tensor, y: torch.Tensor, name: str = name, model: Model = model) -> Any:
            loss = FORMS[name](model, x, y)
            loss.backward()
            return loss.detach()

        plan = graphc.compile(step).graph(x, y, stage="scheduled")
        products[name] = plan.stats["gemm_calls"]
    assert products == {"plain": 3 * 4 + 2, "squared": 4 * 4 + 2}


def test_chunks_share_their_kernels() -> None:
    model, x, y = _inputs()
    plans = []
    for size in (LOGITS, LOGITS // 8):
        with override(chunk_bytes=size):
            compiled = graphc.compile(lambda x, y: FORMS["no_bias"](model, x, y))
            plans.append(compiled.graph(x, y, stage="scheduled"))
    whole, chunked = plans
    assert chunked.stats["kernel_calls"] >= whole.stats["kernel_calls"] + 3
    assert chunked.stats["kernels"] <= whole.stats["kernels"] + 2


def test_logits_that_are_returned_stay_whole() -> None:
    model, x, y = _inputs()

    def both(x: torch.Tensor, y: torch.Tensor) -> Any:
        logits = model.head(model.hidden(x))
        return F.cross_entropy(logits, y), logits

    compiled = graphc.compile(both)
    with torch.no_grad():
        loss, logits = compiled(x, y)
        expected = both(x, y)
    torch.testing.assert_close((loss, logits), expected)


def test_small_logits_stay_whole() -> None:
    model, x, y = _inputs()
    with override(chunk_bytes=LOGITS):
        compiled = graphc.compile(lambda x, y: FORMS["plain"](model, x, y))
        with torch.no_grad():
            plan = compiled.graph(x, y, stage="scheduled")
    assert max(spec.nbytes for spec in plan.buffers) == LOGITS


@pytest.mark.parametrize("bad", [CLASSES, -1])
def test_a_label_out_of_range_is_eagers_error_at_the_users_line(bad: int) -> None:
    model, x, y = _inputs()
    y[ROWS - 2] = bad
    compiled = graphc.compile(lambda x, y: FORMS["plain"](model, x, y))
    with torch.no_grad():
        with pytest.raises(IndexError, match=f"Target {bad} is out of bounds"):
            FORMS["plain"](model, x, y)
        with pytest.raises(IndexError, match=f"Target {bad} is out of bounds") as caught:
            compiled(x, y)
    assert "test_linear_cross_entropy.py" in "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_special_numbers_flow_as_in_eager(value: float) -> None:
    grads = []
    losses = []
    for compiled in (False, True):
        model, x, y = _inputs()
        x[ROWS - 300, 2] = value

        def step(x: torch.Tensor, y: torch.Tensor, model: Model = model) -> Any:
            loss = F.cross_entropy(model.head(x), y, reduction="none")
            loss.sum().backward()
            return loss.detach()

        losses.append((graphc.compile(step) if compiled else step)(x, y))
        grads.append(_gradients(model))
    for ours, theirs in zip([losses[1], *grads[1]], [losses[0], *grads[0]], strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_all_labels_ignored_is_nan_as_in_eager() -> None:
    model, x, y = _inputs()
    y[:] = -100
    compiled = graphc.compile(lambda x, y: FORMS["plain"](model, x, y))
    with torch.no_grad():
        assert FORMS["plain"](model, x, y).isnan() and compiled(x, y).isnan()


def test_an_empty_batch() -> None:
    model, x, y = _inputs()
    compiled = graphc.compile(lambda x, y: F.cross_entropy(model.head(x), y, reduction="sum"))
    with torch.no_grad():
        assert compiled(x[:0], y[:0]).item() == 0.0


def test_backward_of_a_sum_of_losses_inside_the_function() -> None:
    """Asking again for gradients of the loss fails half-way, and must leave nothing in autograd's queue."""
    weight = torch.randn(4, 3, requires_grad=True)

    def step(x: torch.Tensor) -> torch.Tensor:
        weight.grad = None
        loss = (x @ weight).sum() * 0.9 + (x @ weight).square().sum() * 0.1
        loss.backward()
        return loss

    x = torch.randn(5, 4)
    expected, grad = step(x).detach(), weight.grad
    found = graphc.compile(step)(x)
    torch.testing.assert_close((found.detach(), weight.grad), (expected, grad))


@pytest.mark.parametrize(
    "part",
    [
        lambda x: x[:, 1:],
        lambda x: x[:, :-2],
        lambda x: x[2:4, 1],
        lambda x: x[:, -1],
        lambda x: x[:, 3:3],
        lambda x: x[:, ::2],
    ],
    ids=["from", "to", "row", "last", "empty", "steps"],
)
def test_gradients_of_slices(part: Callable[[torch.Tensor], torch.Tensor]) -> None:
    def gradient(x: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad(part(x * 2.0).square().sum(), x)
        return found

    x = torch.randn(5, 6, 2, requires_grad=True)
    compiled = graphc.compile(gradient)
    expected = gradient(x)
    found = compiled(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found.stride() == expected.stride()
