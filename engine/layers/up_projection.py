"""The up-projections of latent attention, in the two forms that give the same attention.

With a latent c and a rotary key r, head h has the key [K_h c ; r] and the value V_h c. Expanded,
keys and values are computed; absorbed, the query [a ; b] becomes [K_h^T a ; b], attends over
[c ; r] itself, and V_h is applied to the sum of latents (DeepSeek-V2, arXiv 2405.04434).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.linear import PackedHeads, PackedWeight, linear, linear_heads, pack, pack_heads


@dataclass(frozen=True)
class UpProjection:
    """One layer's maps from latents to keys and values, per head and (to expand) per group."""

    nope: int  # channels of a key that come from the latent
    absorbing: PackedHeads  # [H, rank, nope]
    values: PackedHeads  # [H, v, rank]
    keys_and_values: tuple[PackedWeight, ...]  # per group [heads * (nope + v), rank], or none

    @staticmethod
    def of(weight: torch.Tensor, heads: int, groups: int, nope: int, expands: bool) -> UpProjection:
        """From kv_b_proj [heads * (nope + v), rank], each head's key rows before its value rows.

        Group g serves the heads [g, g + 1) * heads / groups. expands: `expand` will be called.
        """
        per_head = weight.view(heads, -1, weight.shape[1])
        return UpProjection(
            nope,
            pack_heads(per_head[:, :nope].mT),
            pack_heads(per_head[:, nope:]),
            tuple(pack(each) for each in weight.chunk(groups)) if expands else (),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all packed weights."""
        expanding = sum(each.nbytes for each in self.keys_and_values)
        return self.absorbing.nbytes + self.values.nbytes + expanding

    def absorb(self, q: torch.Tensor) -> torch.Tensor:
        """[T, H, rank + rope] that scores [c ; r] as q [T, H, nope + rope] scores the keys."""
        rank = self.absorbing.out_features
        out = q.new_empty((*q.shape[:2], rank + q.shape[2] - self.nope))
        linear_heads(q[..., : self.nope], self.absorbing, out[..., :rank])
        out[..., rank:] = q[..., self.nope :]
        return out

    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """Values [T, H, v] of the latents [T, H, rank] that each head summed."""
        out = latents.new_empty((*latents.shape[:2], self.values.out_features))
        linear_heads(latents, self.values, out)
        return out

    def expand(self, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [N, H, nope + rope] and values [N, H, v] of what pages keep, [N, G, rank + rope]."""
        rank = self.absorbing.out_features
        heads = len(self.values) // kept.shape[1]
        keys, values = [], []
        for g, weight in enumerate(self.keys_and_values):
            both = linear(kept[:, g, :rank], weight).view(kept.shape[0], heads, -1)
            rotary = kept[:, g, None, rank:].expand(-1, heads, -1)
            keys.append(torch.cat([both[..., : self.nope], rotary], dim=-1))
            values.append(both[..., self.nope :])
        return torch.cat(keys, dim=1), torch.cat(values, dim=1)
