"""Every test here runs CUDA kernels on the CPU, in an order of threads of its own choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from saccade.kernels import cuda_native

from . import shim

ORDERS = {"ascending": 0, "descending": 1, "shuffled": 7}


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are born as NaN, so that an element that no kernel writes shows."""

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def born(*args: object, **kwargs: object) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else -77)

        return born

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.fixture(params=ORDERS, ids=list(ORDERS))
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The order in which the threads of a block are resumed."""
    monkeypatch.setenv("SACCADE_SHIM_ORDER", str(ORDERS[request.param]))
    return str(request.param)


@pytest.fixture
def on_shim(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`kernels/*/cuda.py` take tensors on the CPU and launch on the shim."""
    if shim.compiler() is None:
        pytest.skip("no C++ compiler to run CUDA kernels on the CPU")

    def unsupported(*tensors: torch.Tensor) -> str | None:
        reasons = [cuda_native.unaligned(each) for each in tensors]
        return next((each for each in reasons if each), None)

    monkeypatch.setattr(cuda_native, "unsupported", unsupported)
    monkeypatch.setattr(cuda_native, "missing", lambda tensor: None)
    monkeypatch.setattr(cuda_native, "shared_memory", lambda device: shim.SHARED_LIMIT)
    monkeypatch.setattr(cuda_native, "launch", shim.launch)
    yield
