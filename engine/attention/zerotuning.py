"""ZeroTuning: the first token's weight, scaled per head in the finished attention result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from ...kernels.attend import Keys
from ...kernels.first import scale_first
from .base import Aux, LayerCache, LayerShape, PageField, Step
from .dense import Dense
from .moba import Moba, MobaPlan
from .window import Window

_LEAST, _MOST = 0.01, 100.0  # beyond, fp32 loses one side or the other
_REASON = (
    "the other methods merge partial results, plan over several layers or free pages, so that no "
    "one result says what the first token weighs"
)


@dataclass(frozen=True)
class ZeroPlan:
    """The base's plan, and where the first tokens lie."""

    base: Keys | MobaPlan
    pages: torch.Tensor  # int64 [S]: first page of each sequence
    gains: torch.Tensor | None  # float32 [H] of the option gamma; None: the checkpoint's
    chosen: torch.Tensor  # bool [H]: heads that are scaled


@dataclass(frozen=True)
class ZeroTuning:
    """Initial-token scaling (Han et al. 2025, arXiv 2505.11739): no training, in both phases.

    The softmax weight a of a sequence's first token becomes g a / (1 + (g - 1) a), and those of all
    others shrink or grow with the sum: what adding log g to its logit gives. It is done after
    attention, from the result o and its lse, a = exp(score - lse):
    o' = (o + (g - 1) a v) / (1 + (g - 1) a).

    gamma: g of every head (of the layers that the spec names); 0: as the calibration file says, per
    layer and head. heads: all, or the numbers of those to be scaled, as in 0_3_5. base: dense,
    window (size, sinks) or moba (block, topk): where MoBA leaves out the first block, nothing is
    scaled. digest: names the file's figures in the policy, so that pages of others are not reused.
    """

    gamma: float = 0.0
    heads: str = "all"
    base: str = "dense"
    size: int = 4096
    sinks: int = 4
    block: int = 512
    topk: int = 8
    digest: str = field(default="", metadata={"option": False})
    reads_are_planned: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.gamma and not _LEAST <= self.gamma <= _MOST:
            raise ValueError(
                f"zerotuning: gamma must be 0 or in {_LEAST} .. {_MOST:g}, got {self.gamma}"
            )
        if self.heads != "all" and not all(part.isdecimal() for part in self.heads.split("_")):
            raise ValueError(
                f"zerotuning: heads must be all, or numbers as in 0_3_5, not {self.heads!r}"
            )
        if self.base not in ("dense", "window", "moba"):
            raise ValueError(
                f"zerotuning: base must be one of dense, window, moba, not {self.base!r}: {_REASON}"
            )
        if self.base == "window" and not self.sinks:
            raise ValueError("zerotuning: base=window drops the first token if sinks is 0")
        self._base  # noqa: B018  refuses a bad block, size or topk now

    @property
    def _base(self) -> Dense | Moba:
        if self.base == "moba":
            return Moba(self.block, self.topk)
        return Window(self.size, self.sinks) if self.base == "window" else Dense()

    def measured(self, shape: LayerShape) -> ZeroTuning:
        """With the digest of the checkpoint's figures, where these decide.

        Raises ValueError where there are none, and for a head that the layer does not have.
        """
        if self.heads != "all" and max(self._numbers) >= shape.num_heads:
            raise ValueError(
                f"zerotuning: heads={self.heads} must be below the layer's {shape.num_heads} heads"
            )
        if not self.gamma and not shape.gammas:
            raise ValueError(
                "zerotuning: no gamma is given, and this checkpoint has none: give gamma=1.5 or "
                "the like, or a calibration file with an entry 'gammas' (--calibration)"
            )
        return replace(self, digest="" if self.gamma else shape.gammas)

    @property
    def _numbers(self) -> list[int]:
        return [int(part) for part in self.heads.split("_")]

    @property
    def align(self) -> int:
        """As the base."""
        return self._base.align

    def fields(self, shape: LayerShape, page_size: int) -> dict[str, PageField]:
        """What the base needs. Raises ValueError for a layer with a sliding window of its own."""
        if shape.window is not None:
            raise ValueError(
                "zerotuning: a layer has a sliding window of its own, which drops the first token; "
                "use dense there"
            )
        return self._base.fields(shape, page_size)

    def plan(self, shape: LayerShape, step: Step) -> ZeroPlan:
        """The base's plan, gains and heads."""
        chosen = torch.full((shape.num_heads,), self.heads == "all")
        if self.heads != "all":
            chosen[self._numbers] = True
        gains = torch.full((shape.num_heads,), self.gamma) if self.gamma else None
        return ZeroPlan(self._base.plan(shape, step), step.page_table[:, 0].long(), gains, chosen)

    def summarize(self, cache: LayerCache, step: Step, plan: ZeroPlan, aux: Aux) -> None:
        """The base's summaries."""
        if isinstance(plan.base, MobaPlan):
            Moba(self.block, self.topk).summarize(cache, step, plan.base, aux)

    def attend(
        self,
        shape: LayerShape,
        cache: LayerCache,
        step: Step,
        plan: ZeroPlan,
        q: torch.Tensor,
        aux: Aux,
    ) -> torch.Tensor:
        """The base's result in fp32, scaled, rounded once: [T, H, dv]."""
        keys, seen = self._keys(cache, plan, q)
        out, lse = cache.attend(q, keys, shape.scale, shape.softcap, aux.sink_logits, torch.float32)
        gains = aux.gammas if plan.gains is None else plan.gains
        if gains is None:
            raise ValueError("zerotuning: the layer has no gammas")
        k, v = cache.layout.gather_tokens(
            cache.k, cache.v, plan.pages, torch.zeros_like(plan.pages)
        )
        return scale_first(
            q,
            out,
            lse,
            k.contiguous(),
            v.contiguous(),
            step.cu_rows,
            torch.where(plan.chosen, gains, 1.0),
            shape.scale,
            shape.softcap,
            seen,
        )[0]

    def _keys(
        self, cache: LayerCache, plan: ZeroPlan, q: torch.Tensor
    ) -> tuple[Keys, torch.Tensor | None]:
        """The base's keys, and which rows and heads have the first token among them."""
        if not isinstance(plan.base, MobaPlan):
            return plan.base, None
        keys = Moba(self.block, self.topk).select(cache, plan.base, q)
        blocks = keys.blocks
        return keys, None if blocks is None else (blocks.ids[..., 0] == 0).contiguous()

    def keys_read(self, shape: LayerShape, step: Step, plan: ZeroPlan) -> torch.Tensor:
        """The base's keys."""
        if isinstance(plan.base, MobaPlan):
            return Moba(self.block, self.topk).keys_read(shape, step, plan.base)
        return Dense().keys_read(shape, step, plan.base)

    def most_keys(self, shape: LayerShape) -> int | None:
        """The base's bound, if it has any."""
        base = self._base
        return base.most_keys(shape) if isinstance(base, Moba | Window) else None

    def blocks_selected(self, shape: LayerShape, step: Step, plan: ZeroPlan) -> torch.Tensor:
        """The base's blocks, if it has any."""
        if isinstance(plan.base, MobaPlan):
            return Moba(self.block, self.topk).blocks_selected(shape, step, plan.base)
        return torch.zeros(step.cu_rows.shape[0] - 1, dtype=torch.float64)
