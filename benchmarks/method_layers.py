"""One layer's pages for every method, and what runs a method over them as a layer would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..engine.attention.base import (
    AttentionMethod,
    Aux,
    IndexShape,
    LatentShape,
    LayerCache,
    LayerShape,
    Step,
)
from ..engine.attention.experts import ExpertMethod, ExpertShape, KeptCache
from ..engine.attention.parse import parse_method
from ..engine.attention.protocols import LatentMethod, is_planned
from ..engine.branches import BranchShape, Turns
from ..engine.cache import allocate_fields
from ..engine.layers.up_projection import UpProjection
from ..engine.tapes import look_at_keys
from ..kernels.store import PageLayout, write_pages

HEADS, KV_HEADS, DIM = 8, 2, 128
# A step that happens to complete a block has more to do than most: decode stops short of one.
SHORT = 40
MODEL_LAYERS = 32  # of a model whose layers share a selection
_SPARSITY = 16  # of heads that choose their tokens
_SHAPE = LayerShape(HEADS, KV_HEADS, DIM, DIM, DIM**-0.5, branches=BranchShape())
_INDEXED = replace(_SHAPE, index=IndexShape(KV_HEADS, DIM))
_BLOCK_INDEXED = replace(_SHAPE, index=IndexShape(KV_HEADS, DIM, pooled=True))
# As many heads in as many groups, which share a latent as wide as two keys and a rotary key.
_RANK, _ROPE = 2 * DIM, DIM // 2
_LATENT = LayerShape(
    HEADS, KV_HEADS, DIM + _ROPE, DIM, DIM**-0.5, latent=LatentShape(KV_HEADS, _RANK, _ROPE)
)
# As many heads as the others have, all of which choose, each with a K and V of its own.
_EXPERTS = replace(
    _SHAPE, num_heads=0, num_kv_heads=0, experts=ExpertShape(HEADS, _SPARSITY, False, True)
)


def shape_for(spec: str, method: AttentionMethod) -> LayerShape:
    """The layer that a method serves."""
    if isinstance(method, ExpertMethod):
        return _EXPERTS
    if isinstance(method, LatentMethod):
        return _LATENT
    return {"msa": _INDEXED, "qsa": _BLOCK_INDEXED}.get(spec.partition("(")[0], _SHAPE)


def _fields(
    method: AttentionMethod, shape: LayerShape, pages: int, layout: PageLayout
) -> dict[str, torch.Tensor]:
    fields = method.fields(shape, layout.page_size)
    return allocate_fields(layout, pages, fields, torch.bfloat16)


class Memory:
    """`copies` sequences of `tokens` random keys and values in shuffled pages of one layer."""

    dim = DIM

    def __init__(self, tokens: int, copies: int, specs: Sequence[str]) -> None:
        self.tokens, self.copies, self.layout = tokens, copies, PageLayout()
        size = self.layout.page_size
        # The same order in every copy's part of memory: it may pass for another layer's pages.
        self.order = torch.randperm(-(-tokens // size)).int()
        pages = copies * self.order.numel()
        k, v = self.layout.allocate(pages, KV_HEADS, DIM, DIM, torch.bfloat16)
        self.methods: dict[str, AttentionMethod] = {each: parse_method(each) for each in specs}
        self.shapes = {spec: shape_for(spec, each) for spec, each in self.methods.items()}
        fields: dict[str, torch.Tensor] = {}
        for spec, method in self.methods.items():
            if self.shapes[spec].latent is None:
                fields |= _fields(method, self.shapes[spec], pages, self.layout)
        self.cache = LayerCache(0, self.layout, k, v, fields)
        for copy in range(copies):
            self._fill(self.step(copy, 0))

    @staticmethod
    def bytes_of(tokens: int) -> int:
        """Bytes of K and V of so many tokens."""
        return 4 * tokens * KV_HEADS * DIM

    def _fill(self, step: Step) -> None:
        k, v = (torch.randn(self.tokens, KV_HEADS, DIM).bfloat16() for _ in range(2))
        write_pages(self.layout, self.cache.k, self.cache.v, k, v, step.slots)
        for spec, method in self.methods.items():
            shape = self.shapes[spec]
            if shape.latent is None and method.fields(shape, self.layout.page_size):
                aux = aux_of(self.tokens, shape)
                method.summarize(self.cache, step, method.plan(shape, step), aux)

    def step(self, copy: int, start: int, end: int | None = None) -> Step:
        """The rows from position `start` to the end of one sequence, or to `end`."""
        size, positions = self.layout.page_size, torch.arange(start, end or self.tokens)
        table = self.order[None] + copy * self.order.numel()
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

    def subject(
        self, spec: str, copy: int, start: int, q: torch.Tensor, layers: int = 1
    ) -> Subject:
        """A method over the rows from `start` on of one sequence, q [rows, H, d].

        Several layers are those of the first sequence.
        """
        method, shape = self.methods[spec], self.shapes[spec]
        if isinstance(method, ExpertMethod):
            return Choosing(self, method, shape, copy, start, layers)
        if shape.latent is not None:
            return Latent(self, method, shape, copy, start, layers, q)
        return Subject(self, method, shape, copy, start, layers, q)

    def layer_cache(self, layer: int) -> LayerCache:
        """K and V of a layer, under the page ids of the first copy: those of another copy."""
        first = layer % self.copies * self.order.numel()
        return replace(self.cache, layer=layer, k=self.cache.k[first:], v=self.cache.v[first:])


def dense(memory: Memory, start: int) -> Subject:
    """Dense attention over the same rows, for what it reads."""
    q = torch.zeros(memory.tokens - start, HEADS, DIM).bfloat16()
    return Subject(memory, parse_method("dense"), _SHAPE, 0, start, 1, q)


def aux_of(rows: int, shape: LayerShape) -> Aux:
    """What layers compute for the methods that use it: gates, index queries and keys."""
    q, k = torch.randn(rows, KV_HEADS, DIM), torch.randn(rows, 1, DIM)
    gates = torch.rand(rows, HEADS, 3)
    pooled = shape.index is not None and shape.index.pooled
    return Aux(
        rows={"gates": gates, "index_q": q.bfloat16(), "index_k": k.bfloat16()},
        compress=_mean if pooled else None,
    )


def _mean(
    k: torch.Tensor, v: torch.Tensor, first: torch.Tensor, turns: Turns | None
) -> torch.Tensor:
    """A block's index key, as a Compressor makes it."""
    return k.float().mean(1).to(k.dtype)


@dataclass
class Subject:
    """A method over rows of one sequence; a call is one step of one layer or of several."""

    memory: Memory
    method: AttentionMethod
    shape: LayerShape
    copy: int
    start: int
    layers: int
    q: torch.Tensor

    def __post_init__(self) -> None:
        self.step = self.memory.step(self.copy, self.start)
        self.renew()
        self.aux = aux_of(self.q.shape[0], self.shape)
        self.caches = [self.memory.layer_cache(n) for n in range(self.layers)]

    def __call__(self) -> torch.Tensor:
        """The last layer's output."""
        self.prepare()
        return self.compute()

    def prepare(self) -> None:
        """Of several layers the plan is made anew: it carries something from one to the next."""
        if self.layers > 1:
            self.renew()

    def renew(self) -> None:
        """Plans the step; what recording may not look at is looked at here."""
        self.plan = self.method.plan(self.shape, self.step)
        look_at_keys(self.plan)

    def compute(self) -> torch.Tensor:
        """All layers."""
        for cache in self.caches:
            out = self.layer(cache)
        return out

    def layer(self, cache: LayerCache) -> torch.Tensor:
        """One layer."""
        self.method.summarize(cache, self.step, self.plan, self.aux)
        return self.method.attend(self.shape, cache, self.step, self.plan, self.q, self.aux)

    def keys(self) -> float:
        """Keys that a layer reads, in the mean."""
        self.renew()
        read = 0.0
        planned = is_planned(self.method)
        for cache in self.caches:
            if not planned:
                self.layer(cache)
            read += float(self.method.keys_read(self.shape, self.step, self.plan).sum())
        return read / self.layers


class Choosing(Subject):
    """Heads that choose their tokens: the choice, and attention of what was chosen."""

    def __init__(
        self,
        memory: Memory,
        method: Any,
        shape: LayerShape,
        copy: int,
        start: int,
        layers: int,
    ) -> None:
        """method: an AttentionMethod that is an ExpertMethod too."""
        super().__init__(memory, method, shape, copy, start, layers, torch.zeros(0, 0, DIM))
        self.expert = method
        rule, size = method.kept_rule(shape), memory.layout.page_size
        pages = -(-rule.most(memory.tokens) // size) if rule else 0
        kept = KeptCache.allocate(memory.layout, pages, HEADS, (DIM, DIM), torch.bfloat16)
        self.caches = [replace(memory.cache, kept=kept)]
        self.table = torch.randperm(pages).int()[None]
        rows = memory.tokens - start
        if start:
            self.step = replace(memory.step(copy, 0, start), kept_table=self.table)
            self._choose_of(start)
            self()
        self.step = replace(memory.step(copy, start), kept_table=self.table)
        self._choose_of(rows)

    def _choose_of(self, rows: int) -> None:
        self.renew()
        self.scores = torch.rand(rows, HEADS)
        if rows == 1:  # over all copies one head in _SPARSITY chooses its row
            pair = self.copy * HEADS + torch.arange(HEADS)
            self.scores = torch.where(pair % _SPARSITY == 0, 0.99, 0.5)[None]
        self.qkv = [torch.randn(rows * HEADS, DIM).bfloat16() for _ in range(3)]

    def layer(self, cache: LayerCache) -> torch.Tensor:
        """One layer; a row that nobody chose has no output."""
        chosen = self.expert.choose(self.shape, cache, self.step, self.plan, self.scores, None)
        some = [each[: len(chosen.rows)] for each in self.qkv]
        return self.expert.attend_chosen(self.shape, cache, self.step, self.plan, chosen, *some)


class Latent(Subject):
    """A layer that keeps latents, in pages of its own."""

    def __post_init__(self) -> None:
        layout, pages = self.memory.layout, self.memory.order.numel()
        k, v = layout.allocate(pages, KV_HEADS, *self.shape.kept, torch.bfloat16)
        fields = _fields(self.method, self.shape, pages, layout)
        cache = LayerCache(0, layout, k, v, fields)
        self.copy, self.step = 0, self.memory.step(0, 0)
        kept = torch.randn(self.memory.tokens, KV_HEADS, self.shape.kept[0]).bfloat16()
        write_pages(layout, k, v, kept, kept[..., :0], self.step.slots)
        self.plan = self.method.plan(self.shape, self.step)
        self.method.summarize(cache, self.step, self.plan, Aux())
        rows = self.q.shape[0]
        super().__post_init__()
        self.caches = [cache]
        self.q = torch.randn(rows, HEADS, self.shape.head_dim).bfloat16()
        weight = (torch.randn(HEADS * 2 * DIM, _RANK) / _RANK**0.5).bfloat16()
        up = UpProjection.of(weight, HEADS, KV_HEADS, DIM, expands=False)
        self.aux = Aux(rows={"gates": torch.rand(rows, HEADS, 2)}, up=up)
