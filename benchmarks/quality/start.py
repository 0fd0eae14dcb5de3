"""A structured start: the two attention heads of an induction circuit, written into fresh weights.

Induction (find the last occurrence of this token, copy what followed) takes a few million tokens to
appear by itself, which is most of what a small CPU can train on in an hour. So layer 0 starts with
heads that look one and two tokens back, layer 1 with a head that matches the current token with
what those heads wrote, and copies. Everything else is random, and all of it is trained on.
"""

import torch
from torch import Tensor

from .model import TinyLlama

COMMON = 0.25  # length of the direction that all embeddings share: a constant for the heads to read
LENGTH = 0.5  # of every embedding before that: equal, so that the constant is one
PREVIOUS_STRENGTH = 6.5
MATCH_STRENGTH = 14.0
COPY_GAIN = 0.6
FAST_PAIRS = 6  # rotary pairs that tell neighbours apart
SLOW_PAIRS = 12  # rotary pairs that hardly turn within 16K tokens


def orthonormal(rows: int, columns: int) -> Tensor:
    """A random matrix [rows, columns] with orthonormal rows (rows <= columns)."""
    return torch.linalg.qr(torch.randn(columns, rows))[0].T.contiguous()


@torch.no_grad()
def write_induction(model: TinyLlama) -> None:
    """Overwrite KV group 0 of layers 0 and 1, and give all embeddings a common direction."""
    shape = model.shape
    width, half = shape.head_dim, shape.head_dim // 2
    common, reader, writer = _directions(model)
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    turns = shape.rope_theta ** -(torch.arange(half) / half)
    fast = (torch.arange(half) < FAST_PAIRS).float()
    constant = PREVIOUS_STRENGTH / (shape.hidden_size**0.5 * 0.45)
    first.k_proj.weight[:width] = constant * torch.outer(torch.cat((fast, fast * 0)), common)
    group = shape.num_attention_heads // shape.num_key_value_heads
    for head in range(min(group, len(writer))):
        angle = (head + 1) * turns
        query = torch.cat((fast * angle.cos(), -fast * angle.sin()))
        first.q_proj.weight[head * width : (head + 1) * width] = constant * torch.outer(
            query, common
        )
        first.o_proj.weight[:, head * width : (head + 1) * width] = 0.05 * writer[head].T
    first.v_proj.weight[:width] = reader
    slow = torch.cat(
        (torch.arange(half - SLOW_PAIRS, half), torch.arange(width - SLOW_PAIRS, width))
    )
    mix = orthonormal(len(slow), width)
    scale = (MATCH_STRENGTH * width**0.5 / 9.0) ** 0.5
    second.k_proj.weight[:width] = 0.0
    second.q_proj.weight[:width] = 0.0
    second.k_proj.weight[slow] = scale * mix @ writer[0]
    second.q_proj.weight[slow] = scale * mix @ reader
    second.v_proj.weight[:width] = reader
    second.o_proj.weight[:, :width] = COPY_GAIN * reader.T


def _directions(model: TinyLlama) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The common direction [n], and orthonormal rows to read content with and to write it to."""
    shape = model.shape
    basis = orthonormal(1 + 3 * shape.head_dim, shape.hidden_size)
    common, parts = basis[0], list(basis[1:].split(shape.head_dim))
    table = model.model.embed_tokens.weight
    for used in (common[None], *parts[1:]):
        table -= table @ used.T @ used
    table *= LENGTH / table.norm(dim=-1, keepdim=True)
    table += COMMON * common
    return common, parts[0], parts[1:]
