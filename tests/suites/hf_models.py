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


_SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_ENCODER = {**_SMALL, "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 1}
_DECODER = {**_SMALL, "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2}  # fmt: skip
_GROUPED = {**_DECODER, "num_key_value_heads": 2}
_TRANSLATOR = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
_VISION = {
    "image_size": IMAGE, "patch_size": 8, "num_channels": 3, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip
_SPEECH = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 32,
    "conv_dim": (16, 16, 16), "conv_stride": (5, 4, 2), "conv_kernel": (10, 4, 2), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "layerdrop": 0.0, "apply_spec_augment": False,
}  # fmt: skip
_TOWER_TEXT = {**_SMALL, "intermediate_size": 48, "max_position_embeddings": 64, "projection_dim": 24,
               "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}  # fmt: skip


def _encoder(name: str, prefix: str, head: str = "ForMaskedLM", inputs: Any = language, **arguments: Any) -> Spec:
    return Spec(name, prefix + head, f"{prefix}Config", inputs, "encoder", {**_ENCODER, **arguments})


def _decoder(name: str, prefix: str, family: str = "decoder", base: Any = _GROUPED, **arguments: Any) -> Spec:
    return Spec(
        name, f"{prefix}ForCausalLM", f"{prefix}Config", language, family, {**base, **arguments}, generates=True
    )


def _translator(name: str, prefix: str, head: str = "ForConditionalGeneration", **arguments: Any) -> Spec:
    return Spec(name, prefix + head, f"{prefix}Config", translation, "encoder-decoder", {**_TRANSLATOR, **arguments})


def _vision(
    name: str, prefix: str, head: str = "ForImageClassification", inputs: Any = classified_image, **a: Any
) -> Spec:
    return Spec(name, prefix + head, f"{prefix}Config", inputs, "vision", a)


_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

SPECS = [
    _encoder("BERT", "Bert"),
    _encoder("BERT classifier", "Bert", "ForSequenceClassification", classified_text),
    _encoder("RoBERTa", "Roberta"),
    Spec("DistilBERT", "DistilBertForMaskedLM", "DistilBertConfig", language, "encoder",
         {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64}),
    _encoder("ALBERT", "Albert", embedding_size=16, num_hidden_groups=1),
    _encoder("ELECTRA", "Electra", embedding_size=16),
    _encoder("DeBERTa", "Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    _encoder("DeBERTa-v2", "DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8),
    _encoder("MPNet", "MPNet"),
    _encoder("Longformer", "Longformer", attention_window=4),
    _encoder("ModernBERT", "ModernBert", pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    _encoder("RoFormer", "RoFormer", embedding_size=32),
    _encoder("SqueezeBERT", "SqueezeBert", embedding_size=32),
    _encoder("MobileBERT", "MobileBert", embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16,
             num_feedforward_networks=2),
    _encoder("FNet", "FNet", inputs=lambda: {k: v for k, v in language().items() if k != "attention_mask"}),
    _encoder("ConvBERT", "ConvBert", embedding_size=32),
    _encoder("BigBird", "BigBird", attention_type="original_full"),
    _encoder("XLM-RoBERTa", "XLMRoberta"),
    Spec("XLNet", "XLNetLMHeadModel", "XLNetConfig", language, "encoder",
         {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    Spec("Funnel", "FunnelForMaskedLM", "FunnelConfig", language, "encoder",
         {"vocab_size": VOCABULARY, "d_model": 32, "block_sizes": [1, 1], "n_head": 4, "d_head": 8, "d_inner": 48,
          "num_decoder_layers": 1}),
    Spec("Reformer", "ReformerForMaskedLM", "ReformerConfig", lambda: {"input_ids": torch.randint(5, 90, (2, 16))}, "encoder",
         {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 16, "attn_layers": ["local"],
          "feed_forward_size": 48, "axial_pos_embds": True, "axial_pos_shape": [4, 4], "axial_pos_embds_dim": [16, 16],
          "local_attn_chunk_length": 4, "is_decoder": False, "max_position_embeddings": 16}),
    # decoders
    Spec("GPT-2", "GPT2LMHeadModel", "GPT2Config", language, "decoder",
         {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}, True),
    _decoder("GPT-NeoX", "GPTNeoX", base=_DECODER),
    Spec("GPT-Neo", "GPTNeoForCausalLM", "GPTNeoConfig", language, "decoder",
         {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
          "window_size": 4, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}, True),
    Spec("GPT-J", "GPTJForCausalLM", "GPTJConfig", language, "decoder",
         {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2}, True),
    Spec("GPT-BigCode", "GPTBigCodeForCausalLM", "GPTBigCodeConfig", language, "decoder",
         {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}, True),
    Spec("CodeGen", "CodeGenForCausalLM", "CodeGenConfig", language, "decoder",
         {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2}, True),
    _decoder("OPT", "OPT", base=_DECODER, ffn_dim=48, word_embed_proj_dim=32),
    Spec("BLOOM", "BloomForCausalLM", "BloomConfig", language, "decoder",
         {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}, True),
    Spec("MPT", "MptForCausalLM", "MptConfig", language, "decoder",
         {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2}, True),
    _decoder("LLaMA", "Llama"),
    _decoder("Mistral", "Mistral", sliding_window=6),
    _decoder("Qwen2", "Qwen2"),
    _decoder("Qwen3", "Qwen3", head_dim=8),
    _decoder("Gemma", "Gemma", head_dim=8),
    _decoder("Gemma 2", "Gemma2", head_dim=8, sliding_window=4),
    Spec("Gemma 3", "Gemma3ForCausalLM", "Gemma3TextConfig", language, "decoder", {**_GROUPED, "head_dim": 8, "sliding_window": 4}, True),
    _decoder("Phi", "Phi"),
    _decoder("Phi-3", "Phi3", base={**_GROUPED, "rope_scaling": None}),
    _decoder("Falcon", "Falcon", base=_DECODER),
    _decoder("Falcon alibi", "Falcon", base=_DECODER, alibi=True, new_decoder_architecture=False),
    _decoder("StableLM", "StableLm"),
    _decoder("OLMo", "Olmo"),
    _decoder("OLMo 2", "Olmo2"),
    _decoder("Cohere", "Cohere"),
    _decoder("Granite", "Granite"),
    _decoder("GLM", "Glm", head_dim=8),
    _decoder("SmolLM3", "SmolLM3"),
    _decoder("Starcoder2", "Starcoder2"),
    _decoder("Nemotron", "Nemotron"),
    _decoder("Persimmon", "Persimmon", base=_DECODER),
    Spec("XGLM", "XGLMForCausalLM", "XGLMConfig", language, "decoder",
         {"vocab_size": VOCABULARY, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 64}, True),
    Spec("CTRL", "CTRLLMHeadModel", "CTRLConfig", language, "decoder",
         {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 48, "n_positions": 64}, True),
    # mixtures of experts
    _decoder("Mixtral", "Mixtral", "experts", **_EXPERTS),
    _decoder("Qwen2-MoE", "Qwen2Moe", "experts", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
             shared_expert_intermediate_size=16, decoder_sparse_step=1),
    _decoder("Qwen3-MoE", "Qwen3Moe", "experts", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8),
    _decoder("OLMoE", "Olmoe", "experts", num_experts=4, num_experts_per_tok=2),
    _decoder("DeepSeek-V3", "DeepseekV3", "experts", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=2,
             topk_group=1, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, num_key_value_heads=4),
    _decoder("GPT-OSS", "GptOss", "experts", head_dim=8, sliding_window=4, **_EXPERTS),
    _decoder("GraniteMoE", "GraniteMoe", "experts", **_EXPERTS),
    _decoder("PhiMoE", "Phimoe", "experts", **_EXPERTS),
    Spec("Switch Transformer", "SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig", translation, "experts",
         {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "num_experts": 4, "expert_capacity": 8,
          "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "decoder_start_token_id": 0}),
    # state spaces and recurrence
    Spec("Mamba", "MambaForCausalLM", "MambaConfig", language, "state space",
         {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, True),
    Spec("Mamba 2", "Mamba2ForCausalLM", "Mamba2Config", language, "state space",
         {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 2,
          "chunk_size": 4}, True),
    Spec("FalconMamba", "FalconMambaForCausalLM", "FalconMambaConfig", language, "state space",
         {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, True),
    Spec("RWKV", "RwkvForCausalLM", "RwkvConfig", lambda: {**ids(), "labels": ids()["input_ids"]}, "state space",
         {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 48,
          "context_length": 64}),
    _decoder("RecurrentGemma", "RecurrentGemma", "state space", num_hidden_layers=3, lru_width=32, attention_window_size=4, head_dim=8,
             block_types=["recurrent", "recurrent", "attention"]),
    _decoder("Jamba", "Jamba", "state space", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
             num_experts=4, num_experts_per_tok=2, mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False),
    _decoder("Zamba2", "Zamba2", "state space", mamba_d_state=4, mamba_headdim=8, n_mamba_heads=8, mamba_ngroups=2, chunk_size=4,
             num_mem_blocks=1, layers_block_type=["mamba", "hybrid"], hybrid_layer_ids=[1], use_mamba_kernels=False),
    _decoder("LFM2", "Lfm2", "state space", layer_types=["conv", "full_attention"]),
    # encoder-decoders
    *(
        Spec(name, f"{prefix}ForConditionalGeneration", f"{prefix}Config", translation, "encoder-decoder",
             {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0, **more})
        for name, prefix, more in (
            ("T5", "T5", {}), ("mT5", "MT5", {"feed_forward_proj": "gated-gelu"}), ("UMT5", "UMT5", {}),
            ("LongT5", "LongT5", {"local_radius": 4}),
        )
    ),
    _translator("BART", "Bart"),
    _translator("Pegasus", "Pegasus"),
    _translator("Marian", "Marian", "MTModel"),
    _translator("mBART", "MBart"),
    _translator("M2M-100", "M2M100"),
    _translator("Blenderbot", "Blenderbot"),
    _translator("LED", "LED", attention_window=4),
    Spec("ProphetNet", "ProphetNetForConditionalGeneration", "ProphetNetConfig", translation, "encoder-decoder",
         {"vocab_size": VOCABULARY, "hidden_size": 32, "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
          "num_decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "ngram": 2,
          "num_buckets": 8, "relative_max_distance": 16, "decoder_start_token_id": 1}),
    # speech
    Spec("Wav2Vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config", lambda: {**waveform(), "labels": torch.randint(1, 30, (BATCH, 5))}, "speech", _SPEECH),
    Spec("HuBERT", "HubertModel", "HubertConfig", waveform, "speech", _SPEECH),
    Spec("WavLM", "WavLMModel", "WavLMConfig", waveform, "speech", _SPEECH),
    Spec("UniSpeech", "UniSpeechModel", "UniSpeechConfig", waveform, "speech", _SPEECH),
    Spec("SEW", "SEWModel", "SEWConfig", waveform, "speech", {**_SPEECH, "squeeze_factor": 2}),
    Spec("Wav2Vec2-Conformer", "Wav2Vec2ConformerModel", "Wav2Vec2ConformerConfig", waveform, "speech", _SPEECH),
    Spec("Whisper", "WhisperForConditionalGeneration", "WhisperConfig", spectrogram, "speech",
         {**_TRANSLATOR, "num_mel_bins": 16, "max_source_positions": 30, "max_target_positions": 30, "suppress_tokens": None,
          "begin_suppress_tokens": None}),
    Spec("Speech2Text", "Speech2TextForConditionalGeneration", "Speech2TextConfig",
         lambda: {"input_features": torch.randn(BATCH, 40, 16), "labels": torch.randint(5, 90, (BATCH, 7))}, "speech",
         {**_TRANSLATOR, "input_feat_per_channel": 16, "conv_channels": 32, "num_conv_layers": 2, "max_source_positions": 64,
          "max_target_positions": 64}),
    Spec("SpeechT5", "SpeechT5ForSpeechToText", "SpeechT5Config",
         lambda: {**waveform(), "labels": torch.randint(5, 30, (BATCH, 5))}, "speech",
         {**{k: v for k, v in _SPEECH.items()}, "vocab_size": VOCABULARY, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
          "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 2}),
    Spec("Audio spectrogram", "ASTForAudioClassification", "ASTConfig",
         lambda: {"input_values": torch.randn(BATCH, 24, 16), "labels": torch.randint(0, 2, (BATCH,))}, "speech",
         {**{k: v for k, v in _VISION.items() if k != "image_size"}, "patch_size": 4, "max_length": 24, "num_mel_bins": 16, "frequency_stride": 4, "time_stride": 4}),
    # vision
    _vision("ViT", "ViT", **_VISION),
    _vision("DeiT", "DeiT", **_VISION),
    _vision("BEiT", "Beit", **_VISION),
    _vision("DINOv2", "Dinov2", **_VISION),
    _vision("Swin", "Swin", image_size=IMAGE, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
    _vision("Swin v2", "Swinv2", image_size=IMAGE, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
    _vision("ConvNeXt", "ConvNext", hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1]),
    _vision("ConvNeXt v2", "ConvNextV2", hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1]),
    _vision("ResNet", "ResNet", embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1]),
    _vision("RegNet", "RegNet", embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], groups_width=4),
    _vision("MobileNetV2", "MobileNetV2", image_size=IMAGE, depth_multiplier=0.25),
    _vision("MobileViT", "MobileViT", image_size=64, hidden_sizes=[16, 20, 24], neck_hidden_sizes=[8, 8, 12, 16, 20, 24, 32], num_attention_heads=4,
            inputs=lambda: {**large_image(), "labels": torch.randint(0, 2, (BATCH,))}),
    _vision("EfficientNet", "EfficientNet", width_coefficient=0.25, depth_coefficient=0.25, image_size=IMAGE, hidden_dim=320),
    _vision("PoolFormer", "PoolFormer", hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1]),
    _vision("PVT v2", "PvtV2", image_size=IMAGE, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], sr_ratios=[8, 4, 2, 1]),
    _vision("LeViT", "Levit", image_size=64, hidden_sizes=[16, 32, 48], num_attention_heads=[1, 2, 3], depths=[1, 1, 1], key_dim=[8, 8, 8],
            inputs=lambda: {**large_image(), "labels": torch.randint(0, 2, (BATCH,))}),
    _vision("FocalNet", "FocalNet", image_size=IMAGE, embed_dim=16, depths=[1, 1], hidden_sizes=[16, 32], focal_levels=[2, 2], focal_windows=[3, 3]),
    _vision("SegFormer", "Segformer", "ForSemanticSegmentation", segmented_image, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16),
    _vision("ViT MAE", "ViTMAE", "ForPreTraining", image, **_VISION, decoder_hidden_size=16, decoder_num_attention_heads=2,
            decoder_num_hidden_layers=1, decoder_intermediate_size=16),
    _vision("VideoMAE", "VideoMAE", "ForVideoClassification", inputs=lambda: {"pixel_values": torch.randn(BATCH, 4, 3, IMAGE, IMAGE), "labels": torch.randint(0, 2, (BATCH,))},
            **_VISION, num_frames=4, tubelet_size=2),
    _vision("Swin2SR", "Swin2SR", "ForImageSuperResolution", image, image_size=IMAGE, patch_size=1, embed_dim=16, depths=[1, 1], num_heads=[2, 2],
            window_size=4, upscale=2),
    # detection
    Spec("YOLOS", "YolosForObjectDetection", "YolosConfig", image, "detection", {**_VISION, "image_size": [IMAGE, IMAGE], "num_detection_tokens": 5}),
    # multimodal
    Spec("CLIP", "CLIPModel", "CLIPConfig", contrasted, "multimodal",
         {"text_config": _TOWER_TEXT, "vision_config": {**_VISION, "projection_dim": 24}, "projection_dim": 24}),
    Spec("SigLIP", "SiglipModel", "SiglipConfig", contrasted, "multimodal", {"text_config": _TOWER_TEXT, "vision_config": _VISION}),
    Spec("BLIP", "BlipForConditionalGeneration", "BlipConfig", lambda: {**image_and_text(), "labels": torch.randint(5, 90, (BATCH, LENGTH))},
         "multimodal", {"text_config": {**_TOWER_TEXT, "encoder_hidden_size": 32, "sep_token_id": 2}, "vision_config": _VISION, "projection_dim": 24}),
]  # fmt: skip
