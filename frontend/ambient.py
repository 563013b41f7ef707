"""What is going on around a call that no program can take part in: such calls run eager, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from graphc.frontend.guards import GuardBuilder


def surroundings() -> str:
    """Why a call made now must run eager, or an empty string.

    Transforms of torch.func and dual numbers see every operator of a function, and anomaly detection names the forward
    call of a gradient that is NaN; a program has neither operators nor forward calls. The same transforms inside a
    compiled function are captured with it.
    """
    if torch._C._functorch.maybe_current_level() is not None:
        return "it is called inside a torch.func transform (compile the transformed function instead)"
    if forward_ad._current_level >= 0:
        return "it is called inside torch.autograd.forward_ad.dual_level()"
    if torch.is_anomaly_enabled():
        return "anomaly detection is on"
    return ""


def guards(g: GuardBuilder) -> None:
    """Nothing of it is there; tensors inside a torch.func transform are no match already."""
    g.check(f"{g.hold(forward_ad)}._current_level < 0", "forward-mode differentiation")
    g.check(f"not {g.hold(torch.is_anomaly_enabled)}()", "anomaly detection")
