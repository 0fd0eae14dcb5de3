"""Models: from a verified checkpoint to hidden states and logits."""

from __future__ import annotations

from ..checkpoint.loader import Checkpoint
from ..errors import CheckpointError
from ..layers.kinds import layer_shapes
from ..layers.ngram import ngram_buffers
from ..layers.weights import Weights
from .hyper import HyperModel
from .llama import LlamaModel
from .tensors import EMBEDDING, LM_HEAD, expected_tensors, model_nbytes

__all__ = ["LlamaModel", "layer_shapes", "load_model", "model_nbytes"]


def load_model(
    checkpoint: Checkpoint,
    dtype: str = "auto",
    max_model_len: int | None = None,
    check_finite: bool = False,
) -> LlamaModel:
    """Verifies the whole checkpoint, and only then loads it.

    dtype: "auto" (the checkpoint's own), "float32", "bfloat16" or "float16". max_model_len: the
    positions in the rotary table, by default all that the model was trained for. check_finite: also
    read all weights first and refuse NaN and infinity. CheckpointError names file and tensor.
    """
    config, wanted = checkpoint.config, checkpoint.dtype(dtype)
    expected = expected_tensors(config)
    spare = [LM_HEAD] if config.tied_embeddings else []
    checkpoint.verify(expected, spare=[*spare, *ngram_buffers(config)])
    if config.tied_embeddings and LM_HEAD in checkpoint:
        _check_tie(checkpoint)
    if check_finite:
        checkpoint.check_finite(list(expected), wanted)
    kind = LlamaModel if config.features.hyper is None else HyperModel
    return kind(config, Weights(checkpoint, wanted), max_model_len or config.max_position)


def _check_tie(checkpoint: Checkpoint) -> None:
    if not checkpoint.same(EMBEDDING, LM_HEAD):
        raise CheckpointError(
            f"{checkpoint.folder}: {LM_HEAD}: differs from {EMBEDDING}, although config.json ties "
            "them; set tie_word_embeddings to false if it is to be used"
        )
