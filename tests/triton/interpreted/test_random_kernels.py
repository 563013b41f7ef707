"""Random kernels in Triton's interpreter against the loop-IR oracle."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiling import Limits, choose_tiling
from graphc.loopir.kernel import Kernel
from graphc.runtime.triton_launcher import InterpretedKernel
from tests.kernel_strategies import assert_agree, make_buffers, oracle, random_kernels
from tests.triton.data import as_array, as_tensor

torch.set_num_threads(1)

COUNT = int(os.environ.get("GRAPHC_RANDOM_KERNELS", "24"))
# large tiles across rows, which the interpreter runs fast, and short steps along them
FORMS = {
    "whole": Limits(pointwise=4096, row=8192, strided=256, fill=1),
    "looped": Limits(persistent=4, row=1 << 16, loop=32, strided=256, fill=1, split=1),
    "split": Limits(persistent=4, row=1 << 16, loop=16, strided=256, fill=4, split=3),
    "settled": Limits(persistent=4, row=1 << 16, loop=16, strided=256, fill=4, split=3, settle=1),
}


def run(kernel: Kernel, limits: Limits, buffers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors = {b.name: as_tensor(buffers[b.name], b.dtype) for b in kernel.buffers}
    InterpretedKernel(emit_kernel(kernel, tiling=choose_tiling(kernel, limits)))(list(tensors.values()))
    return {name: as_array(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", range(4))
def test_random_kernels_agree_with_the_oracle(part: int, form: str) -> None:
    with_rows = None if form == "whole" else True
    for number, kernel in enumerate(random_kernels(COUNT // 4, seed=part, with_rows=with_rows)):
        buffers = make_buffers(kernel, number)
        assert_agree(kernel, oracle(kernel, buffers), run(kernel, FORMS[form], buffers))
