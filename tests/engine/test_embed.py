"""Vectors of texts: transformers' hidden states, pooled, and the same however the work was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saccade.engine.engine import Engine
from saccade.engine.errors import RequestError, SaccadeError
from saccade.engine.params import SamplingParams
from saccade.engine.pooling import Pooling, normalized

from .tiny import write_tiny

GENERATOR = torch.Generator().manual_seed(3)
TEXTS = [torch.randint(2, 128, (n,), generator=GENERATOR).tolist() for n in (1, 15, 16, 17, 90)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny", "llama")


def embed(model: Path, pooling: str, texts: Any = TEXTS, **options: Any) -> list[Any]:
    with Engine(model, **{"page_size": 16, "kv_cache_memory": 4 << 20} | options) as engine:
        found = engine.embed(texts, pooling=pooling)
        assert not engine.scheduler.has_work
        engine.scheduler.check_integrity()
    return found


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_they_are_transformers_hidden_states(model: Path, pooling: str) -> None:
    import transformers

    oracle = transformers.AutoModel.from_pretrained(model, torch_dtype=torch.float32)
    for ids, found in zip(TEXTS, embed(model, pooling), strict=True):
        with torch.inference_mode():
            hidden = oracle(torch.tensor([ids])).last_hidden_state[0]
        expected = hidden.mean(0) if pooling == "mean" else hidden[-1]
        assert found.dtype == np.float32 and found.shape == (64,)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", [None, "moba(block=16,topk=2)", "window(size=16)"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_cuts_batches_and_the_prefix_cache_change_no_bit(
    model: Path, pooling: str, dtype: str, attention: str | None
) -> None:
    options: dict[str, Any] = {"attention": attention, "dtype": dtype}
    whole = embed(model, pooling, **options)
    cut = embed(model, pooling, max_num_batched_tokens=32, max_num_seqs=3, **options)
    alone = [embed(model, pooling, [ids], **options)[0] for ids in TEXTS]
    with Engine(model, page_size=16, kv_cache_memory=4 << 20, **options) as engine:
        engine.generate(TEXTS, SamplingParams(max_tokens=3))
        again = engine.embed(TEXTS, pooling=pooling)
    for others in (cut, alone, again):
        for one, other in zip(whole, others, strict=True):
            assert one.tobytes() == other.tobytes()


def test_preemption_changes_no_bit(model: Path) -> None:
    whole = embed(model, "mean", [TEXTS[4]] * 2)
    with Engine(model, page_size=16, kv_cache_memory=4 << 20, max_num_batched_tokens=32) as engine:
        params = SamplingParams(max_tokens=1, temperature=0, detokenize=False, pooling="mean")
        generation = engine.add(TEXTS[4], params)
        engine.step()
        request = engine.scheduler.running[0]
        assert 0 < request.num_computed < len(TEXTS[4])
        engine.scheduler._preempt(_Dropped(), request)  # type: ignore[arg-type]
        while not generation.finished:
            engine.step()
        assert request.num_preemptions == 1
        assert generation.vector().tobytes() == whole[0].tobytes()


class _Dropped:
    admitting = True

    def drop(self, request: object) -> None:
        """Nothing is planned."""


@pytest.mark.parametrize("count", [1, 63, 64, 65, 300])
def test_the_mean_of_any_cut(count: int) -> None:
    rows = torch.randn(count, 8, generator=torch.Generator().manual_seed(count))
    results = set()
    for size in (1, 7, 64, 1000):
        pooling = Pooling("mean", count)
        for start in range(0, count, size):
            again = max(0, start - 3)  # some rows come twice, as after preemption
            pooling.add(again, rows[again : start + size])
        np.testing.assert_allclose(pooling.result(), rows.mean(0).numpy(), atol=1e-6)
        results.add(pooling.result().tobytes())
    assert len(results) == 1


def test_what_is_refused(model: Path) -> None:
    with pytest.raises(RequestError, match="mean or last"):
        SamplingParams(max_tokens=1, pooling="max")
    with pytest.raises(RequestError, match="n=1 and max_tokens=1"):
        SamplingParams(max_tokens=2, pooling="mean")
    pooling = Pooling("mean", 4)
    with pytest.raises(SaccadeError, match="to its end"):
        pooling.result()
    with pytest.raises(SaccadeError, match="from position 0 on are missing"):
        pooling.add(1, torch.ones(1, 8))
    with Engine(model, page_size=16, kv_cache_memory=4 << 20) as engine:
        with pytest.raises(RequestError, match="at least one token"):
            engine.embed([[]])
        lengths = [np.linalg.norm(each) for each in engine.embed(TEXTS, normalize=True)]
        np.testing.assert_allclose(lengths, 1, rtol=1e-6)
    assert normalized(np.zeros(3, np.float32)).tolist() == [0, 0, 0]
