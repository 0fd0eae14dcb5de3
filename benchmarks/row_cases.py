"""Cases of the ops around attention: linear layers, norm, rope, gated SiLU, page writes, merge."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch.nn import functional

from ..kernels.activation import SIGMOID_MUL, SILU_MUL, sigmoid_mul, silu_mul
from ..kernels.linear import linear, pack
from ..kernels.merge import MERGE, merge
from ..kernels.norm import RMS_NORM, rms_norm
from ..kernels.rope import APPLY_ROPE, apply_rope
from ..kernels.store import WRITE_PAGES, PageLayout, WriteCall, write_pages
from .cases import Candidate, Case, Problem, Sizes, first, ours_name
from .played import Played
from .roofline import Work
from .timing import Rotation, Run

WIDTH, HIDDEN, HEADS, KV_HEADS, DIM = 576, 1536, 9, 3, 64
REFERENCE = "torch reference"
# Fewer rows than this, and a linear layer is a stream of weights.
STREAM_ROWS = 16
MAX_COPIES = 256


def cases(sizes: Sizes) -> Iterator[Case]:
    """Linear layers, then the ops of a Llama layer of the 135M-parameter shape."""
    for out_features, in_features in [(b, a) for a, b in sizes.linear_shapes]:
        for rows in sizes.linear_rows:
            for dtype in (torch.bfloat16, torch.float32):
                params = {"M": rows, "in": in_features, "out": out_features}
                build = partial(linear_layer, rows, in_features, out_features, dtype, sizes.cold)
                yield Case("linear", "linear", dtype, params, "torch linear", build)
    small = {
        "rms_norm": norm,
        "rope": rope,
        "silu_mul": silu,
        "sigmoid_mul": gated,
        "write_pages": pages,
        "merge": merged,
    }
    widths = {"rms_norm": WIDTH, "silu_mul": HIDDEN, "sigmoid_mul": WIDTH}
    for name, make in small.items():
        for dtype in (torch.bfloat16, torch.float32):
            params = {"T": sizes.rows}
            params |= (
                {"n": widths[name]} if name in widths else {"q": HEADS, "kv": KV_HEADS, "d": DIM}
            )
            yield Case(name, name, dtype, params, "torch", partial(make, sizes.rows, dtype))


def linear_layer(
    rows: int, in_features: int, out_features: int, dtype: torch.dtype, cold: int
) -> Problem:
    """x [M, in] by weights that calls rotate through, as the layers of a model do."""
    x = torch.randn(rows, in_features).to(dtype)
    weight = (torch.randn(out_features, in_features) / in_features**0.5).to(dtype)
    copies = max(1, min(MAX_COPIES, -(-cold // (4 * weight.nbytes))))
    ours = [partial(linear, x, pack(weight)) for _ in range(copies)]
    peer = [partial(functional.linear, x, weight.clone()) for _ in range(copies)]
    moved = weight.nbytes + x.nbytes + rows * out_features * dtype.itemsize
    work = Work(2.0 * rows * weight.numel(), float(moved))
    peers = {"torch linear": Rotation(peer)}
    if rows >= STREAM_ROWS:
        return _problem(Rotation(ours), peers, work, "matmul")
    played = Played(ours)
    return _problem(played, peers, work, "stream", played.calls)


def norm(rows: int, dtype: torch.dtype) -> Problem:
    """RMS norm with the residual addition before it."""
    x, weight = torch.randn(rows, WIDTH).to(dtype), torch.ones(WIDTH, dtype=dtype)
    ours = torch.randn(rows, WIDTH).to(dtype)
    reference, fused = ours.clone(), ours.clone()

    def torch_norm() -> torch.Tensor:
        fused.add_(x)
        return functional.rms_norm(fused, (WIDTH,), weight, 1e-5)

    runs: dict[str, Run] = {
        REFERENCE: lambda: RMS_NORM.reference(x, weight, 1e-5, reference),
        "torch rms_norm": torch_norm,
    }
    return _problem(lambda: rms_norm(x, weight, 1e-5, ours), runs, Work(bytes=4.0 * x.nbytes))


def rope(rows: int, dtype: torch.dtype) -> Problem:
    """Rotary embedding of q and k in place."""
    angle = torch.arange(rows)[:, None] * 1e4 ** (-torch.arange(DIM // 2) / (DIM // 2))
    cos, sin = angle.cos().float(), angle.sin().float()
    q, k = torch.randn(rows, HEADS, DIM).to(dtype), torch.randn(rows, KV_HEADS, DIM).to(dtype)
    other_q, other_k = q.clone(), k.clone()

    def ours() -> torch.Tensor:
        apply_rope(q, k, cos, sin)
        return q

    def reference() -> torch.Tensor:
        APPLY_ROPE.reference(other_q, other_k, cos, sin)
        return other_q

    moved = 2.0 * (q.nbytes + k.nbytes) + cos.nbytes + sin.nbytes
    return _problem(ours, {REFERENCE: reference}, Work(bytes=moved))


def silu(rows: int, dtype: torch.dtype) -> Problem:
    """silu(gate) * up over the two halves of a row."""
    x = torch.randn(rows, 2 * HIDDEN).to(dtype)
    gate, up = x.chunk(2, dim=-1)
    runs: dict[str, Run] = {
        REFERENCE: lambda: SILU_MUL.reference(x),
        "torch silu, mul": lambda: functional.silu(gate) * up,
    }
    return _problem(lambda: silu_mul(x), runs, Work(bytes=1.5 * x.nbytes))


def gated(rows: int, dtype: torch.dtype) -> Problem:
    """The output of attention by a gate per channel."""
    x, gate = (torch.randn(rows, WIDTH).to(dtype) for _ in range(2))
    runs: dict[str, Run] = {
        REFERENCE: lambda: SIGMOID_MUL.reference(x, gate),
        "torch sigmoid, mul": lambda: x * gate.sigmoid(),
    }
    return _problem(lambda: sigmoid_mul(x, gate), runs, Work(bytes=3.0 * x.nbytes))


def pages(rows: int, dtype: torch.dtype) -> Problem:
    """K and V of `rows` tokens into shuffled pages."""
    layout = PageLayout()
    count = -(-rows // layout.page_size)
    k, v = (torch.randn(rows, KV_HEADS, DIM).to(dtype) for _ in range(2))
    position = torch.arange(rows)
    slots = torch.randperm(count)[position // layout.page_size] * layout.page_size
    slots += position % layout.page_size
    mine, other = (layout.allocate(count, KV_HEADS, DIM, DIM, dtype) for _ in range(2))

    def ours() -> torch.Tensor:
        write_pages(layout, *mine, k, v, slots)
        return mine[1]

    def reference() -> torch.Tensor:
        WRITE_PAGES.reference(WriteCall(layout, *other, k, v, slots))
        return other[1]

    return _problem(ours, {REFERENCE: reference}, Work(bytes=4.0 * k.nbytes + slots.nbytes))


def merged(rows: int, dtype: torch.dtype) -> Problem:
    """Two partial attention results joined."""
    a, b = (torch.randn(rows, HEADS, DIM).to(dtype) for _ in range(2))
    lse_a, lse_b = (torch.randn(rows, HEADS) for _ in range(2))
    run = partial(merge, a, lse_a, b, lse_b)
    reference = partial(MERGE.reference, a, lse_a, b, lse_b)
    return _problem(run, {REFERENCE: reference}, Work(bytes=3.0 * (a.nbytes + lse_a.nbytes)))


def _problem(
    ours: Run, runs: dict[str, Run], work: Work, bound: str = "", calls: int = 1
) -> Problem:
    peers = [Candidate(name, run, first) for name, run in runs.items()]
    return Problem(Candidate(ours_name(), ours, first, calls), peers, work, bound)
