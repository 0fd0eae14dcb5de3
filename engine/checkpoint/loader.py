"""A checkpoint folder, verified as a whole before any of its weights is copied into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..errors import CheckpointError
from .config_json import DTYPES, ModelConfig, read_config
from .files import find_checkpoint
from .safetensors import FLOATS, SafetensorsFile, TensorEntry
from .shards import open_shards

_SLICE = 1 << 22  # elements examined at a time by the finite check


class Checkpoint:
    """An opened checkpoint: its `config`, and its tensors over mapped files.

    Opening reads headers only; `verify` before taking any tensor.
    """

    def __init__(self, model: str | Path, calibration: str | Path | None = None) -> None:
        """calibration: a file of measured figures, else the folder's own if there is one.

        CheckpointError for a folder, config or weight file that cannot be used.
        """
        self.folder = find_checkpoint(model)
        figures = None if calibration is None else Path(calibration)
        self.config: ModelConfig = read_config(self.folder, figures)
        self._files: Mapping[str, SafetensorsFile] = open_shards(self.folder)

    def __contains__(self, name: str) -> bool:
        return self._stored(name) in self._files

    def dtype(self, requested: str = "auto") -> torch.dtype:
        """The type to run in: as requested; for "auto" as config.json says, else as stored.

        "As stored" is the type of most elements. ValueError for an unsupported request.
        """
        if requested not in ("auto", *DTYPES):
            supported = ", ".join(("auto", *DTYPES))
            raise ValueError(f"dtype {requested!r} is not supported; supported: {supported}")
        name = requested if requested != "auto" else self.config.dtype
        if name is None:
            return self._stored_dtype()
        found: torch.dtype = getattr(torch, name)
        return found

    def verify(self, expected: Mapping[str, tuple[int, ...]], spare: Sequence[str] = ()) -> None:
        """Checks that the tensors are exactly the expected ones (name -> shape).

        Names are those of the Llama shape, whatever the family's files call them. Tolerated
        besides: names in `spare`, and the rotary tables that old exporters saved.
        CheckpointError names the file and the first tensor that is missing, has another shape or
        an unsupported type, or has no use.
        """
        for name, shape in expected.items():
            if name not in self:
                stored = self._stored(name)
                raise CheckpointError(f"{self.folder}: {stored}: missing from the weights")
            entry = self._entry(name)
            if entry.shape != shape:
                message = f"has shape {list(entry.shape)}, config.json asks for {list(shape)}"
                raise self._error(name, message)
            if entry.dtype not in FLOATS:
                raise self._error(name, f"is {entry.dtype}; supported: {', '.join(FLOATS)}")
        useful = {self._stored(name) for name in (*expected, *spare)}
        for stored in self._files:
            if stored not in useful and not stored.endswith(".rotary_emb.inv_freq"):
                message = f"a {self.config.architecture} so configured has no such tensor"
                raise self._error_of(stored, message)

    def check_finite(self, names: Sequence[str], dtype: torch.dtype) -> None:
        """Reads the named tensors and checks that all elements are finite once in `dtype`.

        CheckpointError names file, tensor and the first bad element.
        """
        for name in names:
            flat = self._view(name).reshape(-1)
            for begin in range(0, flat.numel(), _SLICE):
                bad = ~torch.isfinite(flat[begin : begin + _SLICE].to(dtype))
                if bool(bad.any()):
                    at = begin + int(bad.int().argmax())
                    message = f"element {at} is {float(flat[at])}, which is not finite in {dtype}"
                    raise self._error(name, message)

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors are equal, in type and shape and every element."""
        ours, theirs = self._entry(first), self._entry(second)
        if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
            return False
        return torch.equal(self._view(first), self._view(second))

    def tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A private copy of the tensor, converted."""
        return self._view(name).to(dtype, copy=True)

    def rows(self, names: Sequence[str], dtype: torch.dtype) -> torch.Tensor:
        """The tensors joined along their first dimension, converted; maybe the file itself.

        Never write to it: it is meant for what is packed and dropped at once.
        """
        parts = [self._view(name).to(dtype) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _stored(self, name: str) -> str:
        """What the files call the tensor."""
        for part, own in self.config.tensor_names:
            name = name.replace(part, own)
        return name

    def _entry(self, name: str) -> TensorEntry:
        stored = self._stored(name)
        return self._files[stored].entries[stored]

    def _view(self, name: str) -> torch.Tensor:
        stored = self._stored(name)
        return self._files[stored].view(stored)

    def _error(self, name: str, message: str) -> CheckpointError:
        return self._error_of(self._stored(name), message)

    def _error_of(self, stored: str, message: str) -> CheckpointError:
        return CheckpointError(f"{self._files[stored].path}: {stored!r:.200}: {message}")

    def _stored_dtype(self) -> torch.dtype:
        sizes = dict.fromkeys(FLOATS, 0)
        for name, file in self._files.items():
            entry = file.entries[name]
            if entry.dtype in FLOATS:
                sizes[entry.dtype] += (entry.end - entry.begin) // FLOATS[entry.dtype].itemsize
        return FLOATS[max(sizes, key=lambda kind: sizes[kind])]
