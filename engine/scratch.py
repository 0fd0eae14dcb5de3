"""The scratch arena of the memory plan: what a step allocates beside weights and pages."""

from __future__ import annotations

import torch

from ..kernels import native
from ..kernels.attend import LIST_TABLES, cpu_scratch_bytes, gpu_scratch_bytes
from ..kernels.turns import gpu_scratch_bytes as turn_scratch_bytes
from .attention.base import TABLE_STRIDE, LayerShape
from .attention.policy import AttentionPolicy
from .attention.protocols import ScratchMethod, StepBounds
from .cache import kept_rule, kept_undo_bytes, layer_groups
from .checkpoint.config_json import ModelConfig
from .config import EngineConfig
from .device_sampler import scratch_bytes as sampler_scratch_bytes
from .devices import Place
from .graphs import MOST_GRAPHS, buffer_bytes, width
from .layers.hyper_connection import hyper_scratch_bytes
from .layers.kinds import attention_kind
from .layers.mlp import expert_scratch_bytes, mlp_scratch_bytes
from .tapes import MOST_HELD

ARENA = 32 << 20  # for the kernels of a few threads


def scratch_bytes(
    config: EngineConfig,
    model: ModelConfig,
    dtype: torch.dtype,
    shapes: list[LayerShape],
    policy: AttentionPolicy,
    length: int,
    where: Place,
) -> int:
    """An upper bound on what one step allocates beside weights and pages, sequences being of
    `length` tokens at most.
    """
    tokens, seqs = config.max_num_batched_tokens, config.max_num_seqs
    total = _row_bytes(model, dtype, tokens, seqs) + (2 * seqs + 256) * model.vocab_size * 4 + ARENA
    total += _undo_bytes(config, shapes, policy, dtype, length)
    total += buffer_bytes(seqs, _table_pages(config, shapes, policy, length))
    if where.gpu:
        lists = _list_bytes(config, shapes, policy, length)
        chosen = expert_scratch_bytes(model, dtype, config.max_num_batched_tokens)
        return total + max(_gpu_bytes(config, model, shapes, length), lists, chosen)
    # What tapes of decode steps keep besides: see `tapes.py`.
    tapes = _row_bytes(model, dtype, seqs, seqs) + MOST_GRAPHS * MOST_HELD
    return total + tapes + _unit_bytes(shapes) + _kernel_bytes(config, shapes, policy, length)


def _row_bytes(model: ModelConfig, dtype: torch.dtype, tokens: int, seqs: int) -> int:
    """What rows take on their way through the model, whatever the context and the method.

    Per row: residual, norm, update; q, k, v and the attention output (and its fp32 partial results
    where a method merges); gate, up and their product; angles. (Beside them are the logits of all
    sampled rows, twice, and of one piece of prompt rows; and a fixed arena for the kernels.)
    """
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    row = (3 * model.hidden_size + heads) * dtype.itemsize
    partial = 3 * model.num_heads * model.head_dim * 4 + 4 * model.head_dim
    own = attention_kind(model).scratch_bytes(model, dtype, tokens, seqs)
    own += mlp_scratch_bytes(model, dtype, tokens) + hyper_scratch_bytes(model, dtype, tokens)
    return tokens * (row + partial) + own


def _table_pages(
    config: EngineConfig, shapes: list[LayerShape], policy: AttentionPolicy, length: int
) -> list[int]:
    """At most how many pages a sequence's page tables name, one for each group of layers."""
    tokens = []
    for group in layer_groups(shapes, policy)[0]:
        most = length if group.kept is None else group.kept.most(length)
        if group.compact:
            window = (group.window or 0) + group.sinks + config.max_num_batched_tokens
            most = min(most, window + TABLE_STRIDE)
        tokens.append(most)
    return [-(-each // config.page_size) + 2 for each in tokens]


def _undo_bytes(
    config: EngineConfig,
    shapes: list[LayerShape],
    policy: AttentionPolicy,
    dtype: torch.dtype,
    length: int,
) -> int:
    """What a step remembers in case it breaks; before a whole text nothing was there."""
    rule = kept_rule(shapes, policy)
    if rule is None or policy.needs_whole_text:
        return 0
    rows, seqs = config.max_num_batched_tokens, config.max_num_seqs
    return kept_undo_bytes(shapes, rule, dtype, rows, seqs, length)


def _kernel_bytes(
    config: EngineConfig, shapes: list[LayerShape], policy: AttentionPolicy, length: int
) -> int:
    """What kernels on the processor take that grows with the context, where they take most."""
    most = StepBounds(config.max_num_batched_tokens, config.max_num_seqs, length, native.threads())
    return max(
        (
            method.kernel_scratch(shape, most)
            for methods in (policy.prefill, policy.decode)
            for shape, method in zip(shapes, methods, strict=True)
            if isinstance(method, ScratchMethod) and shape.recurrent is None
        ),
        default=0,
    )


def _unit_bytes(shapes: list[LayerShape]) -> int:
    """What attention's units take on the processor, where many threads take more than the arena."""
    threads = native.threads()
    most = max(cpu_scratch_bytes(max(shape.kept), _value_dim(shape), threads) for shape in shapes)
    return max(0, most + LIST_TABLES - ARENA)


def _value_dim(shape: LayerShape) -> int:
    """Channels of what a layer sums up: of its latents, if it has any."""
    return shape.latent.rank if shape.latent else shape.v_head_dim


def _gpu_bytes(
    config: EngineConfig, model: ModelConfig, shapes: list[LayerShape], length: int
) -> int:
    """What a GPU takes besides: its kernels, in the layer where they take most, or its sampler."""
    rows, seqs = config.max_num_batched_tokens, config.max_num_seqs
    layers = max(
        gpu_scratch_bytes(
            rows,
            seqs,
            shape.num_heads,
            max(shape.num_kv_heads, 1),
            max(shape.kept),
            _value_dim(shape),
            length,
            latent=shape.latent is not None,
        )
        for shape in shapes
    )
    return max(layers, sampler_scratch_bytes(model.vocab_size, seqs))


def _list_bytes(
    config: EngineConfig, shapes: list[LayerShape], policy: AttentionPolicy, length: int
) -> int:
    """What a GPU takes to attend to the lists of a layer's expert-choice heads."""
    rule, most = kept_rule(shapes, policy), 0
    for shape in shapes:
        if rule is None or shape.experts is None:
            continue
        lists = config.max_num_seqs * shape.experts.heads
        pages = width(-(-rule.most(length) // config.page_size))
        slots, dims = pages * config.page_size, (shape.head_dim, shape.v_head_dim)
        most = max(most, gpu_scratch_bytes(lists, lists, 1, 1, *dims, slots))
        if not rule.appends:
            rows = config.max_num_batched_tokens * shape.experts.heads
            most = max(most, turn_scratch_bytes(rows, lists, slots))
    return most
