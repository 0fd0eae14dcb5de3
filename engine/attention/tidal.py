"""TidalDecode: as LessIsMore, but every query head chooses for itself."""

from __future__ import annotations

from dataclasses import dataclass

from ...kernels.select_keys import KeyRule
from .lessismore import SelectionLayers


@dataclass(frozen=True)
class Tidal(SelectionLayers):
    """TidalDecode (Yang et al. 2024, arXiv 2410.05076): for generated tokens, no training needed.

    At the selection layers each query head takes the `budget` tokens of its highest scores, in
    blocks as good as their best token, and reads these at all layers up to the next selection.
    Nothing is reserved for the first or the latest tokens.
    """

    @property
    def rule(self) -> KeyRule:
        """A list for every query head."""
        return KeyRule(self.budget // self.block, union="per_head")
