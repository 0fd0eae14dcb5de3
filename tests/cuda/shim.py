"""The CUDA sources compiled by the C++ compiler over csrc/cuda/shim, and launched like on a GPU."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from saccade.kernels import cuda_native, cuda_sources

BUILD = cuda_sources.PACKAGE / "build" / "shim"
# -O1: the sources are templates, and what a test runs is small.
BASE = ["-std=c++20", "-O1", "-g1", "-fPIC", "-shared", "-pthread", "-DSACCADE_SHIM"]
STRICT = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]
SHARED_LIMIT = 227 * 1024  # of a block on sm_90


def compiler() -> str | None:
    """A C++ compiler (not a caching wrapper), or None."""
    return next((path for name in ("g++", "c++") if (path := shutil.which(name))), None)


def shim_key(unit: str, flags: list[str]) -> str:
    """Names a build: sources, the shim and the flags."""
    shim = (cuda_sources.SOURCES / "shim" / "shim.h").read_text()
    return cuda_sources.key(unit, shim, *BASE, *STRICT, *flags)


def build(unit: str, flags: tuple[str, ...] = (), source: Path | None = None) -> Path:
    """The library of one source (or of a changed copy of it), from build/ where it is there."""
    BUILD.mkdir(parents=True, exist_ok=True)
    target = BUILD / f"{unit}-{shim_key(unit, list(flags))}.so"
    if target.exists() and source is None:
        return target
    path = source or cuda_sources.SOURCES / f"{unit}.cu"
    with tempfile.NamedTemporaryFile(dir=BUILD, suffix=".so", delete=False) as fresh:
        out = Path(fresh.name)
    command = [str(compiler()), *BASE, *STRICT, *flags, f"-I{cuda_sources.SOURCES}"]
    done = subprocess.run(
        [*command, "-x", "c++", str(path), "-o", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out if source is not None else out.replace(target)


@cache
def library(unit: str) -> ctypes.CDLL:
    """The kernels of one source, every CUDA thread a fiber."""
    return ctypes.CDLL(str(build(unit)))


@cache
def structs() -> list[list[str]]:
    """The field names of every params struct, in order, as csrc/cuda/params.cuh has them."""
    text = re.sub(r"//.*", "", (cuda_sources.SOURCES / "params.cuh").read_text())
    found = []
    for body in re.findall(r"struct \w+ \{(.*?)\};", text, re.S):
        names = []
        for line in body.split(";"):
            line = re.sub(r"^\s*(const )?\w+\b", "", line.strip())
            names += [name.strip(" *\n") for name in line.split(",") if name.strip(" *\n")]
        found.append(names)
    return found


def launch(
    name: str,
    grid: tuple[int, int, int],
    threads: int,
    shared: int,
    device: torch.device,
    fields: Mapping[str, int | float],
) -> None:
    """In place of `cuda_native.launch`: the same bytes of params, a function for a kernel."""
    assert device.type == "cpu" and shared <= SHARED_LIMIT
    assert list(fields) in structs(), f"{name}: fields disagree with csrc/cuda/params.cuh"
    assert max(grid[1:]) <= 65535 and min(grid) >= 1 and threads <= 1024
    kernels = library(cuda_sources.unit_of(name))
    kernels.saccade_shim_order(int(os.environ.get("SACCADE_SHIM_ORDER", "0")))
    run = kernels[name]
    run.argtypes = [ctypes.c_char_p, *[ctypes.c_uint] * 4, ctypes.c_size_t]
    run.restype = None
    run(cuda_native.pack(fields), *grid, threads, shared)
