"""Launches `triton_lists`: lists of the best blocks, from scores that a kernel wrote."""

from __future__ import annotations

import torch

from . import triton_sizes as sizes


def best_lists(
    scores: torch.Tensor,
    ids: torch.Tensor,
    positions: torch.Tensor,
    block: int,
    forced: tuple[int, int],
) -> None:
    """Writes the lists of rows, ascending, -1 padded.

    scores: float32 [T, owners, blocks]; ids: int32 [T, owners, listed]; positions: int64 [T]; all
    contiguous. forced: how many first and how many latest blocks are always taken.
    """
    from .triton_lists import list_best

    rows, owners, blocks = scores.shape
    listed = ids.shape[2]
    list_best[(rows, owners)](
        scores,
        positions,
        ids,
        owners,
        blocks,
        listed,
        *forced,
        BLOCK=block,
        BN=sizes.RANKED,
        WIDTH=sizes.power_of_two(listed),
        num_warps=8,
    )
