"""Figures that were measured for a checkpoint after its training, in a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from ..errors import CheckpointError
from .files import read_small
from .json_object import Fields, parse_object
from .variant import Variant

CALIBRATION = "calibration.json"  # in the checkpoint's folder, unless another file is named
_LIMIT = 16 << 20  # bytes


@runtime_checkable
class CalibratedVariant(Protocol):
    """A family whose config leaves figures open that are measured: thresholds of routers."""

    @property
    def train_length(self) -> int:
        """Tokens of the texts of training."""
        ...

    @property
    def rules(self) -> tuple[str, ...]:
        """Attention specs: as in training, by thresholds, and other ways to serve."""
        ...

    @property
    def always(self) -> int:
        """First tokens of a text that are kept whatever their score."""
        ...

    def wanted(self, tokens: int) -> int:
        """How many others training keeps of a text of so many."""
        ...

    def calibrated(self, figures: Fields) -> Variant:
        """With the figures of a calibration file. CheckpointError if they do not fit."""
        ...


def with_calibration(
    variant: Variant | None, folder: Path, named: Path | None = None
) -> Variant | None:
    """The variant with the figures of the file `named`, else of the folder's own if it has any.

    CheckpointError when a named file cannot be read or the family has nothing to measure.
    """
    path = named or folder / CALIBRATION
    if named is None and not path.exists():
        return variant
    if not isinstance(variant, CalibratedVariant):
        if named is None:
            return variant
        raise CheckpointError(f"{named}: the heads of this model have nothing to calibrate")
    return variant.calibrated(Fields(parse_object(read_small(path, _LIMIT), str(path)), str(path)))
