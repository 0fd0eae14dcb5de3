"""Delta attention from its formula, one row at a time, in plain torch: what the tests compare with.

It knows the method's options and nothing of its code.
"""

from __future__ import annotations

import torch

from saccade.engine.attention.delta import Delta

from .test_moba import moba_mask


def softmax_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out [H, T, dv], lse [H, T]) of q [H, T, d] over the keys that bool [H or 1, T, L] shows."""
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(~mask, -torch.inf)
    weights = torch.softmax(scores, -1).nan_to_num(0.0)
    return weights @ v, torch.logsumexp(scores, -1)


def base_mask(q: torch.Tensor, k: torch.Tensor, method: Delta) -> torch.Tensor:
    """bool [H or 1, T, T]: what the base method shows."""
    if method.base == "moba":
        return moba_mask(q, k, method.block, method.topk)
    i, j = torch.arange(q.shape[1])[:, None], torch.arange(q.shape[1])[None]
    return ((j <= i) & ((i - j < method.window) | (j < method.sinks)))[None]


def delta_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, prompt_len: int, method: Delta
) -> torch.Tensor:
    """out [H, T, dv] for q, k, v [H, T, d]: delta in the prompt, dense rows after it."""
    length, gamma = q.shape[1], method.gamma
    causal = torch.ones(1, length, length).tril().bool()
    mask = base_mask(q, k, method)
    sparse, sparse_lse = softmax_rows(q, k, v, mask, scale)
    full, full_lse = softmax_rows(q, k, v, causal, scale)
    rest, rest_lse = softmax_rows(q, k, v, causal & ~mask, scale)
    weight = 1 - torch.exp(sparse_lse - full_lse)
    end = prompt_len - prompt_len % gamma - max(128, gamma)
    out = full.clone()
    for i in range(max(0, end)):
        if i % gamma == 0:
            continue
        for h in range(q.shape[0]):
            a = i - i % gamma
            jump = weight[h, a] - (weight[h, a - gamma] if a else 0.0)
            if method.anchor_guard and a and jump > method.anchor_guard:
                a -= gamma
            if method.mode == "recompute":
                out[h, i] = sparse[h, i]
            elif method.mode == "paper":
                out[h, i] = sparse[h, i] + full[h, a] - sparse[h, a]
            else:
                own, far = sparse_lse[h, i], rest_lse[h, a]
                share = torch.sigmoid(far - own)
                out[h, i] = (1 - share) * sparse[h, i] + share * rest[h, a]
    return out
