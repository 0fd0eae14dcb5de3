"""The first key's weight, scaled after attention, in plain torch."""

from __future__ import annotations

import torch

from .call import FirstCall


def scale_first(call: FirstCall) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.first.scale_first`."""
    q, out, lse, k, v, cu_rows, gains, scale, softcap, seen = call
    sequence = torch.repeat_interleave(
        torch.arange(k.shape[0], device=k.device), cu_rows.diff().long(), output_size=q.shape[0]
    )
    group = q.shape[1] // k.shape[1]
    first, value = (x[sequence].float().repeat_interleave(group, 1) for x in (k, v))
    score = (q.float() * first).sum(-1) * scale
    if softcap is not None:
        score = softcap * torch.tanh(score / softcap)
    added = (gains - 1.0) * torch.exp(score - lse)  # by how much the sum of all weights changes
    idle = gains == 1.0 if seen is None else (gains == 1.0) | ~seen
    scaled = (out + added[..., None] * value) / (1.0 + added)[..., None]
    return (
        torch.where(idle[..., None], out, scaled).to(q.dtype),
        torch.where(idle, lse, lse + torch.log(1.0 + added)),
    )
