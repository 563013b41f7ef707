"""`torch.lstm` where gradients will be needed: written out over time, as it runs where oneDNN is not used.

oneDNN's LSTM keeps a workspace for its backward pass, of a size only it knows, and only when grad mode is on while it
runs, which it is not inside of compiled programs. Written out, its steps are captured like any code and fuse. Without
gradients oneDNN's one call stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from graphc.frontend.recorder import Recorder


def lstm(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Call `torch.lstm` without oneDNN if its result can be differentiated."""
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in _tensors((args, tuple(kwargs.values())))):
        return func(*args, **kwargs)
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        return func(*args, **kwargs)
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def _tensors(item: Any) -> Iterator[torch.Tensor]:
    if isinstance(item, torch.Tensor):
        yield item
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from _tensors(part)


SPECIAL = {torch.lstm: lstm}
