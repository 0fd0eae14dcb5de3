"""Data races between the threads of a block: none, unless a barrier is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from saccade.kernels import cuda_sources

from . import shim

pytestmark = pytest.mark.slow
FLAGS = ["-std=c++20", "-O1", "-g1", "-pthread", "-fsanitize=thread", "-Wno-unknown-pragmas"]
# A barrier of each kernel: the line before it, without which threads would race.
BARRIERS = {
    "decode": "    multiply_keys<E, kGroup>(p, m, stage);\n",
    "select": "    stage_means<E>(p, t, block, begin);\n",
    "index": "    if (threadIdx.x % 32 == 31) sums[threadIdx.x / 32] = sum;\n",
    "means": "    keep(sums, stripe, lane, sum);\n",
    "write": "  if (threadIdx.x < 8) written[threadIdx.x] = 0;\n",
}


def run(sources: Path, folder: Path, *units: str) -> subprocess.CompletedProcess[str]:
    """Small launches of the kernels (of one source), each CUDA thread a thread of the system."""
    program, main = folder / "races", sources / "shim" / "races.cpp"
    defines = ["-DSACCADE_SHIM", "-DSACCADE_SHIM_THREADS", f"-I{sources}"]
    command = [str(shim.compiler()), *FLAGS, *defines, str(main), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "cannot find" in done.stderr and "tsan" in done.stderr:
        pytest.skip("this compiler has no ThreadSanitizer")
    assert done.returncode == 0, done.stderr[-4000:]
    found = subprocess.run([str(program), *units], capture_output=True, text=True, timeout=600)
    if "unexpected memory mapping" in found.stderr:
        pytest.skip("ThreadSanitizer does not know this kernel's address space layout")
    return found


@pytest.fixture(autouse=True)
def _compiler() -> None:
    if shim.compiler() is None:
        pytest.skip("no C++ compiler to run CUDA kernels on the CPU")


def test_no_races(tmp_path: Path) -> None:
    done = run(cuda_sources.SOURCES, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "WARNING" not in done.stderr


@pytest.mark.parametrize("unit", BARRIERS)
def test_a_missing_barrier_is_found(unit: str, tmp_path: Path) -> None:
    copy = tmp_path / "cuda"
    shutil.copytree(cuda_sources.SOURCES, copy)
    source = copy / f"{unit}.cu"
    before = source.read_text()
    indent = " " * (len(BARRIERS[unit]) - len(BARRIERS[unit].lstrip()))
    barrier = f"{BARRIERS[unit]}{indent}sync_block();\n"
    assert before.count(barrier) == 1
    source.write_text(before.replace(barrier, BARRIERS[unit]))
    done = run(copy, tmp_path, unit)
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    assert f"{unit}.cu" in done.stderr and done.returncode != 0
