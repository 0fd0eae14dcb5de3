"""Which tokens a request has seen, kept incrementally, and what that does to its logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .params import SamplingParams

Row = NDArray[np.float32]
Ids = NDArray[np.int64]


class TokenCounts:
    """Sparse token id -> count; adding a token is O(1) amortised, memory is O(distinct tokens)."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}
        self._ids = np.zeros(16, np.int64)
        self._counts = np.zeros(16, np.float32)

    def add(self, token: int) -> None:
        """Counts one more occurrence of `token`."""
        slot = self._slots.get(token)
        if slot is None:
            slot = self._slots[token] = len(self._slots)
            if slot == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[slot] = token
        self._counts[slot] += 1

    @property
    def ids(self) -> Ids:
        """Distinct tokens, int64 [D], in order of first occurrence (a view)."""
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> Row:
        """How often each of `ids` occurred, float32 [D] (a view)."""
        return self._counts[: len(self._slots)]


class Penalties:
    """Repetition penalty over prompt and output; presence and frequency over the output alone."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._params = params
        self._repeats = params.repetition_penalty != 1
        self._prompt: Ids = np.unique(np.asarray(prompt if self._repeats else (), np.int64))
        self._output = TokenCounts()
        self._fresh = TokenCounts()  # output tokens that the prompt does not hold

    def add(self, token: int) -> None:
        """Takes note of a sampled token."""
        self._output.add(token)
        if self._repeats and not self._in_prompt(token):
            self._fresh.add(token)

    def apply(self, row: Row) -> None:
        """Changes the logits `row` [V] in place; costs O(distinct tokens seen), not O(V)."""
        if self._repeats:
            self._damp(row, self._prompt)
            self._damp(row, self._fresh.ids)
        if self._params.has_output_penalties:
            row[self._output.ids] -= self._amounts()

    @property
    def repeated(self) -> Ids:
        """Distinct tokens that the repetition penalty damps, int64 [D]."""
        return np.concatenate([self._prompt, self._fresh.ids])

    @property
    def output(self) -> tuple[Ids, Row]:
        """Distinct output tokens, int64 [D], and what is taken from their logits, float32 [D]."""
        if not self._params.has_output_penalties:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        return self._output.ids, self._amounts()

    def _amounts(self) -> Row:
        counts = self._output.counts
        return self._params.frequency_penalty * counts + self._params.presence_penalty

    def _in_prompt(self, token: int) -> bool:
        at = int(np.searchsorted(self._prompt, token))
        return at < len(self._prompt) and int(self._prompt[at]) == token

    def _damp(self, row: Row, ids: Ids) -> None:
        # Dividing a negative logit would make the token likelier: those are multiplied instead.
        seen, penalty = row[ids], np.float32(self._params.repetition_penalty)
        row[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
