"""One latent layer over pages of its own, stepped by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch

from saccade.engine.attention.asa import Asa, GlobalPlan
from saccade.engine.attention.base import Aux, LatentShape, LayerCache, LayerShape, Step
from saccade.engine.layers.up_projection import UpProjection
from saccade.kernels.store import PageLayout, write_pages

HEADS, NOPE, ROPE, VALUE, RANK, PAGE = 4, 12, 8, 10, 24, 16


def latent_shape(groups: int = 1, window: int | None = None, heads: int = HEADS) -> LayerShape:
    latent = LatentShape(groups, RANK, ROPE)
    return LayerShape(heads, groups, NOPE + ROPE, VALUE, 0.3, window, latent=latent)


@dataclass
class Tokens:
    """What a layer computes from `length` tokens: queries, what is kept, gates, and its maps."""

    q: torch.Tensor
    kept: torch.Tensor
    gates: torch.Tensor
    weight: torch.Tensor

    def up(self) -> UpProjection:
        return UpProjection.of(self.weight, self.q.shape[1], self.kept.shape[1], NOPE, True)

    def group(self, g: int) -> Tokens:
        """The heads and the latent of one group alone."""
        heads = self.q.shape[1] // self.kept.shape[1]
        mine = slice(g * heads, (g + 1) * heads)
        rows = self.weight.view(self.q.shape[1], -1, RANK)[mine].flatten(0, 1)
        return Tokens(self.q[:, mine], self.kept[:, g : g + 1], self.gates[:, mine], rows)


def some_tokens(
    length: int, groups: int = 1, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tokens:
    """Random ones, whose groups share the rotary key."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    kept = draw(length, groups, RANK + ROPE)
    kept[:, :, RANK:] = kept[:, :1, RANK:]
    return Tokens(
        draw(length, HEADS, NOPE + ROPE).to(dtype),
        kept.to(dtype),
        draw(length, HEADS, 2).sigmoid(),
        (draw(HEADS * (NOPE + VALUE), RANK) / RANK**0.5).to(dtype),
    )


@dataclass
class Layer:
    """A layer under one method; `run` reads the tokens in pieces."""

    method: Asa
    shape: LayerShape
    tokens: Tokens
    evict: bool = False  # forget pages as soon as no further row can see them
    cache: LayerCache = field(init=False)
    lists: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        pages, layout = -(-self.tokens.q.shape[0] // PAGE), PageLayout(PAGE)
        dtype = self.tokens.q.dtype
        k, v = layout.allocate(pages, self.shape.num_kv_heads, *self.shape.kept, dtype)
        fields = {
            name: torch.zeros((pages, *each.shape), dtype=each.dtype or dtype)
            for name, each in self.method.fields(self.shape, PAGE).items()
        }
        k.fill_(torch.nan)
        self.cache = LayerCache(0, layout, k, v, fields)

    def run(self, *cuts: int) -> torch.Tensor:
        """The output of all rows, cut before these positions."""
        bounds = [0, *cuts, self.tokens.q.shape[0]]
        return torch.cat([self._step(begin, end) for begin, end in pairwise(bounds)])

    def _step(self, begin: int, end: int) -> torch.Tensor:
        rows, positions = slice(begin, end), torch.arange(begin, end)
        table = torch.arange(self.cache.k.shape[0], dtype=torch.int32).flip(0)[None].clone()
        slots = table[0].long()[positions // PAGE] * PAGE + positions % PAGE
        if self.evict and self.shape.window is not None:
            table[0, : max(begin - self.shape.window + 1, 0) // PAGE] = -1
        cu = torch.tensor([0, end - begin], dtype=torch.int32)
        step = Step(cu, positions, slots, table, torch.tensor([10**6]), slice(0, end - begin), PAGE)
        kept = self.tokens.kept[rows]
        write_pages(
            self.cache.layout,
            self.cache.k,
            self.cache.v,
            kept,
            kept.new_empty((*kept.shape[:2], 0)),
            slots,
        )
        plan = self.method.plan(self.shape, step)
        aux = Aux(rows={"gates": self.tokens.gates[rows]}, up=self.tokens.up())
        self.method.summarize(self.cache, step, plan, aux)
        out = self.method.attend(self.shape, self.cache, step, plan, self.tokens.q[rows], aux)
        if isinstance(plan, GlobalPlan) and self.method.reuse > 1:
            lists = self.cache.fields[self.method._lists].flatten(0, 1)
            self.lists.append(lists[plan.leader].clone())
        return out


def dense(tokens: Tokens, scale: float, window: int | None = None) -> torch.Tensor:
    """fp64: keys and values of every head, causal softmax."""
    length, heads = tokens.q.shape[:2]
    group = heads // tokens.kept.shape[1]
    kept = tokens.kept.double().repeat_interleave(group, dim=1)
    up = tokens.weight.double().view(heads, -1, RANK)
    both = torch.einsum("thr,hor->tho", kept[..., :RANK], up)
    k = torch.cat([both[..., :NOPE], kept[..., RANK:]], dim=-1)
    scores = torch.einsum("thd,lhd->htl", tokens.q.double(), k) * scale
    i, j = torch.arange(length)[:, None], torch.arange(length)
    seen = (j <= i) & (i - j < (window or length))
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("htl,lhd->thd", weights, both[..., NOPE:])
