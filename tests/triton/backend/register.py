"""Builds the device of `madeup.cpp` and makes it known to torch and to graphc; for good, so in a process of its own.

The tests run on a GPU instead, simulated or real, where GRAPHC_MADE_UP_BACKEND is `cuda`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphc.runtime import triton_launcher
from tests.triton.made_up_device import MadeUpDevice

IS_CUDA = os.environ.get("GRAPHC_MADE_UP_BACKEND") == "cuda"
KIND = "cuda" if IS_CUDA else MadeUpDevice.kind
_SOURCE = Path(__file__).parent / "madeup.cpp"


class OwnMemoryDevice(MadeUpDevice):
    """The made-up device with tensors that torch says are its own: everything from `.to(device)` on is as on a GPU."""

    def place(self, index: int) -> torch.device:
        return torch.device(KIND, index)

    def allows_tf32(self) -> bool:
        return False


def build(folder: Path) -> Path:
    """The library, compiled into a folder.

    Raises:
        subprocess.CalledProcessError: g++ failed; carries its output.
        FileNotFoundError: there is none.
    """
    root, library = Path(torch.__path__[0]), folder / "libmadeup.so"
    include = root / "include"
    headers = [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]
    linked = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"]
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", *headers, str(_SOURCE), "-o", str(library), *linked]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def register(library: Path) -> OwnMemoryDevice:
    """Make the device known; once per process."""
    torch.utils.rename_privateuse1_backend(KIND)
    module: Any = types.ModuleType(f"torch.{KIND}")
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.device_count, module.current_device = lambda: 1, lambda: 0
    module.device = lambda *_: contextlib.nullcontext()
    module.manual_seed_all = module.synchronize = lambda *_: None
    module.get_rng_state, module.set_rng_state = (
        lambda *_: torch.get_rng_state(),
        lambda state, *_: torch.set_rng_state(state),
    )
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    torch._register_device_module(KIND, module)
    torch.ops.load_library(str(library))
    torch.utils.generate_methods_for_privateuse1_backend()
    launch = triton_launcher.InterpretedKernel.__call__

    def interpret(kernel: triton_launcher.InterpretedKernel, tensors: Sequence[torch.Tensor]) -> None:
        launch(kernel, [_pointer(tensor) for tensor in tensors])

    triton_launcher.InterpretedKernel.__call__ = interpret  # type: ignore[method-assign]
    return OwnMemoryDevice()


def here(value: Any) -> Any:
    """Tensors of the device, in nested lists, tuples and dicts, as tensors of the CPU on the same memory."""
    if isinstance(value, dict):
        return {key: here(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [here(item) for item in value]
    if not isinstance(value, torch.Tensor) or value.device.type == "cpu":
        return value
    if IS_CUDA:
        return value.detach().cpu()
    storage = value.untyped_storage()
    memory = _memory(storage.data_ptr(), storage.nbytes() // value.element_size() * value.element_size(), value.dtype)
    found = memory.as_strided(value.shape, value.stride(), value.storage_offset() if memory.numel() else 0)
    found._keeps = storage  # type: ignore[attr-defined]  # alive
    found = found.conj() if value.is_conj() else found
    return found._neg_view() if value.is_neg() else found


def _pointer(tensor: torch.Tensor) -> torch.Tensor:
    """All of the memory from a tensor's first element on, for the interpreter, which takes no device but the CPU."""
    if tensor.device.type == "cpu":
        return tensor
    size = tensor.element_size()
    left = tensor.untyped_storage().nbytes() - tensor.storage_offset() * size
    return _memory(tensor.data_ptr(), left // size * size if tensor.numel() else 0, tensor.dtype)


def _memory(address: int, nbytes: int, dtype: torch.dtype) -> torch.Tensor:
    if nbytes <= 0:
        return torch.empty(0, dtype=dtype, device="cpu")
    return torch.from_numpy(np.frombuffer((ctypes.c_char * nbytes).from_address(address), np.uint8)).view(dtype)
