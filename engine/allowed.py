"""What requests may ask of attention, by an operator's wish: which methods, and at what cost."""

from __future__ import annotations

from dataclasses import dataclass

from .attention.base import AttentionMethod
from .attention.parse import method_text
from .attention.policy import AttentionPolicy
from .attention.spec import info_of
from .errors import RequestError

OWN = "own"


@dataclass(frozen=True)
class Allowed:
    """names: methods, None: all; the engine's own are always allowed. least_chunk: of `chunked`:
    chunks of one query and one key cost a call of a kernel for every pair.
    """

    names: frozenset[str] | None = None
    least_chunk: int = 1

    @classmethod
    def of(cls, text: str | None, least_chunk: int) -> Allowed:
        """Of names with commas between, "own" for none, None for all."""
        names = None if text is None else frozenset(name.strip() for name in text.split(","))
        return cls(names, least_chunk)

    def check(self, policy: AttentionPolicy, own: AttentionPolicy) -> None:
        """RequestError for the first method that a request may not ask for."""
        known = {*own.prefill, *own.decode}
        for method in (*policy.prefill, *policy.decode):
            if method not in known:
                self._check(method)

    def _check(self, method: AttentionMethod) -> None:
        name = info_of(method).name
        if self.names is not None and name not in self.names:
            others = ", ".join(sorted(self.names - {OWN})) or "none but its own"
            raise RequestError(
                f"attention: requests may not attend by {name} here; allowed: {others}",
                "attention",
            )
        sizes = [getattr(method, size, None) for size in ("q_chunk", "k_chunk")]
        if any(size is not None and size < self.least_chunk for size in sizes):
            raise RequestError(
                f"attention: {method_text(method)}: q_chunk and k_chunk of a request must be at "
                f"least {self.least_chunk} here",
                "attention",
            )
