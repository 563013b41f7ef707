"""Kernels over tables of rows in Triton's interpreter: against the loop-IR oracle, and optimizers against eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import graphc
from graphc.codegen.triton.foreach import emit_table_kernel
from graphc.ir.types import DType, bf16, f16, f32, f64
from graphc.loopir.interpreter import run
from graphc.loopir.numpy_ops import NUMPY_DTYPES
from graphc.program.plan import ForeachStep
from graphc.runtime.tensors import torch_dtype
from graphc.runtime.triton_foreach import blocks_of, over_blocks
from graphc.runtime.triton_launcher import InterpretedKernel
from tests.triton.data import as_array, as_tensor
from tests.triton.tables import momentum, norm_and_peak

torch.set_num_threads(1)

SIZES = (1, 1023, 1024, 1025, 0, 3000)


@pytest.mark.parametrize("dtype", [f32, f64, bf16, f16], ids=str)
@pytest.mark.parametrize("aligned", [True, False])
def test_table_kernel_agrees_with_the_oracle(dtype: DType, aligned: bool) -> None:
    kernel, arguments = momentum(dtype)
    made = emit_table_kernel(kernel, arguments, 3, 2)
    torch.manual_seed(0)
    rows = [[torch.randn(size).to(torch_dtype(dtype)) for _ in "pmg"] for size in SIZES]
    scale = torch.tensor([0.5])
    table = np.zeros((len(rows), 7), np.int64)
    wanted = []
    for number, (size, tensors) in enumerate(zip(SIZES, rows, strict=True)):
        table[number, :5] = [size, 0, *(tensor.data_ptr() for tensor in tensors)]
        table[number, 6:7].view(np.float64)[0] = rate = 0.1 * (number + 1)
        p, m, g = (as_array(tensor.clone()) for tensor in tensors)
        buffers = {"p": p, "m": m, "g": g, "rate": np.array([rate]), "scale": np.array([0.5], np.float32)}
        results = {name: np.zeros(size, NUMPY_DTYPES[dtype.name]) for name in ("p_out", "m_out")}
        run(kernel, {**buffers, **results}, {"elements": size})
        wanted.append([results["p_out"], results["m_out"]])
    blocks = torch.from_numpy(blocks_of(SIZES))
    InterpretedKernel(over_blocks(made, len(blocks), len(rows), aligned))([torch.from_numpy(table), blocks, scale])
    for tensors, results in zip(rows, wanted, strict=True):
        for tensor, result in zip(tensors[:2], results, strict=True):
            torch.testing.assert_close(tensor, as_tensor(result, dtype), rtol=1e-6 if dtype == f32 else 1e-2, atol=1e-6)


@pytest.mark.parametrize("dtype", [f32, f64, bf16], ids=str)
def test_reductions_of_rows_agree_with_the_oracle(dtype: DType) -> None:
    kernel, arguments = norm_and_peak(dtype)
    made = emit_table_kernel(kernel, arguments, 3, 0)
    sizes = (*SIZES, 1024 * 1024 + 1)  # more blocks than a program combines at once
    torch.manual_seed(0)
    rows = [torch.randn(size).to(torch_dtype(dtype)) for size in sizes]
    found = torch.zeros(len(rows), 2, dtype=torch_dtype(dtype.compute))
    table = np.zeros((len(rows), 5), np.int64)
    first = 0
    for number, row in enumerate(rows):
        table[number] = [len(row), first, row.data_ptr(), found[number, 0].data_ptr(), found[number, 1].data_ptr()]
        first += -(-len(row) // 1024)
    blocks = torch.from_numpy(blocks_of(sizes))
    ready = over_blocks(made, len(blocks), len(rows), True)
    InterpretedKernel(ready)([torch.from_numpy(table), blocks, torch.tensor([2.0])])
    for row, results in zip(rows, found, strict=True):
        kind = NUMPY_DTYPES[dtype.compute.name]
        wanted = {name: np.zeros(1, kind) for name in ("norm", "peak")}
        given = {"x": as_array(row), "scale": np.array([2.0], np.float32)}
        run(kernel, {**given, **wanted}, {"elements": len(row)})
        both = torch.from_numpy(np.concatenate([wanted["norm"], wanted["peak"]]))
        torch.testing.assert_close(results, both, rtol=1e-6, atol=0)


def test_clipping_by_norm() -> None:
    parameters, _, _ = make("sgd")
    others, _, _ = make("sgd")

    def clip() -> torch.Tensor:
        return torch.nn.utils.clip_grad_norm_(others, 1.0)

    call = graphc.compile(clip, backend="triton")
    torch.testing.assert_close(call(), torch.nn.utils.clip_grad_norm_(parameters, 1.0), rtol=1e-6, atol=1e-6)
    for parameter, other in zip(parameters, others, strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-6, atol=1e-6)
    plan = call.graph(stage="scheduled")
    assert sum(isinstance(step, ForeachStep) for step in plan.steps) == 2 and len(plan.steps) <= 4


OPTIMIZERS: dict[str, Callable[[list[torch.Tensor]], torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, centered=True),
    "nadam": torch.optim.NAdam,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
}


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], Any, Callable[[], None]]:
    """Ten parameters of unlike sizes, one of them in memory that begins at no multiple of 16 bytes."""
    torch.manual_seed(0)
    whole = torch.randn(64).to(dtype)
    parameters = [torch.nn.Parameter(torch.randn(3, 29 * number + 1).to(dtype)) for number in range(9)]
    parameters.append(torch.nn.Parameter(whole[1:20]))
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = OPTIMIZERS[name](parameters)

    def step() -> None:
        optimizer.step()

    return parameters, optimizer, step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_update_all_parameters_in_one_launch(name: str) -> None:
    parameters, optimizer, eager = make(name)
    others, compiled, step = make(name)
    call = graphc.compile(step, backend="triton")
    assert call.explain().stats["kernel_calls"] == 1
    for _ in range(3):
        eager()
        call()
    for parameter, other in zip(parameters, others, strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-6)
        for key, value in optimizer.state[parameter].items():
            torch.testing.assert_close(value, compiled.state[other][key], rtol=1e-6, atol=1e-6)


def test_half_precision_parameters() -> None:
    parameters, _, eager = make("adam", torch.bfloat16)
    others, _, step = make("adam", torch.bfloat16)
    call = graphc.compile(step, backend="triton")
    eager()
    call()
    for parameter, other in zip(parameters, others, strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-2, atol=1e-2)


def test_what_eager_refuses_leaves_all_as_it_was() -> None:
    parameters, optimizer, step = make("adam")
    call = graphc.compile(step, backend="triton")
    call()
    for parameter in parameters:
        optimizer.state[parameter]["step"].fill_(-1)  # a power of zero: eager divides by zero
    before = [parameter.detach().clone() for parameter in parameters]
    with pytest.raises(ZeroDivisionError):
        call()
    assert all(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    assert all(optimizer.state[parameter]["step"].item() == -1 for parameter in parameters)


def test_blocks_name_row_and_place() -> None:
    assert blocks_of((2048, 0, 1025)).tolist() == [0, 1, 2 << 32, (2 << 32) + 1]


def test_the_plan_has_numbers_apart() -> None:
    _, _, step = make("adam")
    plan = graphc.compile(step, backend="triton").graph(stage="scheduled")
    (found,) = plan.steps
    assert isinstance(found, ForeachStep) and found.scratch < 0
    wide = [name for name, items in zip(found.kernels, found.arguments) if any(item.elementwise for item in items)]
    assert len(wide) == 1 and all(s.op != "pow" for s in plan.kernels[wide[0]].body if hasattr(s, "op"))
