"""Building an engine's parts from its config: everything is checked and planned before memory is
taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch

from ..kernels.store import PageLayout
from .attention.base import LayerShape
from .attention.policy import AttentionPolicy, parse_policy
from .cache import KVCache, bytes_per_page, kept_bytes_per_page, layer_groups
from .checkpoint.config_json import ModelConfig
from .checkpoint.loader import Checkpoint
from .config import EngineConfig
from .devices import Place, move_model, place
from .errors import CheckpointError
from .memory import (
    DEFAULT_KV_SHARE,
    GPU_KV_SHARE,
    GroupPages,
    MemoryPlan,
    MemoryRequest,
    plan_memory,
)
from .models import LlamaModel, layer_shapes, load_model, model_nbytes
from .policies import Policies, read_specs
from .runner import ModelRunner
from .scheduler import Scheduler, SchedulerLimits
from .scratch import scratch_bytes
from .step_plan import LayerGroup
from .tokenizer import Tokenizer

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Parts:
    """What an engine consists of."""

    model_config: ModelConfig
    policies: Policies
    memory: MemoryPlan
    scheduler: Scheduler
    runner: ModelRunner
    tokenizer: Tokenizer | None


@dataclass(frozen=True)
class Source:
    """A model before its weights are there.

    dtype: of weights, activations and pages. folder: with its config.json, and a tokenizer.json
    where it has one. load: the model with so many positions in its rotary table, its weights at
    that place.
    """

    config: ModelConfig
    dtype: torch.dtype
    folder: Path
    load: Callable[[int, Place], LlamaModel]

    def __str__(self) -> str:
        """As engines name their model."""
        return str(self.folder)


def checkpoint_source(config: EngineConfig) -> Source:
    """The checkpoint that the config names. Raises CheckpointError, or ValueError for its dtype."""
    checkpoint = Checkpoint(config.model, config.calibration)

    def load(positions: int, where: Place) -> LlamaModel:
        model = load_model(checkpoint, config.dtype, positions, config.check_finite)
        if where.gpu:
            move_model(model, where)
        return model

    return Source(checkpoint.config, checkpoint.dtype(config.dtype), checkpoint.folder, load)


def assemble(config: EngineConfig, source: Source | None = None) -> Parts:
    """Reads the checkpoint, plans memory, then loads the weights and allocates the pages.

    source: of the model; None: the checkpoint that the config names. Raises CheckpointError,
    CapacityError, or ValueError for a setting that does not fit the model.
    """
    source = source or checkpoint_source(config)
    model_config, dtype, folder = source.config, source.dtype, source.folder
    shapes = layer_shapes(model_config)
    policy = _policy(config, model_config, folder).measured(shapes)
    where = place(config.device)
    layout = where.layout(config.page_size)
    groups, group_of = layer_groups(shapes, policy)
    memory = _plan(config, model_config, dtype, shapes, policy, layout, groups, group_of, where)
    tokenizer = Tokenizer.from_folder(folder) if (folder / _TOKENIZER).exists() else None
    table = _rope_length(memory.max_model_len, model_config, groups)
    model = source.load(table, where)
    cache = KVCache(shapes, group_of, memory.pages, policy, layout, dtype, where.device)
    whole = policy.needs_whole_text
    limits = SchedulerLimits(
        config.max_num_seqs,
        config.max_num_batched_tokens,
        memory.max_model_len,
        1.0 if whole else config.long_prefill_share,
        policy.align,
        # A page that is not full keeps raw keys, or a state, of its owner's last tokens alone.
        fork_align=config.page_size
        if any(shape.key_taps or shape.recurrent for shape in shapes)
        else 1,
        whole_texts=whole,
        alone_step_seconds=inf if config.alone_step_seconds is None else config.alone_step_seconds,
    )
    scheduler = Scheduler(
        limits,
        groups,
        memory.pages,
        config.page_size,
        model_id=_model_id(folder, dtype),
        eos_token_ids=model_config.eos_token_ids,
        prefix_caching=config.enable_prefix_caching and not whole,
    )
    policies = Policies(policy, shapes, config.page_size)
    runner = ModelRunner(model, cache, groups, where)
    return Parts(model_config, policies, memory, scheduler, runner, tokenizer)


def _policy(config: EngineConfig, model: ModelConfig, folder: Path) -> AttentionPolicy:
    """The user's specs; phases that these leave open follow the checkpoint's own, else dense."""
    prefill, decode = config.prefill_attention, config.decode_attention
    if config.attention is not None or model.attention is None:
        if config.attention is None and model.undecided and None in (prefill, decode):
            raise CheckpointError(f"{folder / 'config.json'}: {model.undecided}")
        return parse_policy(config.attention, prefill, decode, model.num_layers)
    both, own_prefill, own_decode = _own_specs(model.attention, folder)
    try:
        parse_policy(both, own_prefill, own_decode, model.num_layers)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None
    return parse_policy(
        both,
        own_prefill if prefill is None else prefill,
        own_decode if decode is None else decode,
        model.num_layers,
    )


def _own_specs(entry: object, folder: Path) -> tuple[str | None, ...]:
    """config.json's attention entry as (attention, prefill_attention, decode_attention)."""
    try:
        return read_specs(entry)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None


def _plan(
    config: EngineConfig,
    model: ModelConfig,
    dtype: torch.dtype,
    shapes: list[LayerShape],
    policy: AttentionPolicy,
    layout: PageLayout,
    groups: list[LayerGroup],
    group_of: list[int],
    where: Place,
) -> MemoryPlan:
    length = _length(config, model, policy)
    pages = [
        GroupPages(
            bytes_per_page(shapes, group_of, g, policy, layout, dtype)
            if group.kept is None
            else kept_bytes_per_page(shapes, layout, dtype),
            group.window,
            group.sinks,
            group.kept,
        )
        for g, group in enumerate(groups)
    ]
    return plan_memory(
        MemoryRequest(
            groups=pages,
            page_size=config.page_size,
            weights_bytes=model_nbytes(model, dtype, _rope_length(length, model, groups)),
            scratch_bytes=scratch_bytes(config, model, dtype, shapes, policy, length, where),
            available_bytes=where.available_memory(),
            kv_cache_memory=config.kv_cache_memory,
            max_model_len=length,
            length_is_explicit=config.max_model_len is not None,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            kv_share=GPU_KV_SHARE if where.device.type == "cuda" else DEFAULT_KV_SHARE,
        )
    )


def _rope_length(max_model_len: int, model: ModelConfig, groups: list[LayerGroup]) -> int:
    """Positions in the rotary table. Where no layer looks back without bounds a sequence may grow
    far beyond the trained length, and neither memory nor frequencies should follow its length.
    """
    endless = all(group.window is not None for group in groups)
    return min(max_model_len, model.max_position) if endless else max_model_len


def _length(config: EngineConfig, model: ModelConfig, policy: AttentionPolicy) -> int:
    """Tokens of the longest sequence, before it is known what memory there is."""
    length = config.max_model_len or model.max_position
    longest = config.max_num_batched_tokens + 1  # the token that follows the text is not computed
    if not policy.needs_whole_text or length <= longest:
        return length
    if config.max_model_len is None:
        return longest
    raise ValueError(
        f"{policy.text} reads a text in one step: max_num_batched_tokens must be at least "
        f"max_model_len - 1, got {config.max_num_batched_tokens} and {length}"
    )


def _model_id(folder: Path, dtype: torch.dtype) -> str:
    """Names the weights in prefix-cache keys: config and weight files by size and time."""
    digest = hashlib.sha256(str(dtype).encode())
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors"):
            state = path.stat()
            digest.update(f"{path.name}:{state.st_size}:{state.st_mtime_ns};".encode())
    return digest.hexdigest()
