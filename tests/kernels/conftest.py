"""Fixtures of the kernel tests: every instruction set this machine has, one after the other."""

from __future__ import annotations

import pytest
from saccade.kernels import native

ALL = (*native.ISAS, "amx_emulated")


@pytest.fixture(params=ALL)
def isa(request, monkeypatch):
    """Runs a test once per instruction set; one that this machine or build lacks is skipped with its reason."""
    reason = native.refusal(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    kernels = native.load(request.param)
    monkeypatch.setattr(native, "kernels", lambda: kernels)
    return request.param
