"""A request's own attention policy: it gives what an engine of that policy gives, bit for bit, in
any company; and what the pages cannot serve is refused by name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saccade import Engine
from saccade.engine.errors import RequestError
from saccade.kernels import native

from .conftest import Checkpoints, Engines, check_idle
from .cuts import CROWD, TIGHT, Alone, Wish, check, engine_for, options_of_engines, serve, wishes
from .engine_probe import greedy, some_tokens, tokens_of

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="torch's own products round by batch size"
)

MOBA, QUEST = "moba(block=16, topk=2)", "quest(budget=48, block=16)"
DELTA, WINDOW = "delta(window=9, sinks=2, gamma=4)", "window(size=9, sinks=3)"
SPECS = ("attention", "prefill_attention", "decode_attention")
# Family, the engine's own policy, and what its requests ask for.
CASES: dict[str, tuple[str, dict[str, str], list[Any]]] = {
    "dense": (
        "llama",
        {},
        [
            "dense",
            WINDOW,
            "0:chunked(4, 6); *:dense",
            "streaming(3, 16, evict)",
            {"prefill_attention": DELTA, "decode_attention": "lessismore(48, 16, 0, 1)"},
            {"decode_attention": "tidal(48, 16, 1, 2)"},
        ],
    ),
    "moba_quest": (
        "qwen3",
        {"dtype": "bfloat16", "prefill_attention": MOBA, "decode_attention": QUEST},
        [
            "dense",
            MOBA,
            {"prefill_attention": DELTA},
            {"prefill_attention": "delta(gamma=8, mode=paper, base=moba, block=16, topk=3)"},
            {"attention": "moba(16, 3)", "decode_attention": "dense"},
        ],
    ),
    "sliding": ("qwen3_mixed", {"attention": "chunked(6, 4)"}, ["dense", "window(size=4)"]),
    "asa": (
        "asa",
        {"attention": "asa(16, 3, 1, 1, reuse=4)"},
        ["asa(16, 3, 1, 1, reuse=4, form=expanded)", "asa(16, 2, 0, 1)"],
    ),
}


def options_for(own: dict[str, str], wish: Any) -> dict[str, str]:
    """Options of an engine whose own policy is what a request of `own` asks for."""
    specs = {"attention": wish} if isinstance(wish, str) else dict(wish or {})
    whole = wish is None or "attention" not in specs
    return {**{name: own[name] for name in own if whole or name not in SPECS}, **specs}


@compiled
@pytest.mark.parametrize("case", CASES)
def test_a_request_attends_as_if_the_engine_were_its_own(
    checkpoint: Checkpoints, case: str
) -> None:
    family, own, specs = CASES[case]
    folder = checkpoint(family)
    lonely = {repr(wish): Alone(folder, options_for(own, wish)) for wish in (None, *specs)}
    seen = {"preemptions": 0, "forks": 0, "hit_tokens": 0, "copies": 0}
    crowd = [replace(wish, attention=specs[i % 2]) for i, wish in enumerate(CROWD)]
    wanted = st.sampled_from([None, *specs])

    @example(requests=[*CROWD[:2], *crowd], options=TIGHT)
    @settings(max_examples=8, derandomize=True, database=None, deadline=None)
    @given(
        requests=st.lists(
            st.builds(lambda wish, mine: replace(wish, attention=mine), wishes(), wanted),
            min_size=2,
            max_size=6,
        ),
        options=options_of_engines,
    )
    def holds(requests: list[Wish], options: dict[str, Any]) -> None:
        tokens = max(options["max_num_batched_tokens"], 32)  # a long prompt's part is 8
        options = {**options, "max_num_batched_tokens": tokens}
        engine = engine_for(folder, requests, dict(options), own)
        generations, recorder = serve(engine, requests)
        for wish, generation in zip(requests, generations, strict=True):
            check(wish, generation, recorder, lonely[repr(wish.attention)])
        check_idle(engine)
        for name in seen:
            seen[name] += getattr(engine.scheduler.stats(), name)

    holds()
    assert all(count > 0 for count in seen.values()), seen


def test_policies_share_prefixes_with_their_like_alone(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    """Whatever the spelling; the engine's own policy is one of them."""
    engine, prompt = make_engine(checkpoint("llama")), some_tokens(70)

    def cached(attention: Any) -> int:
        return engine.generate(prompt, greedy(1), attention=attention)[0].num_cached_tokens

    assert cached("window(9)") == 0
    assert cached("window(9)") == 64
    assert cached(None) == 0
    assert cached("dense") == cached({"decode_attention": "dense"}) == 64
    assert cached("*: window(size=9, sinks=4)") == 64
    assert cached({"prefill_attention": "window(9)"}) == 0  # decodes otherwise
    assert cached("window(9, 3)") == 0
    assert cached({}) == 64


def test_one_wish_for_all_or_one_per_prompt(checkpoint: Checkpoints, make_engine: Engines) -> None:
    prompts, folder = [some_tokens(60), some_tokens(50, seed=1)], checkpoint("llama")
    engine = make_engine(folder)
    sparse = make_engine(folder, attention="window(5, 0)")

    def found(attention: Any = None, by: Engine = engine) -> list[Any]:
        return [tokens_of(each) for each in by.generate(prompts, greedy(), attention=attention)]

    own, narrow = found(), found(by=sparse)
    assert own != narrow

    assert found("window(5, 0)") == narrow
    assert found([None, "window(5, 0)"]) == [own[0], narrow[1]]
    assert found(["window(5, 0)", "dense"]) == [narrow[0], own[1]]
    pieces = engine.stream(prompts[1], greedy(), attention="window(5, 0)")
    assert [[token for each in pieces for token in each.outputs[0].token_ids]] == narrow[1]
    with pytest.raises(RequestError, match="1 attention specs for 2 prompts"):
        engine.generate(prompts, greedy(), attention=["dense"])
    with pytest.raises(RequestError, match="'sparse' is unknown"):
        engine.generate(prompts, greedy(), attention=["dense", "sparse"])
    assert not engine.scheduler.has_work


def test_the_statistics_are_of_the_request(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine = make_engine(checkpoint("llama"), attention=MOBA)
    dense, own = engine.generate([some_tokens(90)] * 2, greedy(4), attention=["dense", None])
    assert dense.stats["attention"]["prefill"]["share"] == 1
    assert own.stats["attention"]["prefill"]["share"] < 0.7
    assert dense.stats["attention"]["decode"]["blocks_selected"] == 0
    assert own.stats["attention"]["decode"]["blocks_selected"] == 3 * 3 * 2  # rows, layers, topk


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        (MOBA, r"moba\(block=16, topk=2\) needs the page field 'mean_16', which this engine does "
         r"not keep in layer 0; .*one that needs none"),
        ({"decode_attention": f"0:dense; *:{QUEST}"}, "'bounds_16'.*layer 1"),
        ({"prefill_attention": "delta(anchor_guard=0.25)"}, r"delta\(anchor_guard=0\.25\)"),
        ("delta(gamma=1000)", r"1000 tokens, but a long prompt has 512 .*max_num_batched_tokens"),
        ("asa", "layers of this model keep K and V; asa needs latents"),
        ("sparse", r"'sparse' is unknown.*dense, window"),
        ("window(size=0)", "size must be at least 1"),
        ("window(length=3)", "window has no option for 'length=3'.*size, sinks"),
        ("7:dense; *:dense", "layers '7'"),
        ("", "names no method for layer 0"),
        ({"prefill_attention": QUEST}, "quest does not serve this phase; use one of dense"),
        ({"decode_attention": ""}, "names no method"),
        ({"prefill": "dense"}, "specs named attention, prefill_attention, decode_attention"),
        ({"attention": 5}, "specs named attention"),
        (5, "specs named attention"),
        (b"dense", "specs named attention"),
        (";" * 20_000, "at most 16384 characters"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused(
    checkpoint: Checkpoints, make_engine: Engines, attention: Any, words: str
) -> None:
    engine = make_engine(checkpoint("llama"), max_num_batched_tokens=1024)
    with pytest.raises(RequestError, match=words) as caught:
        engine.add(some_tokens(20), greedy(), attention=attention)
    assert caught.value.param == "attention"
    assert not engine.scheduler.has_work and not engine._live


def test_what_the_engine_keeps_is_named(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine = make_engine(checkpoint("llama"), prefill_attention=MOBA, decode_attention=QUEST)
    with pytest.raises(RequestError, match=r"'mean_32'.*needs 'mean_16' or 'bounds_16'"):
        engine.add(some_tokens(20), greedy(), attention="moba(block=32, topk=2)")
    latent = make_engine(checkpoint("asa"))
    with pytest.raises(RequestError, match="layer 0 keeps latents"):
        latent.add(some_tokens(20), greedy(), attention="dense")
    sliding = make_engine(checkpoint("qwen3_mixed"))
    with pytest.raises(RequestError, match="moba: a layer has a sliding window of its own"):
        sliding.add(some_tokens(20), greedy(), attention=MOBA)


def test_many_wishes_are_not_kept_for_ever(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine = make_engine(checkpoint("llama"))
    for size in range(1, 200):
        engine._policies.of(f"window({size})")
    assert len(engine._policies._known) <= 64
    assert engine._policies.of("window(9)") is engine._policies.of("window(9)")
    assert engine._policies.of(None) is engine.policy


def test_what_the_operator_allows(checkpoint: Checkpoints) -> None:
    from saccade.engine.config import EngineConfig

    with pytest.raises(ValueError, match="no method 'sparse'; it may hold own, dense"):
        EngineConfig("demo", allowed_attention="dense,sparse")
    options: Any = {"page_size": 16, "kv_cache_memory": 4 << 20}
    folder = checkpoint("llama")
    with Engine(folder, attention=WINDOW, allowed_attention="own", **options) as engine:
        for wish in (WINDOW, {"decode_attention": WINDOW}):
            engine.generate([[5, 6, 7]], greedy(2), attention=[wish])
        with pytest.raises(RequestError, match="allowed: none but its own"):
            engine.generate([[5, 6, 7]], greedy(2), attention="dense")
