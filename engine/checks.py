"""Small value checks behind every request validator: each raises RequestError naming the field."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import RequestError

INT32_MAX = 2**31 - 1
# Values that are looked at in one go: among millions of them other threads get their turns.
_AT_ONCE = 1 << 14


def shown(value: object) -> str:
    """A short printable form of a refused value; never fails and never prints a megabyte."""
    if isinstance(value, str):
        return repr(value[:40]) + ("..." if len(value) > 40 else "")
    if (
        value is None
        or isinstance(value, bool | float)
        or (isinstance(value, int) and value.bit_length() <= 128)
    ):
        return repr(value)
    return f"a value of type {type(value).__name__}"


def is_int(value: object) -> bool:
    """True for an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """True for an int or a float that is not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def refuse_non_finite(name: str, values: Iterable[object]) -> None:
    """RequestError when any float among `values` is NaN or infinite."""
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(f"{name} must be finite, got {value!r}", name)


@dataclass(frozen=True)
class NumberRule:
    """What a numeric field may hold: low <= value <= high (or low < value when `above_low`)."""

    name: str
    low: float
    high: float
    integer: bool = True
    optional: bool = False
    above_low: bool = False

    @property
    def allowed(self) -> str:
        """The rule in words, for error messages."""
        kind = "an integer" if self.integer else "a number"
        if self.above_low:
            return f"{kind} above {self.low:g} and at most {self.high:g}"
        return f"{kind} from {self._bound(self.low)} to {self._bound(self.high)}"

    def _bound(self, bound: float) -> str:
        return str(int(bound)) if self.integer else f"{bound:g}"

    def check_type(self, value: object) -> None:
        """RequestError unless the value has the rule's type."""
        if value is None and self.optional:
            return
        if not (is_int(value) if self.integer else is_number(value)):
            raise self._error(value)

    def check_range(self, value: float | None) -> None:
        """RequestError unless the (well-typed) value lies in the rule's range."""
        if value is None:
            return
        too_low = value <= self.low if self.above_low else value < self.low
        if too_low or value > self.high:
            raise self._error(value)

    def _error(self, value: object) -> RequestError:
        return RequestError(f"{self.name} must be {self.allowed}, got {shown(value)}", self.name)


def _within(ids: Sequence[int], vocab_size: int) -> bool:
    return set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < vocab_size


def check_token_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """RequestError unless every id is an int with 0 <= id < vocab_size."""
    if all(_within(ids[at : at + _AT_ONCE], vocab_size) for at in range(0, len(ids), _AT_ONCE)):
        return
    position, token = next(
        (p, t) for p, t in enumerate(ids) if not is_int(t) or not 0 <= t < vocab_size
    )
    raise RequestError(
        f"{name}: token ids must be integers from 0 to {vocab_size - 1}, "
        f"got {shown(token)} at position {position}",
        name,
    )
