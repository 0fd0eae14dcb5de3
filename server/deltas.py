"""What is new of a request after a step, as the HTTP process wants it."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..engine.outputs import Timings
from .wire import Delta, End, LogprobEntry, Piece

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..engine.outputs import TokenLogprobs

log = logging.getLogger("saccade.engine")
FAILED = "The engine failed on this request; its log has the cause."


class LiveRequest:
    """A request in the engine, and what of it was reported already."""

    def __init__(self, generation: Generation) -> None:
        self.id = generation.id
        self._generation = generation
        self._open = set(range(len(generation.branches)))
        self._prompt_told = generation.prompt_logprobs is None

    def news(self) -> Delta | None:
        """What is new; None when nothing is. What goes wrong here ends this request alone."""
        before = sorted(self._open)
        try:
            return self.delta()
        except Exception:
            log.exception("a request failed", extra={"request": self.id})
            ended = [Piece(each, "", [], "error", error=FAILED) for each in before]
            self._open.clear()
            return Delta(self.id, 0, ended, end=End(asdict(Timings()), {}, 0))

    def delta(self) -> Delta | None:
        """What is new; None when nothing is."""
        generation = self._generation
        pieces = [piece for index in sorted(self._open) if (piece := self._piece(index))]
        prompt = self._prompt_logprobs()
        end = self._end() if not self._open else None
        if not pieces and prompt is None and end is None:
            return None
        cached = generation.branches[0].request.num_cached
        return Delta(self.id, cached, pieces, prompt, end, self._vector() if end else None)

    def _piece(self, index: int) -> Piece | None:
        new = self._generation.branches[index].completion.delta()
        if new.finished:
            self._open.discard(index)
        elif not new.token_ids and not new.text:
            return None
        logprobs = None if new.logprobs is None else [entries(each) for each in new.logprobs]
        piece = Piece(index, new.text, new.token_ids, new.finish_reason, new.stop_reason, logprobs)
        if new.finish_reason == "error":
            piece.error = self._error(index)
            piece.param = self._param(index)
        return piece

    def _prompt_logprobs(self) -> list[list[LogprobEntry] | None] | None:
        found = self._generation.prompt_logprobs
        if self._prompt_told or found is None or not found.complete:
            return None
        self._prompt_told = True
        return [None if each is None else entries(each) for each in found.result()]

    def _vector(self) -> bytes | None:
        pooling = self._generation.pooling
        return pooling.result().tobytes() if pooling is not None and pooling.complete else None

    def _end(self) -> End:
        ending = self._generation.ending()
        stats = ending.stats
        return End(asdict(ending.timings), stats["attention"], stats["preemptions"])

    def _param(self, index: int) -> str | None:
        """The field at fault, where it is the request's own."""
        from ..engine.errors import RequestError

        error = self._generation.branches[index].request.error
        return error.param if isinstance(error, RequestError) else None

    def _error(self, index: int) -> str:
        """What a client may hear: an error on purpose, else only that there was one."""
        from ..engine.errors import SaccadeError

        error = self._generation.branches[index].request.error
        if isinstance(error, SaccadeError | str) and str(error):
            return str(error)
        exception = error if isinstance(error, BaseException) else None
        log.error("a request failed", exc_info=exception, extra={"request": self.id})
        return FAILED


def entries(logprobs: TokenLogprobs) -> list[LogprobEntry]:
    """One position's log-probabilities for the wire, in their order."""
    return [(token, each.logprob, each.rank) for token, each in logprobs.items()]
