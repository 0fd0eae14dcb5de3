"""The engine's fixtures serve the tests of methods too."""

from __future__ import annotations

from ..engine.conftest import (
    checkpoint,
    emulated,
    interpreted,
    lone_kernels,
    make_engine,
    one_thread,
)

__all__ = [
    "checkpoint",
    "emulated",
    "interpreted",
    "lone_kernels",
    "make_engine",
    "one_thread",
]
