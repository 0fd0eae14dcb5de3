"""Dense attention of prompts by flash-attn, where it is installed: generation 3 on Hopper, else 2.

Pages are read where they lie: theirs are [pages, page, Hkv, d], ours with the middle two exchanged,
which is a matter of strides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch

from .. import gpu
from . import dense_probe
from . import dense_rules as rules
from .call import AttendCall

MODULES = {rules.FLASH3: "flash_attn_interface", rules.FLASH2: "flash_attn"}
FUNCTIONS = {rules.FLASH3: "flash_attn_with_kvcache", rules.FLASH2: "flash_attn_varlen_func"}
OLDEST = (2, 6)  # of generation 2, whose versions before take no softcap


@cache
def function(way: str) -> Callable[..., Any] | str:
    """flash-attn's function for paged prompts, or why there is none."""
    name = MODULES[way]
    try:
        module = import_module(name)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == name
        return f"{name} is not installed" if absent else f"{name} does not load: {error}"
    found = getattr(module, FUNCTIONS[way], None)
    if found is None:
        return f"{name} has no {FUNCTIONS[way]}"
    version = str(getattr(module, "__version__", "2.6"))
    if way == rules.FLASH2 and _numbers(version) < OLDEST:
        return f"{name} {version} is older than {OLDEST[0]}.{OLDEST[1]}"
    return found  # type: ignore[no-any-return]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def missing(way: str) -> str | None:
    """Why this generation cannot be used on this machine; None: it can."""
    if reason := gpu.libraries_missing():
        return reason
    found = function(way)
    return found if isinstance(found, str) else None


def supports(way: str, call: AttendCall) -> str | None:
    """None when flash-attn can serve this call, otherwise the reason."""
    return dense_probe.refusal(way, partial(attend, way), partial(missing, way), call)


def attend(way: str, call: AttendCall) -> tuple[torch.Tensor, torch.Tensor]:
    """See `saccade.kernels.attend.attend`. Keys are never split: how a row is added up does not
    depend on what else is in the batch.
    """
    run, keys, spans = function(way), call.keys, call.keys.spans
    if isinstance(run, str) or spans is None:
        raise ValueError(f"attend by flash-attn: {run if isinstance(run, str) else 'no spans'}")
    longest = max(stop - start for start, stop in spans)
    lengths = keys.positions[keys.cu_rows[1:].long() - 1].int() + 1
    pages = call.k_pages.transpose(1, 2), call.v_pages.transpose(1, 2)
    options: dict[str, Any] = {
        "softmax_scale": call.scale,
        "causal": True,
        "softcap": 0.0 if call.softcap is None else call.softcap,
    }
    table = keys.page_table.clamp(min=0)  # where no row looks, an id is read nevertheless
    if way == rules.FLASH3:
        out, lse, *_ = run(
            call.q,
            *pages,
            cache_seqlens=lengths,
            page_table=table,
            cu_seqlens_q=keys.cu_rows,
            max_seqlen_q=longest,
            num_splits=1,
            return_softmax_lse=True,
            **options,
        )
    else:
        ends = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        out, lse, *_ = run(
            call.q,
            *pages,
            cu_seqlens_q=keys.cu_rows,
            cu_seqlens_k=ends,
            max_seqlen_q=longest,
            max_seqlen_k=max(stop for _, stop in spans),
            block_table=table,
            return_attn_probs=True,
            **options,
        )
    return out, lse.transpose(0, 1).contiguous()
