"""Random kernels: generated C against the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphc.codegen.c.emit import COptions
from tests.ccompile import CKernels
from tests.kernel_strategies import assert_agree, make_buffers, oracle, random_kernels

COUNT = 80
OPTIONS = {
    "serial": COptions(parallel=False),
    "threads": COptions(parallel_cost=0, chunk=4),
    "no_row_buffers": COptions(row_buffer_bytes=0),
}


@pytest.fixture(scope="module", params=list(OPTIONS))
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CKernels:
    seed = list(OPTIONS).index(request.param)
    kernels = random_kernels(COUNT, seed=seed, with_rows=True if request.param == "no_row_buffers" else None)
    return CKernels(kernels, Path(tmp_path_factory.mktemp("c")), OPTIONS[request.param])


@pytest.mark.parametrize("part", range(4))
def test_c_agrees_with_the_interpreter(library: CKernels, part: int) -> None:
    for number in range(part, COUNT, 4):
        kernel = library.kernels[number]
        buffers = make_buffers(kernel, number)
        expected = oracle(kernel, buffers)
        library.run(number, buffers)
        assert_agree(kernel, expected, buffers)
