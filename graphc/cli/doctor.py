"""`graphc doctor`: what this machine has, what that means for graphc, and a real compilation as proof."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import torch

from graphc.settings import settings


@dataclass(frozen=True)
class Finding:
    """One line of the report; level `ok`, `warn` or `fail`."""

    level: str
    subject: str
    detail: str

    def __str__(self) -> str:
        return f"[{self.level:>4}] {self.subject}: {self.detail}"


def examine() -> list[Finding]:
    """Everything checked, in order."""
    checks: tuple[Callable[[], Finding], ...] = (_versions, _compiler, _triton, _gpu, _cache, _trial)
    return [check() for check in checks]


def _versions() -> Finding:
    return Finding("ok", "versions", f"Python {platform.python_version()}, torch {torch.__version__}")


def _compiler() -> Finding:
    path = settings().compiler()
    if path is None:
        return Finding("warn", "C compiler", f"no {settings().cc}; CPU programs run op by op, as fast as eager")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    return Finding("ok", "C compiler", f"{path}: {version.stdout.splitlines()[0] if version.stdout else 'no version'}")


def _triton() -> Finding:
    import importlib.metadata

    try:
        return Finding("ok", "triton", importlib.metadata.version("triton"))
    except importlib.metadata.PackageNotFoundError:
        return Finding("warn", "triton", "not installed; backend='triton' is not available")


def _gpu() -> Finding:
    if torch.cuda.is_available():
        return Finding("ok", "GPU", torch.cuda.get_device_name())
    return Finding("ok", "GPU", "none; Triton kernels run under TRITON_INTERPRET=1 and are cross-compiled")


def _cache() -> Finding:
    from graphc.cli.cache import info

    return Finding("ok", "cache", info())


def _trial() -> Finding:
    import graphc

    def trial(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x * 2 + 1, -1)

    x = torch.randn(8, 33)
    result, expected = graphc.compile(trial)(x), trial(x)
    error = float((result - expected).abs().max())
    level = "ok" if error < 1e-6 else "fail"
    return Finding(level, "trial", f"softmax(x * 2 + 1) compiled and run, largest difference to eager {error:.1e}")
