"""The loader without a GPU: params, reasons, doctor, and launches through a pretended CuPy."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from saccade.kernels import cuda_native, cuda_sources, native
from saccade.kernels.attend import ATTEND
from saccade.kernels.select import SELECT_BLOCKS
from saccade.kernels.store import WRITE_PAGES, RowLayout, WriteCall
from saccade.kernels.summarize import BLOCK_MEANS, WINDOW_MEANS
from saccade.server import machine


def test_pack() -> None:
    """Eight bytes a field, in order; addresses and sizes beyond 32 bits."""
    packed = cuda_native.pack({"rows": 3, "k": 2**47 + 16, "slot": -1, "scale": 0.5})
    assert packed == struct.pack("<qqqd", 3, 2**47 + 16, -1, 0.5)


def test_ops_know_the_kernels() -> None:
    """Behind the CPU kernels, before Triton."""
    for op in (WRITE_PAGES, BLOCK_MEANS, WINDOW_MEANS, SELECT_BLOCKS, ATTEND):
        names = [each.name for each in op.implementations]
        assert names[:2] == ["cpu", "cuda"]


def test_host_tensors_are_refused() -> None:
    layout = RowLayout(16)
    k, v = layout.allocate(2, 1, 8, 8, torch.float32)
    row = torch.ones(1, 1, 8)
    reasons = WRITE_PAGES.refusals(WriteCall(layout, k, v, row, row, torch.tensor([0])))
    assert reasons["cuda"] == "tensor on cpu"


def test_kernel_names() -> None:
    assert cuda_sources.unit_of("saccade_index_scan_bins") == "index"
    with pytest.raises(ValueError, match="none of the CUDA sources"):
        cuda_sources.unit_of("saccade_rope_f32")
    assert cuda_sources.defines("saccade_write_16") == ()
    assert "-DSACCADE_ONE_TYPE=BF16" in cuda_sources.defines("saccade_decode_bf16_4")


def test_doctor_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = machine.cuda_kernels()
    usable, reason = cuda_native.state()
    assert finding.detail == reason and finding.state == ("found" if usable else "unusable")
    assert finding in machine.all_findings()

    def fail() -> None:
        raise RuntimeError("no driver")

    monkeypatch.setattr(cuda_native, "state", fail)
    assert machine.cuda_kernels()[0].state == "broken"


def test_missing_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cupy", lambda: None)
    assert "cupy" in str(cuda_native.device_refusal.__wrapped__(0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda_native, "cubin", lambda name, target: Path("none"))
    with pytest.raises(cuda_native.CudaBuildError, match="cupy"):
        cuda_native.kernel.__wrapped__("saccade_write_16", 0)


class Function:
    """A kernel that remembers its launches."""

    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int) -> None:
        self.launches.append((grid, block, args, shared_mem))


def test_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's stream, the struct by value as one array element, shared memory asked for."""
    function, streams = Function(), []

    def stream(pointer: int) -> Any:
        streams.append(pointer)
        return nullcontext()

    fake = SimpleNamespace(
        cuda=SimpleNamespace(ExternalStream=stream, Device=lambda index: nullcontext())
    )
    monkeypatch.setattr(native, "cupy", lambda: fake)
    monkeypatch.setattr(cuda_native, "kernel", lambda name, index: function)
    current = SimpleNamespace(cuda_stream=1234)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: current)
    fields = {"rows": 3, "scale": 0.5}
    device = torch.device("cuda", 1)
    cuda_native.launch("saccade_select_f32", (3, 1, 2), 128, 60000, device, fields)
    (grid, block, (params,), shared) = function.launches[0]
    assert (grid, block, shared, streams) == ((3, 1, 2), (128, 1, 1), 60000, [1234])
    assert params.size == 1 and params.tobytes() == cuda_native.pack(fields)
    assert function.max_dynamic_shared_size_bytes == 60000


def test_kernel_is_loaded_from_the_cubin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def module(path: str) -> Any:
        return SimpleNamespace(get_function=lambda name: (path, name))

    monkeypatch.setattr(native, "cupy", lambda: SimpleNamespace(RawModule=module))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(
        cuda_native, "cubin", lambda name, target: seen.append((name, target)) or tmp_path
    )
    found = cuda_native.kernel.__wrapped__("saccade_write_16", 0)
    assert found == (str(tmp_path), "saccade_write_16")
    assert seen == [("saccade_write_16", "sm_90")]
