"""Objects that show things to people: bars of progress, writers of summaries. A program needs nothing of them.

Their methods are carried out after each run, as `print` is, and they are known by identity: how far a bar has come is
no reason to compile again.
"""

from __future__ import annotations

import sys
import types
from functools import lru_cache
from typing import Any

_SHOWING = {
    ("tqdm.std", "tqdm"): (
        "set_postfix", "set_postfix_str", "set_description", "set_description_str", "update", "refresh",
    ),
    ("torch.utils.tensorboard.writer", "SummaryWriter"): (
        "add_scalar", "add_scalars", "add_histogram", "add_image", "add_images", "add_text", "add_figure", "flush",
    ),
}  # fmt: skip
"""Methods by class; where a class is found, for packages that are in use."""


class Shown:
    """An object that shows things, whichever it is in a call: a bar of progress is a new one in every epoch.

    Attributes:
        current: the object.
    """

    def __init__(self) -> None:
        self.current: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.current, name)


def _forwarding(name: str) -> Any:
    def show(self: Shown, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.current, name)(*args, **kwargs)

    return show


_NAMES = tuple(dict.fromkeys(name for names in _SHOWING.values() for name in names))
for _name in _NAMES:
    setattr(Shown, _name, _forwarding(_name))


@lru_cache(maxsize=1024)
def _is_showing(cls: type) -> bool:
    return cls is Shown or any((base.__module__, base.__name__) in _SHOWING for base in cls.__mro__)


def shows(item: Any) -> bool:
    """Whether an object is one of these; asked of arguments in every call."""
    return _is_showing(type(item))  # type: ignore[arg-type]  # classes can be hashed


def showing_methods() -> list[tuple[type, str, types.FunctionType]]:
    """(class, name, method) of all that shows something."""
    places = {getattr(sys.modules.get(module), name, None): names for (module, name), names in _SHOWING.items()}
    classes = {cls: names for cls, names in places.items() if isinstance(cls, type)} | {Shown: _NAMES}
    found = [(cls, name, vars(cls).get(name)) for cls, names in classes.items() for name in names]
    return [(cls, name, method) for cls, name, method in found if isinstance(method, types.FunctionType)]
