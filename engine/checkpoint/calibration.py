"""Figures that were measured for a checkpoint after its training, in a file of their own."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
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


@dataclass(frozen=True)
class Gammas:
    """What the softmax weight of a text's first token is multiplied by, per layer and head."""

    rows: tuple[tuple[float, ...], ...]

    @property
    def digest(self) -> str:
        """Names these figures where pages depend on them."""
        return sha256(repr(self.rows).encode()).hexdigest()[:16]


def read_figures(folder: Path, named: Path | None = None) -> Fields | None:
    """The figures of the file `named`, else of the folder's own if it has any.

    CheckpointError when a file cannot be read.
    """
    path = named or folder / CALIBRATION
    if named is None and not path.exists():
        return None
    return Fields(parse_object(read_small(path, _LIMIT), str(path)), str(path))


def with_calibration(
    variant: Variant | None, figures: Fields | None, named: Path | None = None
) -> Variant | None:
    """The variant with the figures that its family leaves open.

    CheckpointError when the file was named and holds nothing for this model.
    """
    if figures is None:
        return variant
    if isinstance(variant, CalibratedVariant):
        return variant.calibrated(figures)
    if named is not None and not figures.has("gammas"):
        raise CheckpointError(f"{named}: the heads of this model have nothing to calibrate")
    return variant


def read_gammas(figures: Fields | None, layers: int, heads: int) -> Gammas | None:
    """The entry `gammas`: a list per layer with a number from 0.01 to 100 per head.

    CheckpointError if it does not fit the model.
    """
    if figures is None or not figures.has("gammas"):
        return None
    rows = figures.values["gammas"]
    if not isinstance(rows, list) or len(rows) != layers:
        raise figures.error("gammas", f"expected {layers} lists, one per layer")
    for row in rows:
        if not isinstance(row, list) or len(row) != heads:
            raise figures.error("gammas", f"expected {heads} numbers per layer, one per head")
        for value in row:
            if type(value) not in (int, float) or not 0.01 <= value <= 100:
                raise figures.error("gammas", f"expected 0.01 to 100, found {value!r:.80}")
    return Gammas(tuple(tuple(map(float, row)) for row in rows))
