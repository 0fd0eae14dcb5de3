"""NSA: limits, causality, lists, forks and refusals, through the whole engine and layer by layer.

The trained families are compared with an independent model in tests/engine/test_own_families.py.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine.attention.base import Aux, LayerCache, LayerShape, Step
from saccade.engine.attention.nsa import Nsa
from saccade.engine.attention.parse import method_text, parse_method
from saccade.engine.branches import BranchShape
from saccade.engine.errors import CheckpointError
from saccade.kernels import native
from saccade.kernels.store import PageLayout, write_pages

from ..engine.conftest import Checkpoints
from ..engine.engine_probe import Recorder, bitwise, greedy, some_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(120)
PAGE, DIM, V_DIM = 16, 24, 16
SELECTED = "nsa(16, 16, mean, topk={}, init=0, local=1, block=16, kv=shared, branches=selected)"


def logits(folder: Path, prompt: list[int], **options: Any) -> torch.Tensor:
    """Logits of all rows of the prompt and of five generated tokens."""
    with Engine(folder, kv_cache_memory=1 << 20, **{"page_size": 16, **options}) as engine:
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(6))[0]
        return recorder.matrix(f"{output.request_id}-0")


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_blocks_selected_is_dense(checkpoint: Checkpoints, dtype: str) -> None:
    """An ordinary checkpoint, which has no gates."""
    folder = checkpoint("llama")
    found = logits(folder, PROMPT, attention=SELECTED.format(8), dtype=dtype)
    assert bitwise(found, logits(folder, PROMPT, dtype=dtype))
    fewer = logits(folder, PROMPT, attention=SELECTED.format(3), dtype=dtype)
    assert not bitwise(found, fewer)


@compiled
@pytest.mark.parametrize("family", ["nsa_fla", "nsa_paper", "nsa_linear", "nsa_zen_sparse"])
def test_a_later_token_changes_nothing_before_it(checkpoint: Checkpoints, family: str) -> None:
    folder = checkpoint(family)
    changed = [*PROMPT[:70], (PROMPT[70] + 1) % 100 + 2, *PROMPT[71:]]
    first, second = logits(folder, PROMPT), logits(folder, changed)
    assert bitwise(first[:70], second[:70])
    assert not bitwise(first[70:120], second[70:120])


@pytest.mark.parametrize("family", ["nsa_fla", "nsa_paper", "nsa_weighted"])
def test_forks_in_the_middle_of_a_block(checkpoint: Checkpoints, family: str) -> None:
    folder = checkpoint(family)
    with Engine(folder, page_size=16, kv_cache_memory=1 << 20) as engine:
        lone = engine.generate(PROMPT[:41], greedy(20))[0].outputs[0].token_ids
    with Engine(folder, page_size=16, kv_cache_memory=1 << 20) as engine:
        forked = engine.generate(PROMPT[:41], greedy(20, n=3))[0]
        assert [each.token_ids for each in forked.outputs] == [lone] * 3
        assert engine.scheduler.stats().forks == 2


# ---- one layer ----


class Layer:
    """A layer over pages of its own, whose rows are read in pieces."""

    def __init__(self, method: Nsa, heads: int, kv_heads: int, length: int, v_dim: int) -> None:
        self.method, draw = method, torch.Generator().manual_seed(length)
        branches = BranchShape(method.phi, method.rope, method.kv)
        own = None if method.branches == "selected" else branches
        self.shape = LayerShape(heads, kv_heads, DIM, v_dim, 0.3, branches=own)
        kept = self.shape.kept_heads
        self.q = torch.randn(length, heads, DIM, generator=draw)
        self.k = torch.randn(length, kept, DIM, generator=draw)
        self.v = torch.randn(length, kept, v_dim, generator=draw)
        self.gates = torch.rand(length, heads, 3, generator=draw)
        self.lists: list[torch.Tensor] = []

    def run(self, *cuts: int) -> torch.Tensor:
        layout, pages = PageLayout(PAGE), -(-self.q.shape[0] // PAGE)
        k, v = layout.allocate(pages, self.shape.kept_heads, *self.shape.kept, torch.float32)
        k.fill_(torch.nan)
        fields = {
            name: torch.full((pages, *each.shape), torch.nan)
            for name, each in self.method.fields(self.shape, PAGE).items()
        }
        self.cache = LayerCache(0, layout, k, v, fields)
        bounds = [0, *cuts, self.q.shape[0]]
        return torch.cat([self._step(begin, end) for begin, end in pairwise(bounds)])

    def _step(self, begin: int, end: int) -> torch.Tensor:
        rows, positions = slice(begin, end), torch.arange(begin, end)
        table = torch.arange(self.cache.k.shape[0], dtype=torch.int32).flip(0)[None].clone()
        slots = table[0].long()[positions // PAGE] * PAGE + positions % PAGE
        cu = torch.tensor([0, end - begin], dtype=torch.int32)
        step = Step(cu, positions, slots, table, torch.tensor([10**6]), slice(0, end - begin), PAGE)
        write_pages(
            self.cache.layout, self.cache.k, self.cache.v, self.k[rows], self.v[rows], slots
        )
        plan, aux = self.method.plan(self.shape, step), Aux(rows={"gates": self.gates[rows]})
        self.method.summarize(self.cache, step, plan, aux)
        return self.method.attend(self.shape, self.cache, step, plan, self.q[rows], aux)


def layer_of(
    heads: int = 4, kv_heads: int = 2, tokens: int = 150, v_dim: int = V_DIM, **options: Any
) -> Layer:
    defaults = {"length": 8, "stride": 4, "phi": "mean", "block": 16, "topk": 4, "window": 9}
    return Layer(Nsa(**{**defaults, **options}), heads, kv_heads, tokens, v_dim)


def dense(layer: Layer, branch: int, window: int | None = None) -> torch.Tensor:
    """fp64, over the keys of one branch."""
    shape, length = layer.shape, layer.q.shape[0]
    first = branch * shape.num_kv_heads if shape.kept_heads > shape.num_kv_heads else 0
    mine = slice(first, first + shape.num_kv_heads)
    group = shape.num_heads // shape.num_kv_heads
    k, v = (x[:, mine].double().repeat_interleave(group, 1) for x in (layer.k, layer.v))
    i, j = torch.arange(length)[:, None], torch.arange(length)
    seen = (j <= i) & (i - j < (window or length))
    scores = torch.einsum("thd,lhd->htl", layer.q.double(), k) * shape.scale
    p = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("htl,lhd->thd", p, v)


@pytest.mark.parametrize("kv", ["shared", "separate"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (2, 1), (3, 1), (8, 2), (8, 1), (16, 1)])
def test_each_branch_alone_has_a_dense_limit(kv: str, heads: int, kv_heads: int) -> None:
    """d_k is 24 and d_v 16. Entries that are tokens, all blocks, a window as long as the text."""
    for branch, options in enumerate([{"length": 1, "stride": 1}, {"topk": 10}, {"window": 150}]):
        layer = layer_of(heads, kv_heads, kv=kv, **options)
        layer.gates[:] = torch.eye(3)[branch]
        assert torch.allclose(layer.run(40, 41), dense(layer, branch).float(), atol=2e-5)


@pytest.mark.parametrize("plus", [0, 1])
def test_the_window_has_exactly_so_many_keys(plus: int) -> None:
    layer = layer_of(window=20, window_plus=plus)
    layer.gates[:] = torch.tensor([0.0, 0.0, 1.0])
    assert torch.allclose(layer.run(33), dense(layer, 2, 20 + plus).float(), atol=2e-5)


def test_gates_add_up_and_nothing_comes_before_the_first_entry() -> None:
    layer, parts = layer_of(tokens=100), []
    gates = layer.gates.clone()
    for branch in range(3):
        layer.gates = torch.eye(3)[branch].expand_as(gates).contiguous()
        parts.append(layer.run())
    assert bool((parts[0][:7] == 0).all()) and bool(parts[0].isfinite().all())
    layer.gates = gates
    expected = sum(part * gates[..., i, None] for i, part in enumerate(parts))
    assert torch.allclose(layer.run(), expected, atol=1e-6)
    layer.gates = torch.zeros_like(gates)
    assert bool((layer.run() == 0).all())


@compiled
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv": "shared", "length": 32, "stride": 16},
        {"length": 1, "stride": 1, "map": "maxpool"},
        {"forced": "extra", "block": 32, "topk": 1, "init": 0, "local": 1},
    ],
    ids=str,
)
def test_cuts_at_the_borders_of_windows_and_pages(options: dict[str, Any]) -> None:
    layer = layer_of(**options)
    whole = layer.run()
    entries = {name: field.clone() for name, field in layer.cache.fields.items()}
    for cuts in ((7, 8, 9), (31, 32, 33), (15, 16, 17, 47, 48, 49), tuple(range(1, 150))):
        assert bitwise(layer.run(*cuts), whole)
        for name, field in layer.cache.fields.items():
            assert torch.equal(field.nan_to_num(), entries[name].nan_to_num())


# ---- specs ----


def test_presets_and_what_comes_on_top() -> None:
    assert parse_method("nsa") == parse_method("nsa(preset=paper)") == Nsa()
    old = Nsa(64, 64, "mean", "post", 64, 16, 0, 1, map="identity", kv="shared")
    assert parse_method("nsa(preset=fla_2025_03)") == old
    main = parse_method("nsa(preset=fla_main)")
    assert main == Nsa(64, 64, "mean", map="identity", kv="shared")
    assert parse_method("nsa(init=0, preset=fla_main, local=1)") == old
    assert parse_method("nsa(preset=xunhao)") == Nsa(
        phi="linear", rope="block", window_plus=1, kv="shared"
    )
    assert parse_method("nsa(preset=flash_nsa)") == Nsa(phi="mean", window_plus=1, kv="shared")
    for text in ("nsa", "nsa(preset=fla_main)", "nsa(preset=xunhao, window=64)"):
        assert method_text(parse_method(text)) == text


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nsa(preset=papier)", "no preset 'papier'; its presets are: paper, fla_2025_03"),
        ("nsa(preset=paper, preset=paper)", "given preset twice"),
        ("nsa(size=3)", "no option for 'size=3'; its options are: preset, length"),
        ("nsa(phi=max)", "phi must be one of mean, weighted, linear, mlp, not 'max'"),
        ("nsa(block=24)", "block must be a power of two of at least 16, got 24"),
        ("nsa(stride=12, length=24)", "stride must be a power of two that divides the block"),
        ("nsa(length=40)", "length must be a multiple of the stride of 16, got 40"),
        ("nsa(map=identity)", "map=identity needs entries that are blocks"),
        ("nsa(topk=2)", "topk at least init \\+ local"),
        ("nsa(local=0)", "local must be at least 1"),
        ("nsa(window=0, window_plus=1)", "window_plus adds to a window, but window is 0"),
        ("nsa(branches=selected)", "branches=selected needs phi=mean, rope=post and kv=shared"),
    ],
)
def test_a_bad_option_is_named(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_method(spec)


def test_layers_and_methods_must_agree(checkpoint: Checkpoints) -> None:
    with pytest.raises(ValueError, match=r"compute no gates.*branches=selected, phi=mean"):
        Engine(checkpoint("llama"), attention="nsa(preset=paper)")
    with pytest.raises(ValueError, match="the layers of this model have phi=mean, not mlp"):
        Engine(checkpoint("nsa_fla"), attention="nsa(preset=paper, kv=shared)")
    with pytest.raises(ValueError, match="only the method nsa adds up, not dense"):
        Engine(checkpoint("nsa_fla"), attention="dense")
    with pytest.raises(ValueError, match=r"only the method nsa adds up, not nsa\(.*selected"):
        Engine(checkpoint("nsa_fla"), attention=SELECTED.format(3))
    with pytest.raises(ValueError, match="sliding window of its own"):
        Engine(checkpoint("mistral"), attention=SELECTED.format(3))


def test_what_a_config_leaves_open_is_asked_for(checkpoint: Checkpoints) -> None:
    folder = checkpoint("nsa_fla", nsa_preset=None)
    with pytest.raises(CheckpointError, match=r"nsa_preset: missing.*init=0, local=1"):
        Engine(folder)
    spec = "nsa(preset=fla_main, length=16, stride=16, block=16, topk=3, window=9)"
    told = logits(folder, PROMPT, attention=spec)
    assert bitwise(told, logits(checkpoint("nsa_fla"), PROMPT))
    silent = checkpoint("nsa_zen_sparse", inference_mode=None)
    with pytest.raises(CheckpointError, match=r"window_size: 0 does not tell.*or dense"):
        Engine(silent)
    full = logits(checkpoint("nsa_zen_full"), PROMPT)
    assert bitwise(logits(silent, PROMPT, attention="dense"), full)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"phi": "conv"}, "'conv' is not supported; supported: mean, weighted, linear, mlp"),
        ({"phi_hidden": None}, "phi_hidden: a number for phi mlp"),
        ({"v_dim": 7}, "v_dim: expected an even number"),
        ({"gate": "none"}, "gate: 'none' is not supported"),
        ({"extra": 1}, "extra: unknown; the keys are v_dim"),
        ({"block": 24}, "block must be a power of two"),
    ],
    ids=str,
)
def test_a_bad_entry_is_refused(
    checkpoint: Checkpoints, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    import json

    folder = checkpoint("nsa_paper")
    config = json.loads((folder / "config.json").read_text())
    config["nsa"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        Engine(tmp_path)
