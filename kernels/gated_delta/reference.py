"""The gated delta rule in plain torch, one token at a time."""

from __future__ import annotations

from itertools import pairwise

import torch

from .call import DeltaCall

EPS = 1e-6  # beside the squared length of q and k


def gated_delta(call: DeltaCall) -> torch.Tensor:
    """See `saccade.kernels.gated_delta.gated_delta`."""
    q, k, v, decay, beta, states, walk = call
    share = v.shape[1] // q.shape[1]
    q, k = (_unit(x.float()).repeat_interleave(share, dim=1) for x in (q, k))
    q, out = q * q.shape[2] ** -0.5, torch.empty_like(v)
    decay, beta = decay.float(), beta.float()
    for s, (begin, end) in enumerate(pairwise(walk.cu.tolist())):
        load = int(walk.load[s])
        state = torch.zeros(states.shape[1:]) if load < 0 else states[load].float()
        for row, store in zip(
            walk.rows[begin:end].tolist(), walk.store[begin:end].tolist(), strict=True
        ):
            state = state * decay[row, :, None, None]
            known = torch.einsum("hkv,hk->hv", state, k[row])
            change = (v[row].float() - known) * beta[row, :, None]
            state = state + k[row, :, :, None] * change[:, None]
            out[row] = torch.einsum("hkv,hk->hv", state, q[row]).to(v.dtype)
            if store >= 0:
                states[store] = state
    return out


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * (x.square().sum(-1, keepdim=True) + EPS).rsqrt()
