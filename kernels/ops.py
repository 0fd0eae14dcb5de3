"""The op table: each op is a readable torch reference plus faster implementations in order of
preference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Implementation:
    """A faster way to compute an op; `supports` returns None, or the reason why it cannot."""

    name: str
    run: Callable[..., Any]
    supports: Callable[..., str | None]


@dataclass(frozen=True)
class Op:
    """An operation with its reference; calling it runs the first implementation that supports the
    call.
    """

    name: str
    reference: Callable[..., Any]
    implementations: Sequence[Implementation] = ()

    def __call__(self, *args: Any) -> Any:
        for implementation in self.implementations:
            if implementation.supports(*args) is None:
                return implementation.run(*args)
        return self.reference(*args)

    def refusals(self, *args: Any) -> dict[str, str | None]:
        """Why each implementation would not serve this call (None: it would)."""
        return {each.name: each.supports(*args) for each in self.implementations}
