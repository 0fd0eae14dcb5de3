"""Top-k, top-p, min-p and the draw, for one row of logits; exact, and no sort of the vocabulary.

Everything here is a function of one row alone, computed by numpy on one thread in a fixed order.
The order of likelihood: higher logit first, then lower token id. So top_k=1 is the same as greedy.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .penalties import Ids, Row

Reals = NDArray[np.float64]

# The nucleus is found in a histogram over depth = (peak - logit) / temperature. Bins of 1/32 nat
# hold few tokens each, and below 32 nats a token weighs less than 1e-13: one last bin takes those.
BINS_PER_NAT = 32
BINS = 1024


def draw_token(
    row: Row, temperature: float, top_k: int, top_p: float, min_p: float, u: float
) -> int:
    """The token at quantile `u` in [0, 1) of softmax(row / temperature) after all three filters.

    row: float32 [V] with a finite maximum (-inf elsewhere is fine). The filters act in this order,
    each on the renormalised rest of the one before. top_k <= 0, top_p = 1, min_p = 0: off.
    """
    chosen: list[Ids] = []  # each holds indices into what the one before it left
    values = row
    if 0 < top_k < len(row):
        chosen.append(most_likely(row, top_k))
        values = row[chosen[-1]]
    # Relative to the peak before dividing: no temperature can then overflow.
    depth: Reals = (float(row.max()) - values.astype(np.float64)) / temperature
    weights: Reals = np.exp(-depth)
    if top_p < 1:
        chosen.append(_nucleus(depth, weights, top_p))
        weights = weights[chosen[-1]]
    if min_p > 0:
        chosen.append(np.flatnonzero(weights >= min_p))  # the peak weighs exactly 1
        weights = weights[chosen[-1]]
    index = _at_quantile(weights, u)
    for indices in reversed(chosen):
        index = int(indices[index])
    return index


def most_likely(row: Row, count: int) -> Ids:
    """The `count` (at most V) most likely tokens of `row` [V], most likely first, int64 [count]."""
    count = min(count, len(row))
    # topk leaves open which of several equal values it takes, so only its threshold is used.
    threshold = torch.topk(torch.from_numpy(row), count, sorted=False).values.min().item()
    candidates = np.flatnonzero(row >= threshold)
    order = np.argsort(-row[candidates], kind="stable")
    return candidates[order[:count]]


def _nucleus(depth: Reals, weights: Reals, top_p: float) -> Ids:
    """Indices of the smallest set of least deep entries that holds `top_p` of the whole weight.

    Only the one bin in which the mass is reached is sorted; equal depths go by ascending index.
    """
    bins = np.minimum(depth * BINS_PER_NAT, BINS - 1).astype(np.int64)
    mass = np.cumsum(np.bincount(bins, weights, minlength=BINS))
    wanted = top_p * mass[-1]
    border = int(np.searchsorted(mass, wanted))
    inside = np.flatnonzero(bins == border)
    inside = inside[np.argsort(depth[inside], kind="stable")]
    missing = wanted - (mass[border - 1] if border else 0.0)
    count = int(np.searchsorted(np.cumsum(weights[inside]), missing)) + 1
    return np.concatenate([np.flatnonzero(bins < border), inside[:count]])


def _at_quantile(weights: Reals, u: float) -> int:
    """The index whose slice of the total holds quantile `u`; never one of zero weight."""
    cumulative = np.cumsum(weights)
    total = cumulative[-1]
    index = np.searchsorted(cumulative, u * total, side="right")
    last = np.searchsorted(cumulative, total)  # u * total may round up to the total
    return int(min(index, last))
