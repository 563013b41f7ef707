"""Packed sequences: `pack_padded_sequence`, recurrent layers on what it gives, and `pad_packed_sequence`.

Eager packs the rows of a padded batch that are no padding, sorted by length. How many there are is data, so while a
function is captured nothing is packed: a padded batch and its lengths stand for the packed sequence. Recurrent layers
go through all of its time, and a sequence that has ended, or run backwards has not begun, keeps its state. So lengths
decide no shapes, and need not be sorted. What is behind the ends has no say in any result or gradient, be it NaN.

That lengths are as eager wants them, and the longest sequence as long as the batch where that is padded again, is
checked by the program. Rows of the packed sequence itself are packed when somebody asks for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, NoReturn, TypeAlias

import torch
from torch import nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

from graphc.errors import EagerCallError, EagerOnlyError
from graphc.frontend import host
from graphc.frontend.dispatch import item
from graphc.frontend.recorder import Recorder

State: TypeAlias = tuple[torch.Tensor, ...]
Cell: TypeAlias = Callable[..., State]
"""(gates of the input, state, weight and bias of the hidden state, projection) -> state."""
_running = threading.local()
_LAYERS = (nn.RNN, nn.GRU, nn.LSTM)


class Padded(PackedSequence):
    """A packed sequence that is not packed.

    Attributes:
        batch: (T, B, ...), zero behind the ends of sequences.
        lengths: (B,) int64 on the CPU, in the order of the batch.
        is_sorted: the caller has sorted them, as eager then checks.
        source: the packed sequence that a recurrent layer has made this of.
    """

    batch: torch.Tensor
    lengths: torch.Tensor
    is_sorted: bool
    source: Padded | None
    _recorder: Recorder
    _packed: PackedSequence | None

    def __new__(cls, *fields: Any, **named: Any) -> Any:
        """torch makes a sequence of the class of another one: of rows that are packed."""
        return PackedSequence(*fields, **named)

    @classmethod
    def _make(cls, fields: Any) -> Any:  # type: ignore[override]
        return PackedSequence._make(fields)

    @classmethod
    def of(
        cls, recorder: Recorder, batch: torch.Tensor, lengths: torch.Tensor, is_sorted: bool,
        source: Padded | None = None,
    ) -> Padded:  # fmt: skip
        """The sequence with these attributes."""
        made: Padded = tuple.__new__(cls, (None,) * len(cls._fields))
        made.batch, made.lengths, made.is_sorted, made.source = batch, lengths, is_sorted, source
        made._recorder, made._packed = recorder, None
        return made

    def like(self, batch: torch.Tensor) -> Padded:
        """The result of a layer."""
        return Padded.of(self._recorder, batch, self.lengths, self.is_sorted, self.source or self)

    # the fields

    @property
    def _fields_of_it(self) -> PackedSequence:
        """What eager has, whose shapes are data."""
        if self.source is not None:
            return self.source._fields_of_it
        if self._packed is None:
            self._packed = _ORIGINALS[rnn.pack_padded_sequence](self.batch, self.lengths, False, self.is_sorted)
        return self._packed

    @property
    def data(self) -> torch.Tensor:
        if self.source is not None:
            refuse(self._recorder, "the rows of a packed sequence that a recurrent layer gives are as many as data say")
        return self._fields_of_it.data

    @property
    def batch_sizes(self) -> torch.Tensor:
        return self._fields_of_it.batch_sizes

    @property
    def sorted_indices(self) -> torch.Tensor | None:
        return self._fields_of_it.sorted_indices

    @property
    def unsorted_indices(self) -> torch.Tensor | None:
        return self._fields_of_it.unsorted_indices

    def __iter__(self) -> Iterator[Any]:
        return iter((self.data, self.batch_sizes, self.sorted_indices, self.unsorted_indices))

    def __getitem__(self, index: Any) -> Any:
        if type(index) is int and -len(self._fields) <= index < len(self._fields):
            return getattr(self, self._fields[index])
        return tuple(self)[index]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        batch = self.batch.to(*args, **kwargs)
        if batch is self.batch:
            return self
        return Padded.of(self._recorder, batch, self.lengths, self.is_sorted, self.source)

    def cuda(self, *args: Any, **kwargs: Any) -> Any:
        return self.to(self.batch.cuda(*args, **kwargs).device)

    def cpu(self, *args: Any, **kwargs: Any) -> Any:
        return self.to("cpu", *args, **kwargs)

    @property
    def is_cuda(self) -> bool:
        return self.batch.is_cuda


def refuse(recorder: Recorder, what: str, error: type[EagerOnlyError] = EagerOnlyError) -> NoReturn:
    """Leave the call to eager.

    Raises:
        EagerOnlyError: always, or another class that is one.
    """
    raise error(
        f"{what}; give packed sequences from pack_padded_sequence to recurrent layers as they are, and what comes of "
        "them to pad_packed_sequence, in one function",
        recorder.locator.here(),
    )


def _holds(recorder: Recorder, condition: torch.Tensor) -> bool:
    """Whether data are so: the program checks that they are, or it is a decision."""
    recorder.builder.location = recorder.locator.here()
    found = item(recorder, condition)
    node = host.node_of(found)
    return bool(found) if node is None else recorder.assume(node) or bool(found)


def _mask(batch: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(T, B, 1, ...): where a batch is no padding."""
    times = torch.arange(batch.shape[0], device=batch.device).unsqueeze(1)
    return (times < lengths.to(batch.device)).reshape(*batch.shape[:2], *(1,) * (batch.dim() - 2))


def _filled(batch: torch.Tensor, mask: torch.Tensor, value: float = 0.0) -> torch.Tensor:
    """A batch with a value in the place of padding."""
    return torch.where(mask, batch, batch.new_full((), value))


# torch's functions


def pack(input: Any, lengths: Any, batch_first: bool, enforce_sorted: bool) -> Any:
    """In the place of `pack_padded_sequence`."""
    recorder = _recorder()
    original = _ORIGINALS[rnn.pack_padded_sequence]
    if recorder is None or not isinstance(input, torch.Tensor) or input.dim() < 2 or 0 in input.shape[:2]:
        return original(input, lengths, batch_first, enforce_sorted)
    count = torch.as_tensor(lengths, dtype=torch.int64) if isinstance(lengths, (list, tuple)) else lengths
    batch = input.transpose(0, 1) if batch_first else input
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    if (
        not isinstance(count, torch.Tensor) or count.shape != batch.shape[1:2] or count.device.type != "cpu"
        or count.is_complex() or is_wrapped(input) or is_wrapped(count)
    ):  # fmt: skip
        return original(input, lengths, batch_first, enforce_sorted)
    count = count.detach().to(torch.int64, copy=True)
    fits = ((count > 0) & (count <= batch.shape[0])).all()
    if enforce_sorted:
        fits = fits & (count[1:] <= count[:-1]).all()
    if not _holds(recorder, fits):
        return original(input, lengths, batch_first, enforce_sorted)  # which raises
    return Padded.of(recorder, _filled(batch, _mask(batch, count)), count, enforce_sorted)


def pad(sequence: Any, batch_first: bool, padding_value: float, total_length: int | None) -> Any:
    """In the place of `pad_packed_sequence`."""
    recorder = _recorder()
    if recorder is None or not isinstance(sequence, Padded):
        return _ORIGINALS[rnn.pad_packed_sequence](sequence, batch_first, padding_value, total_length)
    time, lengths = sequence.batch.shape[0], sequence.lengths
    if total_length is None:
        total = time if _holds(recorder, lengths.max() == time) else int(lengths.max())
    else:
        total = int(total_length)
        if total < time and not _holds(recorder, lengths.max() <= total):
            raise ValueError("total_length is less than the length of the longest sequence")
    batch = sequence.batch
    if padding_value != 0:
        batch = _filled(batch, _mask(batch, lengths), padding_value)
    batch = batch[:total]
    if total > time:
        batch = torch.cat((batch, batch.new_full((total - time, *batch.shape[1:]), padding_value)))
    batch = batch.contiguous()
    if batch_first:
        batch = batch.transpose(0, 1)
        batch = batch if sequence.is_sorted else batch.contiguous()  # as eager's lies once it is put in order
    return batch, lengths.clone()


def _pack(input, lengths, batch_first=False, enforce_sorted=True):
    from graphc.frontend.packed import pack

    return pack(input, lengths, batch_first, enforce_sorted)


def _pad(sequence, batch_first=False, padding_value=0.0, total_length=None):
    from graphc.frontend.packed import pad

    return pad(sequence, batch_first, padding_value, total_length)


def _copy(function: Any) -> Any:
    return FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)


_REPLACED: dict[Any, Any] = {rnn.pack_padded_sequence: _pack, rnn.pad_packed_sequence: _pad}
"""Functions with those whose code they have in a capture: users hold them under names of their own."""
_ORIGINALS: dict[Any, Any] = {function: _copy(function) for function in _REPLACED}


def _recorder() -> Recorder | None:
    """The capture of this thread."""
    found: Recorder | None = getattr(_running, "recorder", None)
    return found


@contextmanager
def packing_nothing(recorder: Recorder) -> Iterator[None]:
    """For the block, packed sequences of this thread are padded batches."""
    _running.recorder = recorder
    codes = {function: function.__code__ for function in _REPLACED}
    forwards = {layer: layer.forward for layer in _LAYERS}
    for function, other in _REPLACED.items():
        function.__code__ = other.__code__
    for layer, forward in forwards.items():
        layer.forward = _forward(forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for function, code in codes.items():
            function.__code__ = code
        for layer, forward in forwards.items():
            layer.forward = forward  # type: ignore[method-assign]
        _running.recorder = None


# recurrent layers


def _forward(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, input: Any, hx: Any = None) -> Any:
        recorder = _recorder()
        if recorder is None or not isinstance(input, PackedSequence):
            return original(self, input, hx)
        if not isinstance(input, Padded):
            refuse(recorder, "a recurrent layer goes through a packed sequence by its batch sizes, which are data")
        self._update_flat_weights()
        if not _fits(self, input, hx):
            refuse(recorder, "a recurrent layer does not fit its packed input", EagerCallError)
        if self.dropout and self.training and self.num_layers > 1 and recorder.imp.rounds_as_eager:
            refuse(recorder, "eager draws dropout between layers for packed rows alone, and numerics are eager's")
        return _run(self, input, hx)

    return forward


def _fits(net: Any, sequence: Padded, hx: Any) -> bool:
    """Whether eager takes the input and the initial states."""
    batch, count = sequence.batch, net.num_layers * (2 if net.bidirectional else 1)
    widths = (net.proj_size or net.hidden_size, net.hidden_size) if net.mode == "LSTM" else (net.hidden_size,)
    given = () if hx is None else hx if net.mode == "LSTM" else (hx,)
    if batch.dim() != 3 or batch.shape[2] != net.input_size or not batch.is_floating_point():
        return False
    if hx is not None and [state.shape for state in given] != [(count, batch.shape[1], width) for width in widths]:
        return False
    dtypes = {tensor.dtype for tensor in (batch, net._flat_weights[0], *given)}
    return len(dtypes) == 1 or torch.is_autocast_enabled(batch.device.type)


def _run(net: Any, sequence: Padded, hx: Any) -> Any:
    """The results of `RNN`, `GRU` or `LSTM`."""
    given = None if hx is None else tuple(hx) if net.mode == "LSTM" else (hx,)
    size, directions = len(net._all_weights[0]), 2 if net.bidirectional else 1
    x, mask, finals = sequence.batch, _mask(sequence.batch, sequence.lengths), []
    for layer in range(net.num_layers):
        found = []
        if layer and net.dropout and net.training:
            x = nn.functional.dropout(x, net.dropout)
        for direction in range(directions):
            place = layer * directions + direction
            state = _zeros(net, x) if given is None else tuple(part[place] for part in given)
            weights = net._flat_weights[place * size : (place + 1) * size]
            out, final = _direction(net, x, mask, state, weights, direction == 1)
            found.append(out)
            finals.append(final)
        x = _filled(found[0] if directions == 1 else torch.cat(found, 2), mask)
    last = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
    return sequence.like(x), last if net.mode == "LSTM" else last[0]


def _zeros(net: Any, x: torch.Tensor) -> State:
    h = x.new_zeros(x.shape[1], net.proj_size or net.hidden_size)
    return (h, x.new_zeros(x.shape[1], net.hidden_size)) if net.mode == "LSTM" else (h,)


def _direction(
    net: Any, x: torch.Tensor, mask: torch.Tensor, state: State, weights: list[torch.Tensor], backwards: bool
) -> tuple[torch.Tensor, State]:
    """One direction of one layer.

    Args:
        x: (T, B, I), zero behind the ends.
        mask: (T, B, 1).
        weights: of the input, of the hidden state, biases of both if there are some, of the projection if there is one.

    Returns:
        Hidden states (T, B, H), and the last state.
    """
    cell, biases = _CELLS[net.mode], weights[2:4] if net.bias else (None, None)
    projection = weights[-1] if net.proj_size else None
    gates = nn.functional.linear(x, weights[0], biases[0]).unbind(0)
    masks, found = mask.unbind(0), []
    for time in reversed(range(len(gates))) if backwards else range(len(gates)):
        new = cell(gates[time], state, weights[1], biases[1], projection)
        pairs = zip(new, state, strict=True)
        state = tuple(torch.where(masks[time], now, before.to(now.dtype)) for now, before in pairs)
        found.append(state[0])
    return torch.stack(found[::-1] if backwards else found), state


def _lstm(
    x: torch.Tensor, state: State, weight: torch.Tensor, bias: torch.Tensor | None, projection: torch.Tensor | None
) -> State:
    hidden, cell = state
    gates = nn.functional.linear(hidden, weight, bias) + x
    enter, forget, new, leave = gates.chunk(4, 1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
    hidden = leave.sigmoid() * cell.tanh()
    return (hidden if projection is None else nn.functional.linear(hidden, projection)), cell


def _gru(x: torch.Tensor, state: State, weight: torch.Tensor, bias: torch.Tensor | None, projection: None) -> State:
    (hidden,) = state
    mine, theirs = x.chunk(3, 1), nn.functional.linear(hidden, weight, bias).chunk(3, 1)
    reset, keep = (theirs[0] + mine[0]).sigmoid(), (theirs[1] + mine[1]).sigmoid()
    new = (mine[2] + theirs[2] * reset).tanh()
    return ((hidden - new) * keep + new,)


def _rnn(function: Callable[[torch.Tensor], torch.Tensor]) -> Cell:
    def cell(x: torch.Tensor, state: State, weight: torch.Tensor, bias: torch.Tensor | None, projection: None) -> State:
        return (function(nn.functional.linear(state[0], weight, bias) + x),)

    return cell


_CELLS: dict[str, Cell] = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _rnn(torch.tanh), "RNN_RELU": _rnn(torch.relu)}
"""As torch computes them on a CPU (ATen/native/RNN.cpp)."""
