"""What library calls return is found out by trying them: once for all that are alike, as the layers of a model are."""

import pytest
import torch

import graphc
from graphc.frontend.aten import extern


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
