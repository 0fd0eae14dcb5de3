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
    share_a = torch.where(total > 0, weight_a / total, 0.0)[..., None]
    share_b = torch.where(total > 0, weight_b / total, 0.0)[..., None]
    # An empty side is skipped by selection, not by weight 0, so that whatever it holds (NaN too)
    # stays out.
    part_a = torch.where(share_a > 0, out_a.float() * share_a, 0.0)
    part_b = torch.where(share_b > 0, out_b.float() * share_b, 0.0)
    return (part_a + part_b).to(out_a.dtype), safe.add(torch.log(total)).where(
        total > 0, -torch.inf
    )
