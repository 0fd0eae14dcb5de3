"""A whole checkpoint folder: complete or refused, with one error that names file and tensor."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from saccade.engine.checkpoint import loader
from saccade.engine.checkpoint.files import find_checkpoint
from saccade.engine.checkpoint.loader import Checkpoint
from saccade.engine.errors import CheckpointError
from saccade.engine.models import load_model

from .tiny import write_tiny

Tensors = dict[str, torch.Tensor]
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write_tiny(folder / "single", "llama")
    write_tiny(folder / "tied", "smollm")
    write_tiny(folder / "sharded", "qwen2", shard_size="60KB")
    return folder


@pytest.fixture
def single(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "single", tmp_path / "single"))


@pytest.fixture
def tied(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "tied", tmp_path / "tied"))


@pytest.fixture
def sharded(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "sharded", tmp_path / "sharded"))


def change(folder: Path, edit: Callable[[Tensors], object]) -> None:
    """Rewrites model.safetensors after `edit` has changed its tensors."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    edit(tensors)
    safetensors.torch.save_file(tensors, path)


def change_index(folder: Path, edit: Callable[[dict[str, str]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


def refused(folder: Path, *parts: str, check_finite: bool = False, dtype: str = "auto") -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model(Checkpoint(folder), check_finite=check_finite, dtype=dtype)
    for part in parts:
        assert part in str(caught.value)


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_checkpoint("demo") == Path(loader.__file__).parents[1] / "demo"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert find_checkpoint("./demo").resolve() == tmp_path / "demo"
    for name in ("meta-llama/Llama-3.1-8B", "a\0b", "~nobody-here/x", "x" * 5000, "\ud800"):
        with pytest.raises(CheckpointError, match="no such folder"):
            Checkpoint(name)


def test_no_weights_or_the_wrong_kind(single: Path) -> None:
    (single / "model.safetensors").unlink()
    refused(single, "neither model.safetensors nor")
    (single / "pytorch_model.bin").write_bytes(b"x")
    refused(single, "pytorch_model.bin", "save_pretrained")
    (single / "config.json").unlink()
    refused(single, "config.json: file not found")


def test_missing_extra_and_misshapen_tensors(single: Path) -> None:
    keep = (single / "model.safetensors").read_bytes()
    cases: list[tuple[Callable[[Tensors], object], tuple[str, ...]]] = [
        (lambda t: t.pop(NAME), (NAME, "missing")),
        (lambda t: t.pop("lm_head.weight"), ("lm_head.weight", "missing")),
        (lambda t: t.update({"model.extra": torch.zeros(2)}), ("model.extra", "no such tensor")),
        (lambda t: t.update({NAME: t[NAME][:-1]}), (NAME, "[95, 64]", "[96, 64]")),
        (lambda t: t.update({NAME: t[NAME].T.contiguous()}), (NAME, "[64, 96]")),
        (lambda t: t.update({NAME: t[NAME].flatten()}), (NAME, "[6144]")),
        (lambda t: t.update({NAME: t[NAME].to(torch.int8)}), (NAME, "I8")),
        (lambda t: t.update({NAME: t[NAME].double()}), (NAME, "F64")),
    ]
    for edit, parts in cases:
        change(single, edit)
        refused(single, str(single), *parts)
        (single / "model.safetensors").write_bytes(keep)
    load_model(Checkpoint(single))


def test_a_bias_that_the_config_does_not_know(single: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    change(single, lambda t: t.update({name: torch.zeros(64)}))
    refused(single, "model.safetensors", name, "no such tensor")


def test_rotary_tables_of_old_exporters_are_tolerated(single: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(single, lambda t: t.update({name: torch.zeros(8)}))
    load_model(Checkpoint(single))


def test_a_tied_head_may_be_stored_but_must_agree(tied: Path) -> None:
    embedding = "model.embed_tokens.weight"
    change(tied, lambda t: t.update({"lm_head.weight": t[embedding].clone()}))
    load_model(Checkpoint(tied))
    change(tied, lambda t: t.update({"lm_head.weight": t[embedding].bfloat16()}))
    refused(tied, "lm_head.weight", "tie_word_embeddings")
    change(tied, lambda t: t.update({"lm_head.weight": t[embedding] + 1}))
    refused(tied, "lm_head.weight", "tie_word_embeddings")


def test_not_a_number_is_found_when_asked(single: Path) -> None:
    change(single, lambda t: t[NAME].view(-1).__setitem__(100, float("nan")))
    load_model(Checkpoint(single))
    refused(single, "model.safetensors", NAME, "element 100 is nan", check_finite=True)
    change(single, lambda t: t[NAME].view(-1).__setitem__(100, 1e6))
    load_model(Checkpoint(single), check_finite=True)
    refused(single, NAME, "1000000", "float16", check_finite=True, dtype="float16")


def test_dtypes(single: Path) -> None:
    assert Checkpoint(single).dtype() == torch.float32
    assert Checkpoint(single).dtype("bfloat16") == torch.bfloat16
    with pytest.raises(ValueError, match=r"float8.*supported: auto"):
        Checkpoint(single).dtype("float8")
    config = json.loads((single / "config.json").read_text())
    del config["dtype"]
    (single / "config.json").write_text(json.dumps(config))
    change(single, lambda t: t.update({name: t[name].half() for name in t if "norm" not in name}))
    assert Checkpoint(single).dtype() == torch.float16


def test_loaded_weights_do_not_share_memory_with_the_file(single: Path) -> None:
    model = load_model(Checkpoint(single))
    ours = [model.embedding, model.norm.weight, model.lm_head.data, model.layers[2].mlp.down.data]
    before = [tensor.clone() for tensor in ours]
    path = single / "model.safetensors"
    with path.open("r+b") as file:
        length = 8 + int.from_bytes(file.read(8), "little")
        file.seek(length)
        file.write(bytes(path.stat().st_size - length))
    assert Checkpoint(single).tensor("model.norm.weight", torch.float32).eq(0).all()
    assert all(map(torch.equal, ours, before))


def test_shards_and_index_must_agree(sharded: Path) -> None:
    index = (sharded / "model.safetensors.index.json").read_text()
    listed = json.loads(index)["weight_map"]
    first, second = sorted(set(listed.values()))[:2]
    name = next(key for key, value in listed.items() if value == first)
    cases: list[tuple[Callable[[dict[str, str]], object], tuple[str, ...]]] = [
        (lambda m: m.update({name: second}), (second, name, "missing")),
        (lambda m: m.pop(name), (first, name, "nowhere")),
        (lambda m: m.update({name: "model-9.safetensors"}), ("model-9.safetensors", "not found")),
        (lambda m: m.update({"ghost": first}), (first, "ghost", "missing")),
        (lambda m: m.clear(), ("index.json", "weight_map")),
    ]
    for edit, parts in cases:
        change_index(sharded, edit)
        refused(sharded, *parts)
        (sharded / "model.safetensors.index.json").write_text(index)
    load_model(Checkpoint(sharded))
    shutil.copy(sharded / first, sharded / "model.safetensors")
    refused(sharded, "has both")


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..",
        "",
        ".hidden.safetensors",
        "model.bin",
        "a\0.safetensors",
        "a\n.safetensors",
        "C:\\model.safetensors",
        3,
        None,
        ["model.safetensors"],
    ],
)
def test_no_way_out_of_the_folder(sharded: Path, shard: object) -> None:
    listed = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    name = sorted(listed)[0]
    change_index(sharded, lambda m: m.update({name: shard}))  # type: ignore[dict-item]
    refused(sharded, "model.safetensors.index.json: weight_map", name)


def test_a_shard_that_is_a_pipe_or_a_link(sharded: Path, tmp_path: Path) -> None:
    shard = next(sharded.glob("model-*.safetensors"))
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")  # as model caches keep their files
    load_model(Checkpoint(sharded))
    shard.unlink()
    os.mkfifo(shard)
    refused(sharded, shard.name, "not a regular file")


def test_random_damage_to_any_file_is_one_clear_error(sharded: Path, tmp_path: Path) -> None:
    chance = random.Random(11)
    files = sorted(sharded.glob("*.json*")) + sorted(sharded.glob("*.safetensors"))
    outcomes = set()
    for _ in range(60):
        path = chance.choice(files)
        keep = path.read_bytes()
        path.write_bytes(damaged(keep, chance))
        try:
            load_model(Checkpoint(sharded), max_model_len=16)
            outcomes.add("loaded")
        except CheckpointError as error:
            assert str(sharded) in str(error)
            outcomes.add("refused")
        path.write_bytes(keep)
    assert outcomes == {"loaded", "refused"}


def damaged(content: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        return content[: chance.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(3):
        changed[chance.randrange(min(len(changed), 2000))] = chance.randrange(256)
    return bytes(changed)
