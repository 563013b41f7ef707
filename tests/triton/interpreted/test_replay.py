"""Programs on a device that is made up: recorded once, replayed, and right whatever the user does in between."""

from __future__ import annotations

import copy
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphc.options
from graphc.program.plan import AtenStep
from graphc.runtime import frame, replay, sent_numbers, triton_program
from graphc.settings import override
from tests.support import assert_contract
from tests.triton.attentions import causal
from tests.triton.interpreted.test_attention_gradients import step_of
from tests.triton.made_up_device import MadeUpDevice, Placed, rubbish_in_fresh_memory

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def device() -> Iterator[MadeUpDevice]:
    with rubbish_in_fresh_memory():
        yield MadeUpDevice()


def heads(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Several launches; a large result and a small one."""
    y = torch.softmax(x @ w, -1) @ w
    return y, y.sum()


def weights(rows: int = 192) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 96), torch.randn(96, 96) / 10


def assert_heads(found: tuple[torch.Tensor, ...], x: torch.Tensor, w: torch.Tensor) -> None:
    for one, wanted in zip(found, heads(x, w), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-4)


def training(
    optimizer: Callable[[Any], torch.optim.Optimizer], layers: int = 1, dropout: float = 0.0
) -> tuple[nn.Module, torch.optim.Optimizer, Callable[..., torch.Tensor]]:
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Linear(8, 16)]
    for _ in range(layers):
        parts += [nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16)] if dropout else [nn.ReLU(), nn.Linear(16, 16)]
    net = nn.Sequential(*parts)
    made = optimizer(net.parameters())

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        made.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        made.step()
        return loss.detach()

    return net, made, step


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 8), torch.randint(0, 16, (5,))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=False),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=False),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, foreach=False),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=False, amsgrad=True),
}


@pytest.mark.parametrize("name, layers", [("adam", 1), ("adamw", 4), ("momentum", 4), ("amsgrad", 1)])
def test_a_training_step_is_replayed_as_a_whole(name: str, layers: int, device: MadeUpDevice) -> None:
    """With few parameters their update is written out, with many it is a table of rows."""
    net, optimizer, step = training(OPTIMIZERS[name], layers)
    other, other_optimizer, eager = training(OPTIMIZERS[name], layers)
    step(*batch()), eager(*batch())  # SGD makes its momentum in the first step
    other.load_state_dict(net.state_dict())
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    placed = Placed(step, *batch())
    losses = []
    for number in range(8):
        data = batch()
        losses.append((placed(*data), eager(*data)))
        if number == 5:
            for one in (optimizer, other_optimizer):
                one.param_groups[0]["lr"] = 0.5e-2
    for found, wanted in losses:  # of all calls: none has been written over
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert device.log.count("record") == 1 and device.log.count("replay") == 5
    assert "5 replays, 3 calls launch by launch; inputs copied: 2" in placed.replay


def gradients(net: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in net.parameters() if p.grad is not None]


def test_gradients_that_are_dropped_are_the_memory_of_the_recording(device: MadeUpDevice) -> None:
    net, _, step = training(OPTIMIZERS["adam"])
    placed = Placed(step, *batch())
    for _ in range(4):
        placed(*batch())
    places = [grad.data_ptr() for grad in gradients(net)]
    for _ in range(3):
        placed(*batch())
        assert [grad.data_ptr() for grad in gradients(net)] == places
    assert "1 recordings" in placed.replay


MEDDLING: dict[str, Callable[[torch.Tensor], object]] = {
    "held": lambda grad: grad,
    "a view of it is held": lambda grad: grad.view(-1)[1:],
    "its storage is held": lambda grad: grad.untyped_storage(),
    "an array of it is held": lambda grad: grad.numpy(),
    "written to": lambda grad: (grad.mul_(3.0), None)[1],
    "transposed in place": lambda grad: (grad.t_(), None)[1],
    "made to need gradients": lambda grad: (grad.requires_grad_(), None)[1],
    "given a gradient": lambda grad: setattr(grad, "grad", torch.ones_like(grad)),
    "marked": lambda grad: setattr(grad, "mark", 1),
    "known by weak reference": lambda grad: weakref.ref(grad),
    "made to look elsewhere": lambda grad: setattr(grad, "data", torch.zeros_like(grad)),
}


@pytest.mark.parametrize("how", MEDDLING)
def test_whatever_users_do_with_gradients(how: str) -> None:
    """Ones that are held keep their values, and new ones show nothing of what was done to old ones."""
    net, _, step = training(lambda p: torch.optim.SGD(p, lr=1e-2))
    other, _, eager = training(lambda p: torch.optim.SGD(p, lr=1e-2))
    placed = Placed(step, *batch())
    kept: list[tuple[object, torch.Tensor]] = []
    for _ in range(9):
        data = batch()
        placed(*data), eager(*data)
        weight, wanted = net[0].weight.grad, other[0].weight.grad
        torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=1e-6)
        assert not vars(weight) and weight.grad is None and weight.is_leaf and not weight.requires_grad
        assert all(item() is not weight for item, _ in kept if isinstance(item, weakref.ref))
        kept.append((MEDDLING[how](weight), wanted.clone()))
        del weight
    for item, wanted in kept:
        if isinstance(item, torch.Tensor):
            torch.testing.assert_close(item, wanted if item.dim() == 2 else wanted.view(-1)[1:], rtol=1e-5, atol=1e-6)
    if how == "held":
        assert " 7 replays" not in placed.replay and int(re.search(r"(\d+) replays", placed.replay)[1]) >= 3


def test_random_numbers_go_on_from_replay_to_replay() -> None:
    def run(replays: bool) -> list[torch.Tensor]:
        with override(replay=replays):
            _, _, step = training(OPTIMIZERS["adam"], dropout=0.5)
            placed = Placed(step, *batch())
            torch.manual_seed(1)
            x, y = batch()
            found = [placed(x, y) for _ in range(6)]
            assert ("5 replays" in placed.replay) == replays
            return found

    replayed, launched = run(True), run(False)
    torch.testing.assert_close(replayed, launched)
    assert len({float(loss) for loss in replayed}) == 6


def test_results_are_never_written_over_while_held(device: MadeUpDevice) -> None:
    x, w = weights()
    placed = Placed(heads, x, w)
    held = []
    for number in range(8):
        x.copy_(torch.randn_like(x) + number)
        held.append((placed(x, w), x.clone()))
    for found, given in held:
        assert_heads(found, given, w)
    assert device.log.count("record") == replay.MOST_RECORDINGS
    assert "4 of them because earlier results were held" in placed.replay
    held.clear()
    del found
    assert_heads(placed(x, w), x, w)
    assert device.log.count("record") == replay.MOST_RECORDINGS and device.log.count("replay") == 4


def test_results_of_library_calls_are_held_as_others(monkeypatch: pytest.MonkeyPatch, device: MadeUpDevice) -> None:
    """Attention by hand and its gradients as calls, whose results are handed out as views of what these return."""
    monkeypatch.setattr(graphc.options, "attention_libraries", lambda found: {MadeUpDevice.kind: ("cpu",)})
    step = step_of(causal)
    args = [torch.randn(4, 4, 160, 16).bfloat16() for _ in range(3)]  # results are no small ones
    torch.use_deterministic_algorithms(False)  # which libraries do not take, with gradients
    with override(templates="never"):
        placed = Placed(step, *args)
    calls = [item for item in placed.program.steps if isinstance(item, AtenStep)]
    assert [item.op.count("_scaled_dot_product") for item in calls] == [1, 1]
    held = []
    for _ in range(5):
        for item in args:
            item.copy_(torch.randn(item.shape))
        held.append((placed(*args), [item.clone() for item in args]))
    assert "replay" in device.log and "held" in placed.replay
    for found, given in held:
        exact = step(*(item.double() for item in given))
        for mine, theirs, true in zip(found, step(*given), exact, strict=True):
            assert mine.stride() == theirs.stride()
            assert_contract(mine, theirs, true)


@pytest.mark.parametrize(
    "keep", [lambda y: y[1:2], lambda y: y.detach(), lambda y: y.untyped_storage(), lambda y: y.numpy()],
    ids=["view", "alias", "storage", "array"],
)  # fmt: skip
def test_whatever_holds_a_result_holds_its_memory(keep: Callable[[torch.Tensor], Any], device: MadeUpDevice) -> None:
    x, w = weights()
    placed = Placed(heads, x, w)
    placed(x, w)
    kept = keep(placed(x, w)[0])
    placed(x, w)
    assert device.log.count("record") == 2
    del kept
    placed(x, w), placed(x, w)
    assert device.log.count("record") == 2


def test_a_result_whose_storage_was_emptied_is_not_written_to(device: MadeUpDevice) -> None:
    x, w = weights()
    placed = Placed(heads, x, w)
    placed(x, w)
    found = placed(x, w)[0]
    found.untyped_storage().resize_(0)
    del found
    assert_heads(placed(x, w), x, w)
    assert device.log.count("record") == 2


def test_weights_that_move_once_are_bound_again(device: MadeUpDevice) -> None:
    x, w = weights()
    placed = Placed(heads, x, w)
    for _ in range(3):
        placed(x, w)
    w = w.clone() * 2
    for _ in range(3):
        assert_heads(placed(x, w), x, w)
    assert device.log.count("record") == 2 and "copied" not in placed.replay


def test_inputs_that_always_move_are_copied_and_not_kept(device: MadeUpDevice) -> None:
    x, w = weights()
    placed = Placed(heads, x, w)
    all_of_them = [torch.randn_like(x) for _ in range(7)]
    before = [x.clone() for x in all_of_them]
    for x in all_of_them:
        assert_heads(placed(x, w), x, w)
    torch.testing.assert_close(all_of_them, before, rtol=0, atol=0)
    assert device.log.count("record") == 1 and "inputs copied: 1" in placed.replay


@pytest.mark.suite
@pytest.mark.parametrize("part, copies", [(2, True), (1000, False)])
def test_large_inputs_are_copied_where_the_program_moves_far_more(
    part: int, copies: bool, monkeypatch: pytest.MonkeyPatch, device: MadeUpDevice
) -> None:
    monkeypatch.setattr(replay, "LARGEST_COPY", 1)
    monkeypatch.setattr(replay, "COPIED_PART", part)
    x, w = weights()
    placed = Placed(heads, x, w)
    batches = [torch.randn_like(x) for _ in range(3)]
    for number in range(12):
        assert_heads(placed(batches[number % 3], w), batches[number % 3], w)
    assert device.log.count("record") == (1 if copies else 3)
    assert ("inputs copied" in placed.replay) is copies


def test_inputs_that_are_written_are_never_copies(device: MadeUpDevice) -> None:
    def update(cache: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        cache.copy_(torch.softmax(x @ w, -1) @ w)
        return cache

    x, w = weights()
    placed = Placed(update, torch.zeros_like(x), x, w)
    caches = [torch.zeros_like(x) for _ in range(replay.MOST_BINDINGS + replay.MOST_REBINDINGS + 3)]
    for number, cache in enumerate(caches):
        x.copy_(torch.randn_like(x))
        assert placed(cache, x, w) is cache
        torch.testing.assert_close(cache, heads(x, w)[0], rtol=1e-5, atol=1e-4)
        assert number == 0 or not torch.equal(cache, caches[number - 1])
    assert "none: inputs that cannot be copied lie elsewhere in nearly every call" in placed.replay
    assert "record" not in device.log


def test_two_buffers_taken_in_turns_have_a_recording_each(device: MadeUpDevice) -> None:
    def update(cache: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        cache += torch.softmax(x @ w, -1) @ w
        return cache

    x, w = weights()
    caches = [torch.zeros_like(x), torch.zeros_like(x)]
    placed = Placed(update, caches[0], x, w)
    for number in range(8):
        placed(caches[number % 2], x, w)
    for cache in caches:
        torch.testing.assert_close(cache, 4 * heads(x, w)[0], rtol=1e-5, atol=1e-3)
    assert device.log.count("record") == 2 and device.log.count("replay") == 6


def test_python_numbers_reach_replays() -> None:
    def scaled(x: torch.Tensor, w: torch.Tensor, factor: float) -> torch.Tensor:
        return torch.softmax(x @ w, -1) @ w * factor

    x, w = weights(4)
    placed = Placed(scaled, x, w, 0.5)
    for factor in (0.5, 2.0, 2.0, float("nan"), -0.0, 0.0, 3.0):
        torch.testing.assert_close(placed(x, w, factor), scaled(x, w, factor), equal_nan=True)
    assert "6 replays" in placed.replay


def test_all_numbers_that_changed_travel_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(x: torch.Tensor, w: torch.Tensor, a: float, b: float) -> torch.Tensor:
        return torch.softmax(x @ w * a, -1) @ w * b

    x, w = weights(4)
    numbers = (0.5, 2.5)
    placed = Placed(scaled, x, w, *numbers)
    sent: list[int] = []
    staged = sent_numbers.staged_bytes
    monkeypatch.setattr(
        sent_numbers, "staged_bytes", lambda data, device: sent.append(len(data)) or staged(data, device)
    )
    counts = []
    for given in (numbers, numbers, numbers, (0.5, 4.5), (1.5, 3.5), (1.5, 3.5)):
        found = placed(x, w, *given)
        counts.append(len(sent))
        torch.testing.assert_close(found, scaled(x, w, *given), rtol=1e-5, atol=1e-5)
    assert "5 replays" in placed.replay
    assert counts == [0, 1, 1, 2, 3, 3] and len(set(sent)) == 1


@pytest.mark.parametrize("compiler", ["gcc", "no-such-compiler"])
@pytest.mark.parametrize("layers", [1, 4], ids=["one by one", "in a table"])
def test_counters_that_the_cpu_counts_reach_kernels_behind_that(layers: int, compiler: str) -> None:
    """With few parameters updates are kernels each, with many of them one over a table."""

    def counted() -> Callable[..., torch.Tensor]:
        net, optimizer, step = training(OPTIMIZERS["adam"], layers)
        first = next(net.parameters())

        def run(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss = step(x, y)
            return torch.stack([loss, loss * 0 + optimizer.state[first]["step"]])

        step(*batch())
        return run

    with override(cc=compiler):
        run, eager = counted(), counted()
        data = batch()
        placed = Placed(run, *data)
        for number in range(4):
            found = placed(*data)
            torch.testing.assert_close(found, eager(*data), rtol=1e-5, atol=1e-5)
            assert found[1] == number + 2
    numbers = placed.program.report()["numbers"]
    assert ("in C" in numbers) == (compiler == "gcc") and ("no C compiler" in numbers) == (compiler != "gcc")
    assert "3 replays" in placed.replay


def test_results_that_are_inputs_are_the_users_own() -> None:
    def both(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x, x[1], torch.softmax(x @ w, -1) @ w

    x, w = weights(4)
    placed = Placed(both, x, w)
    for _ in range(6):
        x = torch.randn_like(x)
        whole, row, _ = placed(x, w)
        assert whole is x and row.data_ptr() == x[1].data_ptr()
    assert "inputs copied: 1" in placed.replay


def test_another_stream_waits_and_is_noted(device: MadeUpDevice) -> None:
    x, w = weights()
    placed = Placed(heads, x, w)
    placed(x, w), placed(x, w)
    device.log.clear()
    device.current_stream = 8
    placed(x, w)
    assert device.log[:2] == ["wait", "replay"] and "used" in device.log and device.log[-1] == "mark"
    device.log.clear()
    placed(x, w)
    assert device.log == ["replay", "mark"]


def test_a_call_within_somebody_elses_recording_is_launched(device: MadeUpDevice) -> None:
    x, w = weights()
    placed = Placed(heads, x, w)
    for _ in range(3):
        placed(x, w)
    device.log.clear()
    device.recorded_elsewhere = True
    assert_heads(placed(x, w), x, w)
    assert device.log == []


def test_a_saved_value_that_lies_elsewhere_is_not_recorded() -> None:
    """Seeds of attention lie with the CPU when their call is not recorded."""

    class Elsewhere(MadeUpDevice):
        def place(self, index: int) -> torch.device:
            return torch.device("meta")

    found: Any = replay.Replay.__new__(replay.Replay)
    found.device, found.indices, found._inputs = Elsewhere(), [0], [1]
    assert found._find([1.0, torch.zeros(())], [7]) is None


def test_what_cannot_be_recorded_is_launched_and_says_why(device: MadeUpDevice) -> None:
    x, w = weights()
    placed = Placed(heads, x, w)
    device.broken = RuntimeError("operation failed due to a previous error during capture\nmore")
    for _ in range(4):
        assert_heads(placed(x, w), x, w)
    reason = "RuntimeError: operation failed due to a previous error during capture"
    assert placed.replay == f"none: it could not be recorded: {reason}"
    assert device.log.count("record") == 1


def test_a_failed_recording_has_changed_nothing(device: MadeUpDevice) -> None:
    net, _, step = training(OPTIMIZERS["adam"])
    other, _, eager = training(OPTIMIZERS["adam"])
    x, y = batch()
    placed = Placed(step, x, y)
    device.broken = RuntimeError("no")
    for _ in range(3):
        placed(x, y), eager(x, y)
    for found, wanted in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def item_in_between(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Too little is left to record on either side."""
    y = x @ w
    return y * y[0, 0].item()


def few(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return (x @ w).relu()


REASONS = {
    item_in_between: r"_local_scalar_dense.default looks at data, .* \(line \d+ of .*test_replay.py\)",
    few: "2 launches, which a replay would not make quicker",
}


@pytest.mark.parametrize("fn", REASONS, ids=lambda fn: fn.__name__)
def test_reasons(fn: Callable[..., Any], device: MadeUpDevice) -> None:
    x, w = weights()
    placed = Placed(fn, x, w)
    for _ in range(3):
        torch.testing.assert_close(placed(x, w), fn(x, w), rtol=1e-4, atol=1e-3)
    assert re.search(REASONS[fn], placed.replay), placed.replay
    assert device.log == []


def test_the_setting_switches_it_off(device: MadeUpDevice) -> None:
    with override(replay=False):
        placed = Placed(heads, *weights())
    assert placed.replay == "none: GRAPHC_REPLAY is off" and device.log == []


def test_memory_goes_with_the_program() -> None:
    x, w = weights()
    placed = Placed(heads, x, w)
    for _ in range(3):
        placed(x, w)
    working = placed.program._replay._working
    assert working is not None
    memory = [weakref.ref(tensor) for tensor in (*working.tensors(), *placed.program._replay._all_memory())]
    del working, placed
    assert [ref() for ref in memory] == [None] * len(memory)


def test_a_program_that_needs_more_memory_than_there_is_does_not_start(device: MadeUpDevice) -> None:
    x, w = torch.zeros(1 << 15, 1024), torch.zeros(1024)
    placed = Placed(lambda x, w: torch.exp(x) * w, x, w)
    device.free = 100 << 20
    with pytest.raises(
        torch.OutOfMemoryError, match=r"madeup:0 has 104857600 bytes free of \d+, and 134217728 are asked"
    ):
        placed(x, w)


def test_programs_give_memory_back_that_others_need(monkeypatch: pytest.MonkeyPatch, device: MadeUpDevice) -> None:
    """What is recorded keeps its working memory; a program that finds too little has the others record anew."""
    monkeypatch.setattr(frame, "_LARGE", 1)
    x, w = weights()
    first, second = Placed(heads, x, w), Placed(heads, x, w)
    for _ in range(3):
        assert_heads(first(x, w), x, w)
    device.free = 1000
    assert_heads(second(x, w), x, w)
    assert device.log.count("give back") == 1 and first.program._replay._all_memory() == []
    device.log.clear()
    for _ in range(3):
        assert_heads(first(x, w), x, w)
    assert device.log.count("record") == 1 and device.log.count("replay") == 2


def test_calls_that_find_too_little_memory_are_made_again(
    monkeypatch: pytest.MonkeyPatch, device: MadeUpDevice
) -> None:
    """Launched, that is; a recording is given up, made room for, and made in the next call."""
    x, w = weights()

    def ranked(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.softmax((x @ w).sort(-1).values @ w, -1) @ w

    other, placed = Placed(heads, x, w), Placed(ranked, x, w)
    run_call, failing = triton_program.run_call, list[int]()

    def crowded(*args: Any) -> Any:
        if failing and failing.pop():
            raise torch.OutOfMemoryError("no room for a result")
        return run_call(*args)

    monkeypatch.setattr(triton_program, "run_call", crowded)
    for _ in range(2):
        other(x, w)
    failing[:] = [1]
    torch.testing.assert_close(placed(x, w), ranked(x, w), rtol=1e-4, atol=1e-4)
    assert device.log.count("give back") == 1
    for _ in range(2):
        other(x, w)
    failing[:] = [1]  # while it is recorded
    for _ in range(3):
        torch.testing.assert_close(placed(x, w), ranked(x, w), rtol=1e-4, atol=1e-4)
    assert device.log.count("give back") == 2 and placed.replay.startswith("1 recordings of")


@pytest.mark.parametrize("others", [False, True], ids=["alone", "with others"])
def test_recordings_that_find_too_little_memory(others: bool, device: MadeUpDevice) -> None:
    """With another program's memory they are made in the next call."""
    x, w = weights()
    other, placed = Placed(heads, x, w), Placed(heads, x, w)
    for _ in range(2 if others else 0):
        other(x, w)
    placed(x, w)
    device.broken = torch.OutOfMemoryError("no room for workspaces")
    assert_heads(placed(x, w), x, w)
    device.broken = None
    for _ in range(2):
        assert_heads(placed(x, w), x, w)
    assert ("2 replays" in placed.replay) is others
    assert placed.replay.startswith("1 recordings" if others else "none: it could not be recorded: OutOfMemoryError")
