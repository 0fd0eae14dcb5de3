"""Hyper-connections: what a layer reads of several residual streams, and what it adds to each."""

from __future__ import annotations

import torch

from ...kernels.activation import sigmoid_mul
from ...kernels.linear import linear
from ..checkpoint.config_json import ModelConfig
from ..checkpoint.features import HyperConnections
from .norm import Norm
from .weights import Weights


def hyper_of(config: ModelConfig) -> HyperConnections:
    """The model's residual streams; ValueError for one that has a single one."""
    if config.features.hyper is None:
        raise ValueError("hyper-connections need the config's residual streams")
    return config.features.hyper


def stream_norms(config: ModelConfig, name: str, weights: Weights) -> list[Norm]:
    """The norms of all streams, whose weights lie side by side."""
    return [
        Norm(weight.clone(), config.rms_norm_eps, config.features.norm_offset)
        for weight in weights.tensor(name).chunk(hyper_of(config).streams)
    ]


class HyperConnection:
    """The mean of the normed streams, every channel behind a gate; gates, and the shares of the
    layer's output that the streams get, are computed from all normed streams together.

    Sums run stream by stream in fp32: a row's bits do not depend on the rows around it.
    """

    def __init__(
        self, config: ModelConfig, name: str, weights: Weights, injects: bool = True
    ) -> None:
        """injects: something is added to the streams afterwards."""
        self.streams = hyper_of(config).streams
        self.norms = stream_norms(config, name + "hc_norm.weight", weights)
        self.down = weights.projection(name + "input_mix_weight_down")
        self.up = weights.projection(name + "input_mix_weight_up")
        self.inject = weights.projection(name + "block_inject_weight") if injects else None

    @staticmethod
    def tensors(config: ModelConfig, injects: bool = True) -> dict[str, tuple[int, ...]]:
        """Name -> shape, without a prefix."""
        hyper, width = hyper_of(config), hyper_of(config).streams * config.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "hc_norm.weight": (width,),
            "input_mix_weight_down.weight": (hyper.rank, width),
            "input_mix_weight_up.weight": (width, hyper.rank),
        }
        if injects:
            shapes["block_inject_weight.weight"] = (hyper.streams, width)
        return shapes

    def read(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Of the streams x [T, streams * hidden]: what the layer reads, [T, hidden], and the shares
        of its output that the streams get, [T, streams], if it adds to them.
        """
        parts = x.chunk(self.streams, dim=-1)
        normed = torch.cat([norm(part) for norm, part in zip(self.norms, parts, strict=True)], -1)
        inner = linear(normed, self.down) / self.streams
        gated = sigmoid_mul(normed, linear(sigmoid_mul(inner, inner), self.up))
        total = torch.zeros(parts[0].shape, dtype=torch.float32)
        for part in gated.chunk(self.streams, dim=-1):
            total += part
        read = (total / self.streams).to(x.dtype)
        if self.inject is None:
            return read, None
        logits = linear(normed, self.inject) / self.streams
        return read, sigmoid_mul(torch.full_like(logits, 2.0), logits)

    def add(self, x: torch.Tensor, update: torch.Tensor, shares: torch.Tensor | None) -> None:
        """Adds a layer's output [T, hidden] to the streams x in place, by their shares.

        Product and sum are rounded apart from each other, as in training.
        """
        if shares is None:
            raise ValueError("this hyper-connection adds to no stream")
        x.view(x.shape[0], self.streams, -1).add_(update[:, None] * shares[..., None])


def hyper_scratch_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int) -> int:
    """The streams, and of each as much once more normed, as gates, and gated; their sum in fp32,
    and what the layer adds to each.
    """
    hyper = config.features.hyper
    if hyper is None:
        return 0
    row = 6 * hyper.streams * config.hidden_size + 4 * hyper.rank
    return tokens * (row * dtype.itemsize + 2 * config.hidden_size * torch.float32.itemsize)
