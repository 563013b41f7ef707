"""The CUDA launcher's host side, with a stand-in for the compiled kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from graphc.codegen.triton.emit import emit_kernel
from graphc.codegen.triton.tiling import Limits, choose_tiling
from graphc.errors import BackendUnavailableError
from graphc.program.triton_kernel import TritonKernel
from graphc.runtime import triton_launcher
from graphc.runtime.triton_launcher import CudaKernel
from tests.triton.cases import chain, softmax


class Device:
    """Records what would have been compiled and launched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
        self.compiled: list[tuple[str, list[int]]] = []
        self.launched: list[tuple[Any, ...]] = []
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
        monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
        monkeypatch.setattr(triton_launcher, "compile_launch", self.compile)
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *a, device="cpu", **k: empty(*a, **k))

    def compile(self, kernel: TritonKernel, launch: Any, target: Any, unaligned: list[int]) -> Any:
        self.compiled.append((launch.function, list(unaligned)))
        return SimpleNamespace(
            run=lambda *args: self.launched.append(args), function=launch.function, packed_metadata="packed"
        )


def test_a_launch_passes_grid_stream_pointers_and_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    CudaKernel(emit_kernel(softmax(6, 128)), 0)([16, 32], 7)
    assert device.launched == [(6, 1, 1, 7, "softmax", "packed", None, None, None, 16, 32, 128)]


def test_one_variant_per_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    launch = CudaKernel(emit_kernel(softmax(6, 128)), 0)
    for pointers in ([16, 32], [48, 64], [20, 32], [24, 32], [20, 36]):
        launch(pointers, 0)
    assert device.compiled == [("softmax", []), ("softmax", [0]), ("softmax", [0, 1])]


def test_split_kernels_share_scratch_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    kernel = softmax(3, 40000)
    made = emit_kernel(kernel, tiling=choose_tiling(kernel, Limits(persistent=512, fill=64, split=8)))
    CudaKernel(made, 0)([16, 32], 0)
    assert [args[4] for args in device.launched] == ["softmax_pass1", "softmax_pass2", "softmax_pass3"]
    first, second = device.launched[0][11:13]
    assert {args[11:13] for args in device.launched} == {(first, second)}
    assert second - first >= made.scratch[0].size * 4


def test_an_empty_grid_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    CudaKernel(emit_kernel(chain(0, 5)), 0)([0, 16, 0], 0)
    assert device.launched == [] and device.compiled == []


def test_old_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch, (7, 5))
    with pytest.raises(BackendUnavailableError, match=r"need compute capability 8\.0, Old GPU has 7\.5"):
        CudaKernel(emit_kernel(chain(2, 2)), 0)
