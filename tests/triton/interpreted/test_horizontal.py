"""Small kernels that run together over a table of rows, in Triton's interpreter: as eager, and recorded once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

import graphc
from graphc.program.plan import ForeachStep
from tests.triton.made_up_device import MadeUpDevice, Placed, rubbish_in_fresh_memory

torch.set_num_threads(1)

SIZES = (1, 1023, 1024, 1025, 0, 3000, 7)


def halves(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.to(torch.bfloat16) for tensor in tensors]


def given(misaligned: bool) -> list[torch.Tensor]:
    """Tensors of several sizes, a number among them; where asked, one that begins at no multiple of 16 bytes."""
    tensors = [torch.randn(size) for size in SIZES] + [torch.randn(())]
    return [*tensors, torch.randn(50)[1 if misaligned else 0 : 50 if misaligned else 49]]


def test_tensors_of_several_sizes_are_one_launch() -> None:
    torch.manual_seed(0)
    call = graphc.compile(halves, backend="triton")
    for misaligned in (False, True, False):
        tensors = given(misaligned)
        for found, wanted in zip(call(tensors), halves(tensors), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    (step,) = call.graph(tensors, stage="scheduled").steps
    assert isinstance(step, ForeachStep) and len(step.rows) == len(SIZES) + 1  # without the empty one


def test_views_at_odd_places_do_not_narrow_the_others() -> None:
    """Parts of one tensor whose places are known: those at multiples of 16 bytes are apart from the others."""

    def parts(x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.exp(part.clone()).to(torch.bfloat16) for part in x.split([4, 4, 4, 4, 1, 1, 1, 1, 4])]

    x = torch.randn(24)
    call = graphc.compile(parts, backend="triton")
    for found, wanted in zip(call(x), parts(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=0)
    steps = [step for step in call.graph(x, stage="scheduled").steps if isinstance(step, ForeachStep)]
    places = [[sum(offsets) * 4 % 16 == 0 for offsets in step.offsets] for step in steps]
    assert steps and all(len(set(found)) == 1 for found in places)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (3, 8, 5, 8, 6):
        layers += [nn.LazyLinear(width), nn.BatchNorm1d(width), nn.Tanh()]
    net = nn.Sequential(*layers)
    net(torch.randn(4, 6))
    return net


@pytest.fixture
def device() -> MadeUpDevice:
    return MadeUpDevice()


def test_state_of_many_layers_in_recorded_programs(device: MadeUpDevice) -> None:
    """Running statistics are stored by one launch; results of former calls stay as they were."""
    with rubbish_in_fresh_memory():
        net, other = network(), network()
        other.load_state_dict(copy.deepcopy(net.state_dict()))
        placed = Placed(lambda x: net(x), torch.randn(4, 6))
        results = []
        for _ in range(6):
            x = torch.randn(4, 6)
            results.append((placed(x), other(x)))
        for found, wanted in results:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        for name, value in net.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5)
        assert device.log.count("replay") >= 3
        tables = [step for step in placed.program.steps if isinstance(step, ForeachStep)]
        assert sum(len(step.rows) for step in tables) >= 5  # counters of batches, at least
        assert all(not table.has_numbers for table in placed.program.tables.values())
