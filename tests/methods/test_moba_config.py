"""MoBA's keys in config.json, Moonshot's and FLA's: what they mean, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saccade import Engine
from saccade.engine.attention.dense import Dense
from saccade.engine.attention.moba import Moba
from saccade.engine.checkpoint.features import Features, Gate
from saccade.engine.checkpoint.loader import Checkpoint
from saccade.engine.errors import CheckpointError
from saccade.engine.layers.kinds import layer_shapes

from ..engine.conftest import Checkpoints
from ..engine.test_config_json import ABSENT, LLAMA, MISTRAL, read
from ..engine.tiny_asa import asa_config
from ..engine.tiny_own import own_config, write_tiny_own

pytestmark = pytest.mark.usefixtures("one_thread")
KEYS = {"moba_chunk_size": 64, "moba_topk": 3}
FLA = own_config("moba_fla")


def test_moonshots_keys(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA, **KEYS)
    assert config.features == Features()
    assert config.attention == {"prefill_attention": "moba(64, 3, 1)", "decode_attention": "dense"}
    config = read(
        tmp_path,
        LLAMA,
        **KEYS,
        moba_layers=[3, 0],
        moba_decode="sparse",
        moba_topk_includes_current=False,
        moba_nope=True,
        moba_kconv_width=4,
    )
    spec = "0:moba(64, 3, 0); 3:moba(64, 3, 0); *:dense"
    assert config.attention == {"prefill_attention": spec, "decode_attention": spec}
    assert config.features.unrotated == config.features.convolved == {0, 3}
    assert [shape.key_taps for shape in layer_shapes(config)] == [4, 0, 0, 4]


def test_layers_with_a_window_are_left_out(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"] * 2
    config = read(tmp_path, MISTRAL, **KEYS, layer_types=kinds)
    spec = "0:moba(64, 3, 1); 2:moba(64, 3, 1); *:dense"
    assert config.attention == {"prefill_attention": spec, "decode_attention": "dense"}


def test_fla(tmp_path: Path) -> None:
    config = read(tmp_path, FLA, moba_chunk_size=ABSENT, moba_topk=ABSENT, moba_decode=ABSENT)
    assert config.attention == {"prefill_attention": "moba(256, 4, 1)", "decode_attention": "dense"}
    assert config.features == Features(
        gate=Gate(True, "low_rank"), output_norm_eps=1e-6, qk_norm=True, qk_norm_eps=1e-5
    )
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 16)
    config = read(tmp_path, FLA, num_kv_heads=None, qk_norm=ABSENT, use_output_gate=False)
    assert config.num_kv_heads == 4 and not config.qk_norm and config.features.gate is None
    config = read(tmp_path, FLA, intermediate_size=None, hidden_size=1024, hidden_ratio=4)
    assert config.intermediate_size == 2816  # 2730.7, up to a multiple of 256


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        (LLAMA, {**KEYS, "moba_block": 64}, "moba_block: unknown; the keys are moba_chunk_size"),
        (LLAMA, {"moba_topk": 3}, "moba_chunk_size: missing|moba_chunk_size: expected an integer"),
        (LLAMA, {**KEYS, "moba_chunk_size": 48}, "moba_chunk_size: expected a power of two"),
        (LLAMA, {**KEYS, "moba_chunk_size": 8}, "moba_chunk_size: expected an integer from 16"),
        (LLAMA, {**KEYS, "moba_topk": 1}, "moba_topk: expected an integer from 2"),
        (LLAMA, {**KEYS, "moba_topk": 300}, "moba_topk: expected an integer from 2 to 256"),
        (LLAMA, {**KEYS, "moba_decode": "full"}, "moba_decode: 'full' is not supported"),
        (LLAMA, {**KEYS, "moba_layers": 3}, "moba_layers: expected a list"),
        (LLAMA, {**KEYS, "moba_layers": [1, 1]}, "moba_layers: expected a list of different"),
        (LLAMA, {**KEYS, "moba_layers": [4]}, "moba_layers: expected layers from 0 to 3, found 4"),
        (LLAMA, {**KEYS, "moba_layers": [True]}, "moba_layers: .* found True"),
        (MISTRAL, {**KEYS, "moba_layers": [1]}, "moba_layers: layer 1 has a sliding window"),
        (LLAMA, {**KEYS, "moba_kconv_width": 17}, "moba_kconv_width: expected an integer from 0"),
        (LLAMA, {**KEYS, "moba_nope": 1}, "moba_nope: expected true or false"),
        (LLAMA, {**KEYS, "attention": "dense"}, "attention: contradicts the entry moba_chunk_size"),
        (asa_config(), KEYS, "moba_chunk_size: is not part of AsaForCausalLM"),
        (FLA, {"window_size": 64}, "window_size: 64 is not supported; only null is"),
        (FLA, {"attnres_block_size": 4}, "attnres_block_size: 4 is not supported"),
        (FLA, {"num_heads": 0}, "num_heads: expected an integer"),
        (FLA, {"num_kv_heads": 3}, "num_kv_heads: 3 does not divide"),
        (FLA, {"norm_eps": 0}, "norm_eps: expected a finite and above 0"),
        (FLA, {"hidden_act": "silu"}, "hidden_act: 'silu' is not supported; supported: swish"),
        (FLA, {"use_output_gate": "yes"}, "use_output_gate: expected true or false"),
    ],
)
def test_errors_name_the_key(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json.*({words})"):
        read(tmp_path, base, **changes)


def test_the_user_outranks_the_checkpoint(checkpoint: Checkpoints) -> None:
    folder = checkpoint("moba_keys")
    with Engine(folder, kv_cache_memory=1 << 20) as engine:
        assert engine.policy.prefill == (Moba(16, 2), Dense(), Moba(16, 2))
        assert engine.policy.decode == (Dense(),) * 3
    with Engine(folder, kv_cache_memory=1 << 20, decode_attention="moba(16, 2)") as engine:
        assert engine.policy.prefill == (Moba(16, 2), Dense(), Moba(16, 2))
        assert engine.policy.decode == (Moba(16, 2),) * 3
    with Engine(folder, kv_cache_memory=1 << 20, attention="dense") as engine:
        assert engine.policy.prefill == engine.policy.decode == (Dense(),) * 3


def test_errors_about_tensors_use_the_names_of_the_files(tmp_path: Path) -> None:
    folder = write_tiny_own(tmp_path, "moba_fla")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    assert {"model.embeddings.weight", "model.layers.0.attn.g_proj.1.weight"} <= tensors.keys()
    removed = {k: v for k, v in tensors.items() if k != "model.layers.1.attn_norm.weight"}
    for found, words in (
        (removed, r"model\.layers\.1\.attn_norm\.weight: missing"),
        ({**tensors, "model.layers.0.attn.x": torch.zeros(1)}, r"layers\.0\.attn\.x.*no such"),
        (
            {**tensors, "model.layers.0.self_attn.q_proj.weight": torch.zeros(1)},
            r"self_attn\.q_proj\.weight.*no such",
        ),
        (
            {**tensors, "model.layers.0.mlp_norm.weight": torch.zeros(3)},
            r"layers\.0\.mlp_norm\.weight.*has shape \[3\], config\.json asks for \[64\]",
        ),
    ):
        save_file(found, path)
        with pytest.raises(CheckpointError, match=words):
            Engine(folder, kv_cache_memory=1 << 20)


def test_freed_pages_leave_the_keys_that_are_convolved(checkpoint: Checkpoints) -> None:
    folder = checkpoint("moba_kconv_rope")
    with Engine(folder, kv_cache_memory=1 << 20, attention="streaming(2, 2, evict)") as engine:
        assert engine.policy.name.startswith("Streaming")
    with pytest.raises(ValueError, match=r"layer 1 convolves keys over 3 tokens.* at least 2"):
        Engine(folder, kv_cache_memory=1 << 20, attention="streaming(2, 1, evict)")


def test_raw_keys_are_part_of_the_pages(checkpoint: Checkpoints) -> None:
    """Twice four keys per page in the two layers that convolve over five tokens, nowhere else."""
    kept = {}
    for family in ("moba_kconv", "moba_keys"):
        config = Checkpoint(checkpoint(family)).config
        kept[family] = [shape.fields for shape in layer_shapes(config)]
    assert kept["moba_keys"] == [{}] * 3
    assert [bool(fields) for fields in kept["moba_kconv"]] == [True, False, True]
    assert kept["moba_kconv"][0]["key_tail"].shape == (2, 4, 2, 16)
