"""Which keys InfLLM-V2 reads, from the definition: row by row and block by block."""

from __future__ import annotations

import torch

from saccade.engine.attention.infllm import Infllm


def mask_of(q: torch.Tensor, k: torch.Tensor, method: Infllm, prompt: int) -> torch.Tensor:
    """bool [H, T, T] for q, k [H, T, d] of two KV heads, K repeated for the heads of each."""
    heads, length, dim = q.shape
    group, mask = heads // 2, torch.zeros((heads, length, length), dtype=torch.bool)

    def means(t: int, size: int, stride: int) -> dict[int, torch.Tensor]:
        """First token -> mean of every window that ends at t or before."""
        starts = range(0, t + 2 - size, stride)
        return {a: k[:, a : a + size].mean(1) for a in starts}

    for t in range(length):
        if max(prompt, t + 1) < method.dense_len:
            mask[:, t, : t + 1] = True
            continue
        own, fine = t // method.block, means(t, method.kernel, method.stride)
        over = means(t, 4 * method.kernel, 4 * method.stride) or fine
        over = over if method.norm == "coarse" else fine
        for kv in range(2):
            votes = dict.fromkeys(fine, 0.0)
            for h in range(kv * group, (kv + 1) * group):
                total = sum(float((q[h, t] @ e[h] * dim**-0.5).exp()) for e in over.values())
                for a in fine:
                    votes[a] += float((q[h, t] @ fine[a][h] * dim**-0.5).exp()) / total
            score = {
                j: max(
                    (
                        vote
                        for a, vote in votes.items()
                        if a < (j + 1) * method.block and a + method.kernel > j * method.block
                    ),
                    default=-1.0,
                )
                for j in range(own + 1)
            }
            forced = {j for j in range(own + 1) if j < method.init or j > own - method.local}
            able = [j for j in score if j not in forced and score[j] >= 0]
            best = sorted(able, key=lambda j: (-score[j], -j))[: method.listed - len(forced)]
            for j in {*best, *forced}:
                last = min((j + 1) * method.block, t + 1)
                mask[kv * group : (kv + 1) * group, t, j * method.block : last] = True
    return mask
