"""Random words of generated C, bit for bit those of the oracle: in runs, one at a time, on one thread or several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphc.codegen.c.emit import COptions, emit_kernel
from graphc.loopir.kernel import Kernel
from tests.ccompile import CKernels
from tests.kernel_strategies import oracle
from tests.random_kernels import RANDOM_CASES

KEYS = (0, 77, -1, (1 << 61) - 1)
IN_RUNS = ("words", "words_shifted", "words_far", "dropout_kernel", "row_maximum")


@pytest.fixture(scope="module", params=[COptions(), COptions(parallel_cost=1)], ids=["default", "parallel"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CKernels:
    folder = Path(tmp_path_factory.mktemp("c"))
    return CKernels([make() for make in RANDOM_CASES.values()], folder, request.param)


def _buffers(kernel: Kernel, key: int) -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(0), {"key": np.array([5, key], np.int64)}
    for buffer in kernel.buffers[1:]:
        size = int(str(buffer.size))
        if buffer.access == "in":
            found[buffer.name] = rng.standard_normal(size).astype(np.float32)
        else:
            found[buffer.name] = np.zeros(size, np.uint32 if buffer.dtype.kind == "uint" else np.float32)
    return found


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("number", range(len(RANDOM_CASES)), ids=list(RANDOM_CASES))
def test_words_are_the_oracles(library: CKernels, number: int, key: int) -> None:
    kernel = list(RANDOM_CASES.values())[number]()
    buffers = _buffers(kernel, key)
    expected = oracle(kernel, buffers)
    library.run(number, buffers)
    assert np.array_equal(buffers["y"], expected["y"])


@pytest.mark.parametrize("name", RANDOM_CASES)
def test_neighbouring_words_are_computed_in_runs(name: str) -> None:
    helpers = emit_kernel(RANDOM_CASES[name]()).helpers
    assert ("gc_philox_words" in helpers) == (name in IN_RUNS)
    assert ("gc_philox_word" in helpers) == (name not in IN_RUNS)
