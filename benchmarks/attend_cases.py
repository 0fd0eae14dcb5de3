"""Attention cases: prefill, windowed prefill, a chunk of a long prompt, decode at long context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch

from ..kernels.attend import Keys, attend
from ..kernels.store import PageLayout, write_pages
from . import peers
from .cases import Candidate, Case, Problem, Sizes, View, first, ours_name
from .played import Played
from .roofline import attend_work, causal_pairs
from .timing import Rotation, Run

HEADS, KV_HEADS = 8, 2
DIMS = (64, 128)
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
PEER = "torch SDPA"
CHUNK = 32  # pages of a prefill step of 2048 tokens


def cases(sizes: Sizes) -> Iterator[Case]:
    """All attention cases, those of the issue's goals first."""
    for dtype in DTYPES:
        for length in sizes.prefill:
            for dim in DIMS:
                params = {"T": length, "d": dim, "q": HEADS, "kv": KV_HEADS}
                build = partial(prefill, length, length, dim, dtype, None)
                yield Case("attend", "prefill", dtype, params, PEER, build)
    length = sizes.prefill[-1]
    for dim in DIMS:
        params = {"T": length, "window": sizes.window, "d": dim, "q": HEADS, "kv": KV_HEADS}
        build = partial(prefill, length, length, dim, torch.bfloat16, sizes.window)
        yield Case("attend", "window", torch.bfloat16, params, PEER, build)
        params = {"new": sizes.chunk, "T": length, "d": dim, "q": HEADS, "kv": KV_HEADS}
        build = partial(prefill, sizes.chunk, length, dim, torch.bfloat16, None)
        yield Case("attend", "chunk", torch.bfloat16, params, PEER, build)
    for batch in sizes.decode_batches:
        for dim in DIMS:
            params = {
                "batch": batch,
                "T": sizes.decode_context,
                "d": dim,
                "q": HEADS,
                "kv": KV_HEADS,
            }
            for name, run in (("decode", CHUNK), ("scattered", 1)):
                if run > 1 or batch > 1:
                    build = partial(decode, batch, sizes.decode_context, dim, sizes.cold, run)
                    yield Case("attend", name, torch.bfloat16, params, PEER, build)


class Pages:
    """`sequences` sequences of the same K and V.

    As an engine hands pages out that reads several prompts at once: `run` neighbours at a time, the
    runs shuffled. run=1: every page anywhere, the worst that evictions can do.
    """

    def __init__(self, k: torch.Tensor, v: torch.Tensor, sequences: int, run: int = CHUNK) -> None:
        self.layout = PageLayout()
        size, length = self.layout.page_size, k.shape[0]
        per_sequence = -(-length // size)
        runs = -(-per_sequence // run)
        first = torch.randperm(sequences * runs).int() * run
        order = (first[:, None] + torch.arange(run, dtype=torch.int32)).view(sequences, -1)
        self.table = order[:, :per_sequence].contiguous()
        self.k, self.v = self.layout.allocate(
            order.numel(), k.shape[1], k.shape[2], v.shape[2], k.dtype
        )
        position = torch.arange(length)
        for pages in self.table.long():
            slots = pages[position // size] * size + position % size
            write_pages(self.layout, self.k, self.v, k, v, slots)

    def run(
        self, q: torch.Tensor, tables: slice, positions: torch.Tensor, window: int | None
    ) -> Run:
        """Attention of q [T, H, d] over these sequences, T split evenly between them."""
        table = self.table[tables]
        cu_rows = torch.arange(table.shape[0] + 1, dtype=torch.int32) * (
            q.shape[0] // table.shape[0]
        )
        keys = Keys(cu_rows, positions, table, window=window)
        return lambda: attend(self.layout, q, self.k, self.v, keys, q.shape[2] ** -0.5)


def prefill(rows: int, length: int, dim: int, dtype: torch.dtype, window: int | None) -> Problem:
    """The last `rows` of `length` tokens as queries of one sequence."""
    q = torch.randn(rows, HEADS, dim).to(dtype)
    k, v = (torch.randn(length, KV_HEADS, dim).to(dtype) for _ in range(2))
    positions = torch.arange(length - rows, length)
    ours = Candidate(ours_name(), Pages(k, v, 1).run(q, slice(0, 1), positions, window), first)
    dense = peers.Dense(_batched(q), _batched(k), _batched(v), causal=rows == length)
    if window is not None:
        runs = peers.window_variants(dense, window)
    elif rows == length:
        runs = peers.variants(dense)
    else:
        mask = peers.window_mask(positions, torch.arange(length), None)
        runs = peers.variants(peers.Dense(dense.q, dense.k, dense.v, mask))
    pairs = causal_pairs(rows, length, window)
    work = attend_work(pairs, rows, length, HEADS, KV_HEADS, dim, dtype.itemsize)
    return Problem(ours, _candidates(runs), work, "matmul")


def decode(batch: int, length: int, dim: int, cold: int, run: int) -> Problem:
    """One new token in each of `batch` sequences, bf16; calls go through `cold` bytes of K and V,
    whose pages lie `run` side by side. Ours are played, as in the engine's decode steps.
    """
    dtype = torch.bfloat16
    q = torch.randn(batch, HEADS, dim).to(dtype)
    k, v = (torch.randn(length, KV_HEADS, dim).to(dtype) for _ in range(2))
    copies = max(1, -(-cold // (batch * (k.nbytes + v.nbytes))))
    pages = Pages(k, v, copies * batch, run)
    positions = torch.full((batch,), length - 1)
    tables = [slice(i * batch, (i + 1) * batch) for i in range(copies)]
    ours = Played([pages.run(q, table, positions, None) for table in tables])
    runs: dict[str, list[Run]] = {}
    for _ in range(copies):
        own_k, own_v = (_batched(each).repeat(batch, 1, 1, 1) for each in (k, v))
        for name, run in peers.decode_variants(peers.Dense(q[:, :, None], own_k, own_v)).items():
            runs.setdefault(name, []).append(run)
    rotating = {name: Rotation(each) for name, each in runs.items()}
    rotating["torch sdpa, repeated"] = _repeated(q, k, v, batch, cold)
    work = attend_work(batch * length, batch, batch * length, HEADS, KV_HEADS, dim, dtype.itemsize)
    mine = Candidate(ours_name(), ours, first, ours.calls)
    return Problem(mine, _candidates(rotating, _decoded), work, "stream")


def _repeated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: int, cold: int) -> Rotation:
    group = HEADS // KV_HEADS
    copies = max(1, -(-cold // (batch * group * (k.nbytes + v.nbytes))))
    runs = []
    for _ in range(copies):
        wide_k, wide_v = (
            _batched(each).repeat_interleave(group, 1).repeat(batch, 1, 1, 1) for each in (k, v)
        )
        dense = peers.Dense(q[:, :, None], wide_k, wide_v)
        runs.append(peers.decode_variants(dense)["torch sdpa, gqa"])
    return Rotation(runs)


def _batched(x: torch.Tensor) -> torch.Tensor:
    """[T, H, d] -> contiguous [1, H, T, d]."""
    return x.transpose(0, 1)[None].contiguous()


def _rows(out: torch.Tensor) -> torch.Tensor:
    """[1, H, T, d] -> [T, H, d]."""
    return out[0].transpose(0, 1)


def _decoded(out: torch.Tensor) -> torch.Tensor:
    """[B, H, 1, d] -> [B, H, d]."""
    return out[:, :, 0]


def _candidates(runs: Mapping[str, Run], view: View = _rows) -> list[Candidate]:
    return [Candidate(name, run, view) for name, run in runs.items()]
