"""The config keys of MoSA, its calibration file, and the memory of kept tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine.attention.policy import parse_policy
from saccade.engine.cache import bytes_per_page, kept_bytes_per_page, kept_rule, layer_groups
from saccade.engine.checkpoint.config_json import read_config
from saccade.engine.checkpoint.mosa_config import MosaConfig
from saccade.engine.errors import CheckpointError
from saccade.engine.kept_rule import KeptRule
from saccade.engine.layers.kinds import layer_shapes
from saccade.engine.memory import GroupPages, MemoryRequest, plan_memory
from saccade.kernels.store import PageLayout

from ..engine.conftest import Checkpoints
from ..engine.tiny_mosa import mosa_config

PAGE, MIB = 64, 1 << 20


def read(folder: Path, calibration: Path | None = None, **overrides: Any) -> MosaConfig:
    entry = overrides.pop("mosa", {})
    config = mosa_config(**overrides)
    config["mosa"] |= entry
    (folder / "config.json").write_text(json.dumps(config))
    variant = read_config(folder, calibration).variant
    assert isinstance(variant, MosaConfig)
    return variant


def test_the_papers_names_and_defaults(tmp_path: Path) -> None:
    found = read(tmp_path, mosa={"h": 64, "rope_base": 10000})
    assert found == MosaConfig(3, 3, 2, 16, 4, False, 8, 128)
    assert found.specs == {"attention": "mosa(mode=threshold)"}
    config = mosa_config()
    config["mosa"] = {"h_prim": 10, "num_mosa_heads": 2, "num_other_heads": 0, "sparsity": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path).variant == MosaConfig(3, 2, 0, 10, 8, False, 4, 128)


@pytest.mark.parametrize(
    ("fraction", "rope_dim"), [(0.5, 8), (1.0, 16), (0.7, 10), (0.125, 2), (0.24, 2)]
)
def test_the_share_that_turns_is_an_even_number(
    tmp_path: Path, fraction: float, rope_dim: int
) -> None:
    assert read(tmp_path, rotate_fraction=fraction).rope_dim == rope_dim


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mosa": {"heads": 3}}, "heads: unknown; the keys are h, h_prim"),
        ({"mosa": {"h": 65}}, "h: contradicts hidden_size 64"),
        ({"mosa": {"rope_base": 500000}}, "rope_base: 500000 contradicts rope_theta, .* 10000"),
        ({"rope_theta": 500000}, "rope_base: 10000 contradicts rope_theta, which is 500000"),
        ({"rotate_fraction": 0.1}, "rotate_fraction: 0.1 of 16 channels are 0; at least 2"),
        ({"rotate_fraction": 1.5}, "rotate_fraction: 1.5 of 16 channels are 24"),
        ({"hybrid_type": "local"}, "hybrid_type: 'local' is not supported; supported: dense"),
        ({"num_mosa_heads": 0}, "num_mosa_heads: expected an integer from 1"),
        ({"include_first": 2}, "include_first: expected an integer from 0 to 1"),
        ({"sparsity": 0}, "sparsity: expected an integer from 1"),
        ({"attention": "mosa(mode=stream)"}, "contradicts the entry mosa"),
    ],
)
def test_bad_keys(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, **overrides)


# ---- calibration ----


def test_thresholds_come_from_the_folder_or_a_named_file(tmp_path: Path) -> None:
    rows = [[0.5, 0.25, 1.0]] * 3
    (tmp_path / "calibration.json").write_text(json.dumps({"thresholds": rows}))
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"thresholds": [[0, 0.5, 0.75]] * 3, "texts": 3}))
    assert read(tmp_path).thresholds == tuple(map(tuple, rows))
    assert read(tmp_path, other).thresholds == ((0.0, 0.5, 0.75),) * 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0.5] * 3] * 2, "thresholds: expected 3 lists, one per layer"),
        ([[0.5] * 2] * 3, "thresholds: expected 3 numbers per layer, one per head"),
        ([[0.5, 2, 0.5]] * 3, "thresholds: expected scores from 0 to 1, found 2"),
        ([[0.5, True, 0.5]] * 3, "thresholds: expected scores from 0 to 1, found True"),
        (None, "thresholds: expected 3 lists"),
    ],
)
def test_bad_thresholds(tmp_path: Path, rows: Any, message: str) -> None:
    (tmp_path / "calibration.json").write_text(json.dumps({"thresholds": rows}))
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path)


def test_a_calibration_that_is_not_there_or_not_for_this_model(
    tmp_path: Path, checkpoint: Checkpoints
) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.json: file not found"):
        Engine(checkpoint("mosa"), calibration=str(tmp_path / "nowhere.json"))
    named = checkpoint("mosa") / "calibration.json"
    with pytest.raises(CheckpointError, match="heads of this model have nothing to calibrate"):
        Engine(checkpoint("llama"), calibration=str(named))


# ---- memory ----


class Plan:
    """The memory plan of a paper-sized model, whose weights nobody needs."""

    def __init__(self, folder: Path, spec: str, length: int, seqs: int = 1, **heads: int) -> None:
        sizes = {"num_mosa_heads": 17, "num_other_heads": 4, "h_prim": 64, "sparsity": 32, **heads}
        config = mosa_config(max_position_embeddings=1 << 20, **sizes)
        (folder / "config.json").write_text(json.dumps(config))
        self.shapes, layout = layer_shapes(read_config(folder)), PageLayout(PAGE)
        policy = parse_policy(spec, None, None, len(self.shapes))
        self.rule = kept_rule(self.shapes, policy)
        groups, of = layer_groups(self.shapes, policy)
        sizes_of_pages = [
            bytes_per_page(self.shapes, of, 0, policy, layout, torch.bfloat16),
            kept_bytes_per_page(self.shapes, layout, torch.bfloat16),
        ]
        request = MemoryRequest(
            groups=[
                GroupPages(size, group.window, kept=group.kept)
                for size, group in zip(sizes_of_pages, groups, strict=True)
            ],
            page_size=PAGE,
            weights_bytes=0,
            scratch_bytes=0,
            available_bytes=1 << 42,
            kv_cache_memory=None,
            max_model_len=length,
            length_is_explicit=True,
            max_num_seqs=seqs,
            max_num_batched_tokens=2048,
        )
        self.plan = plan_memory(request)
        self.dense, self.kept = self.plan.group_bytes


def head_token(dim: int = 64) -> int:
    """Bytes of K and V of one head and token in bf16."""
    return 2 * dim * 2


@pytest.mark.parametrize("length", [8192, 32768, 131072])
def test_kept_bytes_follow_what_heads_keep(tmp_path: Path, length: int) -> None:
    """Three layers; a kept token costs its K and V, and 8 bytes for its position and score."""
    plan = Plan(tmp_path, "mosa(mode=stream)", length)
    exact = 3 * 17 * (length // 32) * (head_token() + 8)
    assert exact <= plan.kept <= exact + 3 * 17 * 2 * PAGE * (head_token() + 8)
    assert plan.dense == 3 * 4 * length * head_token()  # nothing for the choosing heads
    some = Plan(tmp_path, "mosa(tau=0.5)", length)
    assert some.kept <= 1.25 * exact + 3 * 17 * 3 * PAGE * (head_token() + 8)


def test_a_fixed_list_takes_the_same_whatever_the_length(tmp_path: Path) -> None:
    sizes = {Plan(tmp_path, "mosa(mode=stream, k=64)", length).kept for length in (4096, 1 << 17)}
    assert len(sizes) == 1


def test_a_hybrid_takes_half_of_what_nine_dense_heads_take(tmp_path: Path) -> None:
    """The paper's smallest pair, T H_dense + k H_mosa head-tokens beside T H: about half."""
    length = 32768
    plan = Plan(tmp_path, "mosa(mode=stream)", length)
    dense = 3 * 9 * length * head_token()
    share = (plan.dense + plan.kept) / dense
    assert share == pytest.approx((4 + 17 / 32) / 9, rel=0.02)
    assert 1 - share > 0.48


def test_lists_of_every_sequence_fit(tmp_path: Path) -> None:
    """However a context is divided among sequences, the pages suffice."""
    for rule in (KeptRule(32), KeptRule(8, percent=125, burst=32), KeptRule(5, fixed=100)):
        for lengths in ([4096], [64] * 64, [1] * 64, [4000, 95, 1], [129] * 31):
            needed = sum(-(-rule.most(length) // PAGE) for length in lengths)
            assert needed <= rule.pages_of_all(sum(lengths), len(lengths), PAGE)
            assert rule.pages_of_all(4096, 1, PAGE) <= -(-rule.most(4096) // PAGE) + 2


def test_the_plan_names_what_is_kept(tmp_path: Path) -> None:
    lines = "\n".join(Plan(tmp_path, "mosa(mode=stream)", 8192).plan.render())
    assert "KV pages, kept per head" in lines and "KV pages, all context" in lines


def test_a_group_is_of_one_kind() -> None:
    from saccade.engine.step_plan import LayerGroup

    with pytest.raises(ValueError, match="has a window or keeps tokens by a rule, not both"):
        replace(LayerGroup(window=3), kept=KeptRule(4))
