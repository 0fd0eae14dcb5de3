"""The CUDA sources and the names of what is compiled from them.

It imports nothing that has to be installed: the build runs this file alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = PACKAGE / "csrc" / "cuda"
COMPILED = PACKAGE / "kernels" / "fatbins"  # where SACCADE_CUDA=1 leaves them
UNITS = ("decode", "index", "means", "select", "write")
OPTIONS = ("-std=c++17",)
TARGETS = {"sm_80": "compute_80", "sm_90a": "compute_90a"}  # of the build, which adds PTX of 8.0


def unit_of(kernel: str) -> str:
    """The source file of an entry point: `saccade_<unit>_<variant>`."""
    unit = kernel.split("_")[1]
    if not kernel.startswith("saccade_") or unit not in UNITS:
        raise ValueError(f"{kernel} names none of the CUDA sources {', '.join(UNITS)}")
    return unit


def defines(kernel: str) -> tuple[str, ...]:
    """Options that leave this entry point alone of a source where all take long to compile."""
    unit, *variant = kernel.split("_")[1:]
    if unit != "decode":
        return ()
    kind, group = variant
    names = {"NAME": kernel, "TYPE": kind.upper(), "GROUP": group}
    return tuple(f"-DSACCADE_ONE_{name}={value}" for name, value in names.items())


def headers() -> list[Path]:
    """Every header that a source may include."""
    return sorted(SOURCES.glob("*.cuh"))


def key(unit: str, *parts: str) -> str:
    """A digest of the source, of all headers, of the options and of `parts` (compiler, target)."""
    digest = hashlib.sha256()
    for path in (*headers(), SOURCES / f"{unit}.cu"):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    digest.update("\n".join((*OPTIONS, *parts)).encode())
    return digest.hexdigest()[:32]


def compiled(unit: str) -> Path:
    """Where the build puts the fat binary of this source; the name changes with the source."""
    return COMPILED / f"{unit}-{key(unit, *TARGETS)}.fatbin"
