"""The numerics contract: error against float64 at most twice eager's own, plus four units in the last place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

FACTOR, ULPS = 2, 4


@dataclass(frozen=True)
class Errors:
    """Largest absolute errors of one tensor against float64.

    Args:
        ours: of the compiled program.
        eager: of eager.
        miss: how the contract is broken; empty when it is kept.
        by_rounding: what random rounding makes of eager's error, where its own is small by chance and that had to
            explain ours; else 0.
    """

    ours: float
    eager: float
    miss: str = ""
    by_rounding: float = 0.0


def errors(actual: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor | None = None) -> Errors:
    """Hold a result to the contract.

    Args:
        actual: the result of a compiled program.
        eager: eager's; shape, dtype and device must be equal to it, and contents where they are not floats.
        exact: the same in float64 (complex128), or None to take eager's own result as exact.
    """
    for what in ("shape", "dtype", "device"):
        mine, other = getattr(actual, what), getattr(eager, what)
        if mine != other:
            return Errors(0.0, 0.0, f"{what} {_plain(mine)}, eager {_plain(other)}")
    if actual.numel() == 0:
        return Errors(0.0, 0.0)
    if actual.is_complex():
        return errors(_real(actual), _real(eager), None if exact is None else _real(exact))
    if not actual.dtype.is_floating_point:
        differing = int((actual != eager).sum())
        return Errors(0.0, 0.0, f"{differing} elements differ, must be exact" if differing else "")
    return _of_floats(actual, eager, (eager if exact is None else exact).double())


def errors_of(ours: Any, eager: Any, exact: Any = None) -> Errors:
    """As `errors`, for tensors and for Python numbers, which must be equal."""
    if isinstance(eager, torch.Tensor):
        return errors(ours, eager, exact)
    same = ours == eager or (ours != ours and eager != eager)
    return Errors(0.0, 0.0, "" if same else f"{ours}, eager {eager}")


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, torch.Size) else value


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor.resolve_conj())


def _of_floats(actual: torch.Tensor, eager: torch.Tensor, reference: torch.Tensor) -> Errors:
    ours, theirs = actual.double(), eager.double()
    # where eager overflows and float64 does not (gelu of 3e38 on some processors; half precision, which kernels keep in
    # f32 in between), the result is held to float64
    right = reference.to(actual.dtype).double()
    sound = (ours == right) | (torch.isfinite(ours) & torch.isfinite(reference))
    theirs = torch.where(~torch.isfinite(theirs) & ~torch.isnan(right) & sound, right, theirs)
    finite = torch.isfinite(reference) & torch.isfinite(theirs)
    special, numbers = ~finite, ~finite & ~torch.isnan(theirs)
    miss = ""
    if not torch.equal(torch.isnan(ours[special]), torch.isnan(theirs[special])):
        miss = "NaN at other places than eager"
    elif not torch.equal(ours[numbers], theirs[numbers]):
        miss = "inf at other places than eager"
    if not bool(finite.any()):
        return Errors(0.0, 0.0, miss)
    limits = torch.finfo(actual.dtype)
    own = (theirs - reference)[finite].abs().max()
    error, size = (ours - reference)[finite].abs(), reference[finite].abs()
    allowed = FACTOR * own + ULPS * limits.eps * size.clamp_min(limits.tiny)
    worst = int((error - allowed).argmax())
    if not miss and not bool((error <= allowed).all()):
        value, most = float(reference[finite][worst]), float(allowed[worst])
        miss = f"error {float(error[worst]):.3e} above the allowed {most:.3e} at value {value:.6g}"
    return Errors(float(error.max()), float(own), miss)


@dataclass(frozen=True)
class OutputErrors:
    """What became of one output: its name in the user's program, its type, and its errors."""

    name: str
    type: str
    errors: Errors


@dataclass(frozen=True)
class Fault:
    """The first thing that breaks the contract.

    Args:
        stage: `capture`, `pass NAME`, `kernel NAME` or `library call NAME`.
        op: its text in the IR.
        location: the user's line, `file:line`; empty when there is none.
        miss: how the contract is broken there.
        script: a program of its own that shows it; None where it takes the user's program to show it.
    """

    stage: str
    op: str
    location: str
    miss: str
    script: Path | None = None

    def __str__(self) -> str:
        where = f" at {self.location}" if self.location else ""
        shown = f"\n  shown by {self.script}" if self.script is not None else ""
        return f"first broken by {self.stage}: {self.op}{where}: {self.miss}{shown}"


@dataclass(frozen=True)
class NumericsReport:
    """Eager, compiled and float64 side by side. `str(report)` is a readable table.

    Attributes:
        name: of the function.
        backend: that ran it.
        outputs: results, arguments and other inputs that were written, gradients by random cotangents.
        fault: what breaks the contract first, when an output does.
    """

    name: str
    backend: str
    outputs: tuple[OutputErrors, ...]
    fault: Fault | None = None

    @property
    def right(self) -> bool:
        """All outputs keep the contract."""
        return self.fault is None and not any(output.errors.miss for output in self.outputs)

    def __str__(self) -> str:
        lines = [f"{self.name}, backend {self.backend}: {'right' if self.right else 'WRONG'}"]
        width = max((len(output.name) for output in self.outputs), default=0)
        for output in self.outputs:
            found = output.errors
            line = f"  {output.name:{width}}  {output.type}  error {found.ours:.2e}, eager's {found.eager:.2e}"
            if found.by_rounding:
                line += f" by chance, else up to {found.by_rounding:.2e}"
            lines.append(f"{line}  {found.miss}".rstrip())
        return "\n".join(lines + ([str(self.fault)] if self.fault is not None else []))
