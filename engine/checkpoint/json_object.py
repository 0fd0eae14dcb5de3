"""JSON objects read strictly: no duplicate keys, no NaN, typed access that names file and key."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CheckpointError


class _Refused(ValueError):
    """A construct that Python's reader tolerates and we do not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"the key {key!r} appears twice")
            seen.add(key)
    return values


def _no_constant(name: str) -> Any:
    raise _Refused(f"{name} is not a JSON number")


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """Parses a JSON object in UTF-8; otherwise a CheckpointError that begins with `where`."""
    try:
        text = content.decode("utf-8")
        parsed = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise CheckpointError(f"{where}: not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {type(parsed).__name__}")
    return parsed


class Fields:
    """Typed reading of one JSON object. null counts as absent; every error names file and key.

    names: what the object calls keys that most others call otherwise.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str, names: Mapping[str, str] | None = None
    ) -> None:
        self.values = values
        self.where = where
        self._names = names or {}

    def error(self, key: str, message: str) -> CheckpointError:
        """The error to raise about `key`."""
        return CheckpointError(f"{self.where}: {self._names.get(key, key)}: {message}")

    def has(self, key: str) -> bool:
        """Whether the key is present and not null."""
        return self.values.get(self._names.get(key, key)) is not None

    def integer(
        self, key: str, default: int | None = None, least: int = 1, most: int = 2**31 - 1
    ) -> int:
        """An integer in [least, most]. CheckpointError when absent without default."""
        value = self._get(key, default)
        if type(value) is not int or not least <= value <= most:
            message = f"expected an integer from {least} to {most}, found {value!r:.80}"
            raise self.error(key, message)
        return value

    def number(self, key: str, default: float | None = None, above: float = -math.inf) -> float:
        """A finite number greater than `above`. CheckpointError when absent without default."""
        value = self._get(key, default)
        if type(value) not in (int, float):
            raise self.error(key, f"expected a number, found {value!r:.80}")
        if not abs(value) < 1e300 or not value > above:
            bound = "finite" if above == -math.inf else f"finite and above {above:g}"
            raise self.error(key, f"expected a {bound} number, found {value!r:.80}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false; `default` when absent."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"expected true or false, found {value!r:.80}")
        return value

    def choice(self, key: str, supported: Iterable[str], default: str | None = None) -> str:
        """One of the supported words. CheckpointError when absent without default."""
        value = self._get(key, default)
        words = list(supported)
        if value not in words:
            message = f"{value!r:.80} is not supported; supported: {', '.join(words)}"
            raise self.error(key, message)
        return str(value)

    def fields(self, key: str) -> Fields:
        """The object under `key`; empty when absent. CheckpointError when it is something else."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, f"expected an object, found {value!r:.80}")
        return Fields(value, f"{self.where}: {key}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(self._names.get(key, key))
        if value is None:
            value = default
        if value is None:
            raise self.error(key, "missing")
        return value
