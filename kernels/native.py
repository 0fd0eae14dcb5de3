"""The only door to the compiled module (and to CuPy): loads it, chooses an instruction set and says
why.

`SACCADE_ISA` forces one of `ISAS`, or `reference` to use the torch references alone.
`SACCADE_NUM_THREADS` sets the number of threads (default: the processors this process may use).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch

from . import native_sources

ISAS = ("portable", "avx2", "avx512", "avx512bf16", "amx")
MAX_THREADS = 1024
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@dataclass(frozen=True)
class IsaReport:
    """One instruction set: whether it is the chosen one, and the reason when it is not."""

    name: str
    chosen: bool
    reason: str


class StaleModuleError(RuntimeError):
    """The compiled module was built from other sources than those that are here."""


@cache
def module() -> Any | None:
    """The compiled module, or None where the install had no compiler.

    Raises StaleModuleError in a checkout whose sources have changed since the build: with other
    arguments or kernels than Python takes it for, it would leave results unwritten.
    """
    try:
        compiled = import_module("saccade._native")
    except ImportError:
        return None
    refuse_stale(compiled)
    return compiled


def refuse_stale(compiled: Any) -> None:
    """StaleModuleError unless the module is of the sources beside it, where there are any."""
    expected = native_sources.digest()
    if expected is not None and getattr(compiled, "sources", "") != expected:
        raise StaleModuleError(
            f"{compiled.__file__} was built from other sources than csrc/ now holds: rebuild it "
            f"with {native_sources.REBUILD}"
        )


@cache
def cupy() -> Any | None:
    """CuPy, which launches the CUDA kernels, or None where it is missing or does not load."""
    try:
        return import_module("cupy")
    except Exception:  # noqa: BLE001 - without a driver it fails in many ways
        return None


def threads() -> int:
    """Number of threads for the compiled kernels."""
    text = os.environ.get("SACCADE_NUM_THREADS", "")
    if text:
        if not text.isdecimal() or not 1 <= int(text) <= MAX_THREADS:
            raise ValueError(f"SACCADE_NUM_THREADS must be 1 .. {MAX_THREADS}, not {text!r}")
        return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refusal(isa: str) -> str | None:
    """None when this machine can run `isa`, otherwise the reason."""
    compiled = module()
    if compiled is None:
        return "the compiled module is missing (no C++ compiler at install time)"
    reason: str = compiled.refusal(isa)
    return reason or None


@cache
def chosen_isa() -> str | None:
    """The instruction set in use, or None for the torch references."""
    wanted = os.environ.get("SACCADE_ISA", "")
    if wanted == "reference" or (not wanted and module() is None):
        return None
    if wanted:
        if wanted not in (*ISAS, "amx_emulated"):
            raise ValueError(
                f"SACCADE_ISA={wanted!r} is unknown; choose from reference, {', '.join(ISAS)}"
            )
        reason = refusal(wanted)
        if reason is not None:
            raise ValueError(f"SACCADE_ISA={wanted}: {reason}")
        return wanted
    return next((isa for isa in reversed(ISAS) if refusal(isa) is None), None)


def load(isa: str) -> Any:
    """A kernel set with a thread pool of its own for `isa`; ValueError when it cannot run here."""
    reason = refusal(isa)
    if reason is not None:
        raise ValueError(f"{isa}: {reason}")
    compiled = module()
    return compiled.Kernels(isa, threads()) if compiled is not None else None


@cache
def kernels() -> Any:
    """The process-wide kernel set of the chosen instruction set, or None."""
    isa = chosen_isa()
    return None if isa is None else load(isa)


_recording = threading.local()


@contextmanager
def record(calls: Any) -> Iterator[None]:
    """Inside, the kernels that this thread calls are also noted in `calls`, the module's Tape."""
    noted: Callable[[Any], None] = getattr(module(), "record")  # noqa: B009  it is there
    noted(calls)
    _recording.on = True
    try:
        yield
    finally:
        _recording.on = False
        noted(None)


def is_recording() -> bool:
    """Whether this thread is inside `record`."""
    return getattr(_recording, "on", False)


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Keeps torch's own threads asleep while the compiled kernels use the processors.

    torch's OpenMP threads poll for some time after each parallel region, on the very cores that the
    next kernel needs. Without compiled kernels nothing changes.
    """
    before = torch.get_num_threads()
    if kernels() is None or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def unsupported(*tensors: torch.Tensor | None) -> str | None:
    """None when the compiled CPU kernels can take these tensors, otherwise the reason."""
    if kernels() is None:
        return "no compiled kernels"
    for tensor in tensors:
        # The usual case first: this runs a few hundred times in every step.
        if tensor is None or (
            tensor.is_cpu and tensor.dtype in DTYPES and tensor.ndim and tensor.stride(-1) == 1
        ):
            continue
        if tensor.device.type != "cpu":
            return f"tensor on {tensor.device}"
        if tensor.dtype not in DTYPES:
            return f"dtype {tensor.dtype}"
        if tensor.numel() and tensor.stride(-1) != 1:
            return "last dimension is not contiguous"
    return None


def report() -> list[IsaReport]:
    """Every instruction set with the reason for choosing it or not, best last."""
    chosen = chosen_isa()
    forced = bool(os.environ.get("SACCADE_ISA"))
    rows = []
    for isa in ISAS:
        reason = refusal(isa)
        if isa == chosen:
            reason = "forced by SACCADE_ISA" if forced else "the best this processor has"
        elif reason is None:
            reason = "SACCADE_ISA forces another" if forced else "a better one is available"
        rows.append(IsaReport(isa, isa == chosen, reason))
    return rows
