"""Error budgets: how far a kernel may be from the truth."""

from __future__ import annotations

import torch


def error(value: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest absolute error; equal infinities count as no error, NaN as infinite error."""
    value, truth = value.double(), truth.double()
    gap = torch.where(value == truth, 0.0, (value - truth).abs())
    return float(torch.nan_to_num(gap, nan=torch.inf).max()) if gap.numel() else 0.0


def within_budget(
    value: torch.Tensor,
    same_precision: torch.Tensor,
    truth: torch.Tensor,
    factor: float = 2.0,
    steps: float = 1.0,
) -> None:
    """Raises AssertionError unless `value` is at most `factor` times as far from `truth` (fp64) as
    the reference at the same precision is, with `steps` rounding steps of the value's dtype as the
    least budget: of a few elements the reference may happen to be exact."""
    if not value.numel():
        return
    floor = (
        steps
        * torch.finfo(value.dtype).eps
        * max(float(truth.double().nan_to_num(0, 0, 0).abs().max()), 1e-30)
    )
    budget = max(factor * error(same_precision, truth), floor)
    found = error(value, truth)
    if not found <= budget:
        raise AssertionError(f"error {found:.3e} exceeds the budget {budget:.3e}")
