"""The example of engine/attention/README.md is a method, registered and held to its limits."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.engine.attention import spec
from saccade.kernels import native

from ..engine.conftest import Checkpoints, Engines
from ..engine.engine_probe import Recorder, bitwise, greedy, some_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).parents[2] / "engine" / "attention" / "README.md"
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
TEXT = some_tokens(100)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`strided` in the table of methods, as a file of its own beside the others would be."""
    name = f"{spec.__package__}.strided"
    module = types.ModuleType(name)
    module.__package__ = spec.__package__
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(PROGRAM, "README.md", "exec"), module.__dict__)
    info = spec.MethodInfo(
        "strided", "Strided", ("block=64", "stride=4"), ("prefill", "decode"), "none", "-", ("-",)
    )
    monkeypatch.setattr(spec, "_METHODS", (*spec._METHODS, info))
    spec._by_class.cache_clear()
    yield
    spec._by_class.cache_clear()
    spec.method_class.cache_clear()


def logits(make_engine: Engines, folder: Path, attention: str, **options: Any) -> torch.Tensor:
    engine = make_engine(folder, attention=attention, **options)
    recorder = Recorder(engine)
    output = engine.generate(TEXT, greedy(20))[0]
    return recorder.matrix(f"{output.request_id}-0")


def test_it_is_short() -> None:
    code = [line for line in PROGRAM.splitlines() if line.strip()]
    assert len(code) <= 40 and all(len(line) <= 100 for line in code)


def test_every_block_is_dense(checkpoint: Checkpoints, make_engine: Engines) -> None:
    folder = checkpoint("llama")
    dense = logits(make_engine, folder, "dense")
    found = logits(make_engine, folder, "strided(block=16, stride=1)")
    assert float((found - dense).abs().max() / dense.abs().max()) < 1e-5
    sparse = logits(make_engine, folder, "strided(block=16, stride=3)")
    assert torch.equal(sparse[:16], dense[:16]) and not torch.allclose(sparse[40:], dense[40:])


@pytest.mark.skipif(native.chosen_isa() is None, reason="the references promise tokens, not bits")
def test_no_cut_changes_a_bit(checkpoint: Checkpoints, make_engine: Engines) -> None:
    folder, attention = checkpoint("llama"), "strided(16, 3)"
    whole = logits(make_engine, folder, attention)
    assert bitwise(logits(make_engine, folder, attention, max_num_batched_tokens=7), whole)


def test_it_counts_what_it_reads(checkpoint: Checkpoints, make_engine: Engines) -> None:
    engine = make_engine(checkpoint("llama"), attention="strided(16, 2)")
    read = engine.generate(TEXT, greedy(1))[0].stats["attention"]["prefill"]["keys_read"]
    expected = sum((j // 16 - i // 16) % 2 == 0 for i in range(100) for j in range(i + 1))
    assert read == 3 * expected


def test_what_it_refuses(checkpoint: Checkpoints, make_engine: Engines) -> None:
    with pytest.raises(ValueError, match="strided: block must be a power of two"):
        make_engine(checkpoint("llama"), attention="strided(block=24)")
    with pytest.raises(ValueError, match="sliding window of its own"):
        make_engine(checkpoint("mistral"), attention="strided(16)")
    with pytest.raises(ValueError, match=r"strided has no option for 'steps=3'.*block, stride"):
        make_engine(checkpoint("llama"), attention="strided(steps=3)")
