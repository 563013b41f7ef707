"""Working memory that all programs share: never with two calls at once, and not kept for programs that are gone."""

import gc
import threading
import time

import pytest
import torch

import graphc
from graphc.runtime import native_program
from graphc.runtime.arena import ALIGNMENT, Arenas


class User:
    """Something that takes arenas."""


@pytest.fixture
def arenas(monkeypatch):
    """Arenas of programs that are compiled in a test."""
    made = Arenas()
    monkeypatch.setattr(native_program, "ARENAS", made)
    return made


def test_the_arena_used_last_is_used_next():
    arenas = Arenas()
    small = arenas.take(100)
    large = arenas.take(1000)
    assert small is not large and small.address % ALIGNMENT == large.address % ALIGNMENT == 0
    assert large.tensor.numel() == 1000
    arenas.give_back(small)
    arenas.give_back(large)
    assert arenas.take(10) is large
    assert arenas.take(100) is small


def test_one_that_is_too_small_makes_room_for_another():
    arenas = Arenas()
    arenas.give_back(arenas.take(100))
    large = arenas.take(1000)
    assert large.nbytes == 1000
    arenas.give_back(large)
    assert arenas.take(1) is large and arenas.take(1).nbytes == 1, "the small one is gone"


def test_memory_goes_with_those_who_need_it():
    arenas = Arenas()
    large, small = User(), User()
    arenas.expect(large, 1000)
    arenas.expect(small, 100)
    held, free = arenas.take(1000), arenas.take(50)
    arenas.give_back(held)
    arenas.give_back(free)
    del large
    gc.collect()
    assert arenas.take(20) is free and arenas.take(20) is not held


def test_calls_at_once_have_arenas_of_their_own():
    arenas, wrong = Arenas(), []

    def work(number):
        for turn in range(300):
            arena = arenas.take(64 * (1 + (turn * number) % 5))
            arena.tensor[:64] = number
            time.sleep(0)
            if not bool((arena.tensor[:64] == number).all()):
                wrong.append(number)
            arenas.give_back(arena)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def chain(x, w):
    for _ in range(3):
        x = torch.softmax(x @ w, 1) * x
    return x


def test_programs_take_turns(arenas):
    """Programs of several sizes, small after large, large after small: one arena, and each is right."""
    fn = graphc.compile(chain, dynamic=False)
    given = [(torch.randn(n, 24), torch.randn(24, 24)) for n in (40, 9, 300, 21)]
    for x, w in (*given, *reversed(given), *given):
        torch.testing.assert_close(fn(x, w), chain(x, w))
    first = arenas.take(1)
    assert first.nbytes >= 300 * 24 * 4 and arenas.take(1).nbytes == 1, "there is but one"


def test_programs_that_are_gone_leave_no_memory(arenas):
    fn = graphc.compile(chain, dynamic=False)
    fn(torch.randn(300, 24), torch.randn(24, 24))
    arena = arenas.take(1)
    assert arena.nbytes > 1
    arenas.give_back(arena)
    del fn, arena
    gc.collect()
    assert arenas.take(1).nbytes == 1


def test_a_call_within_a_call(arenas):
    inner = graphc.compile(chain)

    @torch.library.custom_op("graphc_arena::inner", mutates_args=())
    def within(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return inner(x, w)

    @within.register_fake
    def _(x, w):
        return torch.empty_like(x)

    def outer(x, w):
        before = (x @ w).relu()
        after = within(before, w)
        return (after @ w) * before

    fn = graphc.compile(outer)
    x, w = torch.randn(40, 24), torch.randn(24, 24)
    expected = (chain((x @ w).relu(), w) @ w) * (x @ w).relu()
    for _ in range(3):
        torch.testing.assert_close(fn(x, w), expected)
    large = graphc.compile(chain, dynamic=False)
    large(torch.randn(500, 24), w)  # the arena is another one from here on
    torch.testing.assert_close(fn(x, w), expected)
    assert fn.stats().eager_calls == 0


def test_threads_with_programs_of_their_own(arenas):
    given = [(torch.randn(n, 24), torch.randn(24, 24)) for n in (7, 40, 90, 200)]
    fn, wrong = graphc.compile(chain, dynamic=False), []
    expected = [chain(x, w) for x, w in given]
    for x, w in given:
        fn(x, w)

    def work(number):
        found = (fn(*given[number]) for _ in range(200))
        wrong.extend(number for one in found if not torch.allclose(one, expected[number], rtol=1e-4, atol=1e-6))

    threads = [threading.Thread(target=work, args=(number % 4,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
