"""ModelRunner: one step of the model, from a list of chunks to hidden states and logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isfinite

import torch

from ..kernels.native import single_threaded_torch
from . import graphs
from .attention.base import LayerShape
from .attention.watch import Watch
from .batch import Batch, Run, build_batch
from .cache import KVCache
from .devices import Place, Staging, place
from .forward import Forward
from .graphs import DecodeGraphs, Recorder
from .models import LlamaModel
from .stats import ReadCounts
from .step_plan import Chunk, LayerGroup, PageCopy


class StepResult:
    """The hidden states of a step's rows; logits are computed for the rows somebody asks for."""

    def __init__(
        self,
        model: LlamaModel,
        batch: Batch,
        hidden: torch.Tensor,
        reads: list[tuple[Run, ReadCounts]],
    ) -> None:
        """reads: what the rows of every run read."""
        self.reads = reads
        self._model = model
        self._batch = batch
        self._hidden = hidden
        self._sum = hidden.sum(dtype=torch.float32)  # NaN or infinite where any of them is

    def not_finite(self) -> list[int]:
        """The chunks (indices) that have a row of NaN or infinity: what they wrote is not sound.

        Any row of them, also before the NaN: a weight of 0 times NaN is NaN, so that within a step
        it may reach rows of the sequence that should not see it.
        """
        if isfinite(self._sum):  # it overflows where finite states are absurdly large
            return []
        finite = self._hidden.isfinite().all(dim=-1)
        found = (
            run.chunk
            for run, row in self._batch.runs
            if not finite[row : row + run.stop - run.start].all()
        )
        return sorted(set(found))

    def last_logits(self, chunks: Sequence[int]) -> torch.Tensor:
        """float32 [R, V]: logits of the last row of each of these chunks (indices)."""
        rows = torch.tensor([self._batch.last_row[chunk] for chunk in chunks], dtype=torch.int64)
        return self._logits(self._hidden[rows.to(self._hidden.device)])

    def chunk_logits(self, chunk: int, size: int = 256) -> Iterator[tuple[int, torch.Tensor]]:
        """(first position, logits float32 [<= size, V]) pieces over all rows of a chunk.

        Pieces bound the memory: a vocabulary of 150K takes 150 MiB for 256 rows.
        """
        for start, hidden in self.chunk_hidden(chunk):
            for at in range(0, hidden.shape[0], size):
                yield start + at, self._logits(hidden[at : at + size])

    def chunk_hidden(self, chunk: int) -> Iterator[tuple[int, torch.Tensor]]:
        """(first position, final hidden states [R, hidden]) pieces over all rows of a chunk."""
        for run, row in self._batch.runs:
            if run.chunk == chunk:
                yield run.start, self._hidden[row : row + run.stop - run.start]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), single_threaded_torch():
            return self._model.logits(hidden)


def _generates(chunks: Sequence[Chunk]) -> bool:
    """Whether these are a step of decode: one generated token of each request."""
    return all(chunk.count == 1 and chunk.start >= len(chunk.request.prompt) for chunk in chunks)


class ModelRunner:
    """Runs steps over one model and one cache."""

    def __init__(
        self,
        model: LlamaModel,
        cache: KVCache,
        groups: Sequence[LayerGroup],
        where: Place | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """where: of the model's weights and the pages, by default the processor. recorder: makes
        graphs of decode steps; by default that of the place, if any.
        """
        self._model = model
        self._cache = cache
        known: dict[LayerShape, LayerShape] = {}  # equal shapes are one object: see Planner
        self.shapes = [known.setdefault(shape, shape) for shape in model.layer_shapes]
        self._groups = groups
        self._where = where or place("cpu")
        recorder = recorder or graphs.recorder(self._where)
        staging = Staging(self._where, model.rope)
        self._staging = staging if self._where.gpu else None
        self.graphs = DecodeGraphs(staging, recorder) if recorder is not None else None
        self.progress = 0  # layers that have attended since the start

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        """Makes the page copies of a plan."""
        with torch.inference_mode(), single_threaded_torch(), self._where.scope():
            self._cache.copy_pages(copies)

    def undo(self) -> bool:
        """After a run that broke: what runs until `settle` are its chunks again, in any parts.

        False: what it overwrote cannot be put back.
        """
        with torch.inference_mode(), single_threaded_torch(), self._where.scope():
            return self._cache.undo_step()

    def settle(self) -> None:
        """The chunks of the run that broke are done with."""
        self._cache.settle_step()

    def run(
        self, chunks: Sequence[Chunk], copies: Sequence[PageCopy], watch: Watch | None = None
    ) -> StepResult:
        """Copies pages, then computes all rows of `chunks`, which must not be empty."""
        with torch.inference_mode(), single_threaded_torch():
            self._cache.begin_step()
            with self._where.scope():
                self._cache.copy_pages(copies)
            size, rope = self._cache.layout.page_size, self._model.rope
            width = self._width(chunks)
            batch = build_batch(chunks, self._groups, size, rope, width)
            cos, sin = rope.cos_sin(batch.positions)
            forward = Forward(batch, cos, sin, self.shapes, self._cache, self._note_layer, watch)
            with self._where.scope():
                hidden = self._compute(forward, chunks, watch)
            forward.note_states()
            return StepResult(self._model, batch, hidden, forward.tally.result())

    def _compute(
        self, forward: Forward, chunks: Sequence[Chunk], watch: Watch | None
    ) -> torch.Tensor:
        """The final hidden states, of decode steps by a graph (a tape) where there is one."""
        decode = watch is None and _generates(chunks)
        if self.graphs is not None and decode and not self._cache.runs_again:
            return self.graphs.run(forward, self._model.forward)
        if self._staging is not None:
            forward.send(self._staging)
        return self._model.forward(forward)

    def _width(self, chunks: Sequence[Chunk]) -> Callable[[int], int]:
        """How wide a page table of so many pages is: on a GPU, or for graphs, one of few sizes."""
        few = self._where.gpu or (self.graphs is not None and _generates(chunks))
        return graphs.width if few else lambda pages: pages

    def _note_layer(self) -> None:
        self.progress += 1
