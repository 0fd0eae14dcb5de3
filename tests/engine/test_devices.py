"""Places and moves: the GPU path's plumbing, as far as host memory shows it."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch

from saccade import Engine
from saccade.engine.checkpoint.loader import Checkpoint
from saccade.engine.devices import Place, Staging, move_model, moved, place
from saccade.engine.models import load_model
from saccade.kernels import gpu
from saccade.kernels.linear import LINEAR, LINEAR_HEADS, pack, pack_heads
from saccade.kernels.store import PageLayout, RowLayout

from .conftest import Checkpoints

Pair = namedtuple("Pair", "first second")
HOST = Place(torch.device("cpu"), gpu=True)


@dataclass(frozen=True)
class Inner:
    numbers: torch.Tensor
    name: str = "inner"


def without_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")


def test_no_gpu_says_why(checkpoint: Checkpoints):
    without_gpu()
    for make in (lambda: place("cuda"), lambda: Engine(checkpoint("llama"), device="cuda")):
        with pytest.raises(ValueError, match=r"device 'cuda' is not there: torch .*CUDA"):
            make()
    assert place("auto") == place("cpu") == Place(torch.device("cpu"), gpu=False)
    assert isinstance(place("cpu").layout(64), PageLayout)
    assert not isinstance(place("cpu").layout(64), RowLayout)


def test_interpreted(interpreted: None):
    assert place("cuda") == HOST and HOST.layout(32) == RowLayout(32)
    assert not place("auto").gpu  # unless it is asked for


def test_moved_keeps_what_is_shared_and_what_has_no_tensor():
    shared, other = torch.arange(3), object()
    inner = Inner(shared)
    value = {"a": [inner, inner], "b": Pair(shared, 7), "c": (1, "x"), "d": other, "e": {2: [3]}}
    found = moved(value, lambda tensor: tensor + 1, {})
    assert found["a"][0] is found["a"][1] and found["b"].first is found["a"][0].numbers
    assert torch.equal(found["b"].first, shared + 1) and isinstance(found["b"], Pair)
    assert found["a"][0].name == "inner" and inner.numbers is shared
    assert all(found[name] is value[name] for name in "cde")


def test_a_step_travels_in_one_copy():
    """Every dtype, views, empty tensors and scalars: equal copies in one buffer."""
    values = [
        torch.arange(5, dtype=torch.int32),
        torch.randn(4, 6).T,
        torch.zeros(0, dtype=torch.int64),
        torch.tensor(3.0, dtype=torch.float64),
        torch.tensor([True, False, True]),
        torch.arange(10)[3:7],
    ]
    staging = Staging(HOST, torch.nn.Module())
    sent, known, _ = staging.send({"values": values, "again": values[0]})
    for ours, theirs in zip(sent["values"], values, strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
        assert known[id(theirs)] is ours
    assert sent["again"] is sent["values"][0]
    stores = {each.untyped_storage().data_ptr() for each in sent["values"] if each.numel()}
    assert len(stores) == 1
    first = sent["values"][0].clone()
    staging.send([torch.full((100,), 9)])  # the next step does not write into this one
    assert torch.equal(sent["values"][0], first)


def test_models_move(checkpoint: Checkpoints):
    """Weights become rows, shared ones stay shared, the rotary table stays on the host."""
    model = load_model(Checkpoint(checkpoint("llama")))
    table, packed = model.rope.cos, model.layers[0].mlp.gate_up
    assert packed.data.ndim == 4
    move_model(model, HOST)
    rows = model.layers[0].mlp.gate_up
    assert rows.data.shape == (packed.out_features, packed.in_features)
    assert torch.equal(rows.data, packed.unpack()) and model.rope.cos is table


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_over_rows(interpreted: None, dtype: torch.dtype):
    weight, bias, x = torch.randn(33, 20).to(dtype), torch.randn(33), torch.randn(5, 20).to(dtype)
    for each in (None, bias):
        rows = pack(weight, each).as_rows(torch.clone)
        for out_dtype in (dtype, torch.float32):
            assert LINEAR.refusals(x, rows, out_dtype)["library"] is None
            assert LINEAR.refusals(x, rows, out_dtype)["cpu"] is not None
            ours, theirs = LINEAR(x, rows, out_dtype), LINEAR.reference(x, rows, out_dtype)
            torch.testing.assert_close(ours, theirs)
    heads = pack_heads(torch.randn(3, 7, 20).to(dtype)).as_rows(torch.clone)
    q, out = torch.randn(5, 3, 20).to(dtype), torch.empty(5, 3, 7, dtype=dtype)
    LINEAR_HEADS(q, heads, out)
    expected = torch.empty_like(out)
    LINEAR_HEADS.reference(q, heads, expected)
    torch.testing.assert_close(out, expected)


def test_reasons(monkeypatch: pytest.MonkeyPatch):
    """Why Triton's kernels cannot take a tensor."""
    x = torch.zeros(2, 2)
    assert gpu.triton_refusal(x) == "tensor on cpu"
    monkeypatch.setenv("SACCADE_CUDA_INTERPRET", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "needs TRITON_INTERPRET=1" in str(gpu.triton_refusal(x))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gpu, "triton_version", lambda: None)
    assert gpu.triton_refusal(x) == "triton is not installed"
    monkeypatch.setattr(gpu, "triton_version", lambda: "3.6.0")
    assert gpu.triton_refusal(x) is None
    assert "dtype" in str(gpu.triton_refusal(x.double()))
    assert "contiguous" in str(gpu.triton_refusal(torch.zeros(2, 3).T))
