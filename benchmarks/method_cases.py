"""Attention methods over one layer's pages, as the engine calls them: what is run and on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..engine.attention.base import AttentionMethod, Aux, LayerCache, LayerShape, Step
from ..engine.attention.parse import parse_method
from ..engine.attention.spec import describe_methods
from ..engine.branches import BranchShape
from ..kernels.store import PageLayout, write_pages
from .cases import Sizes
from .timing import Rotation, Run

HEADS, KV_HEADS, DIM = 8, 2, 128
# A step that happens to complete a block has more to do than most: decode stops short of one.
SHORT = 40
DENSE = "dense"
# The paper's sizes, by means and with one K and V, as public implementations have them.
NSA = "nsa(preset=paper, phi=mean, kv=shared)"


@dataclass(frozen=True)
class MethodCase:
    """A method in one phase. goal: times as fast as our own dense attention, by the issue."""

    spec: str
    phase: str  # "prefill" or "decode"
    goal: float

    @property
    def name(self) -> str:
        """The method's name alone."""
        return self.spec.partition("(")[0]


CASES = (
    MethodCase("moba(block=128, topk=8)", "prefill", 6.0),
    MethodCase("moba(block=512, topk=8)", "prefill", 3.0),
    MethodCase("delta(window=2048, sinks=64, gamma=64)", "prefill", 5.0),
    MethodCase(NSA, "prefill", 3.5),
    MethodCase("moba(block=128, topk=8)", "decode", 8.0),
    MethodCase("quest(budget=2048)", "decode", 8.0),
    MethodCase(NSA, "decode", 8.0),
)


def cases(phase: str) -> list[MethodCase]:
    """Those of a phase, as far as this version has their methods."""
    known = {info.name for info in describe_methods()}
    return [case for case in CASES if case.phase == phase and case.name in known]


class Memory:
    """`copies` sequences of `tokens` random keys and values in shuffled pages of one layer."""

    def __init__(self, tokens: int, copies: int, specs: Sequence[str]) -> None:
        self.shape = LayerShape(HEADS, KV_HEADS, DIM, DIM, DIM**-0.5, branches=BranchShape())
        self.tokens, self.layout = tokens, PageLayout()
        size = self.layout.page_size
        order = torch.randperm(copies * -(-tokens // size)).int()
        self.tables = order.view(copies, -1)
        k, v = self.layout.allocate(order.numel(), KV_HEADS, DIM, DIM, torch.bfloat16)
        self.methods: dict[str, AttentionMethod] = {each: parse_method(each) for each in specs}
        fields = {
            name: torch.zeros((order.numel(), *field.shape), dtype=field.dtype or torch.bfloat16)
            for method in self.methods.values()
            for name, field in method.fields(self.shape, size).items()
        }
        self.cache = LayerCache(0, self.layout, k, v, fields)
        for copy in range(copies):
            self._fill(self.step(copy, 0))

    def _fill(self, step: Step) -> None:
        k, v = (torch.randn(self.tokens, KV_HEADS, DIM).bfloat16() for _ in range(2))
        write_pages(self.layout, self.cache.k, self.cache.v, k, v, step.slots)
        for method in self.methods.values():
            if self.cache.fields:
                method.summarize(self.cache, step, method.plan(self.shape, step), Aux())

    def step(self, copy: int, start: int) -> Step:
        """The rows from position `start` to the end of one sequence."""
        size, positions = self.layout.page_size, torch.arange(start, self.tokens)
        table = self.tables[copy : copy + 1]
        slots = table[0, positions // size].long() * size + positions % size
        count = positions.shape[0]
        return Step(
            torch.tensor([0, count], dtype=torch.int32),
            positions,
            slots,
            table,
            torch.tensor([self.tokens]),
            slice(0, count),
            size,
        )

    def run(self, spec: str, copy: int, start: int, q: torch.Tensor) -> Run:
        """One layer of the method over these rows; the plan, made once a step, is made here."""
        method, step = self.methods[spec], self.step(copy, start)
        plan = method.plan(self.shape, step)
        # Gates as a layer would compute them, for the method that uses them.
        aux = Aux(rows={"gates": torch.rand(q.shape[0], HEADS, 3)})

        def layer() -> torch.Tensor:
            method.summarize(self.cache, step, plan, aux)
            return method.attend(self.shape, self.cache, step, plan, q, aux)

        return layer

    def share(self, spec: str, start: int) -> float:
        """Keys that these rows read, of those that dense attention reads."""
        step = self.step(0, start)
        read = [
            method.keys_read(self.shape, step, method.plan(self.shape, step)).sum()
            for method in (self.methods[spec], parse_method(DENSE))
        ]
        return float(read[0] / read[1])


@dataclass(frozen=True)
class Problem:
    """The methods of one phase over the same pages: their rows begin at position `start`."""

    memory: Memory
    start: int
    runs: Mapping[str, Run]


def prefill(sizes: Sizes, specs: Sequence[str]) -> Problem:
    """Every row of one sequence, all of it read in one step."""
    memory = Memory(sizes.method_prefill, 1, specs)
    q = torch.randn(memory.tokens, HEADS, DIM).bfloat16()
    return Problem(memory, 0, {spec: memory.run(spec, 0, 0, q) for spec in specs})


def decode(sizes: Sizes, specs: Sequence[str]) -> Problem:
    """The last row of a sequence; calls rotate through sequences that no cache holds together."""
    tokens = sizes.method_decode - SHORT
    copies = max(1, -(-sizes.cold // (4 * tokens * KV_HEADS * DIM)))
    memory, start = Memory(tokens, copies, specs), tokens - 1
    q = torch.randn(1, HEADS, DIM).bfloat16()
    runs = {
        spec: Rotation([memory.run(spec, copy, start, q) for copy in range(copies)])
        for spec in specs
    }
    return Problem(memory, start, runs)


PHASES: Mapping[str, Callable[[Sizes, Sequence[str]], Problem]] = {
    "prefill": prefill,
    "decode": decode,
}
