"""Registers and memory of every CUDA kernel as nvcc compiles it; needs no GPU.

`python -m saccade.benchmarks.cuda_resources` writes benchmarks/results/cuda_resources.md.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..kernels import cuda_sources

RESULT = Path(__file__).resolve().parent / "results" / "cuda_resources.md"
FOUND = re.compile(
    r"Compiling entry function '(\w+)' for '(\w+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers",
    re.S,
)


@dataclass(frozen=True)
class Resources:
    """What one kernel needs on one target; stack and spills in bytes a thread."""

    kernel: str
    target: str
    registers: int
    stack: int
    spills: int


def nvcc() -> Path | None:
    """nvcc of the Python environment, else of the system, or None."""
    spec = find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        found = sorted(Path(folder).glob("*/bin/nvcc"))
        if found:
            return found[-1]
    named = shutil.which("nvcc")
    return Path(named) if named else None


def measure() -> list[Resources]:
    """Compiles every source for every target. Raises RuntimeError with nvcc's message."""
    rows = []
    generate = [f"-gencode=arch={arch},code={code}" for code, arch in cuda_sources.TARGETS.items()]
    with tempfile.TemporaryDirectory() as folder:
        for unit in cuda_sources.UNITS:
            source = cuda_sources.SOURCES / f"{unit}.cu"
            command = [str(nvcc()), *cuda_sources.OPTIONS, *generate, "-Xptxas", "-v", "-fatbin"]
            done = subprocess.run(
                [*command, str(source), "-o", f"{folder}/{unit}.fatbin"],
                capture_output=True,
                text=True,
            )
            if done.returncode or "warning" in done.stderr:
                raise RuntimeError(done.stderr[-4000:])
            for name, target, stack, stores, loads, registers in FOUND.findall(done.stderr):
                numbers = int(registers), int(stack), int(stores) + int(loads)
                rows.append(Resources(name, target, *numbers))
    return sorted(rows, key=lambda each: (each.kernel, each.target))


def version() -> str:
    """The release of nvcc."""
    done = subprocess.run([str(nvcc()), "--version"], capture_output=True, text=True)
    found = re.search(r"V(\d+(\.\d+)+)", done.stdout)
    return found[1] if found else "unknown"


def table(rows: list[Resources]) -> str:
    """The table in Markdown, one row a kernel."""
    targets = list(cuda_sources.TARGETS)
    head = [
        "# CUDA kernels: registers of a thread",
        "",
        f"By nvcc {version()}; no kernel has a stack frame or spills (a test requires it). Shared",
        "memory is dynamic and depends on the shapes: `shared_bytes` in kernels/*/cuda.py.",
        "",
        f"| kernel | {' | '.join(targets)} |",
        f"| --- |{' --- |' * len(targets)}",
    ]
    of = {(each.kernel, each.target): each.registers for each in rows}
    names = sorted({each.kernel for each in rows})
    body = [f"| {name} | {' | '.join(str(of[name, each]) for each in targets)} |" for name in names]
    return "\n".join([*head, *body, ""])


if __name__ == "__main__":
    RESULT.write_text(table(measure()))
    print(RESULT)
