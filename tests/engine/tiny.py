"""Tiny random checkpoints of every supported family, written by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .tiny_asa import write_tiny_asa
from .tiny_mosa import write_tiny_mosa
from .tiny_own import OWN, write_tiny_own

BASE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# family -> (the stem of its transformers classes, what it adds to BASE)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_bias": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "smollm": (  # odd group size, derived head_dim
        "Llama",
        {
            "tie_word_embeddings": True,
            "hidden_size": 96,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 7, "head_dim": 32}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3_mixed": (
        "Qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
FAMILIES |= {
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1], "pad_token_id": None}),
    "granite_swa": (
        "GraniteSWA",
        {
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "sliding_window": 9,
            "layer_rope_theta": [500.0, 500.0, 0],
            "attention_multiplier": 0.3,
            "embedding_multiplier": 1.5,
            "residual_multiplier": 0.7,
            "logits_scaling": 2.5,
        },
    ),
    **{
        family: (stem, {"layer_types": ["full_attention"] * 3, "head_dim": 32, **own})
        for family, stem, own in (
            ("qwen3_next", "Qwen3Next", {"num_experts": 0}),
            ("qwen3_5", "Qwen3_5", {"attention_bias": True}),
        )
    },
}
FAMILIES["minimax_m3"] = (
    "MiniMaxM3VL",
    {
        "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        "mlp_layer_types": ["sparse", "dense", "sparse"],
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 500.0,
            "partial_rotary_factor": 0.5,
        },
        "intermediate_size": 24,
        "dense_intermediate_size": 96,
        "shared_intermediate_size": 40,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "index_n_heads": 2,
        "index_head_dim": 12,
        "index_block_size": 16,
        "index_topk_blocks": 3,
    },
)
_QSA = {
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "hc_count": 3,
    "hc_lowrank": 10,
    "indexer_n_heads": 16,  # of fewer, all products of a row with a block may be negative: a tie
    "indexer_kv_heads": 1,
    "indexer_head_dim": 12,
    "indexer_budget": 24,
    "indexer_compress_ratio": 4,
    "attention_bias": True,
}
_DELTANET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 16,
}
_NGRAMS = {
    "ple_layer_ids": [1, 2],
    "ple_embed_dim": 32,
    "heads_per_ngram": 4,
    "ngram_vocab_size_base": 50,
    "make_ngram_vocab_size_divisible_by": 16,
    "split_ngram_parts": 4,
}
_EXPERTS = {
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}
_LAYERS = ["linear_attention", "full_attention", "linear_attention"]
FAMILIES["qwen3_next_hybrid"] = (
    "Qwen3Next",
    {"layer_types": _LAYERS, "head_dim": 32, **_DELTANET, **_EXPERTS, "mlp_only_layers": [1]},
)
FAMILIES["qwen3_5_hybrid"] = ("Qwen3_5", {"layer_types": _LAYERS, "head_dim": 32, **_DELTANET})
FAMILIES["qwen3_5_moe"] = (
    "Qwen3_5Moe",
    {"layer_types": _LAYERS, "head_dim": 32, **_DELTANET, **_EXPERTS},
)
FAMILIES["qwen4"] = (
    "Qwen4Exp",
    {**_QSA, **_DELTANET, **_NGRAMS, "layer_types": ["linear_attention", *_LAYERS[:2]]},
)
FAMILIES["qwen4_qsa"] = ("Qwen4Exp", {**_QSA, "layer_types": ["indexed_attention"] * 3})
TEXT_CONFIGS = {
    "Qwen3_5",
    "Qwen3_5Moe",
    "Qwen4Exp",
    "MiniMaxM3VL",
}  # their config classes are called so
# The stems of families whose norms add 1 to their weights.
AROUND_ZERO = {"Qwen3Next", "Qwen3_5", "Qwen3_5Moe", "Qwen4Exp", "MiniMaxM3VL"}
_TEXT = "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n" * 4


def write_tiny(
    path: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: str = "float32",
    shard_size: str | None = None,
    tokenizer: bool = False,
    **overrides: Any,
) -> Path:
    """Writes a checkpoint folder and returns it.

    shard_size: such as "40KB", for a sharded one. tokenizer: also a byte-level tokenizer.json
    (<s> is 0, </s> is 1), with vocab_size 320 unless overridden. overrides: keys of the config.
    """
    if family.startswith("asa"):
        return write_tiny_asa(path, family, seed=seed, dtype=dtype, **overrides)
    if family.startswith("mosa"):
        return write_tiny_mosa(path, family, seed=seed, dtype=dtype, **overrides)
    if family in OWN:
        return write_tiny_own(path, family, seed=seed, dtype=dtype, **overrides)
    import transformers

    transformers.utils.logging.disable_progress_bar()

    stem, own = FAMILIES[family]
    vocabulary = {"vocab_size": 320} if tokenizer else {}
    kind = f"{stem}TextConfig" if stem in TEXT_CONFIGS else f"{stem}Config"
    config = getattr(transformers, kind)(**{**BASE, **own, **vocabulary, **overrides})
    model = getattr(transformers, f"{stem}ForCausalLM")(config).to(getattr(torch, dtype))
    _randomise(model, seed, norm=0.0 if stem in AROUND_ZERO else 1.0)
    model.generation_config.max_length = None
    model.save_pretrained(path, **({"max_shard_size": shard_size} if shard_size else {}))
    if tokenizer:
        write_tokenizer(path, config.vocab_size)
    return path


def write_tokenizer(path: Path, vocab_size: int) -> None:
    """Trains a byte-level BPE of at most vocab_size tokens on a few lines, into tokenizer.json."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [_TEXT], vocab_size=vocab_size, min_frequency=1, special_tokens=["<s>", "</s>"]
    )
    trained.save(str(path / "tokenizer.json"))


def _randomise(model: torch.nn.Module, seed: int, norm: float) -> None:
    """Weights, biases and norms that all matter: the library's own would be zeros and ones.

    norm: what norm weights lie around.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(norm + 0.2 * noise)
            elif parameter.ndim == 1 or "embed" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise * 1.5 / parameter.shape[-1] ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
