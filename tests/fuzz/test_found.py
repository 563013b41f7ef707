"""The smallest programs of faults that random programs have found: each once wrong, and now as in eager."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.check import judge
from tests.suites.verdicts import RIGHT

FOUND = sorted(Path(__file__).with_name("found").glob("*.py"))
RUN_EAGER = {
    "view_without_autograd_then_written": "a result is a view made without autograd",
    "mixed_bool_not_differentiated": "its backward pass cannot be captured: Subtraction",
    "gradient_of_complex_number": "aten._conj.default of the number 1j",
    "leaf_made_and_used": "gradients are needed",
    "view_at_a_place_of_data": "a view of an input at a place that data decide",
    "out_of_another_shape_beside_its_elements": "makes memory larger",
    "number_into_expanded_by_mask": "it writes to a tensor of which several elements are one place in memory",
}
"""Where being right means to leave the call to eager, with a warning that says why."""


@pytest.mark.parametrize("file", FOUND, ids=lambda file: file.stem)
@pytest.mark.parametrize("backend", ["interpret", "c"])
def test_found(file: Path, backend: str) -> None:
    verdict = judge([file.read_text()], backend)
    if file.stem in RUN_EAGER:
        assert verdict.reason.startswith("runs eager: program") and RUN_EAGER[file.stem] in verdict.reason, verdict
    else:
        assert verdict.kind == RIGHT, verdict
