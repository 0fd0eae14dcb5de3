"""config.json of MiniCPM: scaling factors, and the sparse_config of MiniCPM4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saccade.engine.errors import CheckpointError

from .test_config_json import ABSENT, LLAMA, read
from .tiny_own import own_config

SPARSE = own_config("minicpm")["sparse_config"]


def test_factors(tmp_path: Path) -> None:
    features = read(tmp_path, own_config("minicpm_dense")).features
    assert features.embedding_scale == 3 and features.logits_divisor == 64 / 16
    assert features.residual_scale == pytest.approx(1.4 / 3**0.5)
    assert read(tmp_path, own_config("minicpm", tie_word_embeddings=ABSENT)).tied_embeddings


def test_how_it_attends(tmp_path: Path) -> None:
    assert read(tmp_path, own_config("minicpm_dense")).attention is None
    assert read(tmp_path, own_config("minicpm", sparse_config=None)).attention is None
    assert read(tmp_path, own_config("minicpm")).attention == {
        "attention": "infllm(kernel=16, stride=16, block=16, topk=2, init=1, window=16, "
        "dense_len=40)"
    }


def test_longrope(tmp_path: Path) -> None:
    rope = read(tmp_path, own_config("minicpm_long")).rope
    assert rope.kind == "longrope" and rope.original_max_position == 64
    assert rope.short_factors == (9.0,) * 8 and rope.attention_scaling > 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale_emb": ABSENT}, "scale_emb: missing"),
        ({"dim_model_base": 0}, "dim_model_base: expected a finite and above 0"),
        ({"sparse_config": {**SPARSE, "use_nope": True}}, "use_nope: true is not supported"),
        ({"sparse_config": {**SPARSE, "stride": 3}}, "stride: unknown; the keys are kernel_size"),
        ({"sparse_config": {"topk": 4}}, "kernel_size: missing"),
        ({"sparse_config": SPARSE, "attention": "dense"}, "contradicts the entry sparse_config"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}},
            "long_factor: expected a list",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 8,
                    "long_factor": [1.0] * 7,
                }
            },
            "long_factor: expected 8 numbers",
        ),
    ],
)
def test_errors_name_the_key(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json.*{words}"):
        read(tmp_path, own_config("minicpm_dense", **changes))


def test_model_code_of_other_families_is_refused(tmp_path: Path) -> None:
    code = {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"}
    with pytest.raises(CheckpointError, match="never executed"):
        read(tmp_path, LLAMA, auto_map=code)
