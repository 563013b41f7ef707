"""The numerics contract as an assertion: error against float64 at most twice eager's own, plus four ulps."""

from __future__ import annotations

import torch


def assert_contract(actual: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor | None = None) -> None:
    """Assert that `actual` agrees with eager as the contract asks.

    Args:
        actual: graphc's result.
        eager: eager's result; shape, dtype and strides must be equal to it.
        exact: the same program run in float64, or None to take eager's own result as exact (integers, bools, copies).
    """
    assert actual.shape == eager.shape, f"shape {tuple(actual.shape)}, eager {tuple(eager.shape)}"
    assert actual.dtype == eager.dtype, f"dtype {actual.dtype}, eager {eager.dtype}"
    assert actual.device == eager.device, f"device {actual.device}, eager {eager.device}"
    if actual.numel() == 0:
        return
    if not actual.dtype.is_floating_point:
        assert torch.equal(actual, eager), f"{int((actual != eager).sum())} elements differ, must be exact"
        return
    reference = (eager if exact is None else exact).double()
    ours, theirs = actual.double(), eager.double()
    finite = torch.isfinite(reference) & torch.isfinite(theirs)
    # where eager overflows and float64 does not (gelu of inf or 3e38 on some processors), the number is right too
    right = reference.to(actual.dtype).double()
    repaired = ~torch.isfinite(theirs) & ~torch.isnan(right) & (ours == right)
    special = ~(finite | repaired)
    assert torch.equal(torch.isnan(ours[special]), torch.isnan(theirs[special])), "NaN at other places than eager"
    numbers = special & ~torch.isnan(theirs)
    assert torch.equal(ours[numbers], theirs[numbers]), "inf at other places than eager"
    if not bool(finite.any()):
        return
    eps = torch.finfo(actual.dtype).eps
    tiny = torch.finfo(actual.dtype).tiny
    error = (ours - reference)[finite].abs()
    allowed = 2 * (theirs - reference)[finite].abs().max() + 4 * eps * reference[finite].abs().clamp_min(tiny)
    worst = int((error - allowed).argmax())
    assert bool((error <= allowed).all()), (
        f"error {float(error[worst]):.3e} above the allowed {float(allowed[worst]):.3e} "
        f"at value {float(reference[finite][worst]):.6g}"
    )
