"""The engine's decode step as the GPU check times it, at toy size and without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.benchmarks import gpu_step
from saccade.benchmarks.gpu_step import TINY, engine_of, play, step_bytes, whole_run
from saccade.benchmarks.llama_checkpoint import kv_bytes, weight_bytes
from saccade.benchmarks.random_model import random_source
from saccade.engine import graphs
from saccade.engine.checkpoint.config_json import read_config
from saccade.engine.devices import Place
from saccade.engine.models.tensors import expected_tensors
from saccade.kernels import native

from ..engine.graph_emulator import Emulator

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value", "ignore:divide by zero", "ignore:Conversion of an array"
)


def test_the_shape_is_that_of_the_target(tmp_path):
    """8.03 billion parameters; what a step of 128K tokens reads, which fits into an H200."""
    run = whole_run(131072)
    source = random_source(tmp_path, run.size)
    config = source.config
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (32, 4096, 14336)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 8, 128)
    assert config.vocab_size == 128256 and not config.tied_embeddings
    assert source.dtype == torch.bfloat16
    count = sum(torch.Size(shape).numel() for shape in expected_tensors(config).values())
    assert 8.0e9 < count < 8.1e9
    assert config.max_position >= run.context + run.outputs
    floor = weight_bytes(config, 2) + kv_bytes(config, run.context, 2)
    assert 32.1e9 < floor < 32.3e9


def test_steps_are_played(interpreted, tmp_path):
    """The prompt is read once by a policy; the steps, and the bytes that they read, are counted."""
    engine = engine_of(TINY, tmp_path)
    config, context = engine.model_config, TINY.context
    first = play(engine, TINY, "dense", 1.0)
    again = play(engine, TINY, "dense", 0.0)
    assert first.cached == 0 and again.cached == 16
    assert len(first.step_s) == len(again.step_s) == TINY.warm + TINY.steps
    assert first.prompt_s > 0 and min(first.step_s) > 0
    assert first.keys == again.keys == context + 1.5  # of the first step and of the second
    read, parts = step_bytes(engine, TINY, "dense", context)
    assert read == weight_bytes(config, 2) + kv_bytes(config, context, 2)
    assert "summaries" not in parts
    bounds = 2 * 2 * 2 * 16 * 2  # of two pages' blocks and KV heads: two vectors of 16 channels
    assert step_bytes(engine, TINY, TINY.methods[2], context)[0] == read + bounds
    assert "prefix cache" in gpu_step.how_read(TINY, again)
    assert "moba(16, 2)" in gpu_step.how_read(TINY, first)
    engine.close()


def test_steps_are_replayed(interpreted, tmp_path, monkeypatch):
    """By every method: the second of a shape is captured, and those after it are its replays."""
    monkeypatch.setattr(graphs, "recorder", lambda where: Emulator())
    monkeypatch.setattr(native, "kernels", lambda: None)  # which the emulator does not see
    run = replace(TINY, warm=2, steps=2)
    engine = engine_of(run, tmp_path)
    for count, method in enumerate(run.methods, 1):
        played = play(engine, run, method, 1.0)
        assert len(played.step_s) == 4
        assert gpu_step.replays(engine) == 3 * count
    assert gpu_step.refusals(engine) == []
    engine.close()


def test_what_takes_too_long_is_given_up(interpreted, tmp_path):
    """Its request is gone, and the engine serves the next one."""
    engine = engine_of(TINY, tmp_path)
    with pytest.raises(TimeoutError, match="0 of 24 tokens"):
        play(engine, replace(TINY, seconds=-1.0), "dense", 0.0)
    assert not engine.scheduler.has_work
    engine.close()


def test_a_failure_is_a_row(monkeypatch):
    """What cannot be measured says why."""

    def fails(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(gpu_step, "play", fails)
    monkeypatch.setattr(gpu_step, "replays", lambda _: 0)
    row = gpu_step._row(None, TINY, "engine step", "dense", False, 1.0)
    assert row.failed and row.milliseconds is None and row.note == "RuntimeError: no"


def test_the_median_leaves_the_first_steps_out(monkeypatch):
    """Which compute and capture; the note says what was read and how."""
    played = gpu_step.Played(2.0, 0, 7.0, [1.0, 0.5, 0.004, 0.002, 0.003])
    monkeypatch.setattr(gpu_step, "play", lambda *_: played)
    monkeypatch.setattr(gpu_step, "step_bytes", lambda *_: (6e6, "weights"))
    counts = iter((2, 5))
    monkeypatch.setattr(gpu_step, "replays", lambda _: next(counts))
    monkeypatch.setattr(gpu_step, "refusals", lambda _: [])
    run = replace(TINY, warm=2, steps=3)
    row = gpu_step._row(None, run, "engine step", "dense", False, 1.0)
    assert row.milliseconds == 3.0 and row.gbps == pytest.approx(2.0) and not row.failed
    assert "333.3 tokens/s" in row.note and "3 of 5 steps replayed" in row.note


def test_random_models(tmp_path):
    """They are made as rows on a GPU, with an output projection of their own."""
    with pytest.raises(ValueError, match="output projection"):
        random_source(tmp_path, replace(TINY.size, tied=True))
    source, gpu = random_source(tmp_path, TINY.size), Place(torch.device("cpu"), gpu=True)
    with pytest.raises(ValueError, match="rows"):
        source.load(8, Place(torch.device("cpu"), gpu=False))
    model = source.load(8, gpu)
    assert model.lm_head.data.shape == (300, 64) == model.embedding.shape
    assert not torch.equal(model.lm_head.data, model.embedding)
    assert model.layers[0].attention.qkv.data.shape == ((4 + 2 * 2) * 16, 64)
    assert float(model.embedding.float().std()) == pytest.approx(64**-0.5, rel=0.05)
    assert read_config(tmp_path) == source.config
    assert torch.equal(source.load(8, gpu).lm_head.data, model.lm_head.data)
