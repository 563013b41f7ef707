"""Accesses that warps have alone are left out, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from tests.triton.ptx import watching
from tests.triton.ptx.registers import Array
from tests.triton.ptx.watching import Watch


def random_watch(seed: int) -> Watch:
    """Some accesses of up to three programs of three warps of four threads, close to each other."""
    random, watch = np.random.default_rng(seed), Watch("kernel")
    for _ in range(random.integers(1, 9)):
        kind = random.choice(["loads", "loads", "stores", "stores", "atomics"])
        program, warp = (np.sort(random.integers(0, 3, random.integers(1, 4))).repeat(4) for _ in range(2))
        program, warp = program[: len(warp)], warp[: len(program)]
        count = int(random.integers(1, 3))
        own = (9 * program + 3 * warp + np.arange(len(warp)) % 4) * 4 * count * int(random.integers(1, 3))
        starts = own if random.random() < 0.7 else random.integers(0, 60, len(own)) * 4
        watch.note(
            kind, (starts + 4096).astype(np.uint64), 4, count, program, warp, np.full(len(own), random.integers(2))
        )
    return watch


def test_spans_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [random_watch(seed).judge() for seed in range(600)]

    def nothing(written: Array, read: Array) -> tuple[Array, Array]:
        return np.zeros(len(written[0]), bool), np.zeros(len(read[0]), bool)

    monkeypatch.setattr(watching, "_alone", nothing)
    assert found == [random_watch(seed).judge() for seed in range(600)]
    assert {len(wrong) for wrong in found} >= {0, 1, 2, 3}


def test_what_warps_have_alone_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an update in place: each warp loads and stores what no other one does."""
    watch, threads = Watch("kernel"), np.arange(256)
    for kind in ("loads", "stores"):
        watch.note(kind, (4096 + 16 * threads).astype(np.uint64), 4, 4, threads // 128, threads // 32 % 4, 0 * threads)
    seen, elements = [], watching._elements

    def counted(accesses: list[watching._Accesses], chosen: Array) -> Array:
        seen.append(int(chosen.sum()))
        return elements(accesses, chosen)

    monkeypatch.setattr(watching, "_elements", counted)
    assert not watch.judge() and seen == [0, 0, 0]
