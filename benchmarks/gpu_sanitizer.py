"""The small checks of the GPU path again, under NVIDIA's compute-sanitizer, where it is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .gpu_rows import NOT_MEASURED, Row

TOOLS = ("memcheck", "racecheck")
SECONDS = 60  # for each tool
FOUND = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)")


def sanitized(dry: bool) -> Iterator[Row]:
    """What each tool finds in the small checks of all kernels."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for tool in TOOLS:
        if dry or not Path(program).exists():
            reason = "dry run" if dry else "compute-sanitizer is not installed"
            yield Row("sanitizer", tool, NOT_MEASURED, reason)
            continue
        yield _row(program, tool)


def _row(program: str, tool: str) -> Row:
    check = [sys.executable, "-m", "saccade.benchmarks.gpu_check", "--tiny"]
    command = [program, "--tool", tool, "--target-processes", "all", *check]
    command += ["--only", "correctness", "--only", "ops"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return Row("sanitizer", tool, NOT_MEASURED, f"not over after {SECONDS} s")
    return judged(tool, done.stdout + done.stderr)


def judged(tool: str, output: str) -> Row:
    """What the tool's output says; without its summary it did not run."""
    found = FOUND.search(output)
    if found is None:
        lines = [line for line in output.splitlines() if line.strip()]
        return Row("sanitizer", tool, NOT_MEASURED, lines[-1][:160] if lines else "no output")
    count = int(found[1])
    first = next((line for line in output.splitlines() if "=========" in line), "")
    return Row("sanitizer", tool, f"{count} found", first[:160] if count else "", failed=count > 0)
