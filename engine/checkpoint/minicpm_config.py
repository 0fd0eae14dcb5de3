"""MiniCPM's keys in config.json: its scaling factors, and how MiniCPM4 attends.

scale_emb: of embeddings. scale_depth: of what a layer adds to the residual stream, times the root
of the number of layers. dim_model_base: the width at which logits are not scaled. sparse_config:
InfLLM-V2 (engine/attention/infllm.py), every key of which must be given; absent or null: dense.
"""

from __future__ import annotations

from .features import Features
from .json_object import Fields

# What a key of sparse_config is called here; lengths in tokens, init_blocks and topk in blocks.
_SPARSE = {
    "kernel_size": "kernel",
    "kernel_stride": "stride",
    "block_size": "block",
    "topk": "topk",
    "init_blocks": "init",
    "window_size": "window",
    "dense_len": "dense_len",
}


def read_minicpm(config: Fields, num_layers: int) -> Features:
    """The scaling factors; CheckpointError where one is missing."""
    base = config.number("dim_model_base", above=0.0)
    return Features(
        embedding_scale=config.number("scale_emb", above=0.0),
        residual_scale=config.number("scale_depth", above=0.0) / num_layers**0.5,
        logits_divisor=config.integer("hidden_size") / base,
    )


def read_minicpm_specs(config: Fields) -> dict[str, str] | None:
    """The attention spec of sparse_config; CheckpointError for one that is not understood."""
    sparse = config.fields("sparse_config")
    if not sparse.values:
        return None
    for key in sparse.values:
        if key not in (*_SPARSE, "use_nope"):
            known = ", ".join((*_SPARSE, "use_nope"))
            raise sparse.error(key, f"unknown; the keys are {known}")
    if sparse.boolean("use_nope", False):
        raise sparse.error("use_nope", "true is not supported: blocks are chosen by turned keys")
    options = ", ".join(f"{name}={sparse.integer(key, least=0)}" for key, name in _SPARSE.items())
    return {"attention": f"infllm({options})"}
