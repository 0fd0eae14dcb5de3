"""The safetensors format, read strictly: the header must describe the file exactly.

Layout: the header's length N in 8 bytes, little-endian; the header, N bytes of JSON, an object
{name: {dtype, shape, data_offsets: [begin, end]}} with an optional "__metadata__" of strings; then
the data, which the offsets (counted from its start) must cover without gap or overlap.
"""

from __future__ import annotations

import mmap
import warnings
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import CheckpointError
from .files import open_regular
from .json_object import parse_object

_HEADER_LIMIT = 100_000_000  # bytes
_RANK_LIMIT = 8
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
}
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: where its bytes lie, counted from the beginning of the file."""

    name: str
    dtype: str  # the format's own name, such as "BF16"
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A checked, memory-mapped safetensors file. `entries` maps each tensor name to its entry."""

    def __init__(self, path: Path) -> None:
        """Opens the file and checks its header. CheckpointError names the file and the tensor."""
        self.path = path
        with open_regular(path) as file:
            size = file.seek(0, 2)
            self.entries = _read_entries(path, file, size)
            try:
                self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: cannot be mapped: {error}") from None

    def view(self, name: str) -> torch.Tensor:
        """The tensor over the mapped file, without a copy: never write to it.

        It stays valid as long as it is referenced. KeyError for an unknown name; CheckpointError
        for a type that is not one of FLOATS.
        """
        entry = self.entries[name]
        if entry.dtype not in FLOATS:
            supported = ", ".join(FLOATS)
            raise CheckpointError(
                f"{self.path}: {name}: stored as {entry.dtype}; supported: {supported}"
            )
        dtype = FLOATS[entry.dtype]
        if entry.begin == entry.end:
            return torch.empty(entry.shape, dtype=dtype)
        with warnings.catch_warnings():
            # torch has no read-only tensors and warns that a write would crash; nothing writes.
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            count = entry.end - entry.begin
            flat = torch.frombuffer(self._map, dtype=torch.uint8, count=count, offset=entry.begin)
        if flat.data_ptr() % dtype.itemsize:
            flat = flat.clone()  # a header whose length is not a multiple of 8: legal, if unusual
        return flat.view(dtype).view(entry.shape)


def _read_entries(path: Path, file: BinaryIO, size: int) -> dict[str, TensorEntry]:
    header, start = _read_header(path, file, size)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__: expected an object of strings")
    entries = {name: _entry(path, name, fields, start) for name, fields in header.items()}
    ordered = sorted(entries.values(), key=lambda entry: (entry.begin, entry.end))
    _check_cover(path, ordered, start, size)
    return entries


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(size - 8, _HEADER_LIMIT):
        raise CheckpointError(
            f"{path}: not a complete safetensors file: it has {size} bytes and announces a header "
            f"of {length} (at most {_HEADER_LIMIT} are allowed)"
        )
    content = file.read(length)
    if len(content) != length:
        raise CheckpointError(f"{path}: the header is cut short")
    return parse_object(content, f"{path}: header"), 8 + length


def _entry(path: Path, name: str, fields: Any, start: int) -> TensorEntry:
    where = f"{path}: {name!r:.200}"
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise CheckpointError(f"{where}: unknown dtype {dtype!r:.80}; known: {', '.join(_BITS)}")
    if not _sizes(shape) or len(shape) > _RANK_LIMIT:
        message = f"shape {shape!r:.80} is not a list of at most {_RANK_LIMIT} sizes"
        raise CheckpointError(f"{where}: {message}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets {offsets!r:.80} is not [begin, end]")
    begin, end = offsets
    needed = prod(shape) * _BITS[dtype] // 8
    if end - begin != needed:
        raise CheckpointError(
            f"{where}: {dtype} of shape {shape} takes {needed} bytes, "
            f"but data_offsets span {end - begin}"
        )
    return TensorEntry(name, dtype, tuple(shape), start + begin, start + end)


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**63 for value in values
    )


def _check_cover(path: Path, ordered: list[TensorEntry], start: int, size: int) -> None:
    position = start
    for entry in ordered:
        if entry.end > size:
            raise CheckpointError(
                f"{path}: {entry.name!r:.200}: truncated: it ends at byte {entry.end}, "
                f"but the file has {size} bytes"
            )
        if entry.begin != position:
            fault = "overlaps another tensor" if entry.begin < position else "leaves a gap"
            raise CheckpointError(f"{path}: {entry.name!r:.200}: {fault} after byte {position}")
        position = entry.end
    if position != size:
        raise CheckpointError(f"{path}: the last {size - position} bytes belong to no tensor")
