"""Where a completion stands in its structure, and which tokens may come next."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import RequestError

if TYPE_CHECKING:
    import llguidance

# A mask usually takes 20 to 100 microseconds; ambiguous grammars make it slower with every token.
# What counts is this thread's own time: that others hold the processor is no grammar's fault.
# Slow ones hold up everybody's step: a request may cost the others so much in all,
_REQUEST_S = 2.0
_SLOW_MASK_S = 0.5  # no mask so much,
# and where the masks of a step have taken so long, those that were not quick before are left out.
_STEP_S = 0.5
_QUICK_MASK_S = 0.01


class MaskTime:
    """Seconds that slow masks have taken: of one request, or of one step."""

    def __init__(self) -> None:
        self.spent = 0.0


class GrammarState:
    """Where one completion stands in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, of_request: MaskTime | None = None) -> None:
        """of_request: shared by its completions."""
        self._matcher = matcher
        self._of_request = of_request or MaskTime()
        self._advance_s = self._last_s = 0.0

    def copy(self) -> GrammarState:
        """A state of its own at the same place, of another completion of the request."""
        return GrammarState(self._matcher.deep_copy(), self._of_request)

    def for_request(self) -> GrammarState:
        """A state of its own at the same place, of another request."""
        return GrammarState(self._matcher.deep_copy())

    def advance(self, token: int) -> None:
        """Takes note of a sampled token."""
        start = time.thread_time()
        self._matcher.consume_token(token)
        self._advance_s = time.thread_time() - start

    @property
    def is_complete(self) -> bool:
        """True when the text is whole and nothing can follow it."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self, vocab_size: int, of_step: MaskTime | None = None) -> NDArray[np.bool_]:
        """Which tokens may come next, bool [vocab_size]; end-of-sequence where the text may end.

        of_step: shared by the rows of a step. Raises RequestError when the grammar has become too
        complex to go on with, for itself or for those beside it.
        """
        of_step = of_step or MaskTime()
        if of_step.spent > _STEP_S and self._last_s > _QUICK_MASK_S:
            raise _too_complex()
        start = time.thread_time()
        words = self._matcher.compute_bitmask()
        self._last_s = time.thread_time() - start + self._advance_s
        of_step.spent += self._last_s
        if self._last_s > _QUICK_MASK_S:
            self._of_request.spent += self._last_s
        if (
            self._matcher.is_error()
            or self._last_s > _SLOW_MASK_S
            or self._of_request.spent > _REQUEST_S
        ):
            raise _too_complex()
        bits = np.unpackbits(np.frombuffer(words, np.uint8), bitorder="little")
        found = np.zeros(vocab_size, np.bool_)  # logits may be wider than the vocabulary
        found[: len(bits)] = bits[:vocab_size]
        return found


def _too_complex() -> RequestError:
    return RequestError("the structure is too complex to follow", "structure")
