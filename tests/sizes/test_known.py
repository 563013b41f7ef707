"""Calls of sizes for which the function does not run: it has been captured for any sizes that meet conditions."""

import copy
import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree

import graphc
from graphc import driver
from graphc.settings import override
from tests.sizes.side_by_side import side_by_side

SIZES = (24, 40, 37, 33, 35, 41, 38, 26, 63, 64, 65, 24, 37)


@pytest.fixture(autouse=True)
def many_programs(tmp_path):
    with override(cache_dir=tmp_path, max_recompiles=100):
        yield


def same(found, expected):
    found, structure = _pytree.tree_flatten(found)
    expected, wanted = _pytree.tree_flatten(expected)
    assert structure == wanted
    for mine, theirs in zip(found, expected, strict=True):
        assert type(mine) is type(theirs)
        if isinstance(mine, torch.Tensor):
            torch.testing.assert_close(mine, theirs, equal_nan=True)
            assert mine.stride() == theirs.stride() or mine.numel() < 2
        else:
            assert mine == theirs


def rows(n):
    return (torch.randn(n, 8),)


def counted(fn, make=rows, sizes=SIZES):
    """The counters of a compiled function that has been called for sizes, each of which gave what eager gives."""
    compiled = graphc.compile(fn)
    for n in sizes:
        given = make(n)
        other = copy.deepcopy(given)
        same((compiled(*given), given), (fn(*other), other))
    return compiled.stats()


# what is known after three sizes


def positions(x):
    n = x.shape[0]
    mask = torch.triu(torch.full((n, n), float("-inf")), 1)
    return x + torch.arange(n).unsqueeze(1), torch.arange(n, dtype=torch.float32) / n, (x @ x.T + mask).softmax(-1)


def padded(x):
    n = -(-x.shape[0] // 8) * 8
    return torch.cat([x, x.new_zeros(n - x.shape[0], 8)]).view(-1, 8, 8).sum(0), F.pad(x, (1, 2, 3, x.shape[0]))


def statistics(x):
    return x.std(0), x.var(), x.mean(), torch.logsumexp(x, 0), F.layer_norm(x, x.shape), x.mean(0) * x.size(0)


def writes(x):
    x.add_(1)
    x[: x.shape[0] // 2].mul_(2)
    return x.sum()


def gradient(x):
    x = x.detach().requires_grad_()
    (found,) = torch.autograd.grad((x * x.shape[0]).relu().view(-1).pow(2).mean(), x)
    return found


def joined(x, y, z):
    return x @ z, y[3:] + x, torch.cat([x, y]), z.t() + x, y.shape[0] - x.shape[0]


def mapped(x):
    return torch.vmap(lambda row: row.sum() * row.shape[0])(x), torch.func.grad(lambda t: (t**2).sum())(x)


def calls(x):
    return torch.cdist(x, x[:5]) * 1, x.cumsum(0), x.sort(0).values * 1


@pytest.mark.parametrize("fn", [positions, padded, statistics, writes, gradient, mapped, calls])
def test_functions_of_rows(fn):
    assert counted(fn).known >= 6


def test_sizes_that_hang_together():
    make = lambda n: (torch.randn(n, 8), torch.randn(n + 3, 8), torch.randn(8, n))
    assert counted(joined, make).known >= 6
    assert counted(lambda x: x * 2, lambda n: (torch.randn(8, n).t(),)).known >= 6
    assert counted(lambda x: (x @ x).trace(), lambda n: (torch.randn(n, n),)).known >= 6


def test_the_function_does_not_run(monkeypatch):
    captured = []
    original = driver.capture
    monkeypatch.setattr(driver, "capture", lambda *args, **options: captured.append(1) or original(*args, **options))
    assert counted(lambda x: x.softmax(0), sizes=range(33, 53)).known == 17
    assert len(captured) == 3


def test_sizes_as_results():
    def fn(x):
        n = x.shape[0]
        return n, x.numel(), x.size(), n // 3, 1 / n, n * 8 + 1, {"n": [n, x * n]}

    stats = counted(fn)
    assert stats.known >= 6 and not stats.one_size


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.settings, self.longest = 0, None, 0
        self.register_buffer("rows", torch.zeros(()))

    def forward(self, x, seen):
        self.last, self.shape = x.shape[0], x.shape
        self.settings = [x.shape[0], {"half": x.shape[0] // 2}]
        self.rows += x.shape[0]
        seen["n"] = x.shape[0] + 1
        return x * self.last


def test_sizes_that_are_left_behind():
    mine, theirs = Remembers(), Remembers()
    compiled = graphc.compile(mine)
    for n in SIZES:
        (x,), seen, wanted = rows(n), {}, {}
        same((compiled(x, seen), seen), (theirs(x, wanted), wanted))
        for name in ("last", "shape", "settings", "rows"):
            same(getattr(mine, name), getattr(theirs, name))


class Cache(nn.Module):
    def __init__(self):
        super().__init__()
        self.keys = torch.zeros(2, 256)

    def forward(self, x):
        self.keys = torch.cat([self.keys, x])
        return (x @ self.keys.T).softmax(-1) @ self.keys


def test_a_cache_that_grows():
    mine, theirs = Cache(), Cache()
    compiled = graphc.compile(mine)
    for _ in range(30):
        x = torch.randn(1, 256)
        same(compiled(x), theirs(x))
    stats = compiled.compiled.stats()
    assert stats.known >= 24 and stats.builds == 4, "one per number of bits, from 2 to 5"


def test_a_module_that_is_trained_outside():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    compiled = graphc.compile(net)
    for n in (24, 20, 27, 22, 23, 31):
        x = torch.randn(3, n, 32)
        found = torch.autograd.grad(compiled(x).square().mean(), list(net.parameters()))
        expected = torch.autograd.grad(net(x).square().mean(), list(net.parameters()))
        torch.testing.assert_close(found, expected)
    (out,) = (compiled(torch.randn(3, 25, 32)),)
    out.sum().backward()  # a cotangent that lies otherwise
    assert compiled.stats().known >= 4


def test_whole_steps():
    torch.manual_seed(0)
    mine = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3))
    theirs = copy.deepcopy(mine)

    def make_step(net):
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)

        def step(x):
            optimizer.zero_grad()
            loss = net(x).square().mean() / x.shape[0]
            loss.backward()
            optimizer.step()
            return loss

        return step

    compiled, eager = graphc.compile(make_step(mine)), make_step(theirs)
    for n in SIZES:
        (x,) = rows(n)
        torch.testing.assert_close(compiled(x), eager(x))
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict())
    assert compiled.stats().known >= 6


# conditions


def test_branches_on_sizes():
    def fn(x):
        if x.shape[0] > 36:
            return x * 2
        return x.sum(0) if x.shape[0] % 2 else x - 1

    assert counted(fn).known >= 4


def test_an_error_for_some_sizes():
    @graphc.compile
    def fn(x):
        if x.shape[0] == 41:
            raise ValueError(f"{x.shape[0]} rows")
        return x * 3

    for n in (24, 40, 37, 33, 41, 39, 41, 42):
        if n == 41:
            with pytest.raises(ValueError, match="41 rows"):
                fn(*rows(n))
        else:
            (x,) = rows(n)
            torch.testing.assert_close(fn(x), x * 3)
    assert fn.stats().known >= 1


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x * (2 if x.shape[0] in {33, 37} else 3),
        lambda x: {f"rows{x.shape[0]}": x * 1},
        lambda x: {x.shape[0]: x.sum()},
        lambda x: sum(x[i] * i for i in range(x.shape[0])),
        lambda x: (x / math.sqrt(x.shape[0]), x * x.shape[0] ** 0.5, 0.5 * x.shape[0] * x, len(x)),
        lambda x: (int(x.shape[0]) * x, round(x.shape[0] / 4), divmod(x.shape[0], 4), float(x.shape[0])),
        lambda x: (x.shape == (37, 8), x.shape[::-1], hash(x.shape[0]), str(x.shape[0])),
        lambda x: (x.unbind(0)[-1], torch.tensor([x.shape[0], 2]), [None] * x.shape[0]),
    ],
)
def test_what_python_makes_of_the_number_itself(fn):
    """Right for every size, be the capture for it alone or not."""
    counted(fn)


def test_other_strides_and_sharing_of_memory():
    @graphc.compile
    def fn(x, y):
        x.mul_(2)
        return x + y

    for n in (24, 40, 37, 33, 35):
        x, y = torch.randn(n, 8), torch.randn(n, 8)
        torch.testing.assert_close(fn(x.clone(), y), x * 2 + y)
    known = fn.stats().known
    assert known >= 1
    for n in (34, 38):
        x = torch.randn(8, n).t()
        torch.testing.assert_close(fn(x.clone(), y := torch.randn(n, 8)), x * 2 + y)
        whole = torch.randn(n + 1, 8)
        other = whole.clone()
        torch.testing.assert_close(fn(whole[1:], whole[:-1]), other[1:].mul_(2) + other[:-1])


def test_decisions_on_data_and_changing_numbers():
    @graphc.compile
    def fn(x, scale):
        return x * scale if x.sum() > 0 else x - scale

    for n, scale in zip(SIZES, torch.rand(len(SIZES)).tolist(), strict=True):
        for sign in (1, -1):
            x = torch.rand(n, 8) * sign
            torch.testing.assert_close(fn(x, scale), x * scale if sign > 0 else x - scale)


def test_what_is_said_of_a_size():
    fn = graphc.compile(lambda x: x.softmax(0))
    for n in (24, 40, 37, 33):
        fn(*rows(n))
    assert fn.graph(*rows(35)).inputs[0].shape == (35, 8)
    assert fn.explain(*rows(36)).stats["sizes"] == {"size0": 36}
    fn(torch.randn(33, 9))
    assert "shape (33, 9)" in fn.stats().recompiles[0]


def test_captures_for_many_sizes_are_given_up():
    def fn(x):
        return x * x.shape[0] ** 0.5

    stats = counted(fn)
    assert not stats.known and len(stats.one_size) <= 3


@functools.lru_cache
def remembered(n):
    return n, n * 2, [2.0 ** (-i / n) for i in range(4)]


def test_sizes_that_are_kept_are_numbers_like_any_other():
    def fn(x):
        n, twice, powers = remembered(x.shape[0])
        return torch.cat([x, x.new_zeros(twice - n, 8)]) * powers[1], n

    counted(fn)
    remembered.cache_clear()
    compiled = graphc.compile(fn)
    for n in SIZES:
        compiled(*rows(n))
    for n in SIZES:
        (x,) = rows(n)
        same(fn(x), (torch.cat([x, torch.zeros(n, 8)]) * 2.0 ** (-1 / n), n))


def test_one_library_for_programs_that_run_one_after_the_other():
    fn = graphc.compile(positions)
    for n in SIZES:
        fn(*rows(n))
    builds = [build for family in fn.families for build in family.builds]
    counts = [len(build.conditions.all_sizes(build.conditions.given())) for build in builds]
    libraries = [(build.loaded, (1,) * count, (2,) * count) for build, count in zip(builds, counts, strict=True)]
    for library, ones, _ in libraries:  # as if programs of other sizes were running
        assert library.enter(ones)
    for n in (33, 35, 33):
        (x,) = rows(n)
        same(fn(x), positions(x))
    for library, ones, twos in libraries:
        assert not library.enter(twos) and library.enter(ones)
        library.leave()
        library.leave()
        assert library.enter(twos)
        library.leave()
    for n in (33, 35, 33):
        (x,) = rows(n)
        same(fn(x), positions(x))


def test_programs_of_several_sizes_at_a_time():
    fn = graphc.compile(statistics)
    for n in (33, 35, 37, 39):
        fn(*rows(n))

    def work(n):
        (x,) = rows(n)
        expected = statistics(x)
        for _ in range(200):
            torch.testing.assert_close(fn(x), expected)

    side_by_side(work, (37, 39, 41, 38))
    assert fn.stats().known >= 2


def test_threads():
    fn = graphc.compile(statistics)

    def work(first):
        for n in range(first, 60, 4):
            (x,) = rows(n)
            torch.testing.assert_close(fn(x), statistics(x))

    side_by_side(work, range(32, 36))
    assert fn.stats().known >= 20
