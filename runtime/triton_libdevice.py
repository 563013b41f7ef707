"""NVIDIA's library of device functions, cut down to those that most generated kernels call.

For each kernel that calls one of them Triton reads the whole library, half a megabyte of bitcode: a third of what a
small kernel takes to compile. What is left of it here is a tenth, as text, and read in a millisecond. A kernel that
calls another function, or computes in float64, is given the whole one.

    libdevice.10.bc ──link what `keep` calls──> module ──without `keep`──> libdevice.ll, in the disk cache
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

from graphc.errors import FallbackWarning
from graphc.program.triton_kernel import TritonKernel
from graphc.runtime.cache import disk_cache, read_entry, temporary_entry
from graphc.settings import settings

_FILE = "libdevice.ll"
_NUMBERS = {
    **{name: (f"__nv_{name}f", 1) for name in (
        "ceil", "erf", "exp", "exp2", "expm1", "floor", "log", "log1p", "log2", "rint", "rsqrt", "sqrt", "tanh", "trunc"
    )},
    "copysign": ("__nv_copysignf", 2),
    "fast_dividef": ("__nv_fast_fdividef", 2),
}  # fmt: skip
"""Functions of float32 as Triton names them: their names in the library, and how many numbers they take."""
_PRODUCTS = {"__nv_umulhi": "i32", "__nv_umul64hi": "i64"}
"""What Triton's random numbers are made by: of two integers each."""
_CALL = re.compile(r"\blibdevice\.(\w+)")
_KEEP = re.compile(r"define [^@\n]*@keep\(.*?\n}\n", re.DOTALL)

_lock = threading.Lock()
_made: list[Path] = []
_failures: list[str] = []


def libdevice_for(kernel: TritonKernel, backend: str) -> Path | None:
    """The library with which a kernel can be compiled for devices of a Triton backend; None = the backend's own."""
    if backend != "cuda":
        return None
    is_wide = "float64" in kernel.text or any(kind == "*fp64" for _, kind in kernel.signature)
    if is_wide or not _NUMBERS.keys() >= set(_CALL.findall(kernel.text)):
        return None
    return cut_library()


def cut_library() -> Path | None:
    """The library, made or taken from the disk cache by whoever asks first; None where this Triton makes none."""
    with _lock:
        if not _failures and not (_made and _made[0].is_file()):  # another process may have cleared the cache
            _made.clear()
            try:
                _made.append(_find())
            except Exception as error:  # parts of Triton that are nobody's interface, and may be others in another one
                _failures.append(f"{type(error).__name__}: {error}")
                warnings.warn(
                    FallbackWarning(
                        "kernels are linked with the whole library of device functions, which takes longer, since it "
                        f"cannot be cut down with this Triton: {_failures[0]}"
                    ),
                    stacklevel=2,
                )
        return _made[0] if _made else None


def _find() -> Path:
    whole = _whole_library()
    request = _request()
    key = hashlib.sha256(b"\0".join((whole.read_bytes(), request.encode(), _KEEP.pattern.encode()))).hexdigest()
    folder = disk_cache().get(key) if settings().cache else None
    if folder is None:
        made = {_FILE: _cut(whole, request).encode()}
        folder = disk_cache().put(key, made) if settings().cache else temporary_entry(key, made)
    else:
        read_entry(folder, _FILE)  # checks it
    return folder / _FILE


def _whole_library() -> Path:
    """The one that Triton takes."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend

    options = make_backend(GPUTarget("cuda", 80, 32)).parse_options({})
    return Path(dict(options.extern_libs)["libdevice"])


def _request() -> str:
    """A module in MLIR's dialect of LLVM with a function that calls all that is kept."""
    calls = [(name, "f32", count) for name, count in _NUMBERS.values()]
    calls += [(name, kind, 2) for name, kind in _PRODUCTS.items()]
    declared, called = [], []
    for number, (name, kind, count) in enumerate(calls):
        kinds = f"({', '.join([kind] * count)}) -> {kind}"
        declared.append(f"llvm.func @{name}{kinds}")
        called.append(f"%{number} = llvm.call @{name}({', '.join([f'%{kind}'] * count)}) : {kinds}")
    keep = ["llvm.func @keep(%f32: f32, %i32: i32, %i64: i64) {", *called, "llvm.return", "}"]
    return "\n".join(["module {", *declared, *keep, "}", ""])


def _cut(whole: Path, request: str) -> str:
    """The text of what a module takes of the library."""
    from triton._C.libtriton import ir, llvm, nvidia

    context: Any = ir.context()
    ir.load_dialects(context)
    nvidia.load_dialects(context)
    with tempfile.NamedTemporaryFile("w", suffix=".mlir") as file:
        file.write(request)
        file.flush()
        module = ir.parse_mlir_module(file.name, context)
    module.context = context
    llvm.init_targets()
    inner = llvm.context()
    linked = llvm.to_module(module, inner)
    llvm.link_extern_libs(linked, [str(whole)])
    text, kept = _KEEP.subn("", str(linked))
    assert kept == 1
    return text.replace("define internal ", "define ")
