"""What a kernel benchmark is made of: a case with our implementation, its peers and its work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..kernels import native
from ..kernels.testing import error
from .roofline import Work, dtype_name
from .timing import Run

# Largest error against a peer, relative to the largest value: enough to tell a fast kernel from a
# wrong one. The tests of the kernels hold them to real budgets.
AGREEMENT = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}

View = Callable[[Any], torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """How large the cases are. cold: bytes that calls rotate through, so that no cache has them."""

    prefill: tuple[int, ...] = (2048, 8192)
    window: int = 1024
    chunk: int = 512
    decode_context: int = 32768
    decode_batches: tuple[int, ...] = (1, 8)
    linear_rows: tuple[int, ...] = (1, 8, 512)
    linear_shapes: tuple[tuple[int, int], ...] = ((576, 1536), (2048, 2048))
    rows: int = 2048
    cold: int = 1 << 30
    matmul: int = 2048
    scratch: tuple[int, int] = (8192, 32768)
    method_prefill: int = 32768
    method_decode: int = 65536

    @classmethod
    def quick(cls) -> Sizes:
        """Small shapes: a look at everything in seconds, no figure for a record."""
        return cls(
            prefill=(512,), window=128, chunk=128, decode_context=2048, decode_batches=(1, 2),
            linear_rows=(1, 64), linear_shapes=((576, 1536),), rows=256, cold=1 << 26, matmul=1024,
            scratch=(512, 2048), method_prefill=4096, method_decode=8192,
        )  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One implementation. view: its result as a tensor that can be compared with the others'.
    calls: of the op in one run.
    """

    name: str
    run: Run
    view: View
    calls: int = 1


@dataclass(frozen=True)
class Problem:
    """A case with its memory: ours, the peers (the fastest counts), and the work of a call.

    bound: "matmul" or "stream", the ceiling to compare with; "" where the data of a call stays in
    cache and neither applies.
    """

    ours: Candidate
    peers: Sequence[Candidate]
    work: Work
    bound: str


@dataclass(frozen=True)
class Case:
    """A row pair of the table; `build` allocates. peer: what its ratio is against, in words."""

    op: str
    name: str
    dtype: torch.dtype
    params: Mapping[str, int]
    peer: str
    build: Callable[[], Problem] = field(repr=False)

    @property
    def shape(self) -> str:
        """The parameters as text."""
        return " ".join(f"{key}={value}" for key, value in self.params.items())

    @property
    def label(self) -> str:
        """The whole case as text."""
        return f"{self.op} {self.name} {self.shape} {dtype_name(self.dtype)}"

    def matches(self, words: Sequence[str]) -> bool:
        """Whether one of `words` is its op, its name or "op.name"; no words match everything."""
        return not words or bool({self.op, self.name, f"{self.op}.{self.name}"} & set(words))


def ours_name() -> str:
    """How our implementation is called in tables."""
    isa = native.chosen_isa()
    return f"saccade {isa}" if isa else "saccade reference"


def first(result: Any) -> torch.Tensor:
    """A result, or the first of several, as it is."""
    tensor: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return tensor


def disagreement(problem: Problem, dtype: torch.dtype) -> dict[str, float]:
    """Peers whose error against ours, relative to the largest value, exceeds AGREEMENT."""
    ours = problem.ours.view(problem.ours.run()).clone()
    largest = max(float(ours.double().abs().max()), 1e-30)
    found = {}
    for peer in problem.peers:
        gap = error(peer.view(peer.run()), ours) / largest
        if not gap <= AGREEMENT[dtype]:
            found[peer.name] = gap
    return found
