"""Sampling defaults that a checkpoint recommends, in its generation_config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..engine.checkpoint.files import read_small
from ..engine.checkpoint.json_object import parse_object
from ..engine.errors import CheckpointError, RequestError
from ..engine.params import SamplingParams

_FILE = "generation_config.json"
_BYTES = 1 << 20
_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_defaults(folder: Path) -> dict[str, Any]:
    """Keywords of SamplingParams; empty without the file. CheckpointError for a value that no
    request could have.
    """
    path = folder / _FILE
    if not path.exists():
        return {}
    found = parse_object(read_small(path, _BYTES), str(path))
    defaults = {name: found[name] for name in _NAMES if found.get(name) is not None}
    try:
        SamplingParams(**defaults)
    except RequestError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return defaults
