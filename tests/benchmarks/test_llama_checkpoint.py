"""The random checkpoint that the engine benchmark writes."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest
import torch

from saccade.benchmarks.llama_checkpoint import LlamaSize, kv_bytes, weight_bytes, write_llama
from saccade.engine.checkpoint.config_json import read_config
from saccade.engine.models.tensors import expected_tensors

TINY = LlamaSize.tiny()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"), TINY)


def test_other_libraries_read_it(folder: Path) -> None:
    tensors = pytest.importorskip("safetensors.torch").load_file(folder / "model.safetensors")
    shapes = expected_tensors(read_config(folder))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode("def f(x): é").ids) == "def f(x): é"


def test_the_same_seed_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    again = write_llama(tmp_path / "again", TINY)
    other = write_llama(tmp_path / "other", TINY, seed=1)
    name = "model.safetensors"
    assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert (other / name).read_bytes() != (folder / name).read_bytes()


def test_the_default_has_135_million_parameters(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LlamaSize().config()))
    config = read_config(tmp_path)
    count = sum(prod(shape) for shape in expected_tensors(config).values())
    assert round(count / 1e6, 1) == 134.5
    assert weight_bytes(config, 2) == 2 * count  # tied: the embedding is also the output projection
    assert kv_bytes(config, 1000, 2) == 30 * 2 * 3 * 64 * 2 * 1000


def test_bytes_of_windows_and_of_a_looked_up_embedding(folder: Path, tmp_path: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"tie_word_embeddings": False, "model_type": "mistral", "sliding_window": 100}
    raw["architectures"] = ["MistralForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    tied, config = read_config(folder), read_config(tmp_path)
    assert weight_bytes(config, 2) == weight_bytes(tied, 2)
    assert kv_bytes(config, 1000, 2) == kv_bytes(tied, 100, 2)
