"""Log-sum-exp merge in plain torch."""

from __future__ import annotations

import torch


def merge(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.merge.merge`."""
    top = torch.maximum(lse_a, lse_b)
    safe = torch.where(top == -torch.inf, 0.0, top)
    weight_a, weight_b = torch.exp(lse_a - safe), torch.exp(lse_b - safe)
    total = weight_a + weight_b
    # An empty side is skipped by selection, not by weight 0, so that whatever it holds (NaN too)
    # stays out. The NaN of a side that is not empty must come through.
    parts = [
        (out.float() * (weight / total)[..., None]).masked_fill((lse == -torch.inf)[..., None], 0.0)
        for out, lse, weight in ((out_a, lse_a, weight_a), (out_b, lse_b, weight_b))
    ]
    empty = top == -torch.inf
    return (parts[0] + parts[1]).to(out_a.dtype), (safe + total.log()).masked_fill(
        empty, -torch.inf
    )
