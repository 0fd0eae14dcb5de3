"""Engine: prompts in, tokens out. A step is three calls: schedule, run, commit."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .allowed import Allowed
from .assembly import Source, assemble
from .config import EngineConfig
from .errors import RequestError
from .generation import Branch, Generation
from .grammar import GrammarCompiler
from .grammar_state import GrammarState
from .inputs import Prompt, as_list, check_scoring, encode, spread, spread_attention
from .outputs import RequestOutput
from .params import SamplingParams, validate_prompt_ids
from .policies import AttentionSpec
from .pooling import Vector, normalized
from .progress import Progress
from .sampler import Sampler
from .steps import Steps

# Seconds between checks of the page accounts while idle: each reads every page's entry.
_IDLE_CHECK_S = 5.0


class Engine:
    """A model with its paged memory, serving any number of requests in continuous batches.

    model: a checkpoint folder in Hugging Face format, or "demo"; or a Source, of a model that is in
    no checkpoint. `options` are the fields of EngineConfig: device, dtype, attention,
    prefill_attention, decode_attention, max_model_len, max_num_seqs, max_num_batched_tokens,
    kv_cache_memory, page_size, enable_prefix_caching, long_prefill_share, alone_step_seconds,
    check_finite, calibration, allowed_attention, least_chunk. verbose: print the memory plan to
    stderr at start. Not thread-safe: one thread drives an engine.

    Raises CheckpointError, CapacityError, or ValueError for a bad option.
    """

    def __init__(
        self, model: str | Path | Source, *, verbose: bool = False, **options: Any
    ) -> None:
        known = EngineConfig.__dataclass_fields__.keys() - {"model"}
        if unknown := sorted(options.keys() - known):
            raise ValueError(
                f"Engine has no option {unknown[0]!r}; its options are: {', '.join(sorted(known))}"
            )
        self.config = EngineConfig(str(model), **options)
        parts = assemble(self.config, model if isinstance(model, Source) else None)
        self.model_config, self.memory = parts.model_config, parts.memory
        self.tokenizer, self.scheduler = parts.tokenizer, parts.scheduler
        self.policy = parts.policies.own
        self._policies = parts.policies
        self._allowed = Allowed.of(self.config.allowed_attention, self.config.least_chunk)
        self._runner = parts.runner
        self._sampler = Sampler()
        self.grammars = GrammarCompiler(
            self.tokenizer, self.model_config.vocab_size, self.model_config.eos_token_ids
        )
        self._live: dict[str, Generation] = {}
        self._branches: dict[str, tuple[Generation, Branch]] = {}
        self._ids = itertools.count()
        self._checked = time.monotonic()
        self._steps = Steps(self.scheduler, self._runner, self._sampler, self._branches)
        self.reads = self._steps.reads  # of all requests so far
        if verbose:
            print("\n".join(self.memory.render()), file=sys.stderr)

    # ---- what users call ----

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        attention: AttentionSpec | Sequence[AttentionSpec | None] | None = None,
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Answers a prompt (text or token ids) or a list of prompts; outputs come in the order of
        the prompts.

        sampling_params: one for all, or one per prompt; default SamplingParams(). attention: as in
        `add`, for all or a list with one per prompt. progress: a bar on stderr; None: on a
        terminal, for several prompts. A request that fails has finish_reason
        "error" and `.error`; the others go on. Raises RequestError when a prompt or parameter is
        refused; then nothing has been generated.
        """
        items = as_list(prompts)
        params = spread(sampling_params, len(items))
        wishes = spread_attention(attention, len(items))
        return [each.whole() for each in self._run_all(items, params, wishes, progress)]

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: str = "mean",
        normalize: bool = False,
        attention: AttentionSpec | Sequence[AttentionSpec | None] | None = None,
    ) -> list[Vector]:
        """A float32 vector [hidden] per prompt, from the final hidden states (after the last norm):
        their "mean", or the "last" token's; normalize: to length 1. attention: as in `generate`.

        Raises RequestError when a prompt is refused, SaccadeError when one fails.
        """
        items = as_list(prompts)
        each = SamplingParams(max_tokens=1, temperature=0, detokenize=False, pooling=pooling)
        wishes = spread_attention(attention, len(items))
        generations = self._run_all(items, spread(each, len(items)), wishes, False)
        vectors = [generation.vector() for generation in generations]
        return [normalized(vector) for vector in vectors] if normalize else vectors

    def _run_all(
        self,
        items: Sequence[Prompt],
        params: Sequence[SamplingParams],
        wishes: Sequence[AttentionSpec | None],
        progress: bool | None,
    ) -> list[Generation]:
        """Adds them all and steps until they have ended; all or none."""
        generations: list[Generation] = []
        try:
            for prompt, each, wish in zip(items, params, wishes, strict=True):
                generations.append(self.add(prompt, each, attention=wish))
            with Progress(len(items), progress) as bar:
                while not all(generation.finished for generation in generations):
                    self.step()
                    bar.update(sum(generation.finished for generation in generations))
        except BaseException:
            for generation in generations:
                self.abort(generation.id)
            raise
        return generations

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        attention: AttentionSpec | None = None,
    ) -> Iterator[RequestOutput]:
        """Queues a request now, and yields what is new after every step that brought anything; the
        last output is finished.

        attention: as in `add`. Closing or dropping the iterator early aborts the request. Raises
        RequestError or CapacityError at once when it is refused.
        """
        generation = self.add(prompt, sampling_params or SamplingParams(), attention=attention)
        outputs = self._outputs(generation)
        next(outputs)  # from here on, whatever becomes of the iterator, its end aborts the request
        return outputs

    def _outputs(self, generation: Generation) -> Iterator[RequestOutput]:
        """A first output that says nothing, then those of a stream."""
        finished = False
        try:
            yield generation.whole()
            while not finished:
                if not generation.finished:  # somebody else's step may have ended it
                    self.step()
                finished, output = generation.finished, generation.delta()
                brought = any(each.token_ids or each.text for each in output.outputs)
                if finished or brought or output.prompt_logprobs is not None:
                    yield output
        finally:
            self.abort(generation.id)

    def abort(self, request_id: str) -> bool:
        """Ends a request now and frees its pages; False when there is none of this id."""
        generation = self._live.get(request_id)
        if generation is None:
            return False
        for branch in generation.branches:
            if self.scheduler.abort(branch.request.id):
                self._close(branch.request.id)
        return True

    def close(self) -> None:
        """Aborts everything that is left."""
        for request_id in list(self._live):
            self.abort(request_id)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- the step ----

    def add(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        attention: AttentionSpec | None = None,
        grammar: GrammarState | None = None,
    ) -> Generation:
        """Queues a request that `step` advances. RequestError, CapacityError when refused.

        attention: a spec for this request alone, such as "dense", or an object of specs named
        attention, prefill_attention and decode_attention (what it leaves open is the engine's).
        A method that keeps state in the pages needs an engine whose own policy keeps the same.
        grammar: of the structure, compiled before by `grammars.compile` on any thread; without it
        the structure is compiled here, which may take as long as its deadline.
        """
        text = prompt if isinstance(prompt, str) else None
        ids = encode(prompt, self.tokenizer)
        vocabulary = self.model_config.vocab_size
        validate_prompt_ids(ids, vocabulary)
        params.check_against(vocabulary)
        if self.policy.needs_whole_text:
            check_scoring(self.policy.text, self.config.max_num_batched_tokens, ids, params)
        name = request_id if request_id is not None else self._new_id()
        if name in self._live:
            raise RequestError(f"Request id {name!r} is already in use.", "request_id")
        policy = self._policies.of(attention)
        self._allowed.check(policy, self.policy)
        if params.structure is not None and grammar is None:
            grammar = self.grammars.compile(params.structure)
        generation = Generation(
            name,
            text,
            list(ids),
            params,
            policy,
            sampler=self._sampler,
            tokenizer=self.tokenizer,
            eos_ids=self.model_config.eos_token_ids,
            priority=priority,
            cache_salt=cache_salt,
            grammar=grammar,
        )
        for branch in generation.branches:
            self.scheduler.add(branch.request)
            self._branches[branch.request.id] = (generation, branch)
        self._live[name] = generation
        return generation

    def step(self) -> list[Generation]:
        """Advances the engine by one batch and returns the requests that took part, each once;
        does nothing when no request is unfinished.

        An exception while the batch runs fails the request it belongs to, not the engine; an
        interrupt fails all of the batch, and is raised again."""
        if not self.scheduler.has_work:
            return []
        plan = self.scheduler.schedule()
        names = [chunk.request.id for chunk in plan.chunks]
        part = {name: self._branches[name][0] for name in names}
        began = time.perf_counter()
        try:
            self._steps.run(plan)
            self.scheduler.note_time(plan, time.perf_counter() - began)
        finally:
            for name in names:
                self._close_if_finished(name)
        if not self.scheduler.has_work and time.monotonic() - self._checked > _IDLE_CHECK_S:
            self.scheduler.check_integrity()
            self._checked = time.monotonic()
        return list(dict.fromkeys(part.values()))

    @property
    def progress(self) -> int:
        """Layers run so far. While it grows, a step is under way, however long it takes."""
        return self._runner.progress

    # ---- small parts ----

    def _close_if_finished(self, request_id: str) -> None:
        entry = self._branches.get(request_id)
        if entry is not None and entry[1].request.finish_reason is not None:
            self._close(request_id)

    def _close(self, request_id: str) -> None:
        generation, branch = self._branches.pop(request_id)
        try:
            generation.close(branch)
        except Exception as error:  # noqa: BLE001 - e.g. a decoder that fails on its last bytes
            generation.break_off(branch, error)
        if generation.finished:
            self._live.pop(generation.id, None)

    def _new_id(self) -> str:
        names = (f"request-{number}" for number in self._ids)
        return next(name for name in names if name not in self._live)
