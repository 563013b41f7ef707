"""Models of transformers that write text: decoders that see the tokens before."""

from __future__ import annotations

from typing import Any

from tests.suites.hf_models import DECODER, GROUPED, VOCABULARY, Spec, language


def decoder(name: str, prefix: str, family: str = "decoder", base: Any = GROUPED, **arguments: Any) -> Spec:
    """A model that is made of the usual arguments and a few more.

    Args:
        name: in tables.
        prefix: of the names of its classes.
        family: what kind of architecture it is.
        base: the usual arguments.
        arguments: of its configuration, beside these.
    """
    return Spec(
        name, f"{prefix}ForCausalLM", f"{prefix}Config", language, family, {**base, **arguments}, generates=True
    )


DECODERS = [
    Spec(
        "GPT-2",
        "GPT2LMHeadModel",
        "GPT2Config",
        language,
        "decoder",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        True,
    ),
    decoder("GPT-NeoX", "GPTNeoX", base=DECODER),
    Spec(
        "GPT-Neo",
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        language,
        "decoder",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        True,
    ),
    Spec(
        "GPT-J",
        "GPTJForCausalLM",
        "GPTJConfig",
        language,
        "decoder",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "rotary_dim": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        True,
    ),
    Spec(
        "GPT-BigCode",
        "GPTBigCodeForCausalLM",
        "GPTBigCodeConfig",
        language,
        "decoder",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        True,
    ),
    Spec(
        "CodeGen",
        "CodeGenForCausalLM",
        "CodeGenConfig",
        language,
        "decoder",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "rotary_dim": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        True,
    ),
    decoder("OPT", "OPT", base=DECODER, ffn_dim=48, word_embed_proj_dim=32),
    Spec(
        "BLOOM",
        "BloomForCausalLM",
        "BloomConfig",
        language,
        "decoder",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
        True,
    ),
    Spec(
        "MPT",
        "MptForCausalLM",
        "MptConfig",
        language,
        "decoder",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2},
        True,
    ),
    decoder("LLaMA", "Llama"),
    decoder("Mistral", "Mistral", sliding_window=6),
    decoder("Qwen2", "Qwen2"),
    decoder("Qwen3", "Qwen3", head_dim=8),
    decoder("Gemma", "Gemma", head_dim=8),
    decoder("Gemma 2", "Gemma2", head_dim=8, sliding_window=4),
    Spec(
        "Gemma 3",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        language,
        "decoder",
        {**GROUPED, "head_dim": 8, "sliding_window": 4},
        True,
    ),
    decoder("Phi", "Phi"),
    decoder("Phi-3", "Phi3", base={**GROUPED, "rope_scaling": None}),
    decoder("Falcon", "Falcon", base=DECODER),
    decoder("Falcon alibi", "Falcon", base=DECODER, alibi=True, new_decoder_architecture=False),
    decoder("StableLM", "StableLm"),
    decoder("OLMo", "Olmo"),
    decoder("OLMo 2", "Olmo2"),
    decoder("Cohere", "Cohere"),
    decoder("Granite", "Granite"),
    decoder("GLM", "Glm", head_dim=8),
    decoder("SmolLM3", "SmolLM3"),
    decoder("Starcoder2", "Starcoder2"),
    decoder("Nemotron", "Nemotron"),
    decoder("Persimmon", "Persimmon", base=DECODER),
    Spec(
        "XGLM",
        "XGLMForCausalLM",
        "XGLMConfig",
        language,
        "decoder",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 64,
        },
        True,
    ),
    Spec(
        "CTRL",
        "CTRLLMHeadModel",
        "CTRLConfig",
        language,
        "decoder",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 48, "n_positions": 64},
        True,
    ),
]
