"""Models of transformers that read text: encoders."""

from __future__ import annotations

from typing import Any

import torch

from tests.suites.hf_models import ENCODER, VOCABULARY, Spec, classified_text, language


def _encoder(name: str, prefix: str, head: str = "ForMaskedLM", inputs: Any = language, **arguments: Any) -> Spec:
    return Spec(name, prefix + head, f"{prefix}Config", inputs, "encoder", {**ENCODER, **arguments})


ENCODERS = [
    _encoder("BERT", "Bert"),
    _encoder("BERT classifier", "Bert", "ForSequenceClassification", classified_text),
    _encoder("RoBERTa", "Roberta"),
    Spec(
        "DistilBERT",
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        language,
        "encoder",
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 48,
            "max_position_embeddings": 64,
        },
    ),
    _encoder("ALBERT", "Albert", embedding_size=16, num_hidden_groups=1),
    _encoder("ELECTRA", "Electra", embedding_size=16),
    _encoder("DeBERTa", "Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _encoder("DeBERTa-v2", "DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8),
    _encoder("MPNet", "MPNet"),
    _encoder("Longformer", "Longformer", attention_window=4),
    _encoder(
        "ModernBERT", "ModernBert", pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    ),
    _encoder("RoFormer", "RoFormer", embedding_size=32),
    _encoder("SqueezeBERT", "SqueezeBert", embedding_size=32),
    _encoder(
        "MobileBERT",
        "MobileBert",
        embedding_size=16,
        intra_bottleneck_size=16,
        true_hidden_size=16,
        num_feedforward_networks=2,
    ),
    _encoder("FNet", "FNet", inputs=lambda: {k: v for k, v in language().items() if k != "attention_mask"}),
    _encoder("ConvBERT", "ConvBert", embedding_size=32),
    _encoder("BigBird", "BigBird", attention_type="original_full"),
    _encoder("XLM-RoBERTa", "XLMRoberta"),
    Spec(
        "XLNet",
        "XLNetLMHeadModel",
        "XLNetConfig",
        language,
        "encoder",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    ),
    Spec(
        "Funnel",
        "FunnelForMaskedLM",
        "FunnelConfig",
        language,
        "encoder",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "block_sizes": [1, 1],
            "n_head": 4,
            "d_head": 8,
            "d_inner": 48,
            "num_decoder_layers": 1,
        },
    ),
    Spec(
        "Reformer",
        "ReformerForMaskedLM",
        "ReformerConfig",
        lambda: {"input_ids": torch.randint(5, 90, (2, 16))},
        "encoder",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "attention_head_size": 16,
            "attn_layers": ["local"],
            "feed_forward_size": 48,
            "axial_pos_embds": True,
            "axial_pos_shape": [4, 4],
            "axial_pos_embds_dim": [16, 16],
            "local_attn_chunk_length": 4,
            "is_decoder": False,
            "max_position_embeddings": 16,
        },
    ),
]
