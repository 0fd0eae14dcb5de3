"""Rows by selected block: exactly the tiles and the order of the torch form."""

from __future__ import annotations

import pytest
import torch

from saccade.kernels.attend import gather, index_cuda
from saccade.kernels.attend.block_tiles import TilesCall
from saccade.kernels.attend.gather_index import block_tiles

pytestmark = pytest.mark.usefixtures("on_shim")


def lists(counts: list[int], owners: int, listed: int, blocks: int, width: int = 4):
    """Ascending lists of some blocks before and after each row's own one; some are empty."""
    rows = sum(counts)
    held = torch.rand(rows, owners, blocks) < width / blocks
    held[torch.rand(rows, owners) < 0.1] = False
    ids = torch.where(held, torch.arange(blocks), blocks).sort(-1).values[..., :listed]
    ids = torch.nn.functional.pad(ids, (0, listed - ids.shape[-1]), value=blocks)
    ids = torch.where(ids == blocks, -1, ids).int().contiguous()
    sequence = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    own = torch.randint(0, blocks, (rows,))
    return ids, sequence, own, len(counts), blocks


def check(*arguments) -> None:
    call = TilesCall(*arguments)
    assert index_cuda.supports(call) is None
    got, want = index_cuda.block_tiles(call), block_tiles(call)
    assert torch.equal(got.group, want.group)
    assert torch.equal(got.first, want.first)
    assert torch.equal(got.count, want.count)
    used = int(want.count.sum())
    assert torch.equal(got.order[:used], want.order[:used])
    assert {getattr(got, name).dtype for name in ("order", "group", "first", "count")} == {
        torch.int32
    }


@pytest.mark.parametrize(("owners", "kv_heads"), [(4, 2), (2, 2), (6, 1), (12, 4)])
@pytest.mark.parametrize("tile", [1, 16, 128])
def test_tiles(owners: int, kv_heads: int, tile: int, order: str) -> None:
    """Several sequences, one without rows; rows of two of them share a chunk."""
    check(*lists([150, 0, 37, 201], owners, 5, 9), kv_heads, tile)


def test_many_blocks() -> None:
    """More blocks than one window of bitmaps holds, more bins than one pass scans."""
    check(*lists([40, 3], 2, 6, 1300), 2, 4)


def test_full_block() -> None:
    """Every row chooses the same block: its entries fill several tiles."""
    ids = torch.zeros(700, 2, 1, dtype=torch.int32)
    sequence, own = torch.zeros(700, dtype=torch.int64), torch.ones(700, dtype=torch.int64)
    check(ids, sequence, own, 1, 3, 1, 128)


def test_hostile_lists() -> None:
    """Blocks named twice count once; the own block, later ones, and others that no sequence has,
    do not count."""
    ids = torch.tensor([[[0, 0, 1, 2, 7]], [[-1, -1, 3, 2**30, 2**30]], [[1, 1, 1, 1, 2]]])
    own = torch.tensor([2, 4, 2])
    check(ids.int(), torch.zeros(3, dtype=torch.int64), own, 1, 5, 1, 2)


def test_refusals() -> None:
    call = TilesCall(*lists([8], 2, 3, 5), 2, 4)
    assert "no lists" in str(index_cuda.supports(call._replace(ids=call.ids[:0])))
    assert "int32" in str(index_cuda.supports(call._replace(ids=call.ids.long())))
    assert "counts" in str(index_cuda.supports(call._replace(sequences=2**22)))


def test_gather_takes_it() -> None:
    """The gather kernels ask for tiles through an op that knows this implementation."""
    assert [each.name for each in gather.BLOCK_TILES.implementations] == ["cuda"]
    call = TilesCall(*lists([30], 2, 3, 5), 2, 4)
    assert torch.equal(gather.BLOCK_TILES(call).group, block_tiles(call).group)
