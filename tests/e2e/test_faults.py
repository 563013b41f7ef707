"""A capture, a compilation or a run that fails leaves everything as it was, and the next call works."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.codegen import native
from graphc.codegen.aten_shim import NotNative
from graphc.frontend import attempt, captured, facts, finish
from graphc.passes import pipeline, plan
from graphc.runtime import build, load, native_program, spare
from graphc.settings import override
from tests.e2e.faults import Counter, Fault, World, are_no_more_than, at_dispatch, at_lines, leftovers, on_entry

TOLERANCE = 1e-7
"""Of float64 results: rounding is far below (Adam divides by eps=1e-8), a lost or doubled update far above."""


pytestmark = pytest.mark.usefixtures("float64_on_one_thread")


class Net(nn.Module):
    """Convolution, batch norm, dropout, an attribute that a call changes and changes back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(48, 5)
        self.scale = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.scale = 2.0
        x = F.dropout(torch.relu(self.norm(self.conv(x))), 0.2, self.training) * self.scale
        self.scale = 1.0
        return self.out(x.flatten(1))


class Training:
    """A model with an optimizer and its step, compiled; and a twin that runs eager."""

    def __init__(self, build: Callable[[], nn.Module] = Net, **options: Any) -> None:
        torch.manual_seed(0)
        self.net = build()
        self.twin = copy.deepcopy(self.net)
        self.opt, self.twins = (torch.optim.Adam(net.parameters(), 1e-2) for net in (self.net, self.twin))
        self.x, self.y = torch.randn(4, 1, 6, 6), torch.randint(0, 5, (4,))
        self.compiled = graphc.compile(self.step, numerics="eager", **options)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.train(self.net, self.opt, x, y)

    @staticmethod
    def train(net: nn.Module, opt: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        opt.zero_grad()
        with torch.autocast("cpu", enabled=False):
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        return loss.detach()

    def world(self) -> World:
        return World(self.net, self.opt, self.x, self.y)

    def check_next(self, calls: int = 2) -> None:
        """The next calls give eager's results."""
        state = torch.get_rng_state()
        mine = [self.compiled(self.x, self.y) for _ in range(calls)]
        torch.set_rng_state(state)
        theirs = [self.train(self.twin, self.twins, self.x, self.y) for _ in range(calls)]
        torch.testing.assert_close(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE)
        for ours, other in ((self.net, self.twin), (self.opt, self.twins)):
            _close(ours.state_dict(), other.state_dict())
        for p, q in zip(self.net.parameters(), self.twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=TOLERANCE, atol=TOLERANCE)


def _close(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            _close(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _close(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("error", [Fault, KeyboardInterrupt])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_fault_at_every_call_of_a_capture(error: type[BaseException], after: bool) -> None:
    training = Training()
    counter = Counter(-1)
    with at_dispatch(counter), pytest.raises(ZeroDivisionError):
        graphc.trace(lambda x, y: (training.step(x, y), 1 // 0), training.x, training.y)
    assert not training.opt.state and counter.count > 80
    world, alive = training.world(), leftovers()
    # each call once in all over the four variants of this test, and each of the first and last ones in every variant
    first = (error is Fault) + 2 * after
    places = [at for at in range(counter.count) if at % 4 == first or at < 2 or at > counter.count - 3]
    for at in places:
        with at_dispatch(Counter(at, error), after), pytest.raises(error):
            training.compiled(training.x, training.y)
        assert world.changes() == [], f"call {at}"
    assert are_no_more_than(alive)
    training.check_next()


def test_fault_at_every_line_of_the_users_code() -> None:
    training = Training()
    functions = (Training.train, Training.step, Net.forward, nn.utils.clip_grad_norm_.__wrapped__)  # type: ignore[attr-defined]
    counter = Counter(-1)
    with at_lines(counter, *functions), pytest.raises(ZeroDivisionError):
        graphc.trace(lambda x, y: (training.step(x, y), 1 // 0), training.x, training.y)
    assert counter.count > 12
    world = training.world()
    for at in range(counter.count):
        with at_lines(Counter(at), *functions), pytest.raises(Fault):
            training.compiled(training.x, training.y)
        assert world.changes() == [], f"line {at}"
    training.check_next()


PLACES = {
    "backward pass": (attempt, "record_backward"),
    "end of the capture": (finish, "finish"),
    "guards": (facts.Facts, "guards"),
    "look up": (load, "find_program"),
    "optimize": (pipeline, "optimize"),
    "plan": (plan, "make_plan"),
    "generate": (native, "generate_native"),
    "build": (build.Build, "library"),
    "load": (load, "load_program"),
    "first run": (native_program.NativeProgram, "__call__"),
    "effects": (captured.Captured, "rebuild"),
}


@pytest.mark.parametrize("error", [Fault, KeyboardInterrupt])
@pytest.mark.parametrize("place", list(PLACES)[:-1])
def test_fault_in_a_compilation(place: str, error: type[BaseException]) -> None:
    training = Training()
    world, alive = training.world(), leftovers()
    with override(cache=False), on_entry(*PLACES[place], Counter(0, error)), pytest.raises(error):
        training.compiled(training.x, training.y)
    assert world.changes() == []
    assert are_no_more_than(alive)
    training.check_next(1)


def test_fault_in_every_pass() -> None:
    training = Training()
    world, counter = training.world(), Counter(-1)
    with override(cache=False):
        with on_entry(pipeline, "run_pass", counter):
            training.compiled.graph(training.x, training.y, stage="optimized")
        assert counter.count > len(pipeline.PREPARE)
        fresh = Training()
        world = fresh.world()
        for at in range(counter.count):
            with on_entry(pipeline, "run_pass", Counter(at)), pytest.raises(Fault):
                fresh.compiled(fresh.x, fresh.y)
            assert world.changes() == [], f"pass {at}"
    fresh.check_next(1)


def python_made(step: Any, buffers: Any) -> Any:
    raise NotNative("for this test")


@pytest.mark.parametrize("keep", [False, True], ids=["memory first", "gradients first"])
def test_fault_at_every_library_call_of_a_run(keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ATen call of the program is made by Python here, so that each can be made to fail."""
    monkeypatch.setattr(native, "aten_call", python_made)
    training = Training()
    counter = Counter(-1)
    with override(cache=False):
        training.check_next(1)
    with on_entry(native_program, "run_call", counter):
        training.check_next(1)
    assert counter.count >= 3
    for error in (Fault, KeyboardInterrupt):
        for at in range(counter.count):
            world = training.world()
            with (
                override(keep_gradients=keep),
                on_entry(native_program, "run_call", Counter(at, error)),
                pytest.raises(error),
            ):
                training.compiled(training.x, training.y)
            gone = _changed_but_for_dropped_gradients(world, training.net)
            assert not gone or (at and not keep), "the first call comes before any new gradient"
            training.check_next(1)
    assert training.compiled.stats().compiles == 1


@pytest.mark.parametrize("held", [True, False], ids=["fresh", "spare"])
def test_no_memory_for_an_output(held: bool) -> None:
    """Nothing has run yet: all gradients stay, whether or not new ones were to be stored where they lie."""
    training = Training()
    training.check_next(1)
    held_gradients = [p.grad for p in training.net.parameters()] if held else []
    place, counter = native_program if held else spare, Counter(-1)
    with on_entry(place, "empty_strided", counter):
        training.check_next(1)
    world = training.world()
    held_gradients += [p.grad for p in training.net.parameters()] if held else []
    assert counter.count > (3 if held else 0)
    for at in range(counter.count):
        with on_entry(place, "empty_strided", Counter(at, MemoryError)), pytest.raises(MemoryError):
            training.compiled(training.x, training.y)
        assert world.changes() == []
    training.check_next()


def _changed_but_for_dropped_gradients(world: World, net: nn.Module) -> list[str]:
    """Parameters whose gradients, which the step drops before it makes new ones, went in a run that failed.

    Everything else is as it was: those gradients that are still there too.
    """
    gone = [name for name, p in net.named_parameters() if p.grad is None]
    changed = world.changes()
    assert set(changed) <= {f"0:{name}.grad" for name in gone}
    return changed


def test_refused_data_leave_the_gradients_of_the_step_before() -> None:
    """What is refused before the backward pass is refused before any new gradient is stored."""
    training = Training()
    training.check_next(2)
    world = training.world()
    with pytest.raises(IndexError):
        training.compiled(training.x, training.y + 5)
    assert world.changes() == []
    training.check_next()


def test_gradients_that_the_step_does_not_drop_stay() -> None:
    training = Training()

    @graphc.compile(numerics="eager")
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(training.net(x), y)
        loss.backward()
        return loss.detach()

    step(training.x, training.y)
    step(training.x, training.y)
    world = training.world()
    with pytest.raises(IndexError):
        step(training.x, training.y + 5)
    assert world.changes() == []


def test_no_memory_after_a_failed_capture_is_kept() -> None:
    training = Training()
    held: set[weakref.ref[Any]] = set()
    hidden = ContextVar("hidden", default=held)  # what is added to a set that is found is undone

    @graphc.compile
    def fails(x: torch.Tensor) -> torch.Tensor:
        hidden.get().add(weakref.ref(x))
        y = x * 2
        hidden.get().add(weakref.ref(y))
        raise Fault("the function's own")

    with pytest.raises(Fault):
        fails(training.x)
    gc.collect()
    assert len(held) == 2 and [ref() for ref in held] == [None, None]


class Guarded(Exception):
    """Raised by the operator below."""


_failing = threading.local()


@torch.library.custom_op("graphc_faults::guarded", mutates_args=())
def guarded(x: torch.Tensor) -> torch.Tensor:
    if getattr(_failing, "now", False):
        raise Guarded("refused")
    return x * 2


@guarded.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def two_updates(net: nn.Module, first: Any, second: Any, x: torch.Tensor, rows: torch.Tensor, where: int) -> Any:
    """Two optimizer steps, of which the second sees what the first one did; something fails at a chosen place."""
    table = net[0].weight.detach()
    for number, opt in enumerate((first, second)):
        opt.zero_grad()
        h = net(x)
        if where == 2 * number:
            h = torch.ops.graphc_faults.guarded(h.detach()) + h
        if where == 4 + number:
            h = h + table[rows].sum()
        h.square().mean().backward()
        opt.step()
        x.mul_(0.5)
        if where == 2 * number + 1:
            x = x + torch.ops.graphc_faults.guarded(table).sum()
    return x


@pytest.mark.parametrize("where", range(6))
def test_run_that_fails_between_two_updates(where: int) -> None:
    """An operator that refuses its data, or an index out of range, before, between and after updates in place."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    first, second = torch.optim.Adam(net[0].parameters(), 1e-2), torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9)
    x, rows = torch.randn(3, 4), torch.tensor([0, 1])
    step = graphc.compile(lambda x, rows: two_updates(net, first, second, x, rows, where))
    for _ in range(2):  # with the state of optimizers not there yet, then with it
        twin, others = _twin(net, first, second)
        given = x.clone()
        world = World(net, first, second, x, rows)
        _failing.now = where < 4
        bad = rows if where < 4 else torch.tensor([1, 4])
        try:
            with pytest.raises(Guarded if where < 4 else IndexError):
                step(x, bad)
        finally:
            _failing.now = False
        _changed_but_for_dropped_gradients(world, net)
        got, want = step(x, rows), two_updates(twin, *others, given, rows, where)
        torch.testing.assert_close([got, x], [want, given], rtol=TOLERANCE, atol=TOLERANCE)
        _close(net.state_dict(), twin.state_dict())
        for ours, theirs in zip((first, second), others, strict=True):
            _close(ours.state_dict(), theirs.state_dict())
    assert step.stats().eager_calls == 0


def _twin(net: nn.Module, *optimizers: torch.optim.Optimizer) -> tuple[nn.Module, tuple[torch.optim.Optimizer, ...]]:
    """Deep copies that belong together."""
    twin, *others = copy.deepcopy((net, *optimizers))
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    return twin, tuple(others)


def test_checked_store_refuses_before_it_stores() -> None:
    table = torch.zeros(64, 4096)

    @graphc.compile
    def store(rows: torch.Tensor, values: torch.Tensor, places: torch.Tensor) -> None:
        table.index_copy_(0, rows, values[places])

    values = torch.ones(2, 4096)
    store(torch.tensor([0, 1]), values, torch.tensor([0, 1]))
    world = World(table, values)
    with pytest.raises((IndexError, RuntimeError)):
        store(torch.tensor([2, 3]), values, torch.tensor([0, 2]))
    assert world.changes() == []
    store(torch.tensor([2, 3]), values, torch.tensor([0, 1]))
    assert table[:4].eq(1).all() and not table[4:].any()


def test_random_state_after_a_failed_run() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    f = graphc.compile(lambda x, rows: net(x)[rows] + torch.rand(3, 4), numerics="eager")
    x, good = torch.randn(3, 4), torch.tensor([0, 1, 2])
    with torch.no_grad():
        f(x, good)
        world = World(net, x)
        with pytest.raises(IndexError):
            f(x, torch.tensor([0, 1, 3]))
        assert world.changes() == []


def test_failure_after_a_decision() -> None:
    """Programs of a path: what the last one does is undone, with the random draws of the first ones."""
    net = nn.Linear(4, 4)
    opt = torch.optim.Adam(net.parameters(), 1e-2)

    @graphc.compile(numerics="eager")
    def step(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        x = x + torch.rand(3, 4)
        if x.sum() > 0:
            opt.zero_grad()
            loss = net(x)[rows].square().mean()
            loss.backward()
            opt.step()
            return loss.detach()
        return x

    x = torch.ones(3, 4)
    for _ in range(2):
        world = World(net, opt, x)
        with pytest.raises(IndexError):
            step(x, torch.tensor([3]))
        assert world.changes() == []
        twin, (other,) = _twin(net, opt)
        state = torch.get_rng_state()
        step(x, torch.tensor([1]))
        torch.set_rng_state(state)
        other.zero_grad()
        twin(x + torch.rand(3, 4))[[1]].square().mean().backward()
        other.step()
        _close(net.state_dict(), twin.state_dict())
        _close(opt.state_dict(), other.state_dict())


@pytest.mark.parametrize("flag", ["grad", "dtype", "autocast", "deterministic"])
def test_global_flags_are_put_back(flag: str) -> None:
    setters: dict[str, Callable[[], Any]] = {
        "grad": lambda: torch.set_grad_enabled(False),
        "dtype": lambda: torch.set_default_dtype(torch.float32),
        "autocast": lambda: torch.set_autocast_enabled("cpu", True),
        "deterministic": lambda: torch.use_deterministic_algorithms(True),
    }

    def f(x: torch.Tensor, bad: bool) -> torch.Tensor:
        setters[flag]()
        if bad:
            raise Fault
        return x * 2

    world, x = World(), torch.ones(2)
    with pytest.raises(Fault):
        graphc.compile(f)(x, True)
    assert world.changes() == []
    with pytest.raises(graphc.errors.CaptureError, match="leaves it so"):
        graphc.compile(f)(x, False)
    assert world.changes() == []


def test_what_a_failing_function_did_to_modules_is_undone() -> None:
    net, x = Net(), torch.randn(4, 1, 6, 6)
    world = World(net)

    def f(x: torch.Tensor) -> None:
        net.eval()
        net.conv.register_forward_hook(lambda *_: None)
        net.register_buffer("extra", torch.ones(2))
        net.conv.weight.requires_grad_(False)
        net.added = 3
        del net.scale
        net.out = nn.Linear(48, 2)
        raise Fault

    with pytest.raises(Fault):
        graphc.compile(f)(x)
    assert world.changes() == []


def test_first_call_of_many_threads() -> None:
    """One of them compiles; all get right answers; a failing thread does not disturb the others."""
    net = Net().eval()
    f = graphc.compile(lambda x, rows: net(x)[rows])
    inputs = [torch.randn(4, 1, 6, 6) for _ in range(6)]
    wanted = [net(x).detach() for x in inputs]
    found: list[Any] = [None] * len(inputs)
    start = threading.Barrier(len(inputs))

    def work(number: int) -> None:
        start.wait()
        for turn in range(5):
            bad = number == 0 and turn % 2 == 0
            try:
                with torch.no_grad():
                    found[number] = f(inputs[number], torch.tensor([0, 1, 2, 4 if bad else 3]))
            except IndexError:
                assert bad
                continue
            assert not bad
            torch.testing.assert_close(found[number], wanted[number], rtol=TOLERANCE, atol=TOLERANCE)

    errors: list[BaseException] = []

    def guard(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and f.stats().compiles == 1


class Rows(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Items that a forked worker computes, one of them through a compiled function."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.full((1, 6, 6), float(index))
        return self.compiled(x), torch.tensor(index % 5)


def test_loader_with_forked_workers() -> None:
    """Workers forked while programs are loaded, that call one and compile another; training goes on meanwhile."""
    training = Training()
    training.check_next(1)
    twice = graphc.compile(lambda x: x * 2 + 1)
    twice(torch.zeros(1, 6, 6))
    loader = torch.utils.data.DataLoader(
        Rows(twice), batch_size=4, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    seen = []
    for x, y in loader:
        training.x, training.y = x, y
        training.check_next(1)
        seen.append(x[:, 0, 0, 0])
    assert torch.equal(torch.cat(seen), torch.arange(12.0) * 2 + 1)
