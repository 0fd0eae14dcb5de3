"""A user's request from the engine's side: its n completions, their sampling states, its clock and
its outputs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from .completion import Completion
from .errors import SaccadeError
from .grammar_state import GrammarState
from .logprobs import PromptLogprobs
from .outputs import CompletionOutput, RequestOutput, Timings, TokenLogprobs
from .params import SamplingParams
from .pooling import Pooling, Vector
from .request import Policy, Request, RequestState
from .sampler import Sampled, Sampler
from .sampler_state import SamplerState
from .stats import AttentionReads
from .tokenizer import Tokenizer


class Branch:
    """One of the n completions: the scheduler's request, the sampler's state, the growing text."""

    def __init__(self, request: Request, state: SamplerState, completion: Completion) -> None:
        self.request = request
        self.state = state
        self.completion = completion


class Generation:
    """n completions of one prompt; the first branch's request is the parent of the others."""

    def __init__(
        self,
        id: str,
        prompt: str | None,
        prompt_ids: list[int],
        params: SamplingParams,
        policy: Policy,
        *,
        sampler: Sampler,
        tokenizer: Tokenizer | None,
        eos_ids: Sequence[int],
        priority: int = 0,
        cache_salt: str = "",
        grammar: GrammarState | None = None,
    ) -> None:
        self.id = id
        self.prompt = prompt
        self.prompt_ids = prompt_ids
        self.params = params
        self.error: str | None = None
        self.reads = AttentionReads()
        self.prompt_logprobs: PromptLogprobs | None = None
        self._sent_prompt_logprobs = False
        if params.prompt_logprobs is not None:
            self.prompt_logprobs = PromptLogprobs(prompt_ids, params.prompt_logprobs)
        self.pooling: Pooling | None = None
        if params.pooling is not None:
            self.pooling = Pooling(params.pooling, len(prompt_ids))
        self._arrival = time.perf_counter()
        self._first_step: float | None = None
        self._first_token: float | None = None
        self._last_token: float | None = None
        self._end: float | None = None
        if grammar is not None:
            grammar = grammar.for_request()
        first_state = sampler.new_state(params, prompt_ids, eos_ids, grammar=grammar)
        self.branches: list[Branch] = []
        for index in range(params.n):
            parent = self.branches[0].request if index else None
            request = Request(
                f"{id}-{index}",
                prompt_ids,
                params,
                policy,
                priority,
                self._arrival,
                cache_salt,
                parent,
            )
            # One seed for all n: the stream number tells them apart.
            state = first_state
            if index:
                seed = first_state.seed
                state = SamplerState(
                    params, prompt_ids, eos_ids, seed=seed, stream=index, grammar=grammar
                )
            self.branches.append(
                Branch(request, state, Completion(index, params, tokenizer, prompt_ids))
            )

    @property
    def finished(self) -> bool:
        """True when no branch will get another token."""
        return all(branch.request.state is RequestState.FINISHED for branch in self.branches)

    def note_step(self) -> None:
        """A step with tokens of this request begins."""
        if self._first_step is None:
            self._first_step = time.perf_counter()

    def take(self, branch: Branch, sampled: Sampled) -> str | None:
        """Adds an accepted token to its branch; returns the stop string that ends it, or None."""
        self._last_token = time.perf_counter()
        self._first_token = self._first_token or self._last_token
        branch.state.advance(sampled.token)
        is_stop = branch.request.finish_reason == "stop"
        return branch.completion.push(sampled.token, sampled.logprobs, is_stop)

    def close(self, branch: Branch) -> None:
        """Ends a branch whose request has finished: text held back comes out."""
        request = branch.request
        if request.error is not None and self.error is None:
            self.error = str(request.error) or type(request.error).__name__
        branch.completion.finish(request.finish_reason or "abort", request.stop_reason)
        if self.finished:
            self._end = time.perf_counter()

    def break_off(self, branch: Branch, error: Exception) -> None:
        """Ends a branch that `close` failed on; text held back is lost."""
        branch.request.error = error
        self.error = self.error or str(error) or type(error).__name__
        branch.completion.break_off()
        if self.finished:
            self._end = time.perf_counter()

    def vector(self) -> Vector:
        """What pooling has made of the prompt. SaccadeError when the request failed."""
        if self.error is not None or self.pooling is None:
            raise SaccadeError(self.error or "this request asked for no vector")
        return self.pooling.result()

    def delta(self) -> RequestOutput:
        """What is new since the last `delta`."""
        output = self._output([branch.completion.delta() for branch in self.branches])
        if not self._sent_prompt_logprobs:
            output.prompt_logprobs = self._known_prompt_logprobs()
            self._sent_prompt_logprobs = output.prompt_logprobs is not None
        return output

    def whole(self) -> RequestOutput:
        """Everything so far."""
        output = self._output([branch.completion.whole() for branch in self.branches])
        output.prompt_logprobs = self._known_prompt_logprobs()
        return output

    def _known_prompt_logprobs(self) -> list[TokenLogprobs | None] | None:
        """A list of them all once the prompt has been read, if they were asked for."""
        logprobs = self.prompt_logprobs
        return logprobs.result() if logprobs is not None and logprobs.complete else None

    def ending(self) -> RequestOutput:
        """The whole output without its completions: for who has had those by `delta`."""
        return self._output([])

    def _output(self, outputs: list[CompletionOutput]) -> RequestOutput:
        parent = self.branches[0].request
        return RequestOutput(
            self.id,
            self.prompt,
            self.prompt_ids,
            outputs,
            None,
            parent.num_cached,
            self._timings(),
            {
                "preemptions": sum(branch.request.num_preemptions for branch in self.branches),
                "attention": self.reads.as_dict(),
            },
            self.error,
        )

    def _timings(self) -> Timings:
        first, token, last = self._first_step, self._first_token, self._last_token
        return Timings(
            queued_s=None if first is None else first - self._arrival,
            prefill_s=None if first is None or token is None else token - first,
            ttft_s=None if token is None else token - self._arrival,
            decode_s=None if token is None or last is None else last - token,
            total_s=None if self._end is None else self._end - self._arrival,
        )
