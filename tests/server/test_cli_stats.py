"""`saccade generate --json` shows what a request read, per phase."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from saccade.server import cli

from ..engine.conftest import checkpoint, lone_kernels, one_thread

__all__ = ["checkpoint", "lone_kernels", "one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("stream", [False, True])
def test_statistics_of_the_request(
    checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str], stream: bool
) -> None:
    model = str(checkpoint("llama", tokenizer=True))
    argv = ["generate", model, "--prompt", "def add(a, b):\n" * 9, "--json", "--ignore-eos"]
    argv += ["--max-tokens", "5", "--kv-cache-memory", "1MiB", "--page-size", "16"]
    argv += ["--attention", "moba(block=16, topk=2)", *(["--stream"] if stream else [])]
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    output = json.loads(text.splitlines()[-1] if stream else text)
    prompt, phases = len(output["prompt_token_ids"]), output["stats"]["attention"]
    assert prompt > 40 and output["stats"]["preemptions"] == 0
    assert set(phases) == {"prefill", "decode"}
    layers, rows = 3, {"prefill": range(prompt), "decode": range(prompt, prompt + 4)}
    for phase, positions in rows.items():
        # The row's own block, and the best one before it.
        read = layers * sum(p % 16 + 1 + 16 * min(1, p // 16) for p in positions)
        seen = layers * sum(p + 1 for p in positions)
        assert phases[phase] == {
            "rows": len(positions),
            "share": read / seen,
            "keys_read": read,
            "keys_visible": seen,
            "blocks_selected": layers * sum(1 + min(1, p // 16) for p in positions),
            "dense_fallbacks": 0,
        }
