"""What library calls return is found out by trying them: once for all that are alike, as the layers of a model are."""

import pytest
import torch

import graphc
from graphc.frontend.aten import extern, layout
from graphc.frontend.aten.sized_trials import OneSizeOnly, SizedTrial
from graphc.ir.graph import Value
from graphc.ir.sizes import Conditions
from graphc.ir.types import TensorType, f32


@pytest.fixture
def tried(monkeypatch):
    """The calls that are tried while functions are captured."""
    found = []
    on_zeros = extern.call_on_zeros

    def call(imp, func, args, kwargs):
        found.append(str(func))
        return on_zeros(imp, func, args, kwargs)

    monkeypatch.setattr(extern, "call_on_zeros", call)
    return found


def check(fn, *inputs):
    compiled = graphc.compile(fn)
    found, expected = compiled(*inputs), fn(*inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == other.stride() and one.dtype == other.dtype
    assert compiled.stats().eager_calls == 0


def test_calls_that_are_alike_are_tried_once(tried):
    def layers(x):
        for _ in range(5):
            x = x + torch.linalg.qr(x)[1].sum()
        return (x,)

    check(layers, torch.randn(6, 6))
    assert tried == ["aten.linalg_qr.default"]


def test_each_that_differs_is_tried(tried):
    def several(x):
        return (
            *torch.linalg.qr(x),
            *torch.linalg.qr(x, mode="complete"),
            *torch.linalg.qr(x.t()),
            *torch.linalg.qr(x.double()),
            *torch.linalg.qr(x[:, :3]),
        )

    check(several, torch.randn(7, 5))
    assert tried == ["aten.linalg_qr.default"] * 5


def test_the_same_tensor_twice_is_another_call(tried):
    def both(x, y):
        return torch.histc(x), torch.cdist(x, y), torch.cdist(x, x), torch.cdist(y, x)

    check(both, torch.randn(4, 4), torch.randn(4, 4))
    assert tried.count("aten._cdist_forward.default") == 2


def sized(run, **sizes):
    """A trial on one tensor whose dims are sizes."""
    conditions = Conditions(sizes)
    value = Value("x", TensorType(f32, tuple(map(conditions.known, sizes)), "cpu"))
    strides = {value: layout.contiguous(value.shape)}
    return SizedTrial(lambda lying, args, kwargs: run(*args[0].shape), [value], {}, strides, conditions), conditions


def test_of_many_sizes():
    trial, conditions = sized(lambda n, m: (TensorType(f32, (n * m, n // 2 + 1), "cpu"), (m, 1), None), a=10, b=7)
    assert str(trial.answer[0].shape) == "((a*b), (size2 + 1))" and str(trial.answer[1]) == "(b, 1)"
    for a, b in ((3, 90), (44, 5), (17, 2)):
        assert trial.holds(conditions.all_sizes({"a": a, "b": b}))


def test_what_other_sizes_show_to_be_wrong():
    trial, conditions = sized(lambda n: (n if n < 40 else 40,), a=10)
    assert str(trial.answer) == "(a,)"
    assert trial.holds(conditions.all_sizes({"a": 39})) and not trial.holds(conditions.all_sizes({"a": 41}))


@pytest.mark.parametrize(
    "run", [lambda n: (n**5 % 7,), lambda n: (n,) * (n % 3), lambda n: "even" if n % 2 else "odd", lambda n: (n > 12,)]
)
def test_answers_that_are_no_expression_of_sizes(run):
    with pytest.raises(OneSizeOnly):
        sized(run, a=11)
