"""Threads where sizes may change: kernels ask in each call whether there is work enough for them."""

import re

import torch

import graphc
from graphc.settings import override


def sources(fn):
    (family,) = fn.families
    return "".join(text for build in family.builds for text in build.program.sources.values())


def test_kernels_that_may_be_large_enough_ask(tmp_path):
    fn = graphc.compile(lambda x: (x * 2 + 1, torch.softmax(x, 1)))
    with override(cache_dir=tmp_path):
        for n in (900, 700, 1000):
            x = torch.randn(n, 256)
            torch.testing.assert_close(fn(x), (x * 2 + 1, torch.softmax(x, 1)))
    assert fn.stats().builds == 1
    clauses = re.findall(r"#pragma omp (parallel for.*)", sources(fn))
    assert clauses and all(re.search(r"if \(parallel: \(size0\*\d+\) >= 400000\)", clause) for clause in clauses)


def test_small_ones_have_none(tmp_path):
    fn = graphc.compile(lambda x: x * 2 + 1)
    with override(cache_dir=tmp_path):
        for n in (9, 11, 13):
            fn(torch.randn(n, 8))
    assert fn.stats().builds == 1 and "parallel" not in sources(fn)
