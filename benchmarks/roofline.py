"""Ceilings measured in the same run, and how much arithmetic and traffic an op needs at least.

The ceilings of a CPU are torch's matrix product and a streaming read. Each is a run like any other
and is sampled in the same rounds as the op that is compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..kernels import native
from .timing import Run, Samples, fastest, interleave, ratio

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Work:
    """What one call cannot avoid: multiply and add as two `flops`, each byte moved once."""

    flops: float = 0.0
    bytes: float = 0.0

    def tflops(self, seconds: float) -> float:
        """TFLOP/s."""
        return self.flops / seconds / TERA

    def gbps(self, seconds: float) -> float:
        """GB/s."""
        return self.bytes / seconds / GIGA


@dataclass(frozen=True)
class Ceiling:
    """A run whose rate is the best to hope for. kind: "matmul" (FLOP/s) or "stream" (B/s)."""

    kind: str
    name: str
    run: Run
    work: Work

    @property
    def amount(self) -> float:
        """FLOPs or bytes of one call."""
        return self.work.flops if self.kind == "matmul" else self.work.bytes

    def share(self, work: Work, op: list[float], own: list[float]) -> float:
        """How much of this ceiling an op with samples `op` reached: the median over the rounds."""
        done = work.flops if self.kind == "matmul" else work.bytes
        return done / self.amount * ratio(own, op).value

    def rate(self, seconds: float) -> str:
        """Its own rate as text."""
        if self.kind == "matmul":
            return f"{self.work.tflops(seconds):.3g} TFLOP/s"
        return f"{self.work.gbps(seconds):.3g} GB/s"


def matmul_ceiling(dtype: torch.dtype, size: int) -> Ceiling:
    """torch's matrix product [size, size] x [size, size]^T, the layout of a linear layer.

    torch may compute fp16 far more slowly than fp32; then the fp32 product is the ceiling of fp16.
    """
    runs = {f"{dtype_name(dtype)} matrix product {size}": _product(dtype, size)}
    if dtype == torch.float16:
        runs[f"fp16 matrix product {size}, as fp32"] = _product(torch.float32, size)
    name = fastest(interleave(runs, 3)) if len(runs) > 1 else next(iter(runs))
    return Ceiling("matmul", name, runs[name], Work(flops=2.0 * size**3))


def _product(dtype: torch.dtype, size: int) -> Run:
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype)
    return lambda: torch.mm(a, b.T, out=out)


def stream_runs(nbytes: int) -> Mapping[str, Run]:
    """Every way we know to read `nbytes` of memory once."""
    data = torch.ones(nbytes // 4, dtype=torch.float32)
    runs: dict[str, Run] = {"torch sum": lambda: data.sum()}
    kernels = native.kernels()
    if kernels is not None:
        runs["compiled read"] = lambda: kernels.stream_read(data.data_ptr(), data.nbytes)
    return runs


def stream_ceiling(nbytes: int) -> Ceiling:
    """The fastest streaming read of a buffer that no cache holds."""
    nbytes = nbytes // 4096 * 4096
    runs = stream_runs(nbytes)
    best = fastest(interleave(runs, 3))
    return Ceiling("stream", f"streaming read ({best})", runs[best], Work(bytes=float(nbytes)))


@dataclass(frozen=True)
class Ceilings:
    """All ceilings of a run."""

    matmul: Mapping[torch.dtype, Ceiling]
    stream: Ceiling

    @classmethod
    def find(cls, dtypes: tuple[torch.dtype, ...], matmul_size: int, stream_bytes: int) -> Ceilings:
        """Build them; nothing is kept of the times that this takes."""
        products = {dtype: matmul_ceiling(dtype, matmul_size) for dtype in dtypes}
        return cls(products, stream_ceiling(stream_bytes))

    def of(self, bound: str, dtype: torch.dtype) -> Ceiling | None:
        """The ceiling of an op bound by "matmul" or "stream"; None for any other word."""
        return {"matmul": self.matmul.get(dtype), "stream": self.stream}.get(bound)

    def sample(self, repeats: int) -> Samples:
        """Samples of all of them, by name."""
        each = [*self.matmul.values(), self.stream]
        return interleave({ceiling.name: ceiling.run for ceiling in each}, repeats)


def causal_pairs(rows: int, length: int, window: int | None = None) -> int:
    """How many (query, key) pairs are visible when the last `rows` of `length` tokens ask."""
    first = length - rows  # position of the first query row, which sees first + 1 keys
    if window is None or window >= length:
        return rows * (first + 1 + length) // 2
    growing = max(
        0, min(rows, window - first - 1)
    )  # rows that see fewer keys than the window holds
    return growing * (first + 1 + first + growing) // 2 + (rows - growing) * window


def attend_work(
    pairs: int, rows: int, keys: int, heads: int, kv_heads: int, dim: int, size: int
) -> Work:
    """Attention of `rows` queries over `keys` keys of `size` bytes an element, `pairs` visible."""
    moved = (2 * rows * heads + 2 * keys * kv_heads) * dim * size
    return Work(flops=4.0 * pairs * heads * dim, bytes=float(moved))


def dtype_name(dtype: torch.dtype) -> str:
    """ "bf16", "fp16", "fp32"."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
