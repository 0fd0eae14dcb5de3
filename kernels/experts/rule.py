"""How the products of experts are cut on a GPU: pure functions, with their reasons."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Bytes of products that exist at a time. 8 experts of 4096 channels are 128 KB for a row: a pass
# then takes 4K rows, of which an expert of 128 still has 256, two full tiles.
BUDGET = 512 << 20


@dataclass(frozen=True)
class ExpertSizes:
    """Of one program: choices of rows; outputs; input channels of a turn of its loop."""

    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


def sorted_pays(choices: int, experts: int) -> bool:
    """Whether the choices of all rows are sorted by expert, so that an expert's weights are read
    once for all of its rows; otherwise every choice is a tile of its own.

    Choices of n at random, a quarter as many as experts, name 0.88 n experts: a sort would save an
    eighth of the reads, of which the L2 cache has some, and takes three launches more. With more
    choices it saves more: as many as experts name 0.63 n, four times as many 0.25 n.
    """
    return 4 * choices > experts


def sizes(choices: int, experts: int, dtype: torch.dtype) -> ExpertSizes:
    """Sizes for so many choices of rows.

    Weights are the left side of the products: 64 outputs are what Hopper's matrix instruction takes
    at the least, and their rows, on the right, may be as few as 16 (8, for the instruction). So
    decode and prompts use the same instruction, over the same input channels in the same order: no
    size here changes a row's bits. 16 rows while that is what an expert has on average or fewer
    (every row more would multiply padding, and memory sets the pace anyway), else 64 or 128; then
    128 outputs, two warp groups, so that a tile brought in is used 128 times.
    fp32 is there for comparison.
    """
    each = choices // max(experts, 1)
    if dtype == torch.float32:
        return ExpertSizes(16, 32, 32, 4, 1)
    if each <= 16:
        return ExpertSizes(16, 64, 64, 4, 4)
    return ExpertSizes(64 if each <= 64 else 128, 128, 64, 8, 3)


def rows_per_pass(per_row: int, hidden: int, inner: int, itemsize: int) -> int:
    """Rows whose products, of `per_row` experts each, fit the budget; at least one."""
    return max(BUDGET // _row_bytes(per_row, hidden, inner, itemsize), 1)


def gpu_scratch_bytes(rows: int, per_row: int, hidden: int, inner: int, itemsize: int) -> int:
    """Bytes that a call over so many rows takes at the most beside its result: the products of a
    pass, and the choices in order.
    """
    row = _row_bytes(per_row, hidden, inner, itemsize)
    some = min(rows, rows_per_pass(per_row, hidden, inner, itemsize))
    return some * (row + 48 * per_row)


def _row_bytes(per_row: int, hidden: int, inner: int, itemsize: int) -> int:
    return max(per_row, 1) * (4 * hidden + itemsize * inner)
