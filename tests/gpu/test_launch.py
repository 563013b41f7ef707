"""Launches, recordings, streams and memory on a real GPU."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import graphc
from graphc.settings import override

pytestmark = pytest.mark.gpu


def heads(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Several launches; a large result and a small one."""
    y = torch.softmax(x @ w, -1)
    y = torch.softmax(y.sin() @ w, -1) @ w
    return y, y.sum()


def weights(rows: int = 192) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 96, device="cuda"), torch.randn(96, 96, device="cuda") / 10


def assert_heads(found: tuple[torch.Tensor, ...], x: torch.Tensor, w: torch.Tensor) -> None:
    for one, wanted in zip(found, heads(x, w), strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-3)


def launch(compiled: Any, *args: Any) -> dict[str, str]:
    return compiled.explain(*args).stats["launch"]


def compiled_heads() -> Any:
    return graphc.compile(heads, backend="triton")


def training(foreach: bool = False) -> tuple[nn.Module, Callable[..., torch.Tensor], Any]:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.ReLU()] + [layer for _ in range(5) for layer in (nn.Linear(16, 16), nn.Tanh())]
    net = nn.Sequential(*layers).cuda()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, foreach=foreach)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return net, step, optimizer


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 8, device="cuda"), torch.randint(0, 16, (5,), device="cuda")


def test_the_driver_is_called_by_graphc_itself() -> None:
    x, w = weights()
    compiled = compiled_heads()
    assert_heads(compiled(x, w), x, w)
    assert "foreign calls" in launch(compiled, x, w)["kernels"]


@pytest.mark.parametrize("foreach", [False, True])
def test_a_training_step_is_replayed_as_a_whole(foreach: bool) -> None:
    net, step, optimizer = training(foreach)
    other, eager, other_optimizer = training(foreach)
    compiled, losses = graphc.compile(step), []
    for number in range(12):
        data = batch()
        losses.append((compiled(*data), eager(*data)))
        if number == 8:
            for one in (optimizer, other_optimizer):
                one.param_groups[0]["lr"] = 0.5e-2
    for found, wanted in losses:
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    for found, wanted in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)
    assert "replays" in launch(compiled, *batch())["replay"], launch(compiled, *batch())


def test_random_numbers_are_the_same_with_and_without_replays() -> None:
    def run(replay: bool) -> list[torch.Tensor]:
        with override(replay=replay):
            drop = graphc.compile(lambda x, w: F.dropout(torch.softmax(x @ w, -1) @ w, 0.5).sum())
            torch.manual_seed(3)
            x, w = weights()
            return [drop(x, w) for _ in range(6)]

    replayed, launched = run(True), run(False)
    torch.testing.assert_close(replayed, launched)
    assert len({float(x) for x in replayed}) == 6


def test_the_state_of_the_generator_is_saved_and_set_as_ever() -> None:
    drop = graphc.compile(lambda x, w: F.dropout(torch.softmax(x @ w, -1) @ w, 0.5).sum())
    x, w = weights()
    for _ in range(3):
        drop(x, w)
    state = torch.cuda.get_rng_state()
    first = [drop(x, w), torch.rand(3, device="cuda")]
    torch.cuda.set_rng_state(state)
    torch.testing.assert_close([drop(x, w), torch.rand(3, device="cuda")], first, rtol=0, atol=0)


def test_results_are_never_written_over_while_held() -> None:
    x, w = weights()
    compiled, held = compiled_heads(), []
    for number in range(8):
        x.copy_(torch.randn_like(x) + number)
        held.append((compiled(x, w), x.clone()))
    for found, given in held:
        assert_heads(found, given, w)


def test_inputs_that_always_move() -> None:
    _, w = weights()
    compiled = compiled_heads()
    for x in [weights()[0] for _ in range(8)]:
        assert_heads(compiled(x, w), x, w)


def test_memory_is_given_back_at_once() -> None:
    x, w = weights(4096)
    compiled_heads()(x, w)  # libraries keep work spaces for good
    gc.collect()
    before = torch.cuda.memory_allocated()
    compiled = compiled_heads()
    for _ in range(4):
        compiled(x, w)
    del compiled
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + (1 << 16)


def test_calls_on_several_streams() -> None:
    x, w = weights(2048)
    compiled = compiled_heads()
    for _ in range(3):
        compiled(x, w)
    torch.cuda.synchronize()
    found = []
    for stream in [torch.cuda.Stream() for _ in range(4)]:
        with torch.cuda.stream(stream):
            found.append(compiled(x, w))
    torch.cuda.synchronize()
    for item in found:
        assert_heads(item, x, w)


def test_a_call_inside_of_the_users_own_graph() -> None:
    x, w = weights()
    compiled = compiled_heads()
    for _ in range(3):
        compiled(x, w)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = compiled(x, w)
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert_heads(found, x, w)


def test_a_call_that_cannot_be_recorded_is_made_beside_the_recording() -> None:
    @torch.library.custom_op("graphc_tests::looks", mutates_args=())
    def looks(x: torch.Tensor) -> torch.Tensor:
        return x * float(x.sum().cpu() > 0)

    looks.register_fake(lambda x: torch.empty_like(x))

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.softmax(looks(x @ w) @ w, -1) @ w

    x, w = weights()
    compiled = graphc.compile(run)
    for _ in range(4):
        torch.testing.assert_close(compiled(x, w), run(x, w), rtol=1e-4, atol=1e-4)
    assert "graphc_tests.looks.default is not torch's own" in launch(compiled, x, w)["replay"]
    assert_heads(compiled_heads()(x, w), x, w)
    torch.rand(3, device="cuda")  # the generator works as before
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_a_failed_capture_leaves_stream_and_generator_as_they_were() -> None:
    from graphc.runtime.device_cuda import DEVICE

    x = torch.randn(8, device="cuda")

    def bad() -> None:
        torch.rand(4, device="cuda")
        x.sum().item()

    with pytest.raises(RuntimeError):
        DEVICE.record(0, DEVICE.pool(), bad)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(1000, device="cuda").unique().numel() > 900
    torch.testing.assert_close(x.sum(), x.cpu().sum().cuda())
    recording = DEVICE.record(0, DEVICE.pool(), lambda: x.mul_(2))
    before = x.clone()
    recording.replay()
    torch.testing.assert_close(x, before * 2)


def test_another_thread_launches_too() -> None:
    from concurrent.futures import ThreadPoolExecutor

    x, w = weights()
    compiled = compiled_heads()
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: compiled(x, w), range(12)):
            assert_heads(found, x, w)


def test_slices_that_are_not_aligned() -> None:
    base = torch.randn(192 * 96 + 1, device="cuda")
    _, w = weights()
    compiled = compiled_heads()
    for x in (base[:-1].view(192, 96), base[1:].view(192, 96), base[:-1].view(192, 96)):
        for _ in range(3):
            assert_heads(compiled(x, w), x, w)


def test_a_module_in_an_eager_loop() -> None:
    net = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.LayerNorm(128)).cuda()
    other = copy.deepcopy(net)
    compiled = graphc.compile(net)
    for _ in range(6):
        x = torch.randn(32, 64, device="cuda")
        for model in (compiled, other):
            model.zero_grad()
            model(x).square().mean().backward()
        for found, wanted in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-5)


MIXED: dict[str, Any] = {
    "pointwise": lambda x, y: torch.exp(x) * y,
    "labels": lambda x, y: F.cross_entropy(x, y.argmax(1)),
    "input": lambda x, y: F.linear(y, x),
    "loss": lambda x, y: F.mse_loss(x, y),
    "indices": lambda x, y: F.embedding(y.argmax(1), x),
    "weight": lambda x, y: F.layer_norm(x, (4,), y[0]),
    "list": lambda x, y: torch.cat([x, y]),
    "in place": lambda x, y: x.clone().add_(y),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_tensor_of_another_device_is_an_error(name: str) -> None:
    """What is not moved to the GPU, labels above all: the error is eager's, with the line."""
    compiled, given = graphc.compile(MIXED[name]), (torch.randn(4, 4, device="cuda"), torch.randn(4, 4))
    for call in (MIXED[name], compiled):
        with pytest.raises(RuntimeError, match="same device"):
            call(*given)


def test_lists_of_numbers_of_the_device() -> None:
    """`torch.tensor` of a list, and the older constructors, give tensors of the CPU unless told otherwise."""

    def program(x: torch.Tensor) -> Any:
        found = torch.tensor([x.sum(), 2.0]), torch.tensor([[x.sum()], [3]], device="cuda")
        return *found, torch.LongTensor([[x.argmax(), 3]]), torch.tensor([x.mean(), x.max()])

    x = torch.randn(4, device="cuda")
    found, wanted = graphc.compile(program)(x), program(x)
    torch.testing.assert_close(found, wanted)
    assert [y.device for y in found] == [y.device for y in wanted]


def test_places_may_lie_with_the_cpu() -> None:
    """Eager takes an index of the CPU into a tensor of the GPU, numbers of the CPU, and copies."""

    def program(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        y = x[i] * torch.tensor(2.0)
        y[i[:2]] = x[:2]
        return y + i.to(x.device)[:, None]

    x, i = torch.randn(4, 4, device="cuda"), torch.tensor([2, 0, 3])
    torch.testing.assert_close(graphc.compile(program)(x, i), program(x, i))


def test_a_part_of_a_path_that_lies_with_the_cpu_is_no_error() -> None:
    def run(x: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        return x.sin() * 2 if (number + 1).sum() > 3 else x.cos()

    compiled, x = graphc.compile(run, backend="triton"), torch.randn(4, device="cuda")
    for number in (torch.tensor([5]), torch.tensor([1]), torch.tensor([5])):
        torch.testing.assert_close(compiled(x, number), run(x, number))

    def choose(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y * 2 if x.sum() > 0 else y.sin()

    chosen, y = graphc.compile(choose, backend="triton"), torch.randn(4, requires_grad=True)
    for sign in (1, -1, 1):
        x = torch.full((4,), sign, device="cuda")
        (mine,), (theirs,) = (torch.autograd.grad(f(x, y).sum(), y) for f in (chosen, choose))
        torch.testing.assert_close(mine, theirs)


def test_what_does_not_fit_is_not_started() -> None:
    total = torch.cuda.mem_get_info()[1]
    rows = total // (4 << 20) + 1
    column = torch.randn(rows, 1, device="cuda")
    compiled = graphc.compile(lambda x: torch.exp(x).expand(-1, 1 << 20) * 2.0)
    with pytest.raises(torch.OutOfMemoryError, match=r"bytes free of \d+, and \d+ are asked for"):
        compiled(column)


def test_more_elements_than_int32_counts() -> None:
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GiB of GPU memory")
    x = torch.zeros((1 << 31) + 4096, dtype=torch.int8, device="cuda")
    x[-1], x[(1 << 31) + 1] = 3, 5
    found = graphc.compile(lambda x: x * 2 + 1)(x)
    assert found[-1] == 7 and found[(1 << 31) + 1] == 11 and int(found[:16].sum()) == 16


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_each_gpu_has_a_program_of_its_own() -> None:
    compiled = compiled_heads()
    for _ in range(3):
        for device in ("cuda:0", "cuda:1"):
            x, w = (t.to(device) for t in weights())
            found = compiled(x, w)
            assert found[0].device == torch.device(device)
            assert_heads(found, x, w)
    assert torch.cuda.current_device() == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_whose_layers_lie_on_two_gpus() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.LayerNorm(32)).to("cuda:0")
            self.second = nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4)).to("cuda:1")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x.to("cuda:0")).to("cuda:1"))

    def training(net: nn.Module) -> Callable[..., torch.Tensor]:
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)

        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y.to("cuda:1"))
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    torch.manual_seed(0)
    net = Parts()
    other = copy.deepcopy(net)
    step, eager = graphc.compile(training(net)), training(other)
    for _ in range(5):
        data = torch.randn(5, 8), torch.randint(0, 4, (5,))
        torch.testing.assert_close(step(*data), eager(*data), rtol=1e-3, atol=1e-5)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
