"""ASA checkpoints: config, layers, what other methods say of them, and the memory they take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade import Engine
from saccade.engine.attention.asa import Asa
from saccade.engine.attention.policy import AttentionPolicy, parse_policy
from saccade.engine.cache import bytes_per_page, layer_groups
from saccade.engine.checkpoint.config_json import ModelConfig, read_config
from saccade.engine.checkpoint.loader import Checkpoint
from saccade.engine.errors import CheckpointError
from saccade.engine.memory import GroupPages, MemoryPlan, MemoryRequest, plan_memory
from saccade.engine.models import layer_shapes, load_model, model_nbytes
from saccade.kernels.store import PageLayout

from ..engine.conftest import Checkpoints
from ..engine.engine_probe import greedy, some_tokens
from ..engine.tiny_asa import ASA, asa_config

pytestmark = pytest.mark.usefixtures("one_thread")


def written(folder: Path, **overrides: Any) -> Path:
    """A folder with this config.json alone."""
    (folder / "config.json").write_text(json.dumps(asa_config(**overrides)))
    return folder


@pytest.mark.parametrize("key", ASA)
def test_every_key_is_mandatory(tmp_path: Path, key: str) -> None:
    config = asa_config()
    del config["asa"][key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"config\.json: asa: {key}: missing; every one of"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"layer_types": ["local", "global"]}, r"num_hidden_layers|list of 4 entries"),
        ({"layer_types": ["local", "full", "local", "global"]}, "'full' is not supported; write"),
        ({"layer_types": "local"}, "expected a list of"),
        ({"sliding_window": 0}, "sliding_window: expected an integer from 1"),
        ({"rope_dim": 7}, "rope_dim: expected an even number, found 7"),
        ({"v_dim": 3}, "v_dim: expected an even number"),
        ({"local_rank": None}, "local_rank: missing"),
        ({"latent_groups": 3}, "latent_groups: 3 does not divide num_attention_heads 4"),
        ({"compression": "mlp"}, "compression: 'mlp' is not supported; supported: mean"),
        ({"global_gate": "none"}, "global_gate: 'none' is not supported; supported: sigmoid"),
        ({"local_gate": True}, "local_gate: True is not supported; supported: none, sigmoid"),
        ({"attention": "dense"}, "attention: contradicts the entry asa"),
        ({"kv_lora_rank": 512}, "kv_lora_rank: is not part of AsaForCausalLM"),
        ({"model_type": "llama"}, "model_type: contradicts"),
    ],
    ids=str,
)
def test_a_bad_config_is_refused(tmp_path: Path, overrides: dict[str, Any], words: str) -> None:
    overrides = {"num_hidden_layers": 4, **overrides}
    with pytest.raises(CheckpointError, match=words):
        read_config(written(tmp_path, **overrides))


def test_an_unknown_key_and_yarn_are_refused(tmp_path: Path) -> None:
    config = asa_config()
    config["asa"]["window"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="asa: window: unknown; the keys are layer_types"):
        read_config(tmp_path)
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    with pytest.raises(
        CheckpointError, match="yarn and longrope are not supported with latent attention"
    ):
        read_config(written(tmp_path, rope_parameters=yarn))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"block": 12}, "asa: block must be a power of two"),
        ({"list_reuse": 3}, "asa: reuse must divide the block of 16"),
        ({"topk": 1}, "asa: local must be at least 1 and topk at least init"),
    ],
)
def test_blocks_that_do_not_fit_are_the_checkpoints_fault(
    checkpoint: Checkpoints, overrides: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {words}"):
        Engine(checkpoint("asa", **overrides))


def test_layers_alternate_as_the_config_says(checkpoint: Checkpoints) -> None:
    for family, windows in (("asa", (21, None, 21, None)), ("asa_wide", (None, 40, 40, None))):
        shapes = layer_shapes(Checkpoint(checkpoint(family)).config)
        assert tuple(shape.window for shape in shapes) == windows
        kept = {shape.window is None: (shape.num_kv_heads, shape.kept) for shape in shapes}
        assert kept == {True: (2, (28, 0)), False: (1, (32, 0))}
    with Engine(checkpoint("asa"), kv_cache_memory=1 << 20) as engine:
        assert engine.policy.prefill == (Asa(16, 3, 1, 1, 4, "expanded"),) * 4
        assert engine.policy.decode == (Asa(16, 3, 1, 1, 4, "absorbed"),) * 4


def test_tensors_of_the_wrong_shape_are_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = checkpoint("asa")
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    written(tmp_path, local_rank=26)
    with pytest.raises(
        CheckpointError, match=r"kv_a_proj_with_mqa.*\[32, 64\].*asks for \[34, 64\]"
    ):
        load_model(Checkpoint(tmp_path))
    written(tmp_path, local_gate="sigmoid")
    with pytest.raises(CheckpointError, match=r"g_proj\.weight: missing"):
        load_model(Checkpoint(tmp_path))


@pytest.mark.parametrize("family", ["asa", "asa_wide"])
def test_planned_memory_is_what_the_model_takes(checkpoint: Checkpoints, family: str) -> None:
    model = load_model(Checkpoint(checkpoint(family)), max_model_len=50)
    found = model.embedding.nbytes + model.lm_head.nbytes + model.norm.nbytes + model.rope.nbytes
    for layer in model.layers:
        own = layer.attention
        parts = [own.query, own.query_down, own.query_norm, own.down, own.up, own.gate, own.out]
        parts += [*own.norms, layer.attention_norm, layer.mlp_norm, layer.mlp.gate_up]
        parts += [layer.mlp.down]
        found += sum(part.nbytes for part in parts if part is not None)
    planned = model_nbytes(model.config, torch.float32, 50)
    assert planned <= found <= planned + 32 * 100 * 60 * 4  # packing pads every projection


@pytest.mark.parametrize("spec", ["dense", "window(9)", "moba(16, 2)", "1:dense; *:asa(16, 3)"])
def test_other_methods_do_not_read_latents(checkpoint: Checkpoints, spec: str) -> None:
    with pytest.raises(
        ValueError, match=r"layer \d keeps latents, which only the method asa reads"
    ):
        Engine(checkpoint("asa"), attention=spec)


def test_asa_needs_latents(checkpoint: Checkpoints) -> None:
    with pytest.raises(ValueError, match="asa: the layers of this model keep K and V"):
        Engine(checkpoint("llama"), attention="asa")


def test_rows_that_share_a_list_share_a_page(checkpoint: Checkpoints) -> None:
    with pytest.raises(ValueError, match="asa: reuse 32 must divide the page size of 16"):
        Engine(checkpoint("asa", block=32, list_reuse=32), page_size=16)


def test_old_pages_of_local_layers_are_freed(checkpoint: Checkpoints) -> None:
    with Engine(checkpoint("asa"), page_size=16, kv_cache_memory=1 << 20) as engine:
        engine.add(some_tokens(200), greedy(100))
        used = []
        while engine.scheduler.has_work:
            engine.step()
            used.append(tuple(engine.scheduler.stats().used_pages))
        everything, window = used[-2]  # the last step frees all
        assert everything == -(-299 // 16) and window <= 21 // 16 + 2
        assert engine.memory.request.groups[1].window == 21


# ---- bytes ----

LENGTH, LAYERS, BLOCK = 65536, 16, 16
COMMON: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_attention_heads": 16,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": LENGTH,
}
# Per token and global layer 4 latents of 192 + 32 channels; NSA keeps 4 keys and values of 128.
LATENT = {
    "layer_types": ["local", "global"] * (LAYERS // 2),
    "sliding_window": 512,
    "nope_dim": 96,
    "rope_dim": 32,
    "v_dim": 128,
    "local_rank": 192,
    "global_rank": 192,
    "latent_groups": 4,
    "block": BLOCK,
    "topk": 16,
}


def planned(config: ModelConfig, policy: AttentionPolicy) -> MemoryPlan:
    """The memory plan of one sequence of full length, in bf16."""
    shapes, layout = layer_shapes(config), PageLayout(64)
    groups, group_of = layer_groups(shapes, policy)
    sizes = [
        GroupPages(bytes_per_page(shapes, group_of, g, policy, layout, torch.bfloat16), each.window)
        for g, each in enumerate(groups)
    ]
    return plan_memory(
        MemoryRequest(sizes, 64, 0, 0, 1 << 40, None, LENGTH, True, 1, max_num_batched_tokens=2048)
    )


@pytest.mark.parametrize("reuse", [1, 4])
def test_half_the_kv_bytes_of_the_same_nsa_model(tmp_path: Path, reuse: int) -> None:
    """NSA keeps grouped K and V in every layer, and compressed K and V beside them."""
    asa = read_config(written(tmp_path, **COMMON, **LATENT, list_reuse=reuse))
    assert isinstance(asa.attention, dict)
    ours = planned(asa, parse_policy(None, *asa.attention.values(), LAYERS))
    llama = {**asa_config(**COMMON, **LATENT), "num_key_value_heads": 4, "model_type": "llama"}
    llama["architectures"] = ["LlamaForCausalLM"]
    del llama["asa"]
    (tmp_path / "config.json").write_text(json.dumps(llama))
    gqa = planned(read_config(tmp_path), parse_policy("dense", None, None, LAYERS))
    raw, own = sum(gqa.group_bytes), sum(ours.group_bytes)
    assert raw == LAYERS * LENGTH * 4 * 2 * 128 * 2
    with_compressed = raw + raw // BLOCK  # NSA's entries, one per stride of 16
    assert own <= 0.5 * with_compressed
    assert own <= 0.5 * raw  # even if NSA kept none
    window_bytes = ours.group_bytes[1]
    lists = 0 if reuse == 1 else 4 * 16 // reuse
    per_token = 4 * 224 * 2 * (1 + 1 / BLOCK) + 4 * lists
    assert own == LAYERS // 2 * LENGTH * per_token + window_bytes
    assert window_bytes < 0.05 * own
