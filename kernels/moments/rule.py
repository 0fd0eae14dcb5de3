"""Which moments are kept, and which blocks a step completes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# What an entry holds beside the mean: the variances of its block alone; the variances of all keys
# up to the end of its block; some rows of their covariance.
KINDS = ("blocks", "diagonal", "full")
MASS_KINDS = (*KINDS, "bounds")


@dataclass(frozen=True)
class MomentRule:
    """Moments of the keys from position `sinks` on, an entry for every `block` tokens.

    A whole covariance would take more memory than the keys of its block. So an entry of kind "full"
    has block / 8 rows of it, other rows than the entry before, and rule.spread(d) entries in a row
    have them all, each as of its own block's end. An eighth of K and V in bf16, whatever d is.
    """

    kind: str
    block: int
    sinks: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self}: kind must be one of {', '.join(KINDS)}")
        if self.block < 16 or self.block & (self.block - 1) or self.sinks < 0:
            raise ValueError(
                f"{self}: block must be a power of two of at least 16, sinks not negative"
            )

    def entry_rows(self, dim: int) -> int:
        """Vectors [d] of an entry."""
        return 1 + min(self.block // 8, dim) if self.kind == "full" else 2

    def spread(self, dim: int) -> int:
        """Blocks that an entry is computed from, behind that of as many blocks before."""
        return -(-dim // (self.entry_rows(dim) - 1)) if self.kind == "full" else 1


@dataclass(frozen=True)
class MomentBlocks:
    """Blocks [first, last) of each sequence, int64 [S], end in this step; page_table: its pages.
    most: blocks of the sequence that has most of them, known to the host.
    """

    page_table: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    most: int


def moment_blocks(
    cu_rows: torch.Tensor, positions: torch.Tensor, page_table: torch.Tensor, block: int
) -> MomentBlocks:
    """The blocks that end at one of these rows; arguments as in `attend.Keys`, where the rows of a
    sequence follow each other without a gap.
    """
    begins, ends = cu_rows[:-1].long(), cu_rows[1:].long()
    filled = ends > begins
    first, last = torch.zeros_like(begins), torch.zeros_like(begins)
    first[filled] = positions[begins[filled]] // block
    last[filled] = (positions[ends[filled] - 1] + 1) // block
    most = max((last - first).tolist(), default=0)
    return MomentBlocks(page_table, first, last, most)
