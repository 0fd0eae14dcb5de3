"""A model of the Llama shape whose weights are random numbers, made on the GPU that runs it: no
checkpoint on disk, and nothing of its size in host memory. Only its speed means anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..engine.assembly import Source
from ..engine.checkpoint.config_json import read_config
from ..engine.devices import Place
from ..engine.layers.weights import Weights
from ..engine.models import LlamaModel
from ..engine.models.tensors import expected_tensors
from ..kernels.linear import PackedWeight
from .llama_checkpoint import LlamaSize

DTYPE = torch.bfloat16


def random_source(folder: Path, size: LlamaSize, seed: int = 0) -> Source:
    """A model for `Engine`; its config.json is written to `folder`, which must exist.

    Raises ValueError for a tied output projection, which would have to be packed on the host.
    """
    if size.tied:
        raise ValueError("a model made on the GPU needs an output projection of its own")
    (folder / "config.json").write_text(json.dumps(size.config(), indent=2))
    config = read_config(folder)

    def load(positions: int, where: Place) -> LlamaModel:
        if not where.gpu:
            raise ValueError("weights are made as rows, which the processor's kernels do not take")
        made: Any = RandomTensors(expected_tensors(config), where.device, seed)
        return LlamaModel(config, RowWeights(made, DTYPE), positions)

    return Source(config, DTYPE, folder, load)


@dataclass(frozen=True)
class RowWeights(Weights):
    """Projections as they lie on a GPU: rows, never packed."""

    def projection(
        self, *names: str, bias: bool = False, order: torch.Tensor | None = None
    ) -> PackedWeight:
        """See `Weights.projection`. The Llama shape has neither bias nor order: ValueError."""
        if bias or order is not None:
            raise ValueError(f"{names}: no bias and no order of rows here")
        rows = self.checkpoint.rows([name + ".weight" for name in names], self.dtype)
        return PackedWeight(rows, None, rows.shape[1], rows.shape[0])


class RandomTensors:
    """Instead of a checkpoint's tensors: norms near 1, matrices that keep the variance."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], device: torch.device, seed: int
    ) -> None:
        self._shapes = shapes
        self._device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A new tensor of the name's shape, on the device."""
        shape = self._shapes[name]
        made = torch.empty(shape, dtype=dtype, device=self._device)
        mean, deviation = (1.0, 0.1) if len(shape) == 1 else (0.0, shape[-1] ** -0.5)
        return made.normal_(mean, deviation, generator=self._generator)

    def rows(self, names: Sequence[str], dtype: torch.dtype) -> torch.Tensor:
        """New tensors, joined along their first dimension."""
        parts = [self.tensor(name, dtype) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
