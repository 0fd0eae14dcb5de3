"""What a checkpoint recommends: sampling (generation_config.json), pooling (1_Pooling)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..engine.checkpoint.files import read_small
from ..engine.checkpoint.json_object import parse_object
from ..engine.errors import CheckpointError, RequestError
from ..engine.params import SamplingParams

_FILE = "generation_config.json"
_BYTES = 1 << 20
_POOLING = "1_Pooling/config.json"
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
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


def read_pooling(folder: Path) -> str:
    """How the checkpoint's vectors are made of rows; "last" where it does not say. CheckpointError
    for a way that is not known here.
    """
    path = folder / _POOLING
    if not path.exists():
        return "last"
    found = parse_object(read_small(path, _BYTES), str(path))
    modes = [name for name, on in found.items() if name.startswith("pooling_mode") and on is True]
    if len(modes) == 1 and modes[0] in _MODES:
        return _MODES[modes[0]]
    raise CheckpointError(f"{path}: {', '.join(modes) or 'no mode'}; known: {', '.join(_MODES)}")
