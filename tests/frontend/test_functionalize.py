"""Views and in-place code: everything eager does to memory, the captured program does too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphc.frontend.capture import capture
from tests.frontend.harness import call, check


def _assign_column(x, y):
    x[:, 0] = y
    return x * 2


def _add_through_transpose(x, y):
    x.t().add_(1)
    return x.relu(), x.t()


def _stale_view(x, y):
    row = x[1]
    x.mul_(3)
    row.sub_(1)
    return row + 1, x[:, 1:]


def _out(x, y):
    result = torch.empty(2, 3)
    torch.add(x, 1, out=result)
    torch.mul(result, x, out=x)
    return result


def _chain(x, y):
    z = x.clone()
    z.view(3, 2)[::2].unsqueeze(0).transpose(1, 2).zero_()
    z[z.shape[0] - 1].copy_(torch.arange(3))
    z.diagonal().fill_(9)
    return z


def _index_put(x, y):
    z = x * 1
    z[:, torch.tensor([0, 2])] = 0.5
    z.index_put_((torch.tensor([0, 1]), torch.tensor([1, 1])), y, accumulate=True)
    return z


def _masked(x, y):
    x[x > 0] = 0
    x.masked_fill_(x < -1, -1.0)
    return x.sum()


def _returns_input(x, y):
    return x, y, x.view(-1), x.detach()


def _views_of_one(x, y):
    z = x + 1
    return z[0], z[1], z, z.t()


def _part_of_one(x, y):
    return (x + 1)[0], (x + 2)[:, 1]


def _copies_of_input(x, y):
    return x.clone(), x.contiguous(), x.to(torch.float32), x.clone()


def _same_twice(x, y):
    z = x + 1
    return z, z, z.clone(), z.clone()


def _snapshot_before_write(x, y):
    before = x.clone()
    x.add_(1)
    return before


def _as_strided(x, y):
    z = x + 0
    z.as_strided((2, 2), (1, 2), 1).mul_(10)
    return z, z.as_strided((3,), (2,))


def _inplace_views(x, y):
    z = x + 1
    z.t_().unsqueeze_(0).squeeze_(0)
    z[0] = 7
    return z


def _split_and_write(x, y):
    a, b = x.split([1, 2], dim=1)
    b.sub_(a)
    first, second = x.unbind()
    first.add_(second)
    return b


def _unfold(x, y):
    return x.unfold(1, 2, 1) * 2, y.unfold(0, 2, 1)


def _expand(x, y):
    return y.expand(3, 2), y[:, None].expand(2, 3).contiguous()


def _bits(x, y):
    bits = x.view(torch.int32)
    bits.bitwise_and_(0x7FFFFFFF)
    return (x + 1).view(torch.int32) + 1


def _flatten_reshape(x, y):
    z = x.t().reshape(-1)
    z.add_(1)
    w = x.reshape(-1)
    w.add_(1)
    return z, w


PROGRAMS = [
    _assign_column, _add_through_transpose, _stale_view, _out, _chain, _index_put, _masked, _returns_input,
    _views_of_one, _part_of_one, _copies_of_input, _same_twice, _snapshot_before_write, _as_strided,
    _inplace_views, _split_and_write, _unfold, _expand, _bits, _flatten_reshape,
]  # fmt: skip


@pytest.mark.parametrize("fn", PROGRAMS, ids=lambda fn: fn.__name__.strip("_"))
def test_programs(fn) -> None:
    check(fn, torch.randn(2, 3), torch.randn(2))


@pytest.mark.parametrize("fn", PROGRAMS[:4] + PROGRAMS[8:14] + PROGRAMS[15:16], ids=lambda fn: fn.__name__.strip("_"))
def test_programs_on_a_part_of_a_larger_tensor(fn) -> None:
    check(fn, torch.randn(5, 4)[1:5:2, :3], torch.randn(4)[1:3])


def test_arguments_that_overlap() -> None:
    def fn(a, b):
        a.add_(1)
        return b * 2, a

    base = torch.randn(6)
    captured = check(fn, base[:4], base[2:])
    assert captured.match((torch.randn(4), torch.randn(4)), {}) is None
    check(fn, base[:3], base[3:])


def test_arguments_that_overlap_but_are_only_read_stay_two_inputs() -> None:
    base = torch.randn(6)
    captured = check(lambda a, b: a + b, base[:4], base[2:])
    assert len(captured.graph.inputs) == 2


def test_a_result_that_reinterprets_an_argument_is_a_copy() -> None:
    captured = capture(lambda x: x.view(torch.int32), (torch.ones(2),))
    assert call(captured, torch.ones(2)).tolist() == torch.ones(2).view(torch.int32).tolist()
    assert "another dtype" in captured.warnings[0]


def test_one_tensor_passed_twice() -> None:
    def fn(a, b):
        a.add_(1)
        return b * 2

    x = torch.randn(3)
    captured = check(fn, x, x)
    assert len(captured.graph.inputs) == 1
    assert captured.match((torch.randn(3), torch.randn(3)), {}) is None
    distinct = check(fn, torch.randn(3), torch.randn(3))
    assert distinct.match((x, x), {}) is None
    overlapping = torch.randn(4)
    assert distinct.match((overlapping[:3], overlapping[1:]), {}) is None


def test_as_strided_beyond_the_argument() -> None:
    check(lambda x: x.as_strided((4,), (1,), 0) + 1, torch.randn(6)[2:4])


class Cache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(2, 8, 4))
        self.register_buffer("total", torch.zeros(4))
        self.last = torch.zeros(2, 4)

    def forward(self, new: torch.Tensor, position: int) -> torch.Tensor:
        self.keys[:, position] = new
        self.total = self.total * 0.5 + new.sum(0)
        self.last = new + 1
        return self.keys[:, : position + 1].mean(1) + self.total


def test_cache_written_in_place_and_buffers_assigned() -> None:
    module = Cache()
    buffer = module.total
    captured = check(module, torch.randn(2, 4), 3)
    assert module.total is not buffer  # as in eager: whoever holds the old buffer still sees what it held
    assert torch.equal(buffer, torch.zeros(4))
    assert {write.target.path for write in captured.graph.writes} == {"keys"}
    assert any(op.name == "update_slice" for op in captured.graph.ops)


def test_version_counters_are_as_before_the_capture() -> None:
    module = nn.BatchNorm1d(3)
    version = module.running_mean._version
    capture(module, (torch.randn(4, 3),))
    assert module.running_mean._version == version


def test_ops_keep_the_line_of_the_view_they_come_from() -> None:
    def fn(x):
        part = x[1:]  # the slice is made here
        return part + 1

    captured = check(fn, torch.randn(3))
    lines = {op.name: op.location.line for op in captured.graph.ops}
    assert lines["add"] == lines["slice"] + 1
