"""One build for many sizes on a GPU: right for each, also when replayed, and what is launched is compiled once."""

from __future__ import annotations

import pytest
import torch

import graphc
from graphc.settings import override
from tests.sizes.programs import PROGRAMS
from tests.sizes.test_builds import close

pytestmark = pytest.mark.gpu
SIZES = (17, 21, 26, 23, 40, 23, 2)


@pytest.mark.parametrize("name", PROGRAMS)
def test_right_for_every_size(name: str) -> None:
    make, inputs = PROGRAMS[name]
    with torch.device("cuda"):
        torch.manual_seed(0)
        eager = make()
        torch.manual_seed(0)
        fn = graphc.compile(make())
        for n in SIZES:
            for again in range(2):
                torch.manual_seed(n + again)
                given = inputs(n)
                with override(max_recompiles=1000):
                    try:
                        expected = eager(*(item.clone() for item in given))
                    except RuntimeError as error:
                        if "operation not supported" in str(error):
                            pytest.skip("a kernel of eager's that is not simulated")
                        with pytest.raises(type(error)):
                            fn(*given)
                    else:
                        close(fn(*given), expected, f"for {n}")
    assert fn.stats().eager_calls == 0
    assert name == "numbers" or fn.stats().builds
