"""`nn.TransformerEncoder` on padded batches: what eager does with nested tensors, on dense ones.

In eval mode eager turns a padded batch whose padding lies at the end of each row into a nested tensor, runs the layers
on that, and turns the result back into a dense tensor with zeros where the padding is. Whether the padding lies so is
data, and graphs have no nested tensors; the layers compute the same at all other positions of a dense batch whose
padding is masked. So the encoder runs on the dense batch, and zeros are put where eager has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class Padding:
    """The padding of the encoder that runs now.

    Attributes:
        given: the key padding mask the caller gave.
        mask: what masks keys in the layers, once the encoder has decided to make its input nested.
        zero: where eager's result is zero.
        aligned: whether eager goes by nested tensors, as a 0-d bool tensor; None when it does in any case.
    """

    given: torch.Tensor | None
    mask: torch.Tensor | None = None
    zero: torch.Tensor | None = None
    aligned: torch.Tensor | None = None


def _lengths(keep: torch.Tensor) -> torch.Tensor:
    """True for the first n positions of each row, n being how many of it are kept."""
    return torch.arange(keep.shape[1], device=keep.device) < keep.sum(1, keepdim=True)


class Encoders:
    """The encoders that run now, innermost last."""

    def __init__(self) -> None:
        self._running: list[Padding] = []

    @staticmethod
    def is_one(module: nn.Module) -> bool:
        """An encoder: it does not ask for nested tensors where it believes itself compiled."""
        return isinstance(module, nn.TransformerEncoder)

    @property
    def running(self) -> bool:
        """Whether one runs now."""
        return bool(self._running)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A module starts to run; returns its keyword arguments, with the mask for the layers of an encoder."""
        if isinstance(module, nn.TransformerEncoder):
            self._running.append(Padding(kwargs.get("src_key_padding_mask", args[2] if len(args) > 2 else None)))
        elif isinstance(module, nn.TransformerEncoderLayer) and self._running:
            mask = self._running[-1].mask
            if mask is not None and kwargs.get("src_key_padding_mask") is None:
                return {**kwargs, "src_key_padding_mask": mask}
        return kwargs

    def leave(self, module: nn.Module) -> None:
        """The module entered last returns or raises."""
        if isinstance(module, nn.TransformerEncoder):
            self._running.pop()

    def left_aligned(self, keep: torch.Tensor) -> bool:
        """In the place of `torch._nested_tensor_from_mask_left_aligned`: the answer is data, so both ways are taken."""
        if self._running:
            self._running[-1].aligned = (keep == _lengths(keep)).all()
        return True

    def to_nested(self, batch: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """In the place of `torch._nested_tensor_from_mask`: the dense batch, its padding noted."""
        padding = self._running[-1]
        kept, given = _lengths(keep), padding.given
        zero = kept.logical_not()
        if padding.aligned is None or given is None:
            padding.mask = zero
        elif given.dtype == torch.bool:
            padding.mask = given
        else:  # numbers other than -inf weigh keys where eager does not go by nested tensors
            hidden = torch.zeros_like(given).masked_fill(zero, float("-inf"))
            padding.mask = torch.where(padding.aligned, hidden, given)
        padding.zero = zero if padding.aligned is None else zero & padding.aligned
        return batch

    def to_padded(self, batch: torch.Tensor) -> torch.Tensor | None:
        """In the place of `Tensor.to_padded_tensor` of what `to_nested` gave; None for any other tensor."""
        if not self._running or self._running[-1].zero is None:
            return None
        zero, self._running[-1].zero, self._running[-1].mask = self._running[-1].zero, None, None
        return batch.masked_fill(zero.unsqueeze(-1), 0.0)


def no_causal_hint(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    """In the place of `_detect_is_causal_mask`, which reads the mask: the hint saves work and changes no answer."""
    return is_causal is True
