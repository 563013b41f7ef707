"""`python -m tests.e2e.triton_agreement N`: N random programs in Triton's interpreter; set TRITON_INTERPRET=1."""

from __future__ import annotations

import sys
import tempfile

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphc.settings import override
from tests.e2e.agreement import by_backend, check_agreement
from tests.strategies import graphs


def main(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(graphs(), st.integers(0, 9))
    def agree(graph, seed) -> None:
        check_agreement(graph, seed, by_backend("triton"))

    with tempfile.TemporaryDirectory() as folder, override(cache_dir=folder):
        agree()


if __name__ == "__main__":
    main(int(sys.argv[1]))
