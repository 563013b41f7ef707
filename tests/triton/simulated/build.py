"""Compiles the libraries of the simulation, and says how processes find them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.triton.simulated.start import IDLE, OPERATORS

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[2]
DRIVER = "libcuda.so.1"


@dataclass(frozen=True)
class Built:
    """Where the libraries are."""

    driver: Path
    operators: Path


def missing() -> str:
    """What this machine lacks for the simulation, "" when there is everything."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None or not (Path(torch.origin).parent / "lib" / "libtorch_cuda.so").exists():
        return "a torch built for CUDA"
    headers = _headers()
    if headers is None:
        return "the headers of CUDA (packages nvidia-cuda-runtime and nvidia-cuda-crt)"
    if not (headers / "crt" / "host_defines.h").exists():
        return "the package nvidia-cuda-crt"
    return ""


def build(folder: Path) -> Built:
    """The libraries in a folder, made anew when their text has changed.

    Raises:
        RuntimeError: something is missing here.
        subprocess.CalledProcessError: g++ failed; its output is on stderr.
    """
    lack = missing()
    if lack:
        raise RuntimeError(f"the simulation needs {lack}")
    import torch

    texts = b"".join(path.read_bytes() for path in sorted(_HERE.glob("*.[ch]*")))
    target = folder / hashlib.sha256(texts + torch.__version__.encode()).hexdigest()[:16]
    target.mkdir(parents=True, exist_ok=True)
    made = Built(target / DRIVER, target / "liboperators.so")
    root = Path(torch.__path__[0])
    headers = [f"-I{_headers()}", f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{root / 'lib'}", "-ltorch_cpu", "-ltorch_cuda", "-lc10", "-lc10_cuda", str(made.driver)]
    _compile(
        made.driver,
        [_HERE / name for name in ("queues.cpp", "runtime.cpp", "driver.cpp")],
        [headers[0], f"-Wl,-soname,{DRIVER}"],
        ["-ldl"],
    )
    _compile(made.operators, [_HERE / "operators.cpp"], headers, libraries)
    return made


def environment(built: Built) -> dict[str, str]:
    """Variables of a process that is to have simulated GPUs."""
    paths = [str(_HERE / "site"), str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = "inductor-idle" if os.environ.get(IDLE, "0") != "0" else "inductor"  # binaries, of which one kind is text
    return {
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(built.driver.parent / kept)),
        "LD_PRELOAD": str(built.driver),
        "TRITON_LIBCUDA_PATH": str(built.driver.parent),
        "PYTHONPATH": os.pathsep.join(paths),
        OPERATORS: str(built.operators),
    }


def _headers() -> Path | None:
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations or () if found is not None else ():
        for path in sorted(Path(folder).glob("*/include/cuda_runtime_api.h")):
            if (path.parent / "cuda.h").exists():
                return path.parent
    return None


def _compile(library: Path, sources: list[Path], headers: list[str], libraries: list[str]) -> None:
    if library.exists():
        return
    made = library.with_suffix(f".{os.getpid()}")  # others may be at it, too
    command = ["g++", "-std=c++20", "-O1", "-g1", "-shared", "-fPIC", *headers, *map(str, sources), "-o", str(made)]
    subprocess.run([*command, *libraries], check=True)
    made.rename(library)
