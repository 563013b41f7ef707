"""Philox4x32-10 against the vectors its authors published, and the numbering of its words."""

from __future__ import annotations

import numpy as np
import pytest

from graphc.errors import InvalidGraphError
from graphc.ir.types import i64
from graphc.loopir.builder import KernelBuilder
from graphc.loopir.interpreter import run
from graphc.loopir.kernel import Axis, Buffer
from graphc.loopir.parser import parse_kernel
from graphc.loopir.philox import philox4x32, philox_words
from graphc.loopir.verifier import verify
from tests.random_kernels import RANDOM_CASES

ONES = 0xFFFFFFFF
KNOWN = {  # counter, key, words: Random123, examples/kat_vectors
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name: str) -> None:
    counter, key, words = KNOWN[name]
    found = philox4x32(tuple(np.array([c]) for c in counter), tuple(np.array([k]) for k in key))  # type: ignore[arg-type]
    assert tuple(int(word[0]) for word in found) == words


def test_words_are_those_of_the_blocks_in_order() -> None:
    key, first = -3, (5 << 32) + 6  # a key is any 64 bits; the block's number reaches into the second half
    found = philox_words(np.array(key), np.arange(first * 4, first * 4 + 8))
    for block in (0, 1):
        counter = tuple(np.array([part]) for part in (6 + block, 5, 0, 0))
        words = philox4x32(counter, (np.array([key & ONES]), np.array([(key >> 32) & ONES])))  # type: ignore[arg-type]
        assert [int(word[0]) for word in words] == found[4 * block : 4 * block + 4].tolist()


def test_first_words_of_key_zero() -> None:
    assert tuple(philox_words(np.array(0), np.arange(4)).tolist()) == KNOWN["zeros"][2]


@pytest.mark.parametrize("name", RANDOM_CASES)
def test_kernels_verify_and_read_back(name: str) -> None:
    kernel = RANDOM_CASES[name]()
    verify(kernel)
    assert parse_kernel(str(kernel)).key() == kernel.key()


def test_the_interpreter_draws_words() -> None:
    words = np.zeros(150, np.uint32)
    run(RANDOM_CASES["words"](), {"key": np.array([0, 77]), "y": words})
    assert np.array_equal(words, philox_words(np.array(77), np.arange(150)))


def test_philox_gives_u32() -> None:
    b = KernelBuilder((Axis("i", 3),))
    b.store("y", 0, b.compute("philox", b.load("key", i64, 0), b.index_value(0), dtype=i64))
    with pytest.raises(InvalidGraphError, match="philox takes two i64 and gives a u32"):
        verify(b.finish("bad", (Buffer("key", i64, 1, "in"), Buffer("y", i64, 1, "out"))))
