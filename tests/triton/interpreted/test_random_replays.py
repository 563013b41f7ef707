"""Random programs on a device that is made up: replayed in random stages, they do bit for bit what they do launched."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from graphc.errors import GraphcError
from graphc.passes import devices
from graphc.program.plan import Step
from graphc.runtime import recordable, replay
from graphc.settings import override
from tests.fuzz.check import Module
from tests.fuzz.environments import same
from tests.fuzz.generate import generate
from tests.triton.made_up_device import MadeUpDevice, Placed, rubbish_in_fresh_memory

torch.set_num_threads(1)
CALLS = 6


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[MadeUpDevice]:
    """Its stages are small, and results are handed out that would be copied."""
    monkeypatch.setattr(recordable, "FEWEST_LAUNCHES", 1)
    monkeypatch.setattr(replay, "SMALL_RESULT", 64)
    with rubbish_in_fresh_memory(), override(cache=False, templates="always"), torch.no_grad():
        yield MadeUpDevice()


def cut_at_random(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fourth step is one that cannot be recorded."""
    why_not = recordable._Cutter._why_not

    def asked(self: Any, step: Step) -> str:
        at = self.program.steps.index(step)
        return why_not(self, step) or ("so it is drawn" if zlib.crc32(bytes((seed % 251, at % 251))) % 4 == 0 else "")

    monkeypatch.setattr(recordable._Cutter, "_why_not", asked)


def answered(placed: Placed, args: list[torch.Tensor], seed: int) -> tuple[list[Any], str]:
    """Results, arguments afterwards and the next random number, or the class of what was raised."""
    torch.manual_seed(seed)
    try:
        results = placed(*args)
    except Exception as error:
        return [], type(error).__name__
    return [*results, *args, torch.rand(1)], ""


def alike(found: list[Any], wanted: list[Any]) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(same(one, other) if isinstance(one, torch.Tensor) else one == other for one, other in pairs)


@pytest.mark.parametrize("several", [False, True], ids=["one device", "two"])
@pytest.mark.parametrize("first", range(0, 96, 24))
def test_replays_are_launches(first: int, several: bool, device: MadeUpDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two devices steps have changed places as well."""
    recorded = cut = 0
    for seed in range(first, first + 24):
        names = Module(generate(seed).script(), str(seed)).names
        made = {which: (lambda which=which: [x.detach() for x in names[which]()]) for which in ("first", "second")}
        with monkeypatch.context() as patches:
            cut_at_random(seed, patches)
            try:
                replayed = Placed(names["program"], *made["first"](), chance=random.Random(seed) if several else None)
                patches.setattr(devices, "REACHES", ())
                with override(replay=False):
                    launched = Placed(
                        names["program"], *made["first"](), chance=random.Random(seed) if several else None
                    )
            except GraphcError:
                continue
            except Exception as error:
                with pytest.raises(type(error)):
                    names["program"](*made["first"]())
                continue
        drawn, held = random.Random(seed), list[tuple[list[Any], list[Any]]]()
        for call in range(CALLS):
            inputs = made["second" if call % 2 else "first"]
            (found, error), (wanted, expected) = (answered(one, inputs(), call) for one in (replayed, launched))
            assert error == expected and alike(found, wanted), f"program {seed}, call {call}: {error} {expected}"
            held = held if drawn.random() < 0.7 else []
            held.append((found, [x.clone() if isinstance(x, torch.Tensor) else x for x in wanted]))
            assert all(alike(*pair) for pair in held), f"program {seed}: results that are held were written over"
        recorded += not replayed.replay.startswith("none")
        cut += "launched in every call" in replayed.replay
    assert recorded > 8 and cut > 2
