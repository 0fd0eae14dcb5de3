"""Every method on a device of its own, by the torch references: no tensor is made on the host and
meets one of the device, and the tokens are those of the processor. What runs without a GPU for a
machine with one.
"""

from __future__ import annotations

import pytest
import torch

from saccade.engine.devices import Place
from saccade.kernels import gpu, native

from ..engine.conftest import Checkpoints, Engines
from ..engine.engine_probe import greedy, some_tokens
from .every_method import NAMES, small
from .phantom import DEVICE, Phantom, PhantomMode, tensor_of

OPTIONS = {"max_model_len": 256, "max_num_batched_tokens": 40, "page_size": 16, "max_num_seqs": 4}
QUICK = ("dense", "moba", "nsa")  # the others with the slow tests
MARKED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.fixture(scope="module", autouse=True)
def transformers_first(checkpoint: Checkpoints) -> None:
    """A process in which transformers loads its first model after a phantom has lived gives all its
    later models rotary tables of whatever the memory held: other tests would meet them.
    """
    transformers = pytest.importorskip("transformers")
    transformers.AutoModelForCausalLM.from_pretrained(checkpoint("llama"))


@pytest.mark.parametrize("name", MARKED)
def test_no_tensor_is_on_the_wrong_device(
    checkpoint: Checkpoints, make_engine: Engines, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    method = small(name)
    options = OPTIONS | {"attention": method.spec}
    folder = checkpoint(method.family)
    prompts = [some_tokens(method.before + 43, seed=1), some_tokens(20, seed=2)]
    monkeypatch.setattr(native, "kernels", lambda: None)
    expected = make_engine(folder, device="cpu", **options).generate(prompts, greedy(3))
    monkeypatch.setenv(gpu.INTERPRETED, "1")
    monkeypatch.setattr(gpu, "device", lambda: DEVICE)
    monkeypatch.setattr(gpu, "triton_refusal", lambda *tensors: "no such device")
    monkeypatch.setattr(Place, "available_memory", lambda self: 1 << 34)
    # Inference tensors cannot be disguised, nor can torch.tensor's own way to a device.
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    monkeypatch.setattr(torch, "tensor", tensor_of(torch.tensor))
    with PhantomMode():
        engine = make_engine(folder, device="cuda", **options)
        found = engine.generate(prompts, greedy(3))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.error is None
        assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids


def test_the_device_tells() -> None:
    """Mixing is an error; copies between the two are none."""
    with PhantomMode():
        there, here = torch.arange(3, device=DEVICE), torch.arange(3)
        assert isinstance(there, Phantom) and not isinstance(here, Phantom)
        with pytest.raises(RuntimeError, match="of the device and of the host"):
            there + here
        with pytest.raises(RuntimeError, match="of the device and of the host"):
            here[there]
        assert (there + here.to(DEVICE)).tolist() == [0, 2, 4]
        assert there[here].tolist() == [0, 1, 2]
