"""The zoo: the models that tutorials teach, written as they write them, each with batches, a loss and a training."""

from __future__ import annotations

from . import generative, recurrent, speech, structured, text, vision
from .entry import ENTRIES, Entry, Size, Training, Workload, floats, labels

__all__ = [
    "ENTRIES", "Entry", "Size", "Training", "Workload", "build", "floats", "generative", "labels", "recurrent",
    "speech", "structured", "text", "vision",
]  # fmt: skip


def build(name: str, size: Size = "tiny") -> Workload:
    """A model of the zoo, initialised from the seed that is set, in the default dtype."""
    return ENTRIES[name].build(size)
