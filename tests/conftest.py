"""What every test may rely on: fixed seeds, NaN poison, and properties that run the same in CI."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Two pytest workers share two cores: more threads each would only fight over them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Kernels in Triton are interpreted; read when triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]

SLOW_CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("saccade", deadline=None, suppress_health_check=SLOW_CHECKS)
settings.register_profile("ci", settings.get_profile("saccade"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "saccade")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state (torch's too, where a test uses it)."""
    random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def poison() -> Callable[..., None]:
    """`poison(*tensors)` fills them with NaN (integers: -1), so that an unwritten output shows."""

    def fill(*tensors: torch.Tensor) -> None:
        for tensor in tensors:
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)

    return fill


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `isa` runs once per instruction set; those that this machine (or
    this build) lacks are skipped with the reason."""
    if "isa" not in metafunc.fixturenames:
        return
    from saccade.kernels import native

    names = []
    for name in (*native.ISAS, "amx_emulated"):
        reason = native.refusal(name)
        marks = pytest.mark.skip(reason=reason) if reason else ()
        names.append(pytest.param(name, marks=marks, id=name))
    metafunc.parametrize("isa", names)


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No SACCADE_* variable of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("SACCADE_")]:
        monkeypatch.delenv(name)
    yield


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU path runs in host memory, kernels in Triton by its interpreter."""
    pytest.importorskip("triton", reason="triton is not installed")
    from triton.runtime import interpreter

    monkeypatch.setenv("SACCADE_CUDA_INTERPRET", "1")
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", _dot)
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", _device_call)


def _device_call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A function that a kernel calls. At each call the interpreter would look for what to replace
    in triton's language, as the launch of the kernel has done: a third of all its time."""
    from triton.language import core
    from triton.runtime import interpreter

    known = self.fn.__globals__
    if any(core.is_builtin(known[name].arange) for name in ("tl", "core") if name in known):
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


def _dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    """The interpreter's product, summed in fp64: in fp32 the host's BLAS may round a row by its
    place in the matrix, which no tensor core does, and tests here compare rows bit by bit."""
    product = (a.data.astype("float64") @ b.data.astype("float64")).astype(d.data.dtype)
    return type(d)(product + d.data, d.dtype.scalar)
