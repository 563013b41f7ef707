"""Packed sequences around recurrent layers: lengths are data, and decide no program."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

import graphc
from graphc.errors import FallbackWarning
from tests.support import assert_contract

TIME, BATCH, WORDS = 13, 3, 9


class Reader(nn.Module):
    """Reads sentences: states at all words, padded, the sentences' lengths, and the last states."""

    def __init__(self, net: nn.RNNBase, is_sorted: bool = False) -> None:
        super().__init__()
        self.embed, self.net, self.is_sorted = nn.Embedding(WORDS, net.input_size), net, is_sorted

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> Any:
        packed = pack_padded_sequence(self.embed(ids), lengths, self.net.batch_first, self.is_sorted)
        out, last = self.net(packed)
        return *pad_packed_sequence(out, self.net.batch_first), last


def _exactly(net: nn.Module) -> Any:
    return copy.deepcopy(net).double()


def _assert_same(mine: Any, eager: Any, exact: Any = None) -> None:
    leaves = [tree_leaves(item) for item in (mine, eager, eager if exact is None else exact)]
    for a, b, c in zip(*leaves, strict=True):
        assert_contract(a, b, c if a.is_floating_point() else None)
        assert a.stride() == b.stride()


@pytest.mark.parametrize(
    ("make", "is_sorted", "lengths"),
    [
        (lambda: nn.GRU(3, 4, batch_first=True), True, ([13, 7, 2], [13, 13, 1])),
        (lambda: nn.LSTM(3, 4, bidirectional=True), False, ([4, 13, 1], [13, 2, 13])),
        (lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True), False, ([1, 13, 4], [3, 2, 13])),
    ],
    ids=["gru", "lstm both ways", "rnn"],
)
def test_whole_steps(make: Callable[[], nn.RNNBase], is_sorted: bool, lengths: tuple[list[int], ...]) -> None:
    torch.manual_seed(0)
    reader = Reader(make(), is_sorted)
    readers = reader, copy.deepcopy(reader), _exactly(reader)
    optimizers = [torch.optim.SGD(r.parameters(), lr=0.0) for r in readers]

    def step(reader: Reader, optimizer: torch.optim.Optimizer, ids: torch.Tensor, lengths: torch.Tensor) -> Any:
        optimizer.zero_grad()
        out, found, last = reader(ids, lengths)
        loss = out.square().mean() + sum(part.sin().sum() for part in tree_leaves(last))
        loss.backward()
        optimizer.step()
        return loss.detach(), out.detach(), found

    run = graphc.compile(step)
    for count in map(torch.tensor, lengths):
        ids = torch.randint(0, WORDS, (BATCH, TIME) if reader.net.batch_first else (TIME, BATCH))
        calls = zip((run, step, step), readers, optimizers, strict=True)
        _assert_same(*[call(reader, optimizer, ids, count) for call, reader, optimizer in calls])
        _assert_same(*[[p.grad for p in reader.parameters()] for reader in readers])
    assert (run.stats().compiles, run.stats().eager_calls) == (1, 0)


class Encoder(nn.Module):
    """Goes on from given states; padding may be anything."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:
        out, last = self.net(pack_padded_sequence(x, lengths, enforce_sorted=False), (h, c))
        return pad_packed_sequence(out, padding_value=-1.0, total_length=TIME + 1), last


def test_gradients_outside() -> None:
    torch.manual_seed(0)
    encoder, lengths, found = Encoder(), torch.tensor([3, 13, 1]), []
    given = torch.randn(TIME, BATCH, 3), torch.randn(4, BATCH, 2), torch.randn(4, BATCH, 4)
    for row, length in enumerate(lengths.tolist()):
        given[0][length:, row] = torch.nan
    nets = encoder, copy.deepcopy(encoder), _exactly(encoder)
    for net, call in zip(nets, (graphc.compile(encoder, backend="interpret"), *nets[1:]), strict=True):
        x, h, c = (t.to(net.net.weight_ih_l0.dtype, copy=True).requires_grad_() for t in given)
        (out, count), last = call(x, lengths, h, c)
        (out.square().sum() + last[0].sin().sum() + last[1].cos().sum()).backward()
        gradients = [t.grad for t in (x, h, c, *net.parameters())]
        found.append([out.detach(), count, *(part.detach() for part in last), *gradients])
    _assert_same(*found)


def _said(call: Callable[..., Any], *args: Any) -> str:
    """What a call that fails says."""
    with pytest.raises((RuntimeError, ValueError)) as caught:
        call(*args)
    return str(caught.value)


@torch.no_grad()
def test_bad_lengths_raise_what_eager_raises() -> None:
    torch.manual_seed(0)
    reader, ids = Reader(nn.GRU(3, 4), True), torch.randint(0, WORDS, (TIME, BATCH))
    run = graphc.compile(reader, backend="interpret")
    _assert_same(*[call(ids, torch.tensor([13, 6, 3])) for call in (run, reader, _exactly(reader))])
    for lengths in map(torch.tensor, ([13, 6, 0], [13, 3, 6], [14, 6, 3], [13, -1, -1])):
        assert _said(run, ids, lengths) == _said(reader, ids, lengths)
    assert (run.stats().compiles, run.stats().eager_calls) == (1, 4)


@torch.no_grad()
def test_a_batch_that_is_padded_beyond_its_longest_sequence() -> None:
    """What is padded again is as long as that, so its length becomes a decision; last states need none."""
    torch.manual_seed(0)
    reader, ids = Reader(nn.RNN(3, 4, batch_first=True)), torch.randint(0, WORDS, (BATCH, TIME))

    def states(reader: Reader, ids: torch.Tensor, lengths: torch.Tensor) -> Any:
        return reader.net(pack_padded_sequence(reader.embed(ids), lengths, True, False))[1]

    exact, runs = _exactly(reader), [graphc.compile(fn, backend="interpret") for fn in (reader, states)]
    for lengths in map(torch.tensor, ([2, 13, 3], [7, 2, 2], [7, 1, 4], [13, 1, 1], [3, 7, 2], [2, 4, 4])):
        _assert_same(*[call(ids, lengths) for call in (runs[0], reader, exact)])
        _assert_same(runs[1](reader, ids, lengths), *[states(net, ids, lengths) for net in (reader, exact)])
    assert [run.stats().eager_calls for run in runs] == [1, 0]
    assert runs[1].stats().compiles == 1


def test_gradients_outside_of_a_batch_that_is_padded_further() -> None:
    torch.manual_seed(0)
    reader, ids = Reader(nn.RNN(3, 4)), torch.randint(0, WORDS, (5, 2))
    nets, lengths = (reader, copy.deepcopy(reader), _exactly(reader)), torch.tensor([2, 3])
    run = graphc.compile(reader, backend="interpret")
    run(ids, lengths)  # eager, which raises nothing
    for net, call in zip(nets, (run, *nets[1:]), strict=True):
        out, _, last = call(ids, lengths)
        (out.square().sum() + last.sin().sum()).backward()
    _assert_same(*[[p.grad for p in net.parameters()] for net in nets])
    assert run.stats().eager_calls == 1


@torch.no_grad()
def test_what_is_written_after_packing_is_not_in_the_packed_sequence() -> None:
    def write(x: torch.Tensor, lengths: torch.Tensor) -> Any:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        x.add_(1)
        lengths.fill_(1)
        return pad_packed_sequence(packed, padding_value=-1.0, total_length=4)

    run = graphc.compile(write, backend="interpret")
    for count in ([2, 4], [1, 3]):
        x, lengths = torch.arange(8.0).reshape(4, 2), torch.tensor(count)
        _assert_same(run(x.clone(), lengths.clone()), write(x, lengths))


@torch.no_grad()
def test_a_total_length_that_is_too_small() -> None:
    @graphc.compile(backend="interpret")
    def run(x: torch.Tensor, lengths: torch.Tensor) -> Any:
        return pad_packed_sequence(pack_padded_sequence(x, lengths), True, 3.0, 4)

    x = torch.arange(24).reshape(6, 2, 2)
    for lengths in map(torch.tensor, ([4, 1], [3, 2])):
        _assert_same(run(x, lengths), run.target(x, lengths))
    assert _said(run, x, torch.tensor([5, 2])) == _said(run.target, x, torch.tensor([5, 2]))
    assert run.stats().compiles == 1


@torch.no_grad()
def test_lengths_in_a_list_become_inputs_together() -> None:
    torch.manual_seed(0)
    reader, ids = Reader(nn.RNN(3, 4)), torch.randint(0, WORDS, (TIME, BATCH))
    run, exact = graphc.compile(reader, backend="interpret"), _exactly(reader)
    assert _said(run, ids, [13, 0, 3]) == _said(reader, ids, [13, 0, 3])
    for lengths in ([13, 5, 3], [13, 6, 3], [13, 2, 3], [13, 1, 2], [13, 9, 9], [13, 4, 1]):
        _assert_same(*[call(ids, lengths) for call in (run, reader, exact)])
    assert (run.stats().compiles, run.stats().eager_calls) == (3, 0)


@torch.no_grad()
def test_a_list_of_sequences() -> None:
    torch.manual_seed(0)
    net = nn.GRU(3, 4)

    def read(net: nn.GRU, sequences: list[torch.Tensor]) -> Any:
        out, last = net(rnn.pack_sequence(sequences, enforce_sorted=False))
        return pad_packed_sequence(out), last, rnn.pad_sequence(sequences, padding_value=2.0)

    run, sequences = graphc.compile(read, backend="interpret"), [torch.randn(n, 3) for n in (2, 5, 4)]
    exact = read(_exactly(net), [sequence.double() for sequence in sequences])
    _assert_same(run(net, sequences), read(net, sequences), exact)
    assert (run.stats().compiles, run.stats().eager_calls) == (1, 0)


@torch.no_grad()
def test_fields_are_those_of_rows_that_are_packed() -> None:
    x = torch.randn(5, 3, 2)

    @graphc.compile(backend="interpret")
    def run(x: torch.Tensor, lengths: torch.Tensor) -> Any:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return packed, packed[0], packed._replace(data=packed.data * 2), packed.to(torch.float64), packed.is_cuda

    for lengths in map(torch.tensor, ([1, 5, 3], [2, 2, 4], [1, 5, 3])):
        found = run(x, lengths)
        _assert_same(found[:-1], run.target(x, lengths)[:-1])
        assert type(found[0]) is rnn.PackedSequence and found[-1] is False
    assert run.stats().eager_calls == 0


@torch.no_grad()
@pytest.mark.parametrize("kind", ["given", "made", "rows"])
def test_layers_on_rows_that_are_packed_run_eager_and_say_so(kind: str) -> None:
    torch.manual_seed(0)
    net, lengths = nn.GRU(3, 4, batch_first=True), torch.tensor([TIME, 9, 4])

    @graphc.compile
    def run(x: Any) -> torch.Tensor:
        if kind != "given":
            x = pack_padded_sequence(x, lengths, batch_first=True)
        if kind == "made":
            x = rnn.PackedSequence(x.data * 2, x.batch_sizes)
        out = net(x)[0]
        return out.data

    x: Any = torch.randn(BATCH, TIME, 3)
    x = pack_padded_sequence(x, lengths, batch_first=True) if kind == "given" else x
    with pytest.warns(FallbackWarning, match="packed sequences"):
        found = run(x)
    assert torch.equal(found, run.target(x))
    run(x)
    assert run.stats().eager_calls == 2


@torch.no_grad()
def test_dropout_between_layers() -> None:
    torch.manual_seed(0)
    net, x, lengths = nn.GRU(3, 32, 2, dropout=0.5), torch.randn(TIME, BATCH, 3), torch.tensor([13, 4, 2])

    def last(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        state: torch.Tensor = net(pack_padded_sequence(x, lengths))[1]
        return state

    run = graphc.compile(last, backend="interpret")
    first, second = run(x, lengths), run(x, lengths)
    torch.testing.assert_close(first[0], last(x, lengths)[0])
    assert not torch.equal(first[1], second[1]) and run.stats().eager_calls == 0
    like_eager = graphc.compile(last, backend="interpret", numerics="eager")
    torch.manual_seed(1)
    with pytest.warns(FallbackWarning, match=re.escape("numerics are eager's")):
        found = like_eager(x, lengths)
    torch.manual_seed(1)
    assert torch.equal(found, last(x, lengths))


@torch.no_grad()
def test_a_layer_that_is_given_too_wide_a_sequence_compiles_later() -> None:
    torch.manual_seed(0)
    net, lengths = nn.LSTM(3, 4), torch.tensor([TIME, 4, 2])

    def last(net: nn.LSTM, x: torch.Tensor) -> Any:
        return net(pack_padded_sequence(x, lengths))[1]

    run, wide, x = graphc.compile(last, backend="interpret"), torch.randn(TIME, BATCH, 4), torch.randn(TIME, BATCH, 3)
    with pytest.warns(FallbackWarning, match="does not fit"):
        assert _said(run, net, wide) == _said(last, net, wide)
    _assert_same(run(net, x), last(net, x), last(_exactly(net), x.double()))
    assert (run.stats().compiles, run.stats().eager_calls) == (1, 1)
