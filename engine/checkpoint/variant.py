"""What a family's config may hold beyond the Llama shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class OrdinaryHeads:
    """What variants share whose heads are as the ordinary keys of config.json say."""

    @property
    def heads(self) -> None:
        """As the ordinary keys say."""
        return None

    @property
    def rope_dim(self) -> None:
        """As the ordinary keys say."""
        return None


class Variant(Protocol):
    """One family's own part of config.json, read and checked; a frozen dataclass.

    Its class decides which attention layer the model is built of (`engine/layers/kinds.py`). What a
    property leaves None, the ordinary keys of config.json say.
    """

    @property
    def heads(self) -> tuple[int, int, int] | None:
        """Query heads, KV heads, and channels of a head."""
        ...

    @property
    def rope_dim(self) -> int | None:
        """Channels of a head that turn with the position."""
        ...

    @property
    def windows(self) -> tuple[int | None, ...] | None:
        """Sliding window of each layer in tokens, None in it: full attention."""
        ...

    @property
    def specs(self) -> Mapping[str, str] | None:
        """The attention specs that the checkpoint was trained with, by phase as users name them."""
        ...
