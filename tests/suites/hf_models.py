"""Tiny, randomly initialised models of Hugging Face transformers, one or more per architecture, made offline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

Inputs: TypeAlias = dict[str, Any]
VOCABULARY = 99
BATCH, LENGTH, IMAGE = 2, 9, 32


def text() -> Inputs:
    """Token ids with a mask whose last row is padded."""
    ids = torch.randint(5, VOCABULARY - 1, (BATCH, LENGTH))
    mask = torch.ones_like(ids)
    mask[-1, -3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def ids() -> Inputs:
    """Token ids alone."""
    return {"input_ids": text()["input_ids"]}


def language() -> Inputs:
    """Token ids, mask and labels: the loss is the model's own."""
    made = text()
    return {**made, "labels": made["input_ids"].clone()}


def translation() -> Inputs:
    """A source and a target."""
    return {**text(), "labels": torch.randint(5, VOCABULARY - 1, (BATCH, 7))}


def classified_text() -> Inputs:
    """Token ids, mask and a class each."""
    return {**text(), "labels": torch.randint(0, 2, (BATCH,))}


def image() -> Inputs:
    """Images alone."""
    return {"pixel_values": torch.randn(BATCH, 3, IMAGE, IMAGE)}


def classified_image() -> Inputs:
    """Images and a class each."""
    return {**image(), "labels": torch.randint(0, 2, (BATCH,))}


def segmented_image() -> Inputs:
    """Images and a class per pixel."""
    return {**image(), "labels": torch.randint(0, 2, (BATCH, IMAGE, IMAGE))}


def large_image() -> Inputs:
    """Images of 64 by 64."""
    return {"pixel_values": torch.randn(BATCH, 3, 64, 64)}


def waveform() -> Inputs:
    """Sound at 16 kHz."""
    return {"input_values": torch.randn(BATCH, 1600)}


def spectrogram() -> Inputs:
    """What Whisper hears, and what it is to write."""
    return {"input_features": torch.randn(BATCH, 16, 60), "labels": torch.randint(5, VOCABULARY - 1, (BATCH, 7))}


def image_and_text() -> Inputs:
    """Images and captions."""
    return {**text(), **image()}


def contrasted() -> Inputs:
    """Images and captions, with the contrastive loss."""
    return {**image_and_text(), "return_loss": True}


@dataclass(frozen=True)
class Spec:
    """How one model is made.

    Args:
        name: in tables.
        model: class of transformers.
        config: its configuration class, and arguments of it beside the usual ones.
        inputs: arguments of one call.
        family: what kind of architecture it is.
        generates: a decoder whose `generate` is tried.
    """

    name: str
    model: str
    config: str
    inputs: Callable[[], Inputs]
    family: str
    arguments: dict[str, Any] = field(default_factory=dict)
    generates: bool = False

    def make(self) -> torch.nn.Module:
        """The model, initialised from the seed that is set."""
        import transformers

        config = getattr(transformers, self.config)(**self.arguments)
        model: torch.nn.Module = getattr(transformers, self.model)(config)
        return model


SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**SMALL, "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 1}
DECODER = {
    **SMALL,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**DECODER, "num_key_value_heads": 2}
TRANSLATOR = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
VISION = {
    "image_size": IMAGE,
    "patch_size": 8,
    "num_channels": 3,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 32,
    "conv_dim": (16, 16, 16),
    "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 4, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
TOWER_TEXT = {
    **SMALL,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "projection_dim": 24,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
