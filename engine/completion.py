"""One completion as it grows: tokens become text, stop strings end it, outputs are cut from it."""

from __future__ import annotations

from collections.abc import Sequence

from .detokenizer import IncrementalDetokenizer
from .logprobs import with_text
from .outputs import CompletionOutput, TokenLogprobs
from .params import SamplingParams
from .stops import StopChecker
from .tokenizer import Tokenizer


class Completion:
    """Builds the outputs of one completion; `delta` outputs joined are the `whole` output."""

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        prompt_ids: Sequence[int] = (),
    ) -> None:
        """index: which of the request's n; without a tokenizer there is no text."""
        self._params = params
        self._tokenizer = tokenizer
        self._detokenizer = (
            IncrementalDetokenizer(tokenizer, prompt_ids, params.skip_special_tokens)
            if tokenizer is not None and params.detokenize
            else None
        )
        self._checker = StopChecker(params.stop_strings, params.include_stop_str_in_output)
        self._texts: list[str] = []
        self._all = CompletionOutput(index, "", [])
        if params.logprobs is not None:
            self._all.logprobs, self._all.cumulative_logprob = [], 0.0
        self._sent_texts = self._sent_tokens = 0

    def push(
        self, token: int, logprobs: TokenLogprobs | None = None, is_stop: bool = False
    ) -> str | None:
        """Takes the next sampled token; returns the stop string that ends the text here, or None.

        is_stop: the token itself ends the completion (end-of-sequence, stop token); its text is
        left out unless include_stop_str_in_output. The caller then calls `finish` in either case.
        """
        self._all.token_ids.append(token)
        self._add_logprobs(token, logprobs)
        if self._detokenizer is None or (is_stop and not self._params.include_stop_str_in_output):
            return None
        # As for stop tokens: min_tokens others come before the one that completes a stop string.
        honour = len(self._all.token_ids) > self._params.min_tokens
        step = self._checker.push(self._detokenizer.push(token), honour)
        self._texts.append(step.text)
        return step.matched

    def finish(self, reason: str, stop_reason: str | int | None = None) -> None:
        """Ends the completion: text held back so far comes out, unless a stop string ended it."""
        if self._detokenizer is not None:
            self._texts.append(self._checker.push(self._detokenizer.flush()).text)
            self._texts.append(self._checker.flush())
        self._all.finish_reason, self._all.stop_reason = reason, stop_reason

    def break_off(self) -> None:
        """Ends it with an error, whatever reason it had; text held back does not come out."""
        self._all.finish_reason, self._all.stop_reason = "error", None

    def delta(self) -> CompletionOutput:
        """What is new since the last `delta`."""
        texts, tokens = self._sent_texts, self._sent_tokens
        self._sent_texts, self._sent_tokens = len(self._texts), len(self._all.token_ids)
        return self._output(texts, tokens)

    def whole(self) -> CompletionOutput:
        """Everything so far."""
        return self._output(0, 0)

    def _output(self, texts: int, tokens: int) -> CompletionOutput:
        every = self._all
        return CompletionOutput(
            every.index,
            "".join(self._texts[texts:]),
            every.token_ids[tokens:],
            every.finish_reason,
            every.stop_reason,
            None if every.logprobs is None else every.logprobs[tokens:],
            every.cumulative_logprob,
        )

    def _add_logprobs(self, token: int, entry: TokenLogprobs | None) -> None:
        every = self._all
        if every.logprobs is None or every.cumulative_logprob is None or entry is None:
            return
        every.cumulative_logprob += entry[token].logprob
        tokenizer = self._tokenizer
        every.logprobs.append(entry if tokenizer is None else with_text(entry, tokenizer.text_of))
