"""How much memory a prefill needs besides its inputs and outputs: the growth of the peak RSS.

Run as a program (`python -m saccade.benchmarks.scratch TOKENS`) it measures one length and prints
the bytes; each length needs a process of its own, because kernels keep their scratch memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from .attend_cases import prefill

DIM = 64
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
TIMEOUT = 600
# The C library then maps every large block by itself, and freed blocks cannot hide new ones.
MAPPED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def scratch_bytes(tokens: int, timeout: float = TIMEOUT) -> int | None:
    """Scratch of a causal bf16 prefill of `tokens` tokens, measured in a fresh process; None where
    the system has no resettable peak RSS."""
    command = [sys.executable, "-m", __name__, str(tokens)]
    environment = os.environ | MAPPED
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=True, env=environment
        )
    except (subprocess.SubprocessError, OSError):
        return None
    text = done.stdout.strip()
    return int(text) if text.lstrip("-").isdigit() else None


def resident(field: str) -> int:
    """ "VmRSS" or "VmHWM" (its peak) of this process in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in {STATUS}")


def measure(tokens: int) -> int:
    """Growth of this process's peak RSS during one prefill, without the tensors it returns."""
    run = prefill(tokens, tokens, DIM, torch.bfloat16, None).ours.run
    CLEAR.write_text("5")
    before = resident("VmRSS")
    out, lse = run()
    return resident("VmHWM") - before - int(out.nbytes) - int(lse.nbytes)


if __name__ == "__main__":
    print(measure(int(sys.argv[1])))
