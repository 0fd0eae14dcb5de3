"""The CUDA sources compiled for real GPUs, where there is none: no spills, and by NVRTC as well."""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest

from saccade.benchmarks import cuda_resources
from saccade.kernels import cuda_native, cuda_sources

RECORDED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "cuda_resources.md"


@pytest.fixture(scope="module")
def measured() -> list[cuda_resources.Resources]:
    """Every kernel on every target, by nvcc."""
    if cuda_resources.nvcc() is None:
        pytest.skip("nvcc is not installed (pip install nvidia-cuda-nvcc)")
    return cuda_resources.measure()


@pytest.mark.slow
def test_no_kernel_spills(measured: list[cuda_resources.Resources]) -> None:
    """Nothing is kept in slow local memory, neither spills nor arrays with variable indices."""
    assert {each.target for each in measured} == {"sm_80", "sm_90a"}
    assert {cuda_sources.unit_of(each.kernel) for each in measured} == set(cuda_sources.UNITS)
    assert not [each for each in measured if each.stack or each.spills]


@pytest.mark.slow
def test_recorded_table(measured: list[cuda_resources.Resources]) -> None:
    """The committed table is of these sources (`python -m saccade.benchmarks.cuda_resources`)."""
    if f"nvcc {cuda_resources.version()};" not in RECORDED.read_text():
        pytest.skip(f"the table is of another nvcc than {cuda_resources.version()}")
    assert RECORDED.read_text() == cuda_resources.table(measured)


KERNELS = [
    *("saccade_decode_bf16_4", "saccade_select_f16", "saccade_means_f32"),
    *("saccade_write_16", "saccade_index_count"),
]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_nvrtc(kernel: str) -> None:
    """The same sources by the compiler that serves where the build had none."""
    library = cuda_native.nvrtc()
    if library is None:
        pytest.skip("NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
    data = cuda_native.compile_kernel(library, kernel, "sm_90")
    assert data.startswith(b"\x7fELF") and f"{kernel}\0".encode() in data
    assert {cuda_sources.unit_of(each) for each in KERNELS} == set(cuda_sources.UNITS)


def test_nvrtc_error_shows_the_message() -> None:
    library = cuda_native.nvrtc()
    if library is None:
        pytest.skip("NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
    with pytest.raises(cuda_native.CudaBuildError, match="sm_1"):
        cuda_native.compile_kernel(library, "saccade_write_16", "sm_1")


def test_cubins_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the private folder, in one move; a changed header makes another file."""
    if cuda_native.nvrtc() is None:
        pytest.skip("NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
    monkeypatch.setattr(cuda_sources, "COMPILED", tmp_path / "none")
    monkeypatch.setenv("SACCADE_CUDA_CACHE", str(tmp_path / "cache"))
    path = cuda_native.cubin("saccade_write_16", "sm_80")
    assert path.parent == tmp_path / "cache" and (path.parent.stat().st_mode & 0o777) == 0o700
    monkeypatch.setattr(cuda_native, "compile_kernel", lambda *arguments: pytest.fail("again"))
    assert cuda_native.cubin("saccade_write_16", "sm_80") == path
    assert list(path.parent.iterdir()) == [path]
    copy = tmp_path / "sources"
    copy.mkdir()
    for each in (*cuda_sources.headers(), cuda_sources.SOURCES / "write.cu"):
        (copy / each.name).write_bytes(each.read_bytes())
    monkeypatch.setattr(cuda_sources, "SOURCES", copy)
    before = cuda_sources.key("write")
    (copy / "params.cuh").write_bytes((copy / "params.cuh").read_bytes() + b"\n")
    assert cuda_sources.key("write") != before
    assert cuda_sources.key("write", "a", "b") != cuda_sources.key("write", "ab")


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="needs a foreign folder")
def test_a_folder_of_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("SACCADE_CUDA_CACHE", str(shared))
    with pytest.raises(cuda_native.CudaBuildError, match="SACCADE_CUDA_CACHE"):
        cuda_native.cache_folder()
    foreign = tmp_path / "foreign"
    foreign.mkdir(mode=0o700)
    os.chown(foreign, 12345, 12345)
    monkeypatch.setenv("SACCADE_CUDA_CACHE", str(foreign))
    with pytest.raises(cuda_native.CudaBuildError, match="another user"):
        cuda_native.cache_folder()


def test_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SACCADE_CUDA=1 builds has the name under which the loader looks for it."""
    if cuda_resources.nvcc() is None:
        pytest.skip("nvcc is not installed (pip install nvidia-cuda-nvcc)")
    root = cuda_sources.PACKAGE
    shutil.copytree(root / "csrc", tmp_path / "csrc")
    (tmp_path / "kernels").mkdir()
    text = (root / "kernels" / "cuda_sources.py").read_text()
    only = re.sub(r"UNITS = .*", 'UNITS = ("write",)', text)
    (tmp_path / "kernels" / "cuda_sources.py").write_text(only)
    monkeypatch.setenv("NVCC", str(cuda_resources.nvcc()))
    monkeypatch.syspath_prepend(str(tmp_path / "csrc"))
    (built,) = import_module("cuda_build").build_cuda(tmp_path)
    assert built.read_bytes()
    assert built.name == cuda_sources.compiled("write").name
    monkeypatch.setattr(cuda_sources, "COMPILED", built.parent)
    assert cuda_native.cubin("saccade_write_16", "sm_90") == built
