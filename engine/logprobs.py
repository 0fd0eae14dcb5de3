"""Log-probabilities of the model's raw distribution: log_softmax of the logits before any change.

Temperature, penalties, bias and masks are not in them, so they say what the model thought, and
prompt and completion log-probabilities are comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from .errors import SaccadeError
from .filters import most_likely
from .outputs import Logprob, TokenLogprobs
from .penalties import Row

NOT_FINITE = "the model's logits for this request are not finite (NaN or infinity)"


def token_logprobs(row: Row, token: int, count: int) -> TokenLogprobs:
    """The `count` most likely tokens of raw logits `row` [V], and `token`, by ascending rank.

    Raises SaccadeError when the row's maximum is not finite.
    """
    total = _log_sum_exp(row)
    top = [int(each) for each in most_likely(row, count)] if count else []
    entry = {each: Logprob(float(row[each]) - total, rank + 1) for rank, each in enumerate(top)}
    if token not in entry:
        entry[token] = Logprob(float(row[token]) - total, _rank(row, token))
    return entry


def with_text(entry: TokenLogprobs, text_of: Callable[[int], str]) -> TokenLogprobs:
    """The same entry with every token's own text filled in by `text_of`."""
    return {token: replace(value, decoded_token=text_of(token)) for token, value in entry.items()}


class PromptLogprobs:
    """Collects a prompt's log-probabilities from its chunks, in any cut and with any repetition.

    Needs the logits of every prompt position but the last: such a request must not skip positions
    by a prefix-cache hit. A chunk computed again after preemption gives what is known already.
    """

    def __init__(self, prompt: Sequence[int], count: int) -> None:
        self._prompt = prompt
        self._count = count
        self._entries: list[TokenLogprobs | None] = [None] * len(prompt)
        self._missing = len(prompt) - 1

    def add(self, start: int, logits: torch.Tensor) -> None:
        """Takes the logits float32 [R, V] of prompt positions start .. start + R - 1.

        The row of position p speaks about prompt token p + 1. SaccadeError for non-finite logits.
        """
        for offset, row in enumerate(logits):
            target = start + offset + 1
            if target < len(self._prompt) and self._entries[target] is None:
                values = row.detach().cpu().numpy()
                token = self._prompt[target]
                self._entries[target] = token_logprobs(values, token, self._count)
                self._missing -= 1

    @property
    def complete(self) -> bool:
        """True when every token but the first has its entry."""
        return self._missing <= 0

    def result(self) -> list[TokenLogprobs | None]:
        """One entry per prompt token; the first token has none. SaccadeError when incomplete."""
        if not self.complete:
            missing = self._entries[1:].index(None) + 1
            raise SaccadeError(f"prompt_logprobs: no logits came for prompt token {missing}")
        return list(self._entries)


def _log_sum_exp(row: Row) -> float:
    peak = float(row.max())  # NaN if any logit is NaN
    if not np.isfinite(peak):
        raise SaccadeError(NOT_FINITE)
    return peak + float(np.log(np.exp(row.astype(np.float64) - peak).sum()))


def _rank(row: Row, token: int) -> int:
    above = np.count_nonzero(row > row[token])
    return 1 + int(above + np.count_nonzero(row[:token] == row[token]))
