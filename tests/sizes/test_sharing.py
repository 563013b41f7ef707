"""When builds are shared between sizes, and when not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphc
from graphc import driver
from graphc.errors import CodegenError, CompilerError
from graphc.settings import override
from tests.sizes.side_by_side import side_by_side


def rows(x, y):
    return torch.softmax(x * y, 1) @ y


def inputs(n):
    return torch.randn(n, 24), torch.randn(24)


def right(fn, n):
    given = inputs(n)
    torch.testing.assert_close(fn(*given), rows(*given))


@pytest.fixture(autouse=True)
def without_a_cache(tmp_path):
    with override(cache_dir=tmp_path, max_recompiles=100):
        yield


def test_counters_and_report():
    fn = graphc.compile(rows)
    for n in (33, 43, 47, 40, 35):
        right(fn, n)
    stats = fn.stats()
    assert (stats.compiles, stats.builds, stats.reuses, stats.alone) == (5, 1, 3, [])
    report = fn.explain(*inputs(47))
    assert report.stats["sizes"] == {"size0": 47}
    assert report.stats["bytes_written"] % 47 == 0, "numbers are those of the size"


def test_what_is_chosen_by_sizes_does_not_make_more_builds():
    """Threads, tiles, what is computed again: thresholds of a few sizes, and of many."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)

    @graphc.compile
    def gradient(x):
        (found,) = torch.autograd.grad(layer(x).square().mean(), x)
        return found

    sizes = [*range(9, 128, 4)]
    for n in sizes:
        gradient(torch.randn(6, n, 32, requires_grad=True))
    stats = gradient.stats()
    assert stats.compiles == len(sizes) and not stats.alone
    assert stats.builds == 4, "one per number of bits"


def halves(x):
    a = x[::2]
    b = a[::2]
    c = b[::2]
    return a * 2, b - 1, c + 1


def pyramid(x):
    a = F.avg_pool1d(x, 3, 2, 1)
    b = F.avg_pool1d(a, 3, 2, 1)
    return a[..., : 2 * b.shape[-1] - 1] + F.interpolate(b, size=2 * b.shape[-1] - 1), b.shape[-1]


@pytest.mark.parametrize("sizes", [(37, 41, 46, 50, 42, 44, 61, 57), (45, 37, 40, 39, 36, 35, 34, 33)])
def test_what_few_sizes_seem_to_say_is_checked_for_each(sizes):
    """Of 37 and 41 the half, rounded up, might as well be 2 * eighth + 9."""
    strided, pooled = graphc.compile(halves), graphc.compile(pyramid)
    for n in sizes:
        for fn, eager, x in ((strided, halves, torch.randn(n, 4)), (pooled, pyramid, torch.randn(2, 3, n))):
            torch.testing.assert_close(fn(x), eager(x))
    assert strided.stats().reuses and pooled.stats().reuses


def test_one_size_pays_nothing(monkeypatch):
    monkeypatch.setattr("graphc.families.outline", None)
    fn = graphc.compile(rows)
    right(fn, 33)
    right(fn, 33)


def test_dynamic_false():
    fn = graphc.compile(rows, dynamic=False)
    for n in (33, 43, 47):
        right(fn, n)
    assert (fn.stats().compiles, fn.stats().builds) == (3, 0)
    assert graphc.compile(rows, dynamic=True).options == graphc.compile(rows).options


def test_sizes_from_the_disk_cache():
    for builds, reuses, sizes in ((1, 1, (33, 43, 47)), (0, 1, (33, 43, 47)), (0, 3, (34, 35, 33, 49))):
        fn = graphc.compile(rows)
        for n in sizes:
            right(fn, n)
        assert (fn.stats().builds, fn.stats().reuses) == (builds, reuses)
    right(fn, 100)  # of as many bits as none of the others
    assert (fn.stats().builds, fn.stats().reuses) == (1, 3)


def test_a_module_that_is_trained_outside():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.LayerNorm(40), nn.Linear(40, 3))
    compiled = graphc.compile(net)
    for n in (33, 43, 47, 50):
        x = torch.randn(n, 24)
        found = torch.autograd.grad(compiled(x).square().mean(), list(net.parameters()))
        expected = torch.autograd.grad(net(x).square().mean(), list(net.parameters()))
        torch.testing.assert_close(found, expected)
    assert compiled.stats().builds == 2 and compiled.stats().reuses == 4, "forward and backward"


def test_branches_on_data_and_on_sizes():
    def fn(x):
        if x.shape[0] > 45:
            x = x + 1
        return torch.sin(x) if x.sum() > 0 else torch.cos(x)

    compiled = graphc.compile(fn)
    for n in (33, 43, 46, 60, 50, 40):
        for sign in (1.0, -1.0):
            x = torch.full((n, 24), sign)
            torch.testing.assert_close(compiled(x), fn(x))
    assert compiled.stats().reuses > 0 and compiled.stats().eager_calls == 0


def test_many_sizes_find_their_programs():
    fn = graphc.compile(rows)
    sizes = range(32, 52)
    for n in (*sizes, *reversed(sizes), *sizes):
        right(fn, n)
    assert fn.stats().compiles == len(sizes) and fn.stats().hits == 2 * len(sizes)


def test_threads():
    fn = graphc.compile(rows)

    def work(first):
        for n in range(first, 60, 4):
            right(fn, n)

    side_by_side(work, range(32, 36))
    assert fn.stats().compiles == 28


@pytest.mark.parametrize("error", [CodegenError, CompilerError])
def test_what_cannot_be_built_for_several(monkeypatch, error):
    def fail(options, backend, graph):
        raise error("no sizes today")

    monkeypatch.setattr(driver, "build_for_sizes", fail)
    fn = graphc.compile(rows)
    for n in (33, 43, 47):
        right(fn, n)
    assert (fn.stats().compiles, fn.stats().builds, fn.stats().alone) == (3, 0, ["no sizes today"])


def test_what_cannot_be_loaded(monkeypatch):
    def fail(library, program, key):
        raise CompilerError("not on this device")

    monkeypatch.setattr("graphc.runtime.load.program_with", fail)
    fn = graphc.compile(rows)
    for n in (33, 43, 47):
        right(fn, n)
    assert fn.stats().alone == ["not on this device"]


def test_facts_beside_the_graph_are_not_shared():
    fn = graphc.compile(rows)
    for n in (33, 43):
        right(fn, n)
    with override(cflags=("-O1",)):
        right(fn, 47)
        right(fn, 40)
    assert (fn.stats().builds, fn.stats().reuses) == (2, 0)
