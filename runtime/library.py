"""The libraries of the running torch: where they are, and the addresses of their functions.

Native programs call into the very libtorch that this process runs and share its OpenMP, so nothing is ever loaded a
second time.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from graphc.errors import BackendUnavailableError

_OPENMP = re.compile(r"(/\S*/lib(?:gomp|iomp5|omp)[\w.-]*\.so[\w.]*)$")


@functools.cache
def libtorch() -> ctypes.CDLL:
    """libtorch_cpu as this process has it loaded.

    Raises:
        BackendUnavailableError: torch is built in a way that has no such library.
    """
    import torch

    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError as error:
        raise BackendUnavailableError(f"the C backend needs {path}, which is not loaded: {error}") from None


def address_of(symbol: str) -> int:
    """Address of a function of libtorch, or of Python's C API.

    Raises:
        BackendUnavailableError: libtorch does not export it, so the program was built for another torch.
    """
    try:
        function = getattr(ctypes.pythonapi if symbol.startswith("Py") else libtorch(), symbol)
    except AttributeError:
        raise BackendUnavailableError(f"this torch exports no {symbol}; compile the program again") from None
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def bind(library: ctypes.CDLL, symbols: Sequence[str]) -> None:
    """Tell a library, in the order of its text, where functions are; see `graphc.program.torch_text`.

    Raises:
        BackendUnavailableError: libtorch does not export one of them.
    """
    functions = (ctypes.c_void_p * max(len(symbols), 1))(*map(address_of, symbols))
    library.graphc_bind.argtypes = [ctypes.c_void_p]
    library.graphc_bind.restype = None
    library.graphc_bind(ctypes.addressof(functions))


def openmp_libraries(maps: str | None = None) -> list[str]:
    """Files of the OpenMP runtimes loaded in this process, in load order; one, unless something went wrong.

    Args:
        maps: text of /proc/self/maps, read when not given.
    """
    text = Path("/proc/self/maps").read_text() if maps is None else maps
    found = (match[1] for match in map(_OPENMP.search, text.splitlines()) if match)
    return list(dict.fromkeys(found))


@functools.cache
def openmp_library() -> str | None:
    """The OpenMP runtime that torch uses, or None when torch has none."""
    libtorch()
    found = openmp_libraries()
    return found[0] if found else None


def last_error() -> str:
    """What libtorch said about the last C shim call that failed in this thread; empty when it does not tell."""
    try:
        what = libtorch().torch_exception_get_what_without_backtrace
    except AttributeError:
        return ""
    what.restype = ctypes.c_char_p
    return (what() or b"").decode(errors="replace")


@functools.cache
def tensor_offset() -> int | None:
    """Bytes into a Python tensor object at which its at::Tensor stands, or None when that cannot be told.

    The layout is torch's own business, so it is not assumed but looked up, on tensors of several kinds: the word there
    must be the address that `_cdata` gives.
    """
    import torch

    plain = torch.empty(2)
    samples = [plain, torch.nn.Parameter(plain), plain[1:], torch.empty(0, dtype=torch.bool)]
    if sys.implementation.name != "cpython":
        return None
    for offset in range(object.__basicsize__, torch.Tensor.__basicsize__ - ctypes.sizeof(ctypes.c_void_p) + 1, 8):
        words = [ctypes.c_void_p.from_address(id(sample) + offset).value for sample in samples]
        if words == [sample._cdata for sample in samples]:
            return offset
    return None


@functools.cache
def type_offset() -> int | None:
    """Bytes into a Python object at which the address of its type stands, its last common field; None where not."""
    offset = object.__basicsize__ - ctypes.sizeof(ctypes.c_void_p)
    samples: list[object] = [object(), Path(), int, 1.5]
    if sys.implementation.name != "cpython":
        return None
    words = [ctypes.c_void_p.from_address(id(sample) + offset).value for sample in samples]
    return offset if words == [id(type(sample)) for sample in samples] else None


@functools.cache
def key_set_offset() -> int | None:
    """Bytes into torch's tensor record (a TensorImpl) at which its dispatch key set stands, or None.

    Looked up as in `tensor_offset`, on tensors whose key sets differ: the word there must be what torch says.
    """
    import torch

    of_keys = getattr(torch._C, "_dispatch_keys", None)
    if of_keys is None:
        return None
    wide = torch.empty(2, dtype=torch.complex64)
    with torch.inference_mode():
        inference = torch.empty(2)
    samples = [torch.empty(2), wide, wide.conj(), wide.conj().imag, inference]
    expected = [of_keys(sample).raw_repr() for sample in samples]
    for offset in range(0, _LEAST_TENSOR_BYTES, 8):
        if [ctypes.c_uint64.from_address(sample._cdata + offset).value for sample in samples] == expected:
            return offset
    return None


_LEAST_TENSOR_BYTES = 192  # no TensorImpl of a torch that graphc runs on is smaller; in 2.11 the key set is at 176
