"""Programs of every shape of arguments, results and modules, against eager."""

from __future__ import annotations

import collections
import dataclasses
import functools
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch._higher_order_ops.associative_scan import associative_scan_op

import graphc
from graphc.frontend.capture import capture
from graphc.ir.graph import Role
from tests.frontend.harness import call, check


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclasses.dataclass
class Batch:
    ids: torch.Tensor
    scale: float = 2.0


class ModelOutput(collections.OrderedDict):  # type: ignore[type-arg]
    """Like Hugging Face's: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> object:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def test_containers_of_arguments_and_results() -> None:
    def fn(xs, pair, *, batch, extra):
        total = xs[0] + xs[1]["a"] * batch.scale
        return {
            "total": total,
            "pair": Pair(pair.second, pair.first + 1),
            "batch": Batch(batch.ids * 2, 3.0),
            "out": ModelOutput(logits=total, nothing=None),
            "rest": (extra, [total.sum(), 5, "text"]),
        }

    a, b = torch.randn(3), torch.randn(3)
    check(fn, [a, {"a": b}], Pair(a, b), batch=Batch(torch.arange(3)), extra=None)


def test_defaultdict_and_ordered_dict_keep_their_class() -> None:
    def fn(x):
        grouped = collections.defaultdict(list)
        grouped["k"] = [x + 1]
        return grouped, collections.OrderedDict(b=x * 2, a=x)

    captured = check(fn, torch.randn(2))
    grouped, _ = call(captured, torch.randn(2))
    assert grouped["missing"] == []


def test_userdict_argument() -> None:
    check(lambda batch: batch["x"] + 1, collections.UserDict(x=torch.randn(2)))


def test_module_with_running_statistics() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 2))
    captured = check(module, torch.randn(5, 4))
    roles = {value.path: value.role for value in captured.graph.inputs}
    assert roles["0.weight"] is Role.PARAM
    assert roles["1.running_mean"] is Role.BUFFER
    assert len(captured.graph.writes) == 3
    module.eval()
    assert not check(module, torch.randn(5, 4)).graph.writes


def test_inference_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU()).eval()
    weight = torch.randn(4, 4)
    with torch.inference_mode():
        check(module, torch.randn(2, 3, 4))
        check(lambda x: x @ weight.t() + weight.unbind()[0], torch.randn(3, 4))


def test_inference_tensors_are_written_in_place() -> None:
    with torch.inference_mode():
        module = nn.BatchNorm1d(4)
        check(module, torch.randn(3, 4))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.view(2, 5, 2, 4).transpose(1, 2) for t in self.qkv(self.norm(x)).split(8, dim=2))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + y.transpose(1, 2).contiguous().view(2, 5, 8)


def test_locations_and_module_paths() -> None:
    module = nn.ModuleDict({"block": Attention()})["block"]
    root = nn.Sequential(module, module)
    captured = check(root, torch.randn(2, 5, 8))
    assert all(op.location.file == __file__ for op in captured.graph.ops)
    assert {op.location.module for op in captured.graph.ops} >= {"0", "0.qkv", "0.norm"}
    assert any(op.location.function == "Attention.forward" for op in captured.graph.ops)


def test_tied_weights_are_one_input() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tok, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.tok.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.tok(ids))

    module = Tied()
    captured = check(module, torch.arange(5))
    assert [value.path for value in captured.graph.inputs] == ["ids", "tok.weight"]
    module.head.weight = nn.Parameter(torch.zeros(7, 4))
    assert captured.match((torch.arange(5),), {}) is None


def test_hooks_methods_partials_and_callables() -> None:
    module = Attention()
    module.norm.register_forward_hook(lambda m, args, out: out * 2)
    check(module, torch.randn(2, 5, 8))
    check(module.forward, torch.randn(2, 5, 8))
    check(functools.partial(torch.add, alpha=2), torch.randn(3), torch.randn(3))

    class Scale:
        def __init__(self) -> None:
            self.factor = torch.tensor(3.0)

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    captured = check(Scale(), torch.randn(3))
    assert captured.graph.inputs[1].role is Role.STATE


TABLE = torch.randn(4)
LAYER = nn.Linear(4, 4)


def test_closures_and_globals_become_inputs() -> None:
    weight, layers = torch.randn(4), [torch.randn(4), torch.randn(4)]

    def fn(x):
        return LAYER(x * weight + TABLE) + layers[1]

    captured = check(fn, torch.randn(2, 4))
    paths = {value.path: value.role for value in captured.graph.inputs}
    assert paths == {
        "x": Role.ARG,
        "weight": Role.STATE,
        "TABLE": Role.STATE,
        "LAYER.weight": Role.PARAM,
        "LAYER.bias": Role.PARAM,
        "layers[1]": Role.STATE,
    }
    assert not captured.warnings


def test_module_as_argument() -> None:
    captured = check(lambda model, x: model(x) + 1, nn.Linear(3, 2), torch.randn(2, 3))
    assert {value.path for value in captured.graph.inputs} == {"x", "model.weight", "model.bias"}


def test_factories_and_constants() -> None:
    def fn(x):
        table = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        mask = torch.ones(2, 2, dtype=torch.bool).tril()
        return (x @ table).masked_fill(mask, 0.5) + torch.arange(2) + torch.tensor(3.0) + torch.zeros_like(x), table

    captured = check(fn, torch.randn(2, 2))
    assert [value.role for value in captured.graph.inputs] == [Role.ARG, Role.CONST]


def test_a_constant_written_in_place_starts_anew_on_each_call() -> None:
    def fn(x):
        table = torch.tensor([1.0, 2.0])
        table += x
        return table

    check(fn, torch.randn(2), calls=3)


def test_compiling_flag_is_seen_and_restored() -> None:
    def fn(x):
        assert torch.compiler.is_compiling()
        return x + 1

    original = nn.Module.__call__
    capture(fn, (torch.randn(2),))
    assert not torch.compiler.is_compiling()
    assert nn.Module.__call__ is original


@pytest.mark.parametrize("fn", [torch.fft.rfft, lambda x: torch.complex(x, x).abs(), lambda x: torch.linalg.qr(x)])
def test_operators_without_rules_run_as_they_are(fn) -> None:
    captured = check(fn, torch.randn(4, 4))
    assert any(op.name == "extern" for op in captured.graph.ops)


def test_random_operators_draw_as_in_eager() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    x = torch.randn(64, 4)
    state = torch.get_rng_state()
    captured = capture(module, (x,), numerics="eager")
    assert torch.equal(torch.get_rng_state(), state)
    actual = call(captured, x)
    torch.set_rng_state(state)
    torch.testing.assert_close(actual, module(x))


def test_complex_arguments() -> None:
    check(lambda x: (x * 2j + 1).real + x.imag, torch.randn(3, dtype=torch.complex64))
    check(lambda x: torch.view_as_real(x * x) + 1, torch.randn(3, dtype=torch.complex64))


def test_autocast_casts_are_captured() -> None:
    module = nn.Linear(4, 4)
    with torch.no_grad():  # numbers that bf16 holds, so that nothing is rounded
        module.weight.copy_(torch.arange(16.0).reshape(4, 4) / 8)
        module.bias.copy_(torch.arange(4.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(module, torch.arange(8.0).reshape(2, 4) - 3)


def test_hooks_registered_when_first_called() -> None:
    """A module that gets ready in its first call, as eager does: hooks and the flag that says so are effects."""

    class Lazy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.ready, self.seen = torch.nn.Tanh(), False, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.ready:
                self.inner.register_forward_hook(lambda module, args, out: out * 2)
                self.ready = True
            return self.inner(x)

    module, x = Lazy(), torch.randn(3)
    compiled = graphc.compile(module, backend="interpret")
    for _ in range(4):
        assert torch.equal(compiled(x), x.tanh() * 2)
        assert len(module.inner._forward_hooks) == 1 and module.ready
    assert (compiled.stats().compiles, compiled.stats().hits) == (2, 2)


def test_tensors_kept_in_a_dict_of_a_module() -> None:
    class Biased(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3))
            self.cache: dict[str, torch.Tensor] = {}

        def forward(self, x: torch.Tensor, key: str) -> torch.Tensor:
            if key not in self.cache:
                self.cache[key] = self.weight * 2
            return x + self.cache[key]

    module, x = Biased(), torch.randn(3)
    compiled = graphc.compile(module, backend="interpret")
    with torch.no_grad():
        for key in ("a", "a", "a", "b", "b", "b"):
            assert torch.equal(compiled(x, key), x + module.weight * 2)
            assert key in module.cache
        module.cache["a"] = x
        assert torch.equal(compiled(x, "a"), x + x)
    assert compiled.stats().hits


def test_parameters_that_a_module_has_while_it_runs() -> None:
    """They are found where they stay, and not where `functional_call` puts them for a moment."""
    net = nn.Linear(2, 2)
    own = {name: parameter.detach() + 1 for name, parameter in net.named_parameters()}
    check(lambda x: torch.func.functional_call(net, own, (x,)), torch.randn(3, 2))


def test_an_associative_scan_is_ordinary_operators() -> None:
    def decay(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    def fn(a, b):
        return associative_scan_op(lambda *leaves: decay(leaves[:2], leaves[2:]), [a, b], ())[1]

    a, b = (torch.rand(7, 3, requires_grad=True) for _ in range(2))
    state, wanted = torch.zeros(3), []
    for one, other in zip(a, b, strict=True):
        state = one * state + other
        wanted.append(state)
    found, eager = graphc.compile(fn, backend="interpret")(a, b), torch.stack(wanted)
    torch.testing.assert_close(found, eager)
    for mine, theirs in zip(*(torch.autograd.grad(x.square().sum(), (a, b)) for x in (found, eager)), strict=True):
        torch.testing.assert_close(mine, theirs)
