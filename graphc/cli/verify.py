"""`graphc verify`: one function, held to the numerics contract."""

from __future__ import annotations

from graphc.api import compile
from graphc.report.numerics import NumericsReport
from graphc.report.targets import load_target
from graphc.report.verify import verify


def run_verify(spec: str, backend: str) -> NumericsReport:
    """Verify `FILE.py:NAME` on its example inputs.

    Raises:
        TargetError: no such function, or no inputs for it.
    """
    target = load_target(spec)
    args, kwargs = target.make_inputs()
    return verify(compile(target.fn, backend=backend), *args, **kwargs)
