"""An independent model for decode policies: dense over the prompt, then row by row under a mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

# (layer, q [H, d], k [L, H, d], both scaled by nothing) -> bool [H, L]
RowMask = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


def decode_logits(folder: Path, tokens: list[int], prompt: int, mask: RowMask) -> torch.Tensor:
    """float32 [T, V] of transformers' own model; rows from `prompt` on see what `mask` says."""

    def attention(module: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        group, length = q.shape[1] // k.shape[1], q.shape[2]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        sees = torch.ones((q.shape[1], length, length), dtype=torch.bool).tril()
        for row in range(prompt, length):
            keys = k[0, :, : row + 1].transpose(0, 1)
            sees[:, row, : row + 1] = mask(module.layer_idx, q[0, :, row], keys)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=sees[None])
        return out.transpose(1, 2), None

    transformers.AttentionInterface.register("decode_oracle", attention)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="decode_oracle"
    )
    with torch.inference_mode():
        return model(torch.tensor([tokens]), use_cache=False).logits[0]
