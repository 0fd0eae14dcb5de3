"""Requests of any lengths and arrivals over engines of few pages, compared with lonely runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from saccade import Engine, RequestOutput, SamplingParams
from saccade.engine.generation import Generation
from saccade.engine.pages import pages_for
from saccade.kernels import native

from .engine_probe import Recorder, Rows, bitwise, small_pool, some_tokens

BORDERS = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 80)
LONGEST, MOST = 81, 20  # tokens of a prompt and of an output


@dataclass(frozen=True)
class Wish:
    """One request of an example, and the step at which it arrives."""

    prompt: tuple[int, ...]
    n: int
    temperature: float
    max_tokens: int
    report: bool
    priority: int
    arrival: int
    attention: Any = None  # what the request itself asks for

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(
            n=self.n,
            temperature=self.temperature,
            seed=len(self.prompt),
            max_tokens=self.max_tokens,
            logprobs=2,
            prompt_logprobs=0 if self.report else None,
        )


@st.composite
def wishes(draw: st.DrawFn, before: int = 0) -> Wish:
    """Prompts of lengths around page borders, which share beginnings of any length; `before` them
    stand so many tokens more, in all of them the same.
    """
    length = draw(st.sampled_from(BORDERS) | st.integers(1, LONGEST))
    shared = draw(st.sampled_from((0, 15, 16, 32, 40, LONGEST)))
    prompt = some_tokens(min(shared, length), seed=0)
    prompt += some_tokens(length - len(prompt), seed=draw(st.integers(1, 3)))
    return Wish(
        (*some_tokens(before, seed=4), *prompt),
        n=draw(st.sampled_from((1, 1, 2, 3))),
        temperature=draw(st.sampled_from((0.0, 1.0))),
        max_tokens=draw(st.sampled_from((1, 2, 9, MOST, MOST, MOST))),
        report=draw(st.sampled_from((False, False, True))),
        priority=draw(st.integers(0, 1)),
        arrival=draw(st.integers(0, 6)),
    )


options_of_engines = st.fixed_dictionaries(
    {
        "spare_pages": st.sampled_from((0, 0, 1, 2, 5, 50)),
        "max_num_batched_tokens": st.sampled_from((2, 7, 16, 17, 33, 64, 300)),
        "max_num_seqs": st.sampled_from((1, 2, 4, 8, 8)),
        "long_prefill_share": st.sampled_from((0.25, 0.5, 1.0)),
        "page_size": st.sampled_from((16, 16, 32)),
        "enable_prefix_caching": st.sampled_from((True, True, True, False)),
    }
)
# Requests that take pages from each other, share a beginning, and fork within a page.
CROWD = [
    Wish(tuple(some_tokens(40 + i, seed=0)), 1 + i % 2, 1.0, MOST, False, 0, i) for i in range(4)
]
TIGHT = {
    "spare_pages": 1,
    "max_num_batched_tokens": 17,
    "max_num_seqs": 8,
    "long_prefill_share": 0.5,
    "page_size": 16,
    "enable_prefix_caching": True,
}
Answer = tuple[RequestOutput, list[Rows]]


class Alone:
    """What requests give when they have an engine to themselves, in one shot; remembered.

    Its pages have 64 tokens, whatever those of the other engine; but tiles of AMX take 32 keys at a
    time, and pages of 16 go by other instructions, which round otherwise: they have an engine of
    their own.
    """

    def __init__(self, folder: Path, policy: dict[str, str]) -> None:
        self._folder, self._policy = folder, policy
        self._engines: dict[int, tuple[Engine, Recorder]] = {}
        self._known: dict[Any, Answer] = {}

    def answer(
        self, prompt: tuple[int, ...], params: SamplingParams, page_size: int = 64
    ) -> Answer:
        size = 16 if page_size < 32 and native.chosen_isa() == "amx" else 64
        key = (prompt, repr(params), size)
        if key not in self._known:
            engine, recorder = self._engine(size)
            output = engine.generate(list(prompt), params)[0]
            ids = [f"{output.request_id}-{index}" for index in range(params.n)]
            self._known[key] = output, [recorder.rows.pop(id) for id in ids]
        return self._known[key]

    def _engine(self, size: int) -> tuple[Engine, Recorder]:
        if size not in self._engines:
            pages = {"kv_cache_memory": 1 << 21, "page_size": size, "enable_prefix_caching": False}
            engine = Engine(self._folder, **pages, **self._policy)
            self._engines[size] = engine, Recorder(engine)
        return self._engines[size]


def engine_for(
    folder: Path, requests: list[Wish], options: dict[str, Any], policy: dict[str, str]
) -> Engine:
    """As many pages as the longest request fills alone, and a few to spare."""
    longest = max(len(wish.prompt) + wish.max_tokens for wish in requests)
    pages = pages_for(longest, options["page_size"]) + options.pop("spare_pages")
    return Engine(folder, **small_pool(folder, pages, **options, **policy))


def serve(
    engine: Engine, requests: list[Wish], before: Callable[[], None] = lambda: None
) -> tuple[list[Generation], Recorder]:
    """Everything to its end, each request arriving at its step; `before` every step."""
    recorder = Recorder(engine)
    generations: dict[int, Generation] = {}
    for step in range(100_000):
        for index, wish in enumerate(requests):
            if wish.arrival == step:
                generations[index] = engine.add(
                    list(wish.prompt),
                    wish.params,
                    priority=wish.priority,
                    attention=wish.attention,
                )
        if len(generations) == len(requests) and not engine.scheduler.has_work:
            break
        before()
        engine.step()
        engine.scheduler.check_integrity()
    return [generations[index] for index in range(len(requests))], recorder


def check(wish: Wish, generation: Generation, recorder: Recorder, alone: Alone) -> None:
    output = generation.whole()
    expected, expected_rows = alone.answer(wish.prompt, wish.params, recorder.page_size)
    assert output.error is None
    assert output.prompt_logprobs == expected.prompt_logprobs
    assert output.outputs == expected.outputs  # tokens, logprobs, reasons
    for branch, rows in zip(generation.branches, expected_rows, strict=True):
        found = recorder.rows[branch.request.id]
        check_rows(found, rows, alone, branch.request.tokens, recorder.page_size)


def check_rows(
    found: Rows,
    expected: Rows,
    alone: Alone,
    tokens: Callable[[int, int], list[int]],
    page_size: int,
) -> None:
    """Rows that the lonely run did not compute (a fork's prompt) come from its one-shot run."""
    assert max(found) == max(expected)
    missing = sorted(found.keys() - expected.keys())
    if missing:
        prompt = tuple(tokens(0, missing[-1] + 1))
        params = SamplingParams(temperature=0, max_tokens=1)
        _, (own,) = alone.answer(prompt, params, page_size)
        expected = {**own, **expected}
    for position, row in found.items():
        assert bitwise(row, expected[position]), f"logits of position {position} differ"
