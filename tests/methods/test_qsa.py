"""Qwen4-Exp's sparse attention: limits, ties, causality, refusals, and its definition row by row.

tests/engine/test_engine_families.py compares whole models with transformers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine.attention.base import Aux, IndexShape, LayerCache, LayerShape, Step
from saccade.engine.attention.qsa import Qsa
from saccade.engine.errors import CheckpointError
from saccade.kernels import native
from saccade.kernels.store import PageLayout, write_pages

from ..engine.conftest import Checkpoints
from ..engine.engine_probe import Recorder, bitwise, greedy, some_tokens
from ..engine.test_config_json import ABSENT, read
from ..engine.test_engine_families import theirs

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(120)


def logits(folder: Path, prompt: list[int], **options: Any) -> torch.Tensor:
    """Logits of all rows of the prompt and of five generated tokens."""
    with Engine(folder, kv_cache_memory=1 << 21, **{"page_size": 16, **options}) as engine:
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(6))[0]
        assert output.stats["attention"]["prefill"]["dense_fallbacks"] == 0
        return recorder.matrix(f"{output.request_id}-0")


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_as_many_blocks_as_there_are_is_dense(checkpoint: Checkpoints, dtype: str) -> None:
    folder = checkpoint("qwen4_qsa")
    dense = logits(folder, PROMPT, attention="dense", dtype=dtype)
    for block, topk in ((4, 31), (4, 512), (8, 15), (32, 3)):
        spec = f"qsa(block={block}, topk={topk})"
        assert bitwise(logits(folder, PROMPT, attention=spec, dtype=dtype), dense)
    assert not bitwise(logits(folder, PROMPT, dtype=dtype), dense)


@compiled
def test_the_checkpoint_says_how_it_attends(checkpoint: Checkpoints) -> None:
    folder = checkpoint("qwen4_qsa")
    own = logits(folder, PROMPT)
    assert bitwise(own, logits(folder, PROMPT, attention="qsa(4, 6)"))
    with Engine(folder, kv_cache_memory=1 << 20) as engine:
        assert engine.policy.text == "qsa(topk=6)"


@compiled
@pytest.mark.parametrize(("ratio", "budget"), [(4, 4), (8, 40), (16, 32), (32, 64)])
def test_blocks_of_other_sizes_are_as_theirs(
    checkpoint: Checkpoints, ratio: int, budget: int
) -> None:
    """Blocks shorter than the page of 16 tokens, as long, and longer."""
    folder = checkpoint("qwen4_qsa", indexer_compress_ratio=ratio, indexer_budget=budget)
    found, truth = logits(folder, PROMPT)[: len(PROMPT)], theirs(folder, PROMPT)
    assert float((found - truth).abs().max() / truth.abs().max()) < 1e-4


@compiled
@pytest.mark.parametrize("at", [1, 3, 4, 31, 63, 119])
def test_what_comes_later_changes_nothing_before(checkpoint: Checkpoints, at: int) -> None:
    folder = checkpoint("qwen4_qsa")
    edited = [*PROMPT[:at], 3 + PROMPT[at] % 100, *PROMPT[at + 1 :]]
    found = [logits(folder, prompt) for prompt in (PROMPT, edited)]
    assert bitwise(found[0][:at], found[1][:at]) and not torch.equal(found[0][at], found[1][at])


def blocks_by_definition(q: torch.Tensor, keys: torch.Tensor, t: int, method: Qsa) -> set[int]:
    """Blocks that the row at t reads, by index q [H, d] and the index keys [blocks, d]."""
    whole = (t + 1) // method.block
    score = [float((q @ keys[b]).relu().sum()) for b in range(whole)]
    best = sorted(range(whole), key=lambda b: (-score[b], -b))[: method.topk]
    return {*best} | ({t // method.block} if (t + 1) % method.block else set())


@pytest.mark.parametrize(("block", "topk", "page"), [(4, 3, 16), (8, 2, 32), (32, 1, 16)])
@pytest.mark.parametrize("ties", [False, True])
def test_a_row_reads_what_the_definition_says(block: int, topk: int, page: int, ties: bool) -> None:
    """One layer over shuffled pages, in two steps whose border lies within a block; whole numbers
    have many equal scores, and zeros.
    """
    method, length, dim = Qsa(block, topk), 107, 8
    shape = LayerShape(4, 2, dim, dim, dim**-0.5, index=IndexShape(2, dim, pooled=True))
    layout, count = PageLayout(page), -(-length // page)
    table = torch.randperm(count + 2, generator=torch.Generator().manual_seed(3))[
        None, :count
    ].int()
    k_pages, v_pages = layout.allocate(count + 2, 2, dim, dim, torch.float32)
    fields = {
        name: torch.full((count + 2, *field.shape), torch.nan)
        for name, field in method.fields(shape, page).items()
    }
    cache = LayerCache(0, layout, k_pages, v_pages, fields)
    generator = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn((length, heads, dim), generator=generator) for heads in (4, 2, 2))
    index_q, index_k = (torch.randn((length, n, dim), generator=generator) for n in (2, 1))
    if ties:
        index_q, index_k = index_q.round(), torch.ones_like(index_k)

    def mean(k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, turns: Any) -> torch.Tensor:
        return k.mean(1)

    outs = []
    for start, stop in ((0, 46), (46, length)):
        at = torch.arange(start, stop)
        slots = table[0].long()[at // page] * page + at % page
        cu = torch.tensor([0, stop - start], dtype=torch.int32)
        step = Step(cu, at, slots, table, torch.tensor([length]), slice(0, stop - start), page)
        aux = Aux(rows={"index_q": index_q[at], "index_k": index_k[at]}, compress=mean)
        plan = method.plan(shape, step)
        write_pages(layout, k_pages, v_pages, k[at], v[at], slots)
        method.summarize(cache, step, plan, aux)
        outs.append(method.attend(shape, cache, step, plan, q[at], aux))
        read = sum(
            min(t + 1, (b + 1) * block) - b * block
            for t in at.tolist()
            for b in blocks_by_definition(index_q[t], _means(index_k, block), t, method)
        )
        assert float(method.keys_read(shape, step, plan)[0]) == read
    for t, found in enumerate(torch.cat(outs)):
        chosen = blocks_by_definition(index_q[t], _means(index_k, block), t, method)
        seen = [j for j in range(t + 1) if j // block in chosen]
        for head in range(4):
            keys, values = k[seen, head // 2], v[seen, head // 2]
            wanted = (q[t, head] @ keys.T * dim**-0.5).softmax(-1) @ values
            torch.testing.assert_close(found[head], wanted, rtol=1e-5, atol=1e-5)


class HostAngles:
    """Angles that are the positions."""

    def cos_sin(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return positions.float()[:, None], positions.float()[:, None]

    def turn(self, positions: torch.Tensor, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cos_sin(positions - last)


@pytest.mark.parametrize(("start", "stop", "blocks"), [(9, 20, [8, 12, 16]), (20, 23, [])])
def test_angles_of_blocks_are_looked_up_in_the_plan(
    start: int, stop: int, blocks: list[int]
) -> None:
    """A layer on a GPU would wait for the positions."""
    method, page, dim = Qsa(4, 3), 16, 8
    shape = LayerShape(4, 2, dim, dim, dim**-0.5, index=IndexShape(2, dim, pooled=True))
    at, rows = torch.arange(start, stop), slice(0, stop - start)
    table, cu = torch.tensor([[0, 1]], dtype=torch.int32), torch.tensor([0, stop - start]).int()
    step = Step(cu, at, at, table, torch.tensor([stop]), rows, page, angles=HostAngles())
    plan = method.plan(shape, step)
    fields = {
        name: torch.zeros((2, *field.shape)) for name, field in method.fields(shape, page).items()
    }
    pages = PageLayout(page).allocate(2, 2, dim, dim, torch.float32)
    cache = LayerCache(0, PageLayout(page), *pages, fields)
    found: list[float] = []

    def turned(k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, turns: Any) -> torch.Tensor:
        found.extend(turns.cos_sin(first)[0].flatten().tolist())
        return k.mean(1)

    aux = Aux(rows={"index_k": torch.zeros(stop - start, 1, dim)}, compress=turned)
    method.summarize(cache, replace(step, angles=None), plan, aux)
    assert found == blocks


def _means(index_k: torch.Tensor, block: int) -> torch.Tensor:
    whole = index_k.shape[0] // block * block
    return index_k[:whole, 0].unflatten(0, (-1, block)).mean(1)


@pytest.mark.parametrize(
    ("family", "spec", "words"),
    [
        ("qwen4_qsa", "qsa(block=2)", "power of two of at least 4, got 2"),
        ("qwen4_qsa", "qsa(block=12)", "power of two of at least 4, got 12"),
        ("qwen4_qsa", "qsa(topk=0)", r"topk must be in 1 \.\. 1023, got 0"),
        ("qwen4_qsa", "qsa(topk=1024)", r"topk must be in 1 \.\. 1023, got 1024"),
        ("qwen4_qsa", "msa(16)", "no indexer of tokens"),
        ("llama", "qsa", "no indexer that makes keys of blocks; use dense there"),
        ("minimax_m3", "0:dense; *:qsa", "no indexer that makes keys of blocks"),
    ],
)
def test_unusable_settings_are_refused(
    checkpoint: Checkpoints, family: str, spec: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Engine(checkpoint(family), attention=spec)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["indexed_attention"]}, "layer_types: expected a list of 3 entries"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types: 'sliding_attention' is not"),
        ({"indexer_n_heads": ABSENT}, "indexer_n_heads: missing"),
        ({"indexer_kv_heads": 2}, "indexer_kv_heads: expected an integer from 1 to 1, found 2"),
        ({"indexer_head_dim": 6}, "indexer_head_dim: .*no less than the 8 rotary ones"),
        ({"indexer_budget": 22}, "indexer_budget: expected a multiple of 4, found 22"),
        ({"indexer_compress_ratio": 6}, "qsa: block must be a power of two of at least 4, got 6"),
        ({"indexer_compress_ratio": 2}, "indexer_compress_ratio: expected an integer from 4"),
        ({"hc_count": 1}, "hc_count: expected an integer from 2"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok: .*6"),
    ],
)
def test_errors_name_the_key(
    checkpoint: Checkpoints, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = checkpoint("qwen4_qsa")
    base = json.loads((folder / "config.json").read_text())
    if "qsa:" in words:  # said where the spec is read
        changed = checkpoint("qwen4_qsa", **changes)
        with pytest.raises(CheckpointError, match=rf"config\.json.*{words}"):
            Engine(changed)
        return
    with pytest.raises(CheckpointError, match=rf"config\.json.*{words}"):
        read(tmp_path, base, **changes)


def test_full_attention_is_what_some_files_call_these_layers(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    base = json.loads((checkpoint("qwen4_qsa") / "config.json").read_text())
    assert read(tmp_path, base, layer_types=["full_attention"] * 3) == read(tmp_path, base)
