"""Work and ceilings of the kernel benchmark."""

from __future__ import annotations

import pytest
import torch

from saccade.benchmarks.roofline import (
    Ceiling,
    Ceilings,
    Work,
    attend_work,
    causal_pairs,
    matmul_ceiling,
    stream_ceiling,
)


@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("window", [None, 1, 4, 15, 16, 99])
def test_causal_pairs_counts_the_mask(rows: int, window: int | None) -> None:
    length = 16
    queries, keys = torch.arange(length - rows, length)[:, None], torch.arange(length)[None]
    distance = queries - keys
    mask = (distance >= 0) & (distance < (window or length))
    assert causal_pairs(rows, length, window) == int(mask.sum())


def test_attend_work() -> None:
    work = attend_work(pairs=10, rows=4, keys=8, heads=2, kv_heads=1, dim=16, size=2)
    assert work.flops == 4 * 10 * 2 * 16  # two products, multiply and add
    assert work.bytes == (2 * 4 * 2 + 2 * 8 * 1) * 16 * 2  # q and out, K and V
    assert work.gbps(1e-9) == pytest.approx(work.bytes)
    assert work.tflops(1e-12) == pytest.approx(work.flops)


def test_share_of_a_ceiling() -> None:
    stream = Ceiling("stream", "read", lambda: None, Work(bytes=100.0))
    # In both rounds the op moves half as many bytes in the same time.
    assert stream.share(Work(bytes=50.0), [1.0, 2.0], [1.0, 2.0]) == 0.5
    matmul = Ceiling("matmul", "mm", lambda: None, Work(flops=100.0))
    assert matmul.share(Work(flops=100.0, bytes=1.0), [4.0], [1.0]) == 0.25
    assert matmul.rate(1e-10) == "1 TFLOP/s"
    assert stream.rate(1e-7) == "1 GB/s"


def test_ceilings_by_bound() -> None:
    ceilings = Ceilings.find((torch.bfloat16, torch.float16), matmul_size=64, stream_bytes=1 << 20)
    assert ceilings.of("stream", torch.float32) is ceilings.stream
    assert ceilings.of("matmul", torch.bfloat16) is ceilings.matmul[torch.bfloat16]
    assert ceilings.of("", torch.bfloat16) is None
    assert ceilings.of("matmul", torch.float32) is None
    samples = ceilings.sample(2)
    assert all(min(times) > 0 for times in samples.values())
    assert len(samples) == 3


def test_ceilings_do_their_work() -> None:
    product = matmul_ceiling(torch.float32, 32)
    assert product.work.flops == 2 * 32**3
    assert product.run().shape == (32, 32)
    assert stream_ceiling(10_000).work.bytes == 8192  # whole pages
