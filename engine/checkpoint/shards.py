"""Which file holds which tensor: model.safetensors, or the shards that its index lists."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import CheckpointError
from .files import read_small
from .json_object import Fields, parse_object
from .safetensors import SafetensorsFile

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_INDEX_LIMIT = 64 << 20  # bytes
_SHARD_LIMIT = 4096  # files
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]*\.safetensors")
_OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".h5", ".msgpack")


def open_shards(folder: Path) -> dict[str, SafetensorsFile]:
    """Opens every weight file of the folder, headers only, and maps each tensor name to its file.

    CheckpointError when there is none, when an index and its shards disagree in any way, or when a
    shard is not a plain file name inside the folder.
    """
    single, index = (folder / _SINGLE).exists(), (folder / _INDEX).exists()
    if single and index:
        raise CheckpointError(f"{folder}: has both {_SINGLE} and {_INDEX}; remove the stale one")
    if single:
        file = SafetensorsFile(folder / _SINGLE)
        return dict.fromkeys(file.entries, file)
    if index:
        return _open_indexed(folder)
    raise CheckpointError(_nothing_found(folder))


def _open_indexed(folder: Path) -> dict[str, SafetensorsFile]:
    path = folder / _INDEX
    listed = _weight_map(path)
    files = {shard: SafetensorsFile(folder / shard) for shard in sorted(set(listed.values()))}
    for name, shard in listed.items():
        if name not in files[shard].entries:
            raise CheckpointError(
                f"{folder / shard}: {name!r:.200}: missing, although {_INDEX} places it here"
            )
    for shard, file in files.items():
        for name in file.entries:
            if listed.get(name) != shard:
                place = f"in {listed[name]}" if name in listed else "nowhere"
                raise CheckpointError(f"{file.path}: {name!r:.200}: {_INDEX} places it {place}")
    return {name: files[shard] for name, shard in listed.items()}


def _weight_map(path: Path) -> dict[str, str]:
    index = Fields(parse_object(read_small(path, _INDEX_LIMIT), str(path)), str(path))
    listed = index.fields("weight_map").values
    if not listed:
        raise index.error("weight_map", "missing or empty")
    for name, shard in listed.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            message = f"{shard!r:.200} is not a plain .safetensors file name (for {name!r:.200})"
            raise index.error("weight_map", message)
    if len(set(listed.values())) > _SHARD_LIMIT:
        raise index.error("weight_map", f"names more than {_SHARD_LIMIT} files")
    return dict(listed)


def _nothing_found(folder: Path) -> str:
    others = sorted(item.name for item in folder.iterdir() if item.suffix in _OTHER_FORMATS)
    if not others:
        return f"{folder}: neither {_SINGLE} nor {_INDEX} found"
    return (
        f"{folder}: no safetensors, only {others[0]}, which is never loaded (pickled weights can "
        "run code); convert it once with transformers: "
        "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
    )
