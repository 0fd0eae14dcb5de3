"""Layers of experts on a GPU, which never tells the host what was chosen: everything that is
launched has the shape that any choice needs.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import gpu
from .. import triton_sizes as shared_sizes
from .rule import ExpertSizes, rows_per_pass, sizes, sorted_pays
from .weights import ExpertWeights

RUN = 1024  # channels of a program that adds up, at most


def supports(
    x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor, weights: ExpertWeights
) -> str | None:
    """None when the kernels can serve this call, otherwise the reason."""
    if weights.gate_up.data.ndim != 3:
        return "the weights are packed for the CPU"
    return gpu.triton_refusal(x, shares, weights.gate_up.data, weights.down.data)


def experts(
    x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor, weights: ExpertWeights
) -> torch.Tensor:
    """See `saccade.kernels.experts.experts`.

    Rows are taken in passes, as many at a time as leave their products within `rule.BUDGET`. A
    row's bits depend neither on the pass nor on how it is cut, see `rule.sizes`.
    """
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    if not chosen.shape[1]:
        return out.zero_()
    step = rows_per_pass(chosen.shape[1], weights.hidden, weights.inner, x.itemsize)
    for begin in range(0, x.shape[0], step):
        part = slice(begin, begin + step)
        _Pass(x[part], chosen[part].contiguous(), weights).run(shares[part].contiguous(), out[part])
    return out


class _Pass:
    """The kernels over some rows; a choice is (row, place): row * k + place."""

    def __init__(self, x: torch.Tensor, chosen: torch.Tensor, weights: ExpertWeights) -> None:
        self._x, self._chosen, self._weights = x, chosen, weights
        self._choices, self._experts = chosen.numel(), len(weights)
        self._sorted = sorted_pays(self._choices, self._experts)
        few = 0 if not self._sorted else self._choices
        self._sizes: ExpertSizes = sizes(few, self._experts, x.dtype)
        self._order, self._bounds = self._chosen, self._chosen  # of no matter unless sorted
        self._tiles = self._choices
        if self._sorted:
            self._order, self._bounds = _by_expert(chosen, self._experts)
            most = (self._choices, self._experts, self._sizes.rows)
            self._tiles = shared_sizes.most_tiles(*most)

    def run(self, shares: torch.Tensor, out: torch.Tensor) -> None:
        """Fills out [rows, hidden]."""
        hidden, inner = self._weights.hidden, self._weights.inner
        units = self._x.new_empty((self._choices, inner))
        parts = out.new_empty((self._choices, hidden))
        self._units(units)
        self._parts(units, parts)
        self._sum(parts, shares, out)

    def _units(self, units: torch.Tensor) -> None:
        from .triton_kernel import expert_units

        weights, swiglu = self._weights, self._weights.swiglu
        alpha, limit = swiglu or (1.0, 1.0)
        expert_units[(-(-weights.inner // (self._sizes.outputs // 2)), self._tiles)](
            self._x,
            weights.gate_up.data,
            *self._tiling(),
            units,
            self._x.stride(0),
            self._choices,
            self._experts,
            self._chosen.shape[1],
            weights.hidden,
            weights.inner,
            float(alpha),
            float(limit),
            **self._constants(),
            CLAMP=swiglu is not None,
        )

    def _parts(self, units: torch.Tensor, parts: torch.Tensor) -> None:
        from .triton_kernel import expert_parts

        weights = self._weights
        expert_parts[(-(-weights.hidden // self._sizes.outputs), self._tiles)](
            units,
            weights.down.data,
            *self._tiling(),
            parts,
            self._choices,
            self._experts,
            weights.hidden,
            weights.inner,
            **self._constants(),
        )

    def _sum(self, parts: torch.Tensor, shares: torch.Tensor, out: torch.Tensor) -> None:
        from .triton_kernel import expert_sums

        rows, hidden = out.shape
        run = min(shared_sizes.power_of_two(hidden), RUN)
        expert_sums[(rows, -(-hidden // run))](
            parts,
            self._chosen,
            shares,
            out,
            self._chosen.shape[1],
            hidden,
            KP=shared_sizes.power_of_two(self._chosen.shape[1]),
            BN=run,
            num_warps=4,
        )

    def _tiling(self) -> tuple[torch.Tensor, ...]:
        return self._order, self._bounds, self._chosen

    def _constants(self) -> dict[str, Any]:
        return {
            "BM": self._sizes.rows,
            "BN": self._sizes.outputs,
            "BK": self._sizes.inputs,
            "EP": shared_sizes.power_of_two(self._experts),
            "SORTED": self._sorted,
            "UPCAST": gpu.upcast(self._x),
            "num_warps": self._sizes.warps,
            "num_stages": self._sizes.stages,
        }


def _by_expert(chosen: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(choices in the order of their experts, int64 [T k]; where each expert's begin, int32
    [E + 1])."""
    ordered, order = chosen.flatten().sort(stable=True)
    numbers = torch.arange(experts + 1, device=chosen.device)
    return order, torch.searchsorted(ordered, numbers, out_int32=True)
