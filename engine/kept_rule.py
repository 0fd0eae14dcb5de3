"""KeptRule: how many tokens every head of an expert-choice group keeps of a sequence.

A head that chooses its tokens keeps a list of them, in pages of its own. Which tokens these are
only the model knows; how many they are at most is arithmetic, and all that pages, prefix cache and
memory plan need. No tensors here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeptRule:
    """The longest list of each head, by the length of the sequence.

    sparsity: a head keeps one token in so many, and at least 2. fixed: so many instead, whatever
    the length (0: by sparsity). percent: of either, that a list may reach. burst: tokens that it
    may be ahead of that. appends: what is in a list never moves; else tokens may be replaced.
    """

    sparsity: int
    fixed: int = 0
    percent: int = 100
    burst: int = 0
    appends: bool = True

    def most(self, tokens: int) -> int:
        """Tokens that a head keeps at most of the first `tokens`; grows by 0 or 1 per token."""
        wanted = self.fixed or max(tokens * self.percent // (100 * self.sparsity), 2)
        return min(tokens, wanted + self.burst)

    def pages_of_all(self, tokens: int, sequences: int, page_size: int) -> int:
        """Pages that hold the lists of any `sequences` of `tokens` tokens together."""
        share = 0 if self.fixed else tokens * self.percent // (100 * self.sparsity)
        each = (self.fixed or 2) + self.burst + page_size - 1  # of each, the last page in part
        return (share + sequences * each) // page_size
