"""Timings on the GPU: ceilings, and attention beside torch's own. In a dry run everything runs once
and no time is reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from ..kernels import gpu
from ..kernels.attend import ATTEND, BlockLists, attend
from ..kernels.ranked_lists import best_lists
from ..kernels.select import Candidates, select_blocks
from .gpu_rows import NOT_MEASURED, PAGE, Pages, Row, pages, reason_of

HEADS, DIM = (32, 8), 128  # Llama-3-8B
SPAN_MS = 300.0  # of timed calls
L2_BYTES = 256 << 20  # written between calls, so that no input is found in a cache


def milliseconds(call: Callable[[], object], cold: bool = False) -> float:
    """Median time of a call on the device. cold: with caches emptied before each."""
    call()
    torch.cuda.synchronize()
    flush = torch.empty(L2_BYTES if cold else 0, dtype=torch.uint8, device=gpu.device())
    times: list[float] = []
    while len(times) < 3 or (sum(times) < SPAN_MS and len(times) < 200):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def timed(
    section: str,
    case: str,
    call: Callable[[], object],
    dry: bool,
    flops: float = 0.0,
    read: float = 0.0,
    cold: bool = False,
    peer: bool = False,
) -> Row:
    """A row with its rate, or with the reason where it cannot run: only a peer need not."""
    try:
        if dry:
            call()
            return Row(section, case, NOT_MEASURED, "dry run")
        took = milliseconds(call, cold)
    except Exception as error:  # noqa: BLE001 - a peer may refuse in any way
        return Row(section, case, NOT_MEASURED, reason_of(error), failed=not peer)
    row = Row(section, case, f"{took:.4f} ms", "", took, flops=flops, read=read)
    if row.tflops is not None:
        return replace(row, note=f"{row.tflops:.0f} TFLOP/s")
    return row if row.gbps is None else replace(row, note=f"{row.gbps:.0f} GB/s")


def ceilings(dry: bool) -> Iterator[Row]:
    """The bf16 matrix product, and reading and copying device memory."""
    side, size = (64, 1 << 12) if dry else (8192, 2 << 30)
    device = gpu.device()
    a = torch.randn((side, side), device=device).to(torch.bfloat16)
    yield timed("ceilings", "bf16 product", lambda: a @ a, dry, flops=2 * side**3)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    yield timed("ceilings", "read", partial(torch.sum, source.view(torch.float32)), dry, read=size)
    target = torch.empty_like(source)
    yield timed("ceilings", "copy", lambda: target.copy_(source), dry, read=2 * size)
    small = source[: 1 << 12 if dry else 16 << 20]  # stays in the L2 cache
    yield timed(
        "ceilings",
        "copy in L2",
        lambda: target[: len(small)].copy_(small),
        dry,
        read=2 * len(small),
    )


def prefill_times(length: int, dry: bool) -> Iterator[Row]:
    """One layer's causal prefill of a whole prompt, ours and torch's."""
    heads, dim = ((2, 1), 32) if dry else (HEADS, DIM)
    dtype, device, section = torch.bfloat16, gpu.device(), f"prefill {length}"
    problem = pages([length], [length], heads, dim, dtype, device)
    pairs = length * (length + 1) / 2
    flops = 4 * dim * heads[0] * pairs
    yield from dense_ways(section, problem, dry, flops)
    window, sinks = (16, 2) if dry else (2048, 64)
    narrow = replace(problem, keys=replace(problem.keys, window=window, sinks=sinks))
    seen = min(window + sinks, length) * length
    yield timed(
        section, "saccade window", lambda: _ours(narrow), dry, flops=4 * dim * heads[0] * seen
    )
    for block, count in ((16, 2),) if dry else ((512, 8), (128, 8)):
        listed = _listed(problem, block, count)
        work = 4 * dim * heads[0] * min(block * count, length) * length
        name = f"saccade lists {block} x {count}"
        yield timed(section, name, lambda p=listed: _ours(p), dry, flops=work)


def dense_ways(section: str, problem: Pages, dry: bool, flops: float) -> Iterator[Row]:
    """Dense attention by whoever serves it here, `attend`'s own choice first."""
    call = problem.call
    chosen = next((each.name for each in ATTEND.implementations if not each.supports(call)), "")
    row = timed(section, "saccade dense", lambda: _ours(problem), dry, flops=flops)
    yield row if dry else replace(row, note=f"{row.note}, by {chosen or 'the reference'}")
    for each in ATTEND.implementations:
        if each.name in ("cpu", "gather", "cuda"):
            continue
        name = f"dense by {each.name}"
        if reason := each.supports(call):
            yield Row(section, name, NOT_MEASURED, reason)
            continue
        yield timed(section, name, lambda run=each.run: run(call), dry, flops=flops)


def _listed(problem: Pages, block: int, count: int) -> Pages:
    """Every row with its own block and others before it, at random, per KV head."""
    rows, owners, device = problem.q.shape[0], problem.k.shape[1], problem.q.device
    own = (problem.keys.positions // block)[:, None, None]
    random = torch.rand((rows, owners, count), device=device)
    ids = torch.cat([(random[..., 1:] * own).long(), own.expand(rows, owners, 1)], -1)
    ids = ids.sort(-1).values
    twice = torch.zeros_like(ids, dtype=torch.bool)
    twice[..., 1:] = ids[..., 1:] == ids[..., :-1]
    far = 1 << 30
    ids = ids.masked_fill(twice, far).sort(-1).values
    ids = ids.masked_fill(ids == far, -1).int()
    return replace(problem, keys=replace(problem.keys, blocks=BlockLists(ids, None, block)))


def decode_times(length: int, batch: int, dry: bool) -> Iterator[Row]:
    """One layer's decode step over full pages, by a captured graph where that works."""
    heads, dim = ((2, 1), 32) if dry else (HEADS, DIM)
    device, section = gpu.device(), f"decode {length} b={batch}"
    size = batch * length * heads[1] * dim * 4
    if not dry and size > torch.cuda.mem_get_info(device)[0] * 0.7:
        yield Row(section, "saccade dense", NOT_MEASURED, f"{size >> 30} GiB of K and V do not fit")
        return
    problem = pages([length] * batch, [1] * batch, heads, dim, torch.bfloat16, device)
    call = captured(lambda: _ours(problem), dry)
    yield timed(section, "saccade dense", call, dry, read=size, cold=True)
    listed = _listed(problem, PAGE, 2 if dry else 64)
    call = captured(lambda: _ours(listed), dry)
    read = batch * min(64 * PAGE, length) * heads[1] * dim * 4
    yield timed(section, "saccade lists 64 x 64", call, dry, read=read, cold=True)


def latent_times(length: int, batch: int, dry: bool) -> Iterator[Row]:
    """One layer's decode step over latents, by a captured graph: of all heads over one latent of
    512 channels and 64 rotary ones (MLA), and of four latents over 16 blocks of 16 tokens (GLA).
    """
    heads, dim, values = (8, 48, 32) if dry else (128, 576, 512)
    device, section = gpu.device(), f"decode {length} b={batch}"
    for groups, blocks in ((1, 0), (4, 2 if dry else 16)):
        name = f"saccade latents of {heads} heads" + (
            f", {groups}, lists 16 x 16" if blocks else ""
        )
        size = batch * length * groups * dim * 2
        if not dry and size > torch.cuda.mem_get_info(device)[0] * 0.7:
            yield Row(section, name, NOT_MEASURED, f"{size >> 30} GiB of latents do not fit")
            continue
        lengths, rows = [length] * batch, [1] * batch
        problem = pages(lengths, rows, (heads, groups), dim, torch.bfloat16, device, values)
        if blocks:
            problem = _listed(problem, 16, blocks)
            size = batch * min(length, 16 * blocks) * groups * dim * 2
        call = captured(lambda p=problem: _ours(p), dry)
        yield timed(section, name, call, dry, read=size, cold=True)


def select_times(dry: bool) -> Iterator[Row]:
    """The 16 best of as many blocks of 16 tokens as a text of a million has, for one row: scores
    and choice in one op, which must read every mean. And the choice alone, of scores that are
    there, of a list as long as those that are published.
    """
    heads, dim, blocks = ((2, 1), 32, 64) if dry else (*(HEADS, DIM), 65536)
    device, block, pages_held = gpu.device(), 16, blocks * 16 // PAGE
    means = torch.randn((pages_held, PAGE // block, heads[1], dim), device=device)
    means = means.to(torch.bfloat16)
    candidates = Candidates(
        torch.tensor([0, 1], dtype=torch.int32, device=device),
        torch.tensor([blocks * block - 1], device=device),
        torch.arange(pages_held, dtype=torch.int32, device=device)[None],
        block,
        PAGE,
    )
    q = torch.randn((1, heads[0], dim), device=device).to(torch.bfloat16)
    call = captured(lambda: select_blocks(q, means, candidates, 16), dry)
    read = means.numel() * means.itemsize
    yield timed("select", f"16 of {blocks} blocks", call, dry, read=read, cold=True)
    listed = 16 if dry else 512
    scores = torch.randn((1, 1, blocks), device=device)
    ids = torch.empty((1, 1, listed), dtype=torch.int32, device=device)
    last = torch.tensor([blocks * block - 1], device=device)
    call = captured(lambda: best_lists(scores, ids, last, block, (0, 0)), dry)
    yield timed("select", f"{listed} of {blocks} scores", call, dry, read=scores.nbytes, cold=True)


def captured(call: Callable[[], object], dry: bool) -> Callable[[], object]:
    """The call as a CUDA graph: launches would outlast short kernels."""
    if dry:
        return call
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _ours(problem: Pages) -> object:
    scale, own = problem.q.shape[2] ** -0.5, problem.value_dim
    pages_held = (problem.k, problem.v)
    return attend(problem.layout, problem.q, *pages_held, problem.keys, scale, value_dim=own)
