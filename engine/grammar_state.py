"""Where a completion stands in its structure, and which tokens may come next."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError

if TYPE_CHECKING:
    import llguidance

# A mask usually takes 20 to 100 microseconds. One that takes this long holds up everybody's step.
_SLOW_MASK_S = 0.5


class GrammarState:
    """Where one completion stands in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def copy(self) -> GrammarState:
        """A state of its own at the same place."""
        return GrammarState(self._matcher.deep_copy())

    def advance(self, token: int) -> None:
        """Takes note of a sampled token."""
        self._matcher.consume_token(token)

    @property
    def is_complete(self) -> bool:
        """True when the text is whole and nothing can follow it."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self, vocab_size: int) -> NDArray[np.bool_]:
        """Which tokens may come next, bool [vocab_size]; end-of-sequence where the text may end.

        Raises RequestError when the grammar has become too complex to go on with.
        """
        start = time.monotonic()
        words = self._matcher.compute_bitmask()
        if self._matcher.is_error() or time.monotonic() - start > _SLOW_MASK_S:
            raise RequestError("the structure is too complex to follow", "structure")
        bits = np.unpackbits(np.frombuffer(words, np.uint8), bitorder="little")
        found = np.zeros(vocab_size, np.bool_)  # logits may be wider than the vocabulary
        found[: len(bits)] = bits[:vocab_size]
        return found
