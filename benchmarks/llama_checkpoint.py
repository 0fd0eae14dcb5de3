"""A Llama checkpoint of a given shape with random weights, written as Hugging Face would write it.

Only the speed of such a model means anything. The files are config.json, model.safetensors (by a
small writer of our own) and a tokenizer.json that the prompts, which are token ids, do not use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import tokenizers
import torch

from ..engine.checkpoint.config_json import ModelConfig, read_config
from ..engine.models.tensors import EMBEDDING, expected_tensors

DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
BYTE_VALUES = 256


@dataclass(frozen=True)
class LlamaSize:
    """The shape; the default is the 135M-parameter one on which the goals are stated.

    moba: tokens of a block and blocks of a row, where prompts are read by MoBA. tied: the output
    projection is the embedding.
    """

    layers: int = 30
    hidden: int = 576
    intermediate: int = 1536
    heads: int = 9
    kv_heads: int = 3
    vocab: int = 49152
    max_position: int = 65536
    moba: tuple[int, int] | None = None
    tied: bool = True

    @classmethod
    def tiny(cls) -> LlamaSize:
        """A shape for a look in seconds, and for tests."""
        return cls(2, 64, 128, 4, 2, 512, 4096)

    def config(self) -> dict[str, object]:
        """config.json."""
        moba = dict(zip(("moba_chunk_size", "moba_topk"), self.moba or (), strict=False))
        return moba | {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": self.max_position,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }


def write_llama(folder: Path, size: LlamaSize, seed: int = 0) -> Path:
    """Writes the checkpoint to `folder` (which is created) and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(size.config(), indent=2))
    write_tokenizer(folder / "tokenizer.json", size.vocab)
    shapes = expected_tensors(read_config(folder))
    write_safetensors(folder / "model.safetensors", shapes, torch.bfloat16, seed)
    return folder


def write_tokenizer(path: Path, vocab: int) -> None:
    """A tokenizer of single bytes; further ids of the model have no text."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[: min(vocab, BYTE_VALUES)]
    model = tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, [])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.save(str(path))


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, seed: int
) -> None:
    """Random tensors, one in memory at a time: norms near 1, matrices that keep the variance."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(seed)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            tensor = _random(shape, generator).to(dtype).contiguous()
            file.write(tensor.view(torch.uint8).numpy().tobytes())


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    return 1 + 0.1 * noise if len(shape) == 1 else noise / shape[-1] ** 0.5


def weight_bytes(config: ModelConfig, size: int) -> int:
    """Bytes of weights that a step must read, at `size` bytes an element: all but an embedding that
    is only looked up."""
    shapes = expected_tensors(config)
    read = sum(prod(shape) for shape in shapes.values())
    return size * (read if config.tied_embeddings else read - prod(shapes[EMBEDDING]))


def kv_bytes(config: ModelConfig, context: int, size: int) -> int:
    """Bytes of K and V that dense attention reads for one new token at this context."""
    keys = sum(context if window is None else min(window, context) for window in config.windows)
    return 2 * keys * config.num_kv_heads * config.head_dim * size
