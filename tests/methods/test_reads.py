"""Statistics of requests: what the methods say they read is what the kernels were told to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine.attention.base import LayerShape, Step
from saccade.engine.attention.window import Window
from saccade.engine.stats import AttentionReads, ReadCounts
from saccade.kernels.attend import AttendCall, Keys, api

from ..engine.conftest import Checkpoints, Engines
from ..engine.engine_probe import greedy, some_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
LAYERS = 3  # of the tiny checkpoints


def visible(keys: Keys, heads: int) -> int:
    """Pairs of a query and a key that `attend` was asked for, one key at a time."""
    total, length = 0, int(keys.positions.max()) + 1
    for begin, end in pairwise(keys.cu_rows.tolist()):
        for row in range(begin, end):
            position = int(keys.positions[row])
            lo = 0 if keys.lo is None else int(keys.lo[row])
            hi = position + 1 if keys.hi is None else int(keys.hi[row])
            at = torch.arange(length)
            seen = (at >= lo) & (at < hi)
            if keys.window is not None:
                seen &= (position - at < keys.window) | (at < keys.sinks)
            if keys.blocks is None:
                total += heads * int(seen.sum())
                continue
            own = keys.blocks.list_of_row
            lists = keys.blocks.ids[row if own is None else int(own[row])]
            for owner in lists:  # a query head's, or a KV head's for all of its group
                chosen = torch.isin(at // keys.blocks.block, owner[owner >= 0])
                total += heads // lists.shape[0] * int((seen & chosen).sum())
    return total


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Pairs that the op was asked for while prefilling and while decoding: counted at its door."""
    found: Counter[str] = Counter()
    op = api.ATTEND

    def spy(call: AttendCall) -> Any:
        found["pairs"] += visible(call.keys, call.heads)
        return op(call)

    monkeypatch.setattr(api, "ATTEND", spy)
    return found


def both(reads: dict[str, dict[str, Any]], key: str) -> float:
    return float(reads["prefill"][key] + reads["decode"][key])


@pytest.mark.parametrize(
    ("family", "policy"),
    [
        ("llama", {}),
        ("llama", {"attention": "window(9, 3)"}),
        ("llama", {"attention": "streaming(3, 9)"}),
        ("llama", {"attention": "streaming(20, 9, evict)"}),
        ("llama", {"attention": "chunked(5, 7)"}),
        ("llama", {"attention": "moba(16, 2)"}),
        ("llama", {"attention": "0:dense; 1:moba(32, 2); *:window(8)"}),
        ("llama", {"prefill_attention": "delta(window=9, sinks=2, gamma=4)"}),
        (
            "llama",
            {"prefill_attention": "delta(gamma=4, base=moba, mode=paper, block=16, topk=2)"},
        ),
        ("llama", {"prefill_attention": "moba(16, 2)", "decode_attention": "window(20)"}),
        ("llama", {"decode_attention": "quest(budget=48, block=16)"}),
        ("llama", {"attention": "infllm(32, 16, 32, 2, 1, 0, 0)"}),
        ("llama", {"attention": "infllm(16, 16, 16, 2, 0, 16, 153, exact)"}),
        ("llama", {"attention": "adaptive(20, 3, 0.6, blocks, 16)"}),
        ("llama", {"attention": "adaptive(20, 3, 0.3, full, 16, bound=1)"}),
        ("minimax_m3", {}),
        ("qwen4_qsa", {}),
        ("qwen4", {}),
        ("qwen3_next_hybrid", {"attention": "moba(16, 2)"}),
        ("mistral", {}),
        ("qwen3_mixed", {"attention": "chunked(5, 7)"}),
        ("nsa_fla", {}),
        ("nsa_paper", {}),
        ("asa", {}),
        ("asa_wide", {}),
    ],
    ids=str,
)
def test_what_is_reported_is_what_the_kernels_were_asked_for(
    checkpoint: Checkpoints,
    make_engine: Engines,
    asked: Counter[str],
    family: str,
    policy: dict[str, str],
) -> None:
    engine = make_engine(checkpoint(family), max_num_batched_tokens=64, **policy)
    output = engine.generate(some_tokens(150), greedy(6))[0]
    reads = output.stats["attention"]
    heads = engine.model_config.num_heads
    assert asked["pairs"] == pytest.approx(heads * both(reads, "keys_read"))
    assert (reads["prefill"]["rows"], reads["decode"]["rows"]) == (150, 5)
    assert both(reads, "dense_fallbacks") == 0
    for phase in reads.values():
        assert phase["share"] > 0
        assert phase["share"] == phase["keys_read"] / phase["keys_visible"]
        assert phase["share"] <= 1 or "moba, mode=paper" in str(policy)  # exact rows read twice


def test_shares_by_phase(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine = make_engine(
        checkpoint("llama"), prefill_attention="moba(16, 2)", decode_attention="dense"
    )
    reads = engine.generate(some_tokens(100), greedy(4))[0].stats["attention"]
    rows = range(100)
    assert reads["prefill"]["keys_visible"] == LAYERS * sum(p + 1 for p in rows)
    assert reads["prefill"]["keys_read"] == LAYERS * sum(
        p % 16 + 1 + (16 if p >= 16 else 0) for p in rows
    )
    assert reads["prefill"]["blocks_selected"] == LAYERS * sum(1 + (p >= 16) for p in rows)
    assert reads["decode"]["share"] == 1 and reads["decode"]["blocks_selected"] == 0


def test_an_engine_adds_up_its_requests(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine = make_engine(checkpoint("llama"), attention="window(9)")
    outputs = engine.generate([some_tokens(40), some_tokens(70, seed=1)], greedy(5))
    outputs += engine.generate(some_tokens(40), greedy(5, n=3))
    total = AttentionReads()
    for output in outputs:
        for phase, counts in output.stats["attention"].items():
            total.add(ReadCounts(**without_share(counts)), phase == "decode")
    assert engine.reads == total
    # The second request's prompt is cached, but for its last page; forks compute one row each.
    assert total.decode.rows == 4 * 5 and total.prefill.rows == 40 + 70 + 8 + 2


def without_share(counts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in counts.items() if name != "share"}


def test_a_method_that_turns_dense_is_found_out(
    checkpoint: Checkpoints, make_engine: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As others do in chunked prefill: whatever the window, these rows see all keys."""
    plan: Callable[[Window, LayerShape, Step], Keys] = Window.plan

    def dense_when_chunked(method: Window, shape: LayerShape, step: Step) -> Keys:
        keys = plan(method, shape, step)
        return keys if int(keys.positions[0]) == 0 else replace(keys, window=None, sinks=0)

    monkeypatch.setattr(Window, "plan", dense_when_chunked)
    engine = make_engine(checkpoint("llama"), attention="window(9)", max_num_batched_tokens=32)
    reads = engine.generate(some_tokens(64), greedy(3))[0].stats["attention"]
    assert reads["prefill"]["dense_fallbacks"] == LAYERS  # the second chunk, in every layer
    assert reads["decode"]["dense_fallbacks"] == 2 * LAYERS


def test_nothing_read_has_no_share() -> None:
    assert ReadCounts().share is None
    assert ReadCounts(rows=1, keys_read=1, keys_visible=4).as_dict()["share"] == 0.25


def test_prompts_of_no_kind_are_a_type_error(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine: Engine = make_engine(checkpoint("llama"))
    for prompts in (5, None, {3: 4}, 2.5, iter([3])):
        with pytest.raises(TypeError, match="prompts must be a text, a list of token ids"):
            engine.generate(prompts)
