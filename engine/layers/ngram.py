"""What a table says of the last tokens, added to the residual streams (per-layer embedding)."""

from __future__ import annotations

import torch

from ...kernels.activation import sigmoid_mul
from ...kernels.linear import linear
from ..checkpoint.config_json import ModelConfig
from ..checkpoint.features import NgramEmbedding
from ..recurrent_shape import Tail
from .attention import AttentionContext
from .hyper_connection import hyper_of, stream_norms
from .norm import Norm
from .weights import Weights

INPUTS = "ngram_inputs"  # the page field of the last inputs of the convolution
_BUFFERS = ("layer_multipliers", "ngram_heads_vocab_sizes", "ngram_heads_offsets")


def ngrams_of(config: ModelConfig, layer: int) -> NgramEmbedding | None:
    """Those of this layer, if it has any."""
    ngrams = config.features.ngrams
    return ngrams if ngrams is not None and layer in ngrams.layers else None


def ngram_tails(config: ModelConfig, layer: int) -> tuple[Tail, ...]:
    """What a page keeps for this, or nothing."""
    ngrams = ngrams_of(config, layer)
    if ngrams is None:
        return ()
    width = hyper_of(config).streams * config.hidden_size
    return (Tail(INPUTS, ngrams.taps, width, ngrams.tokens),)


def ngram_window(config: ModelConfig, layer: int) -> int:
    """Tokens before each row that its n-grams reach over; 0: there are none."""
    ngrams = ngrams_of(config, layer)
    return 0 if ngrams is None else ngrams.tokens - 1


def ngram_tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape, without the prefix `model.layers.<layer>.ple.`; empty where there is none."""
    ngrams = ngrams_of(config, layer)
    if ngrams is None:
        return {}
    width, hidden = hyper_of(config).streams * config.hidden_size, config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "key_proj.weight": (width, ngrams.dim),
        "value_proj.weight": (hidden, ngrams.dim),
        "conv1d.weight": (width, 1, ngrams.taps),
        **dict.fromkeys(("norm_key.weight", "norm_query.weight", "norm_conv.weight"), (width,)),
    }
    channels = ngrams.dim // (ngrams.heads * (ngrams.tokens - 1))
    for name, rows in _shards(ngrams, layer).items():
        shapes[name] = (rows, channels)
    return shapes


def ngram_buffers(config: ModelConfig) -> list[str]:
    """Tensors that checkpoints may hold beside: what is computed from config.json here."""
    ngrams = config.features.ngrams
    return [
        f"model.layers.{layer}.ple.ple_embedding.{name}"
        for layer in (ngrams.layers if ngrams else ())
        for name in _BUFFERS
    ]


def _shards(ngrams: NgramEmbedding, layer: int) -> dict[str, int]:
    """Name -> rows of the pieces of a layer's table."""
    rows = ngrams.rows[ngrams.layers.index(layer)]
    each = -(-rows // ngrams.parts)
    starts = range(0, rows, each)
    return {
        f"ple_embedding.ngram_embedding.shard_{i}.weight": min(each, rows - start)
        for i, start in enumerate(starts)
    }


class NgramLayer:
    """Rows of a table, by the last tokens' hashes, make a value, and a key for every stream: the
    more a key agrees with its stream, the more of the value the stream gets, and of a convolution
    over the earlier ones.
    """

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        ngrams, name = config.features.ngrams, f"model.layers.{layer}.ple."
        if ngrams is None:
            raise ValueError("a layer's n-gram embedding needs the config's sizes")
        own = ngrams.layers.index(layer)
        self.layer, self.ngrams, self.hidden = layer, ngrams, config.hidden_size
        self.multipliers = ngrams.multipliers[own]
        sizes = torch.tensor(ngrams.sizes[own])
        self.sizes = sizes.view(ngrams.tokens - 1, ngrams.heads)
        self.offsets = (sizes.cumsum(0) - sizes).view(self.sizes.shape)
        self.table = weights.joined(*(name + shard for shard in _shards(ngrams, layer)))
        self.key = weights.projection(name + "key_proj")
        self.value = weights.projection(name + "value_proj")
        self.norms: dict[str, list[Norm]] = {
            part: stream_norms(config, name + f"norm_{part}.weight", weights)
            for part in ("key", "query", "conv")
        }
        # Stored as torch's Conv1d does, the row's own input last.
        self.conv = weights.tensor(name + "conv1d.weight").squeeze(1).T.flip(0).contiguous()

    def add(self, streams: torch.Tensor, step: AttentionContext) -> None:
        """Adds to `streams` [T, streams * hidden] in place."""
        rows = torch.nn.functional.embedding(self.hashes(step), self.table).flatten(1)
        keys = self._normed("key", linear(rows, self.key))
        value = linear(rows, self.value)
        gated = []
        for key, query in zip(keys, self._normed("query", streams), strict=True):
            # In fp64: the order of the sum does not survive the rounding.
            agrees = (key.double() * query.double()).sum(-1, keepdim=True) / self.hidden**0.5
            gate = agrees.abs().clamp_min(1e-6).sqrt() * agrees.sign()
            gated.append(sigmoid_mul(value, gate.to(value.dtype)))
        joined = torch.cat(gated, dim=-1)
        inputs = torch.cat(self._normed("conv", joined), dim=-1)
        spread = step.recall(self.layer, INPUTS, inputs, self.conv, self.ngrams.tokens)
        streams.add_(joined + spread)

    def hashes(self, step: AttentionContext) -> torch.Tensor:
        """int64 [T, heads of all n-grams]: rows of the table."""
        end, reach = self.ngrams.end, self.ngrams.tokens
        before = step.tokens_before(reach - 1)
        mixed = step.tokens * self.multipliers[0]
        gone = torch.zeros_like(mixed, dtype=torch.bool)
        found = []
        for back in range(reach - 1):
            token = before[:, back]
            gone = gone | (token < 0) | (token == end)  # no n-gram reaches across the end of a text
            mixed = mixed ^ (torch.where(gone, end, token) * self.multipliers[back + 1])
            found.append(mixed[:, None] % self.sizes[back] + self.offsets[back])
        return torch.cat(found, dim=1)

    def _normed(self, part: str, x: torch.Tensor) -> list[torch.Tensor]:
        """Every stream of x, normed."""
        norms = self.norms[part]
        return [norm(each) for norm, each in zip(norms, x.chunk(len(norms), dim=-1), strict=True)]
