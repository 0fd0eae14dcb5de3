"""keys_read: what a method says it read is what its mask lets through."""

from __future__ import annotations

import pytest
import torch

from saccade.engine.attention.base import LayerShape, Step, per_sequence
from saccade.engine.attention.parse import parse_method

SHAPE = LayerShape(2, 1, 32, 32, 1.0)
STARTS, COUNTS, PROMPTS, PAGE = (0, 37, 64), (150, 1, 3), (150, 20, 67), 16


def a_step() -> Step:
    """Rows of three sequences; the pages are of no matter here."""
    positions = torch.cat([torch.arange(a, a + n) for a, n in zip(STARTS, COUNTS, strict=True)])
    cu_rows = torch.tensor([0, *torch.tensor(COUNTS).cumsum(0).tolist()], dtype=torch.int32)
    table = torch.arange(3 * 10, dtype=torch.int32).view(3, 10)
    rows = slice(0, positions.shape[0])
    return Step(cu_rows, positions, positions, table, torch.tensor(PROMPTS), rows, PAGE)


def expected(spec: str, position: int, prompt: int) -> int:
    keys = range(position + 1)
    if spec.startswith("window"):
        return sum(position - j < 9 or j < 3 for j in keys)
    if spec.startswith(("moba", "asa", "msa")):
        return position % 16 + 1 + 16 * min(2, position // 16)
    if spec.startswith(("lessismore", "tidal")):  # before any layer has chosen: dense
        return position + 1
    if spec.startswith("quest"):
        return position % 16 + 1 + 16 * min(3, position // 16)
    if spec.startswith("qsa"):
        return (position + 1) % 4 + 4 * min(5, (position + 1) // 4)
    if spec.startswith("infllm"):
        if max(position + 1, prompt) < 100:
            return position + 1
        return position % 16 + 1 + 16 * min(3, position // 16)
    if spec.startswith("delta"):
        exact = position % 16 == 0 or position >= prompt - 128 - prompt % 16
        return sum(exact or position - j < 9 or j < 3 for j in keys)
    return position + 1


@pytest.mark.parametrize(
    "spec",
    [
        "dense",
        "window(size=9, sinks=3)",
        "chunked(5, 7)",
        "moba(block=16, topk=3)",
        "asa(block=16, topk=3, local=1)",
        "msa(block=16, topk=3)",
        "qsa(block=4, topk=5)",
        "quest(budget=64, block=16)",
        "infllm(kernel=16, block=16, topk=3, window=16, dense_len=100)",
        "lessismore(budget=64)",
        "tidal(budget=64)",
        "delta(window=9, sinks=3, gamma=16)",
    ],
)
def test_keys_read_counts_what_the_rows_see(spec: str) -> None:
    spec = spec.replace("chunked(5, 7)", "chunked(q_chunk=5, k_chunk=7)")
    method, step = parse_method(spec), a_step()
    if spec.startswith("delta"):  # a lone row between anchors is no step of a prompt
        step = Step(
            step.cu_rows[:2],
            step.positions[:150],
            step.slots[:150],
            step.page_table[:1],
            step.prompt_lens[:1],
            slice(0, 150),
            PAGE,
        )
    prompts = step.prompt_lens.repeat_interleave(step.cu_rows.diff())
    rows = [
        expected(spec, p, n) for p, n in zip(step.positions.tolist(), prompts.tolist(), strict=True)
    ]
    found = method.keys_read(SHAPE, step, method.plan(SHAPE, step))
    assert found.tolist() == per_sequence(step, torch.tensor(rows)).tolist()
