"""The attention layer that keeps latents: MLA where it is local, grouped latents where global."""

from __future__ import annotations

import torch

from ...kernels.linear import linear
from ...kernels.norm import rms_norm
from ...kernels.rope import apply_rope
from ..attention.base import Aux
from ..checkpoint.config_json import ModelConfig
from .attention import AttentionContext, layer_shape
from .up_projection import UpProjection
from .weights import Weights


class LatentAttention:
    """Queries from the hidden state or a low rank, keys and values by way of normed latents, and
    gates where the layer has any; its method does the rest.
    """

    def __init__(self, config: ModelConfig, layer: int, weights: Weights) -> None:
        latent = config.latent
        if latent is None:
            raise ValueError("a latent attention layer needs the config's latent sizes")
        name = f"model.layers.{layer}.self_attn."
        self.layer = layer
        self.shape = layer_shape(config, layer)
        self.eps = config.rms_norm_eps
        self.nope, self.rope, self.rank = latent.nope_dim, latent.rope_dim, latent.rank(layer)
        self.gates = latent.num_gates(layer)
        low = latent.q_rank is not None
        self.query = weights.projection(name + ("q_b_proj" if low else "q_proj"))
        self.query_down = weights.projection(name + "q_a_proj") if low else None
        self.query_norm = weights.tensor(name + "q_a_layernorm.weight") if low else None
        self.down = weights.projection(name + "kv_a_proj_with_mqa")
        norm = weights.tensor(name + "kv_a_layernorm.weight")
        self.norms = norm.chunk(self.shape.num_kv_heads)
        self.up = UpProjection.of(
            weights.tensor(name + "kv_b_proj.weight"),
            config.num_heads,
            self.shape.num_kv_heads,
            self.nope,
            expands=self.shape.window is not None,
        )
        self.gate = weights.projection(name + "g_proj") if self.gates else None
        self.out = weights.projection(name + "o_proj")

    def __call__(self, x: torch.Tensor, step: AttentionContext) -> torch.Tensor:
        """x: [T, hidden], normed -> [T, hidden], to be added to the residual stream."""
        q, kept = self._queries(x), self._latents(x)
        rotary = kept[:, :1, self.rank :]  # one key for all groups
        apply_rope(q[..., self.nope :], rotary, step.cos, step.sin)
        kept[:, 1:, self.rank :] = rotary
        gates = self._gates(x)
        aux = Aux(rows={} if gates is None else {"gates": gates}, up=self.up)
        none = kept.new_empty((*kept.shape[:2], 0))
        out = step.attend(self.layer, q, kept, none, aux)
        if gates is not None and self.shape.window is not None:
            out = (out * gates).to(out.dtype)
        return linear(out.flatten(1), self.out)

    def _queries(self, x: torch.Tensor) -> torch.Tensor:
        """[T, H, nope + rope]"""
        if self.query_down is not None and self.query_norm is not None:
            x = rms_norm(linear(x, self.query_down), self.query_norm, self.eps)
        return linear(x, self.query).view(x.shape[0], self.shape.num_heads, -1)

    def _latents(self, x: torch.Tensor) -> torch.Tensor:
        """[T, G, rank + rope]: normed latents, and the rotary key, unturned, behind the first."""
        down = linear(x, self.down)
        kept = down.new_empty((x.shape[0], len(self.norms), self.rank + self.rope))
        for g, norm in enumerate(self.norms):
            kept[:, g, : self.rank] = rms_norm(
                down[:, g * self.rank : (g + 1) * self.rank], norm, self.eps
            )
        kept[:, 0, self.rank :] = down[:, -self.rope :]
        return kept

    def _gates(self, x: torch.Tensor) -> torch.Tensor | None:
        """float32 [T, H, gates]. In fp64, whose last bit, which a vector routine may round by the
        element's place, does not survive the rounding to fp32.
        """
        if self.gate is None:
            return None
        logits = linear(x, self.gate, torch.float32).view(x.shape[0], -1, self.gates)
        return logits.double().sigmoid().float()
