"""Rows that a mask selects, before it is known how many: what stands for them in a capture.

See `graphc.frontend.selections`.
"""

from __future__ import annotations

import functools
import gc
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch

from graphc.errors import CaptureError
from graphc.frontend import host
from graphc.frontend.alike import is_same
from graphc.frontend.traced import AS_REPR, TracedTensor
from graphc.ir.types import Location

if TYPE_CHECKING:
    from graphc.frontend.recorder import Recorder

_Tensor = torch.Tensor


class Escaped(BaseException):
    """A selection has got where only a tensor can be: capture again, and select at once.

    Not an Exception, so that the user's own handlers let it pass.
    """


class Selections:
    """The selections of one capture.

    Args:
        recorder: the capture.

    Attributes:
        allowed: otherwise all selections are made at once.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.allowed = recorder, False
        self._masks: list[weakref.ref[Mask]] = []
        self._made: list[weakref.ref[Selected]] = []

    def mask(self, tensor: torch.Tensor) -> Mask:
        """What stands for the contents that a mask has now: the same object for masks that are computed alike."""
        known = [mask for ref in self._masks if (mask := ref()) is not None]
        new = self.recorder.value_of(tensor)
        for mask in known:
            if is_same(self.recorder.value_of(mask.tensor), new):
                return mask
        made = Mask(tensor.clone(), self.recorder)
        self._masks = [weakref.ref(mask) for mask in (*known, made)]
        return made

    def make(self, full: torch.Tensor, mask: Mask, family: Family | None = None, raw: bool = False) -> Selected:
        """A selection of `full`; see `Selected`."""
        made: Selected = _Tensor._make_wrapper_subclass(Selected, full.shape, dtype=full.dtype, device=full.device)
        made.full, made.mask, made.raw, made.rows = full, mask, raw, None
        made.again, made.changes, made.location = None, 0, self.recorder.locator.here()
        made.family = family or Family()
        made.family.size += 1
        self._made.append(weakref.ref(made))
        return made

    def check(self) -> None:
        """After the run, when its results are tensors.

        Raises:
            Escaped: somebody still holds a selection.
        """
        if any(ref() is not None for ref in self._made):
            gc.collect()
        if any(ref() is not None for ref in self._made):
            raise Escaped


class Mask:
    """Contents of a mask.

    Args:
        tensor: a copy of it.
        recorder: the capture.
    """

    def __init__(self, tensor: torch.Tensor, recorder: Recorder) -> None:
        self.tensor, self.recorder = tensor, recorder
        self._flat: dict[tuple[int, ...], Mask] = {}
        self._number: weakref.ref[Any] | None = None

    @functools.cached_property
    def count(self) -> torch.Tensor:
        """How many rows are selected, `() int64`."""
        return self.tensor.sum()

    @property
    def number(self) -> Any:
        """The same as a traced number: one object, so that shapes of selections by one mask compare equal.

        It keeps the mask, which so is the same for later selections, too, and not the other way round.
        """
        number = None if self._number is None else self._number()
        if number is None:
            recorder = self.recorder
            recorder.builder.location = recorder.locator.here()
            value = recorder.builder.op("item", recorder.value_of(self.count))
            number = host.wrap(host.HostNode(recorder, value, int))
            number.mask = self
            self._number = weakref.ref(number)
        return number

    def over(self, full: torch.Tensor) -> torch.Tensor:
        """The mask with dims of size 1 for those of rows."""
        dims = self.tensor.dim()
        return (
            self.tensor.reshape(*self.tensor.shape, *(1,) * (full.dim() - dims)) if full.dim() > dims else self.tensor
        )

    def of_elements(self, full: torch.Tensor) -> Mask:
        """The mask that selects all elements of the rows, one by one."""
        shape = tuple(full.shape)
        if shape not in self._flat:
            self._flat[shape] = Mask(self.over(full).expand(shape), self.recorder)
        return self._flat[shape]


class Family:
    """Selections that share memory in eager: views of one of them.

    Attributes:
        size: how many there are.
    """

    def __init__(self) -> None:
        self.size = 0
        self._rows: list[tuple[TracedTensor, int]] = []

    def note(self, rows: Any) -> None:
        """The real rows of one of them are made."""
        self._rows.append((rows, rows.state.storage.version))

    def is_unwritten(self) -> bool:
        """Nobody has written to real rows."""
        return all(rows.state.storage.version == version for rows, version in self._rows)

    def check(self) -> None:
        """Raises:
        Escaped: real rows have been written, which the others do not know of.
        """
        if self.size > 1 and not self.is_unwritten():
            raise Escaped


class Again:
    """The call that has given a selection, to be made of the real rows of its arguments.

    Args:
        func, args, kwargs: the call.
        part: which of its results, where it gives several; -1: its only one.
        recorder: the capture.
    """

    def __init__(self, func: Any, args: Any, kwargs: Any, part: int, recorder: Recorder) -> None:
        self._func, self._args, self._kwargs, self._part = func, args, kwargs, part
        self._recorder = recorder
        self._contents = self._now()

    def _now(self) -> list[Any]:
        """What its result depends on besides the arguments themselves: what these hold, and how torch computes."""
        found: list[Any] = [torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
        waiting = [*self._args, *self._kwargs.values()]
        while waiting:
            item = waiting.pop()
            if type(item) is Selected:
                device = item.mask.tensor.device.type
                found += [torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)]
                found += [item.changes, item.is_as_made()]
            elif isinstance(item, torch.Tensor):
                found.append(self._recorder.state_of(item).storage.version)
            elif isinstance(item, (list, tuple)):
                waiting += item
            elif host.node_of(item) is not None:
                found.append(object())  # as a size, a number of rows would be another decision
        return found

    def is_sound(self) -> bool:
        """Whether the call would do now what it did."""
        return self._now() == self._contents

    def run(self) -> Any:
        """The real rows."""
        result = self._func(*plain(self._args), **plain(self._kwargs))
        return result if self._part < 0 else result[self._part]


class Selected(torch.Tensor):
    """The rows of a tensor that a mask selects.

    Attributes:
        full: all rows, of the mask's shape and then that of a row. Nobody writes to it.
        mask: which are selected.
        family: of those that share its memory in eager.
        raw: what is not selected has been kept from nothing yet: gradients go through the rows that are not selected.
        again: how it was made of others.
        changes: how often it has been written.
        rows: the real rows, once something has needed them. From then on it is these.
        location: of the user's line that has made it.
        in_rule: a rule of `selected_functions` runs.
    """

    full: torch.Tensor
    mask: Mask
    family: Family
    raw: bool
    again: Again | None
    changes: int
    rows: torch.Tensor | None
    location: Location
    in_rule: ClassVar[bool] = False

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of a row."""
        with torch._C.DisableTorchFunction():
            return tuple(self.full.shape[self.mask.tensor.dim() :])

    def guarded(self) -> torch.Tensor:
        """All rows. Gradients stop at those that are not selected, even where they are NaN or infinite there."""
        if self.raw and self.full.requires_grad and torch.is_grad_enabled():
            return torch.where(self.mask.over(self.full), self.full, self.full.detach())
        return self.full

    def filled(self, number: float) -> torch.Tensor:
        """All rows, with a number in those that are not selected."""
        return torch.where(self.mask.over(self.full), self.full, self.full.new_full((), number))

    def made(self) -> torch.Tensor:
        """The real rows, as of the selection."""
        if self.rows is None:
            self.family.check()
            with torch._C.DisableTorchFunction(), self.mask.recorder.locator.standing_at(self.location):
                self.rows = self._computed()
            self.family.note(self.rows)
        return self.rows

    def _computed(self) -> torch.Tensor:
        """Of the real rows of what it was made of, or else out of all rows, which may be more work."""
        again, self.again = self.again, None
        if again is not None and again.is_sound():
            del self.full  # is no value that a program up to a decision has to compute
            rows: torch.Tensor = again.run()
            return rows
        with torch.enable_grad():  # what had no gradient then has none now
            return self.full[self.mask.tensor]

    def is_as_made(self) -> bool:
        """Its real rows have not been written."""
        return self.rows is None or self.family.is_unwritten()

    def written(self, full: torch.Tensor) -> None:
        """It is to hold other rows."""
        self.full, self.raw, self.again = full, False, None
        self.changes += 1

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Where the capture's own mode is off, or has not looked so deep: a function of the real rows.

        Raises:
            TypeError: in a rule, which is to give functions all rows.
        """
        if Selected.in_rule:
            raise TypeError("a rule has no form for this argument")
        with torch._C.DisableTorchFunction():
            args, kwargs = plain(args), plain(kwargs or {})
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:  # type: ignore[override]
        raise CaptureError("a selection left over from a capture is used; the function must not keep it")

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return _text(self, AS_REPR)

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return _text(self, spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.made().__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.made().__reduce_ex__(protocol)


def _text(selected: Selected, spec: str) -> str:
    rows: Any = selected.made()
    return str(rows._text(spec))


def plain(value: Any) -> Any:
    """A value with real rows in the place of selections, also in lists, tuples and dicts."""
    if type(value) is Selected:
        return value.made()
    if isinstance(value, (list, tuple)) and any(map(_holds, value)):
        parts = map(plain, value)
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if type(value) is dict and any(map(_holds, value.values())):
        return {key: plain(part) for key, part in value.items()}
    return value


def _holds(value: Any) -> bool:
    return type(value) is Selected or isinstance(value, (list, tuple, dict))
