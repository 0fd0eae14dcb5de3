"""Attention methods as the engine calls them: which are measured, and on what pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from ..engine.attention.spec import describe_methods
from .cases import Sizes
from .method_layers import HEADS, MODEL_LAYERS, SHORT, Memory, Subject, dense
from .played import Played
from .timing import Run

DENSE = "dense"
# The paper's sizes, by means and with one K and V, as public implementations have them.
NSA = "nsa(preset=paper, phi=mean, kv=shared)"
_STREAMING = "streaming(sinks=64, window=2048)"
# A head keeps one token in 16: scores are evenly spread.
_MOSA = "mosa(tau=0.9375)"


@dataclass(frozen=True)
class MethodCase:
    """A method in one phase. goal: times as fast as our own dense attention, by the issue, or None.

    layers: of a step that is timed as a whole, where a layer's work depends on which it is.
    """

    spec: str
    phase: str  # "prefill" or "decode"
    goal: float | None = None
    layers: int = 1

    @property
    def name(self) -> str:
        """The method's name alone."""
        return self.spec.partition("(")[0]


CASES = (
    MethodCase("moba(block=128, topk=8)", "prefill", 6.0),
    MethodCase("moba(block=512, topk=8)", "prefill", 3.0),
    MethodCase("delta(window=2048, sinks=64, gamma=64)", "prefill", 5.0),
    MethodCase(NSA, "prefill", 3.5),
    MethodCase("infllm", "prefill"),
    MethodCase("msa", "prefill"),
    MethodCase("qsa", "prefill"),
    MethodCase("asa", "prefill"),
    MethodCase(_MOSA, "prefill"),
    MethodCase("mosa(mode=stream)", "prefill"),
    MethodCase("adaptive(tau=0.01)", "prefill"),  # content with its window everywhere
    MethodCase(_STREAMING, "prefill"),
    MethodCase("zerotuning(1.5, base=moba, block=128, topk=8)", "prefill"),
    MethodCase("chunked", "prefill"),
    MethodCase("moba(block=128, topk=8)", "decode", 8.0),
    MethodCase("quest(budget=2048)", "decode", 8.0),
    MethodCase("lessismore(budget=2048)", "decode", 8.0, MODEL_LAYERS),
    MethodCase("tidal(budget=2048)", "decode", layers=MODEL_LAYERS),
    MethodCase(NSA, "decode", 8.0),
    MethodCase("infllm", "decode"),
    MethodCase("msa", "decode"),
    MethodCase("qsa", "decode"),
    MethodCase("asa", "decode"),
    MethodCase(_MOSA, "decode"),
    MethodCase("adaptive(tau=0.01)", "decode"),
    MethodCase("adaptive(tau=1.0)", "decode"),  # never content: window, decision and far keys
    MethodCase(_STREAMING, "decode"),
    MethodCase("zerotuning(1.5)", "decode"),
    MethodCase("chunked", "decode"),
)


def cases(phase: str) -> list[MethodCase]:
    """Those of a phase, as far as this version has their methods."""
    known = {info.name for info in describe_methods()}
    return [case for case in CASES if case.phase == phase and case.name in known]


@dataclass(frozen=True)
class Problem:
    """The methods of one phase over the same pages."""

    tokens: int
    subjects: Mapping[str, Sequence[Subject]]  # over each of the sequences
    runs: Mapping[str, Run]
    calls: Mapping[str, int]  # of a layer, in one run

    def share(self, spec: str) -> float:
        """Keys that a layer of this method reads, of those that dense attention reads."""
        some = self.subjects[spec]
        return fmean(each.keys() for each in some) / dense(some[0].memory, some[0].start).keys()


def prefill(sizes: Sizes, chosen: Sequence[MethodCase]) -> Problem:
    """Every row of one sequence, all of it read in one step."""
    memory = Memory(sizes.method_prefill, 1, [case.spec for case in chosen])
    q = torch.randn(memory.tokens, HEADS, memory.dim).bfloat16()
    runs = {case.spec: memory.subject(case.spec, 0, 0, q) for case in chosen}
    calls = dict.fromkeys(runs, 1)
    return Problem(memory.tokens, {spec: [run] for spec, run in runs.items()}, runs, calls)


def decode(sizes: Sizes, chosen: Sequence[MethodCase]) -> Problem:
    """The last row of a sequence, played as in decode steps: in turn those of several sequences,
    which no cache holds together, or the layers of one step over their pages.
    """
    tokens = sizes.method_decode - SHORT
    copies = max(1, -(-sizes.cold // Memory.bytes_of(tokens)))
    memory, start = Memory(tokens, copies, [case.spec for case in chosen]), tokens - 1
    q = torch.randn(1, HEADS, memory.dim).bfloat16()
    subjects = {
        case.spec: [
            memory.subject(case.spec, copy, start, q, case.layers)
            for copy in range(copies if case.layers == 1 else 1)
        ]
        for case in chosen
    }
    runs = {spec: _played(some) for spec, some in subjects.items()}
    calls = {case.spec: runs[case.spec].calls * case.layers for case in chosen}
    return Problem(tokens, subjects, runs, calls)


def _played(subjects: Sequence[Subject]) -> Played:
    def prepare() -> None:
        for each in subjects:
            each.prepare()

    return Played([each.compute for each in subjects], prepare)


PHASES: Mapping[str, Callable[[Sizes, Sequence[MethodCase]], Problem]] = {
    "prefill": prefill,
    "decode": decode,
}
