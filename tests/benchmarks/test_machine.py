"""Naming the machine, and choosing kernels and threads for a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from saccade.benchmarks import machine
from saccade.engine.errors import RequestError
from saccade.kernels import native


def test_threads_and_kernels_are_as_before_afterwards() -> None:
    before = torch.get_num_threads(), native.chosen_isa(), os.environ.get("SACCADE_ISA")
    with machine.using("reference", 1) as here:
        assert (here.isa, here.threads, here.torch_threads) == ("reference", 1, 1)
        assert native.kernels() is None
    after = torch.get_num_threads(), native.chosen_isa(), os.environ.get("SACCADE_ISA")
    assert after == before
    assert (native.kernels() is None) == (before[1] is None)


def test_torch_gets_our_number_of_threads() -> None:
    with machine.using(None, None) as here:
        assert here.threads == here.torch_threads == native.threads()


def test_an_unknown_instruction_set_is_refused() -> None:
    before = os.environ.get("SACCADE_ISA")
    with pytest.raises(RequestError, match="mmx"), machine.using("mmx", None):
        pass
    assert os.environ.get("SACCADE_ISA") == before
    native.chosen_isa()


def test_flags_and_caches_are_read(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nflags\t\t: fma avx2\n\nprocessor: 1\nflags: other\n")
    assert machine.cpu_flags(info) == {"fma", "avx2"}
    assert machine.cpu_flags(tmp_path / "missing") == frozenset()
    for index, size in enumerate(("32K", "2M", "unknown")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert machine.cache_bytes(tmp_path) == 2 << 20
    assert machine.cache_bytes(tmp_path / "missing") == 0
