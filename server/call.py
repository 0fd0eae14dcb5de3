"""Call: an HTTP request's prompts in the engine, from admission to the last word."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from .exchange import Exchange
from .inbox import RefusedError, UnavailableError
from .limits import Place
from .prompts import Prompt
from .protocol.errors import ApiError, from_engine, from_failure
from .protocol.replies import CachedTokens, Extras, ReasoningTokens, Usage
from .wire import Delta, End

if TYPE_CHECKING:
    from ..engine.params import SamplingParams
    from .service import Service

PING_S = 10.0
Explain = Callable[[ApiError], ApiError]


class Call:
    """Submits prompts, passes on their news, and counts for usage, metrics and the log.

    Whoever makes one closes it: `with` does.
    """

    def __init__(self, service: Service, exchange: Exchange, sequences: int) -> None:
        """sequences: how many there will be; ApiError 503 at once when there is no room."""
        self.exchange = exchange
        self.arrival = time.monotonic()
        self.first_token: float | None = None
        self.prompt_tokens = self.completion_tokens = self.reasoning_tokens = 0
        self.counts_output = True  # False where only the prompt was wanted
        self.finishes: list[str] = []
        self.error: ApiError | None = None
        self.ends: list[End] = []
        self._service = service
        self._prompts: Sequence[Prompt] = ()
        self._cached: dict[int, int] = {}
        self._begun: set[int] = set()
        self._last: dict[tuple[int, int], float] = {}  # when each completion's latest piece came
        self._place: Place | None = None
        self._names: dict[str, str] | None = None
        self._explain: Explain | None = None
        self._sequences = sequences
        self._refused = self._aborted = self._closed = False
        service.admission.check(service.engine_info(), sequences)
        self._inbox = service.client.inbox()
        service.enter(self)

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def submitted(self) -> bool:
        """Whether the engine has taken it, as far as is known."""
        return self._place is not None and not self._refused

    def abort(self) -> None:
        """Ends it, with the reason "abort": what the engine has not heard of yet (a prompt may take
        long to be encoded) as soon as it hears of it.
        """
        self._aborted = True
        if self._inbox.open:
            self._service.client.abort(list(self._inbox.open))

    def submit(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        priority: int = 0,
        cache_salt: str = "",
        attention: str | None = None,
        names: dict[str, str] | None = None,
        explain: Explain | None = None,
    ) -> None:
        """Hands everything to the engine. ApiError when it cannot be taken.

        names: the engine's names of fields -> what the client calls them. explain: says more of
        what the engine refuses.
        """
        info = self._service.engine_info()
        self._prompts, self._names, self._explain = prompts, names, explain
        if self._service.config.log_prompts:
            self.exchange.fields["prompt"] = [each.text or each.ids for each in prompts]
        self.prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        self._place = self._service.admission.enter(info, self._sequences, self.prompt_tokens)
        try:
            for number, prompt in enumerate(prompts):
                self._service.client.submit(
                    self._inbox,
                    number,
                    prompt.ids,
                    params,
                    priority=priority,
                    cache_salt=cache_salt,
                    attention=attention,
                )
            if self._aborted:
                self.abort()
        except (UnavailableError, RefusedError) as error:
            raise from_engine(error) from None

    async def news(self) -> AsyncIterator[list[tuple[int, Delta]]]:
        """(prompt number, delta) as they come, until all have ended; an empty list when nothing
        came for long.

        ApiError when the engine refuses, dies, or fails on a completion.
        """
        while not self._inbox.finished:
            try:
                news = await self._inbox.take(PING_S)
            except (UnavailableError, RefusedError) as error:
                self._refused = isinstance(error, RefusedError)
                found = from_engine(error, self._names)
                raise (self._explain(found) if self._explain else found) from None
            for number, delta, at in news:
                self._note(number, delta, at)
            yield [(number, delta) for number, delta, _ in news]

    def close(self) -> None:
        """Aborts what still runs and gives back its place; harmless when done again."""
        if self._closed:
            return
        self._closed = True
        if self._inbox.open and self.submitted:  # its client left, or one completion has failed
            self.finishes += ["abort"] * (self._sequences - len(self.finishes))
        self._inbox.close()
        if self._place is not None:
            self._place.leave()
        self._service.leave(self)

    def note_error(self, error: ApiError) -> None:
        """The client was told of this error."""
        self.error = error

    # ---- counts ----

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache had."""
        return sum(self._cached.values())

    @property
    def unread_tokens(self) -> int:
        """Prompt tokens behind which no token has come."""
        unread = (p for number, p in enumerate(self._prompts) if number not in self._begun)
        return sum(len(prompt.ids) for prompt in unread)

    def usage(self) -> Usage:
        """Token counts so far."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        cached, reasoning = CachedTokens(self.cached_tokens), ReasoningTokens(self.reasoning_tokens)
        return Usage(prompt, completion, prompt + completion, cached, reasoning)

    def extras(self) -> Extras:
        """Timings of the slowest prompt, and what attention read for all of them."""
        timings = max(
            (end.timings for end in self.ends), key=lambda each: each["total_s"] or 0, default={}
        )
        attention = merged([end.attention for end in self.ends])
        return Extras(timings, attention, sum(end.preemptions for end in self.ends))

    def figures(self) -> dict[str, Any]:
        """For the log: counts, times in seconds, and shares of keys read."""
        extras = self.extras()
        found: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "finish": self.finishes,
        }
        if self.first_token is not None:
            found["ttft_s"] = round(self.first_token - self.arrival, 4)
        found |= {
            name: round(value, 4)
            for name, value in extras.timings.items()
            if value is not None and name in ("queued_s", "prefill_s", "decode_s")
        }
        for phase, counts in extras.attention.items():
            if counts["share"] is not None:
                found[f"{phase}_keys_read"] = round(counts["share"], 4)
                found[f"{phase}_blocks_selected"] = counts["blocks_selected"]
        if self.reasoning_tokens:
            found["reasoning_tokens"] = self.reasoning_tokens
        if extras.preemptions:
            found["preemptions"] = extras.preemptions
        if self.error is not None:
            found["error"] = str(self.error)
        return found

    def _note(self, number: int, delta: Delta, at: float) -> None:
        self._cached[number] = delta.cached
        if number not in self._begun and delta.pieces:
            self._begun.add(number)
            self._note_read(number, delta, at)
        for piece in delta.pieces:
            if self.counts_output and piece.tokens:
                self.completion_tokens += len(piece.tokens)
                self._service.metrics.generated.inc(len(piece.tokens))
            if piece.finish is not None:
                self.finishes.append(piece.finish)
            if piece.finish == "error":
                raise from_failure(piece, self._names)
        self._note_gaps(number, delta, at)
        if delta.end is not None:
            self.ends.append(delta.end)
            if (read := delta.end.timings.get("prefill_s")) is not None:
                tokens = len(self._prompts[number].ids) - delta.cached
                self._service.admission.note_speed(tokens, read)

    def _note_read(self, number: int, delta: Delta, now: float) -> None:
        """A prompt has its first token."""
        metrics, tokens = self._service.metrics, len(self._prompts[number].ids)
        metrics.prompt_tokens.inc(tokens)
        metrics.cached_tokens.inc(delta.cached)
        metrics.ttft.observe(now - self.arrival)
        self.first_token = self.first_token or now
        if self._place is not None:
            self._place.note_first_token(tokens)

    def _note_gaps(self, number: int, delta: Delta, now: float) -> None:
        for piece in delta.pieces:
            key = (number, piece.index)
            if key in self._last:
                self._service.metrics.gap.observe(now - self._last[key])
            self._last[key] = now


def merged(
    all_stats: Sequence[dict[str, dict[str, float | int | None]]],
) -> dict[str, dict[str, float | int | None]]:
    """Attention statistics of several requests, added up; shares are computed anew."""
    total: dict[str, dict[str, float | int | None]] = {}
    for stats in all_stats:
        for phase, counts in stats.items():
            mine = total.setdefault(phase, {})
            for name, value in counts.items():
                mine[name] = (mine.get(name) or 0) + (value or 0)
    for counts in total.values():
        seen, read = counts.get("keys_visible") or 0, counts.get("keys_read") or 0
        counts["share"] = read / seen if seen else None
    return total
