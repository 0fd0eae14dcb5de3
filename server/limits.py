"""Budgets, checked before any work is done: of a request, and of all that wait."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .protocol.errors import ApiError, unavailable
from .wire import EngineInfo

if TYPE_CHECKING:
    from ..engine.params import SamplingParams

KIB, MIB = 1 << 10, 1 << 20
_BODIES_S = 5.0  # after which there may be room for a large body


@dataclass(frozen=True)
class Limits:
    """What a request may cost, and how much may wait.

    body_bytes, header_bytes: of an HTTP request. bodies_bytes: of all bodies that come in
    or are worked on, besides the small ones. body_s: until its body has arrived. send_s: until
    a client that leaves a full buffer unread is let go. prompts: of one request; sequences: prompts
    x n; inputs: texts of one request for embeddings; output_tokens: sequences x max_tokens;
    logprob_entries: alternatives asked for, over all tokens of a request's prompts, and as many
    over those of its output. queued_requests: sequences beyond those that the engine can run at
    once. queued_tokens: of prompts that have no first token yet; None: four times what the engine's
    pages hold.
    """

    body_bytes: int = 16 * MIB
    bodies_bytes: int = 256 * MIB
    header_bytes: int = 64 * KIB
    body_s: float = 60.0
    send_s: float = 60.0
    prompts: int = 256
    sequences: int = 256
    inputs: int = 2048
    output_tokens: int = 1_000_000
    logprob_entries: int = 1_000_000
    queued_requests: int = 256
    queued_tokens: int | None = None

    def check_shape(self, prompts: int, n: int) -> None:
        """Refuses too many prompts or sequences. ApiError."""
        if prompts > self.prompts:
            message = f"prompt may hold at most {self.prompts} prompts, got {prompts}"
            raise ApiError(400, message, "prompt", "invalid_value")
        if prompts * n > self.sequences:
            message = f"prompts x n may be at most {self.sequences}, got {prompts} x {n}"
            raise ApiError(400, message, "n", "invalid_value")

    def check_inputs(self, count: int) -> None:
        """Refuses too many texts to embed. ApiError."""
        if count > self.inputs:
            message = f"input may hold at most {self.inputs} texts, got {count}"
            raise ApiError(400, message, "input", "invalid_value")

    def with_end(self, params: SamplingParams, sequences: int) -> SamplingParams:
        """The same with a max_tokens: where there is none, what these budgets leave to each of so
        many sequences. ApiError for an answer that could become too large.
        """
        if params.max_tokens is not None:
            self._check_output(sequences, params.max_tokens, params.logprobs)
            return params
        most = self.output_tokens
        if params.logprobs is not None:
            most = min(most, self.logprob_entries // (params.logprobs + 1))
        most = max(most // sequences, params.min_tokens)
        self._check_output(sequences, most, params.logprobs)
        return replace(params, max_tokens=most)

    def _check_output(self, sequences: int, max_tokens: int, logprobs: int | None) -> None:
        tokens = sequences * max_tokens
        if tokens > self.output_tokens:
            message = (
                f"completions x max_tokens may be at most {self.output_tokens}, "
                f"got {sequences} x {max_tokens}"
            )
            raise ApiError(400, message, "max_tokens", "invalid_value")
        if logprobs is not None and tokens * (logprobs + 1) > self.logprob_entries:
            message = (
                f"completions x max_tokens x (logprobs + 1) may be at most "
                f"{self.logprob_entries}, got {sequences} x {max_tokens} x {logprobs + 1}"
            )
            raise ApiError(400, message, "logprobs", "invalid_value")

    def check_prompt_logprobs(
        self, tokens: int, copies: int, count: int | None, name: str = "prompt_logprobs"
    ) -> None:
        """Refuses prompt log-probabilities over too many tokens. ApiError.

        tokens: of all prompts of the request; copies: how often the reply shows them; count:
        alternatives per token, None: not asked for; name: of the field that asked for them.
        """
        if count is not None and tokens * copies * (count + 1) > self.logprob_entries:
            message = (
                f"prompt tokens x completions that show them x ({name} + 1) may be at most "
                f"{self.logprob_entries}, got {tokens} x {copies} x {count + 1}"
            )
            raise ApiError(400, message, name, "invalid_value")


class Bodies:
    """Counts the bytes of bodies that this process holds, and refuses what would be too much.

    Small bodies do not count, so that they are served whatever the large ones do: a connection's
    own buffer is as large.
    """

    SMALL = 64 * KIB

    def __init__(self, most: int) -> None:
        self.held = 0
        self._most = most

    def take(self, size: int) -> None:
        """So many bytes more. ApiError 503."""
        if self.held and self.held + size > self._most:
            message = f"Too many large bodies at once: they may have {self._most} bytes together."
            error = unavailable(message, _BODIES_S, "overloaded")
            error.headers["Connection"] = "close"  # the rest of this body is not wanted
            raise error
        self.held += size

    def give_back(self, size: int) -> None:
        """So many bytes fewer."""
        self.held -= size


class Admission:
    """Counts what is in flight, and refuses at once what would wait too long."""

    def __init__(self, limits: Limits) -> None:
        self.sequences = 0  # admitted and not ended
        self.waiting_tokens = 0  # of prompts whose first token has not come
        self._limits = limits
        self._token_s = 0.0  # a moving mean of seconds per prompt token

    def check(self, info: EngineInfo, sequences: int) -> None:
        """Whether so many more sequences may come. ApiError 503."""
        room = info.max_num_seqs + self._limits.queued_requests
        if self.sequences and self.sequences + sequences > room:
            message = f"Too many requests wait: {self.sequences} of at most {room} sequences."
            raise unavailable(message, self.retry_s(), "overloaded")

    def enter(self, info: EngineInfo, sequences: int, tokens: int) -> Place:
        """A place in the queue; whoever takes it leaves it. ApiError 503."""
        self.check(info, sequences)
        room = self._limits.queued_tokens
        room = 4 * info.num_tokens if room is None else room
        if self.waiting_tokens and self.waiting_tokens + tokens > room:
            message = f"Too many prompt tokens wait: {self.waiting_tokens} of at most {room}."
            raise unavailable(message, self.retry_s(), "overloaded")
        return Place(self, sequences, tokens)

    def note_speed(self, tokens: int, seconds: float) -> None:
        """A prompt was read: `retry_s` learns from it."""
        if tokens > 0 and seconds >= 0:
            each = seconds / tokens
            self._token_s = each if not self._token_s else 0.9 * self._token_s + 0.1 * each

    def retry_s(self) -> float:
        """When the tokens that wait now should have been read, 1 s to 60 s."""
        return min(60.0, max(1.0, self.waiting_tokens * self._token_s))


class Place:
    """What one request takes of the queue."""

    def __init__(self, admission: Admission, sequences: int, tokens: int) -> None:
        self._admission = admission
        self._sequences, self._tokens = sequences, tokens
        admission.sequences += sequences
        admission.waiting_tokens += tokens

    def note_first_token(self, tokens: int) -> None:
        """A prompt of so many tokens does not wait any more."""
        self._admission.waiting_tokens -= tokens
        self._tokens -= tokens

    def leave(self) -> None:
        """Gives everything back; harmless when done again."""
        self._admission.sequences -= self._sequences
        self._admission.waiting_tokens -= self._tokens
        self._sequences = self._tokens = 0
