"""Maps of attention: they show what the kernels were told to read, and what softmax weighs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.engine.config import EngineConfig
from saccade.engine.errors import RequestError
from saccade.engine.look import MOST_TOKENS, AttentionMap, Looker
from saccade.engine.runner import StepResult

from ..methods.every_method import NAMES, small
from .conftest import Checkpoints
from .engine_probe import some_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = some_tokens(90)


def looker(folder: Path, **options: Any) -> Looker:
    own = {"kv_cache_memory": 1 << 21, "page_size": 16, **options}
    return Looker(EngineConfig(str(folder), **own))


def maps(found: AttentionMap, name: str) -> torch.Tensor:
    """[heads, cells, cells] of all maps, by layer, then head."""
    return torch.stack([getattr(each, name) for each in found.heads])


@pytest.mark.parametrize("name", NAMES)
def test_every_method_shows_what_it_says_it_reads(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By way of `LayerCache.attend` or `Watch.read`: what passes by them is not seen."""
    own = looker(checkpoint(small(name).family), attention=small(name).spec)
    run, steps = own._parts.runner.run, list[StepResult]()

    def note(*args: Any) -> StepResult:
        steps.append(run(*args))
        return steps[-1]

    monkeypatch.setattr(own._parts.runner, "run", note)
    found = own.look(some_tokens(300), cell=1, generated=40)
    read, visible = maps(found, "read"), maps(found, "visible")
    assert set(read.unique().tolist()) <= {0.0, 1.0}
    counts = [counts for step in steps for _, counts in step.reads]
    expected = sum(each.keys_read for each in counts)
    if name == "nsa":  # its window of 9 lies within its latest two blocks, and is read once more
        rows = sum(each.rows for each in counts)
        expected -= 2 * sum(min(position + 1, 9) for position in range(rows))
    assert float(read.sum()) / own.num_heads == pytest.approx(expected)
    assert float(visible.sum()) / own.num_heads == sum(c.keys_visible for c in counts)
    assert (read <= visible).all()
    sparse = name not in ("dense", "chunked")
    assert (float(read.sum()) < float(visible.sum())) == sparse
    assert all(
        (each.keys_share < 1) <= (each.mass_share < 1)
        for each in found.heads
        if each.mass_share is not None
    )
    assert any(each.mass_share is None for each in found.heads) == (name == "mosa")


def test_a_windows_map(checkpoint: Checkpoints) -> None:
    found = looker(checkpoint("llama"), attention="window(size=9, sinks=3)").look(TEXT, cell=1)
    distance = torch.arange(90)[:, None] - torch.arange(90)
    expected = (distance >= 0) & ((distance < 9) | (torch.arange(90) < 3))
    assert all(torch.equal(each.read > 0, expected) for each in found.heads)
    share = float(expected.sum() / (distance >= 0).sum())
    assert [each.keys_share for each in found.heads] == pytest.approx([share] * 12)
    mass = found.heads[5].mass
    kept = float((mass * expected).sum() / mass.sum())
    assert found.heads[5].mass_share == pytest.approx(kept, rel=1e-5)


def test_a_compact_page_table_does_not_show(checkpoint: Checkpoints) -> None:
    """Where old pages are gone, keys are still drawn at their absolute positions."""
    folder, text = checkpoint("llama", max_position_embeddings=8192), some_tokens(4400)
    found = [
        looker(folder, attention=f"streaming(20, 60, {mode})", kv_cache_memory=1 << 24).look(
            text, cell=50, layers=[0], heads=[0]
        )
        for mode in ("mask", "evict")
    ]
    assert torch.equal(maps(found[0], "read"), maps(found[1], "read"))


@pytest.mark.parametrize("family", ["llama", "qwen3_mixed", "smollm"])
def test_the_weights_are_those_of_transformers(checkpoint: Checkpoints, family: str) -> None:
    import transformers

    folder = checkpoint(family)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        expected = model(torch.tensor([TEXT]), output_attentions=True).attentions
    fine = looker(folder).look(TEXT, cell=1)
    assert torch.allclose(maps(fine, "mass"), torch.cat(expected).flatten(0, 1), atol=1e-5)
    coarse = looker(folder).look(TEXT, cell=16)
    assert maps(coarse, "mass").shape[1:] == (6, 6)
    padded = torch.nn.functional.pad(maps(fine, "mass"), (0, 6, 0, 6)).view(-1, 6, 16, 6, 16)
    rows = torch.tensor([16, 16, 16, 16, 16, 10])[:, None]
    assert torch.allclose(maps(coarse, "mass"), padded.sum((2, 4)) / rows, atol=1e-5)
    assert torch.allclose(maps(coarse, "mass").sum(-1), torch.ones(1), atol=1e-5)
    assert all(each.keys_share == each.mass_share == 1 for each in coarse.heads)


@pytest.mark.parametrize("spec", ["moba(block=16, topk=2)", "delta(window=9, sinks=2, gamma=4)"])
def test_chunks_do_not_show(checkpoint: Checkpoints, spec: str) -> None:
    whole = looker(checkpoint("llama"), attention=spec).look(TEXT)
    cut = looker(checkpoint("llama"), attention=spec, max_num_batched_tokens=8).look(TEXT)
    assert whole.cell == 16 and whole.tokens == whole.prompt + 45 * (spec[0] == "d") == 90
    assert torch.equal(maps(whole, "read"), maps(cut, "read"))
    assert torch.allclose(maps(whole, "mass"), maps(cut, "mass"), atol=1e-6)


def test_generated_tokens_are_read_by_the_decode_method(checkpoint: Checkpoints) -> None:
    folder = checkpoint("llama")
    found = looker(folder, decode_attention="window(size=1, sinks=0)").look(TEXT, cell=1)
    assert found.prompt == 45
    distance = torch.arange(90)[:, None] - torch.arange(90)
    expected = (distance == 0) | ((distance > 0) & (torch.arange(90)[:, None] < 45))
    assert all(torch.equal(each.read > 0, expected) for each in found.heads)
    only = looker(folder, decode_attention="window(1, 0)").look(TEXT, cell=1, generated=0)
    assert only.prompt == 90 and all(each.keys_share == 1 for each in only.heads)
    assert looker(folder).look(TEXT, generated=89).prompt == 1


def test_layers_and_heads_are_chosen(checkpoint: Checkpoints) -> None:
    own = looker(checkpoint("llama"), attention="moba(block=16, topk=2)")
    everything = own.look(TEXT)
    assert [(each.layer, each.head) for each in everything.heads] == [
        (layer, head) for layer in range(3) for head in range(4)
    ]
    some = own.look(TEXT, layers=[2, 0, 2], heads=[3, 1])
    assert [(each.layer, each.head) for each in some.heads] == [(0, 3), (0, 1), (2, 3), (2, 1)]
    assert torch.equal(some.heads[2].read, everything.heads[11].read)
    assert torch.equal(some.heads[2].mass, everything.heads[11].mass)
    assert not own._parts.scheduler.has_work


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (TEXT, {"layers": [3]}, r"layer must be in 0 \.\. 2, not 3"),
        (TEXT, {"heads": [0, -1]}, r"head must be in 0 \.\. 3, not -1"),
        (TEXT, {"generated": 90}, r"generated must be in 0 \.\. 89, not 90"),
        (TEXT, {"generated": True}, "generated must be"),
        (TEXT, {"cell": 0}, "cell must be"),
        ([], {}, "at least one token"),
        ([128], {}, "prompt"),
        ("text", {}, "no tokenizer"),
        ([3] * 512, {}, r"the text has 512 tokens; a map shows at most 511 .*shorter"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    checkpoint: Checkpoints, text: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        looker(checkpoint("llama")).look(text, **options)


def test_long_texts_are_refused_whatever_the_model_allows(checkpoint: Checkpoints) -> None:
    folder = checkpoint("llama", max_position_embeddings=1 << 20)
    with pytest.raises(RequestError, match=f"a map shows at most {MOST_TOKENS}"):
        looker(folder, kv_cache_memory=1 << 25).look([3] * (MOST_TOKENS + 1))
