"""The kernel tests: every instruction set of this machine in turn, on poisoned memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from saccade.kernels import native

LARGE_INTEGER = -77


@cache
def kernels_of(isa: str, threads: int) -> Any:
    """A kernel set, kept for all tests."""
    return native.module().Kernels(isa, threads)


@pytest.fixture(autouse=True)
def _kernels_of_the_test(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test with the argument `isa` runs on that instruction set, with two threads."""
    if "isa" in request.fixturenames:
        kernels = kernels_of(request.getfixturevalue("isa"), 2)
        monkeypatch.setattr(native, "kernels", lambda: kernels)


@pytest.fixture
def use_threads(isa: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`use_threads(n)` goes on with n threads."""

    def use(threads: int) -> None:
        kernels = kernels_of(isa, threads)
        monkeypatch.setattr(native, "kernels", lambda: kernels)

    return use


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are born as NaN, so that an element that no kernel writes shows."""

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def born(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else LARGE_INTEGER)

        return born

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
