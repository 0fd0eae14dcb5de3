"""The attention kernel's own memory: tile x threads, whatever the length of the context."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from saccade.kernels import native

SCRIPT = """
import sys, re, torch
from saccade.kernels.attend import Keys, attend
from saccade.kernels.store import PageLayout

def status(name):
    text = open("/proc/self/status").read()
    return int(re.search(name + r":\\s+(\\d+) kB", text).group(1))

context, rows = map(int, sys.argv[1:])
layout = PageLayout(64)
pages = context // 64
k, v = layout.allocate(pages, 1, 32, 32, torch.float32)
k.normal_(), v.normal_()
table = torch.arange(pages, dtype=torch.int32)[None]
q = torch.randn(rows, 2, 32)
cu = torch.tensor([0, rows], dtype=torch.int32)
keys = Keys(cu, torch.arange(context - rows, context), table)
tiny = Keys(torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0]), table)
attend(layout, q[:1], k, v, tiny, 1.0)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
attend(layout, q, k, v, keys, 1.0)
print(status("VmHWM") - before)
"""


def growth(context: int, rows: int) -> int:
    """KiB by which a process grows while it attends with `rows` rows over `context` keys."""
    command = [sys.executable, "-c", SCRIPT, str(context), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "clear_refs" in done.stderr:
        pytest.skip("the peak of this process's memory cannot be reset here")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(native.module() is None, reason="no compiled module")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("rows", [1, 512])
def test_scratch_does_not_grow_with_the_context(rows):
    """Eight times the context takes no more memory (a copy of K: 3.5 MiB, the scores: 112)."""
    short, long = growth(4096, rows), growth(32768, rows)
    assert long < short + 1500, f"{short} KiB at 4K, {long} KiB at 32K"
