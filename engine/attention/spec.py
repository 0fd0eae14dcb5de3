"""The one place that knows every attention method's name. Importing it does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module


@dataclass(frozen=True)
class MethodInfo:
    """A method as `saccade methods` shows it, and where it is: `kind` in the module `name`."""

    name: str
    kind: str
    parameters: tuple[str, ...]  # name=default
    phases: tuple[str, ...]
    state: str  # bytes kept per token beyond K and V
    source: str
    backends: tuple[str, ...]
    # (word, options): what preset=word stands for; other options come on top.
    presets: tuple[tuple[str, str], ...] = ()

    @property
    def defaults(self) -> dict[str, str]:
        """Every parameter's default, as it is written."""
        return dict(each.split("=") for each in self.parameters)


_BOTH = ("prefill", "decode")
_CPU = ("torch reference", "compiled CPU")
# flash-linear-attention: entries are blocks. Its first version forced the row's own block alone.
_FLA_NSA = "length=64, stride=64, phi=mean, block=64, map=identity, kv=shared"
_METHODS = (
    MethodInfo("dense", "Dense", (), _BOTH, "none", "Vaswani et al. 2017, arXiv 1706.03762", _CPU),
    MethodInfo(
        "window",
        "Window",
        ("size=4096", "sinks=4"),
        _BOTH,
        "none",
        "Xiao et al. 2023, arXiv 2309.17453",
        _CPU,
    ),
    MethodInfo(
        "chunked",
        "Chunked",
        ("q_chunk=1024", "k_chunk=4096"),
        _BOTH,
        "none",
        "Rabe & Staats 2021, arXiv 2112.05682",
        _CPU,
    ),
    MethodInfo(
        "streaming",
        "Streaming",
        ("sinks=4", "window=2044", "mode=mask"),
        _BOTH,
        "none; mode=evict: pages of sinks and window alone",
        "Xiao et al. 2023, arXiv 2309.17453",
        _CPU,
    ),
    MethodInfo(
        "moba",
        "Moba",
        ("block=512", "topk=8", "topk_includes_current=1", "decode=sparse"),
        _BOTH,
        "1/(2 block) of K and V, at least 1/(2 page)",
        "Lu et al. 2025, arXiv 2502.13189",
        _CPU,
    ),
    MethodInfo(
        "delta",
        "Delta",
        (
            "window=2048",
            "sinks=64",
            "gamma=64",
            "mode=lse",
            "base=window",
            "anchor_guard=0.0",
            "block=512",
            "topk=8",
        ),
        ("prefill",),
        "none; base=moba: as moba; anchor_guard: 4 (d_v + 2) H / gamma bytes",
        "Willette et al. 2025, arXiv 2505.11254",
        _CPU,
    ),
    MethodInfo(
        "quest",
        "Quest",
        ("budget=2048", "block=64", "reduction=max"),
        ("decode",),
        "1/block of K and V",
        "Tang et al. 2024, arXiv 2406.10774",
        _CPU,
    ),
    MethodInfo(
        "lessismore",
        "LessIsMore",
        (
            "budget=2048",
            "block=16",
            "start=2",
            "correction=12",
            "sinks=4",
            "recent=0.25",
            "union=rank_major",
        ),
        ("decode",),
        "none",
        "Yang et al. 2025, arXiv 2508.07101",
        _CPU,
    ),
    MethodInfo(
        "tidal",
        "Tidal",
        ("budget=2048", "block=16", "start=2", "correction=12"),
        ("decode",),
        "none",
        "Yang et al. 2024, arXiv 2410.05076",
        _CPU,
    ),
    MethodInfo(
        "zerotuning",
        "ZeroTuning",
        ("gamma=0.0", "heads=all", "base=dense", "size=4096", "sinks=4", "block=512", "topk=8"),
        _BOTH,
        "none; base=moba: as moba",
        "Han et al. 2025, arXiv 2505.11739",
        _CPU,
    ),
    MethodInfo(
        "infllm",
        "Infllm",
        (
            "kernel=32",
            "stride=16",
            "block=64",
            "topk=64",
            "init=1",
            "window=2048",
            "dense_len=8192",
            "norm=coarse",
        ),
        _BOTH,
        "1/(2 stride) of K and V, and a quarter of that for norm=coarse",
        "Zhao et al. 2025, arXiv 2509.24663",
        _CPU,
    ),
    MethodInfo(
        "adaptive",
        "Adaptive",
        ("window=1024", "sinks=16", "tau=0.9", "moments=blocks", "block=64", "bound=0"),
        _BOTH,
        "8 d / block bytes per KV head (full: about d / 2); bound: 1/block of K and V more",
        "arXiv 2502.09647",
        _CPU,
    ),
    MethodInfo(
        "nsa",
        "Nsa",
        (
            "length=32",
            "stride=16",
            "phi=mlp",
            "rope=post",
            "block=64",
            "topk=16",
            "init=1",
            "local=2",
            "forced=counted",
            "map=overlap",
            "window=512",
            "window_plus=0",
            "kv=separate",
            "branches=all",
        ),
        _BOTH,
        "1/stride of K and V; kv=separate: K and V three times; branches=selected: 1/(2 stride)",
        "Yuan et al. 2025, arXiv 2502.11089",
        _CPU,
        (
            ("paper", ""),
            ("fla_2025_03", f"{_FLA_NSA}, init=0, local=1"),
            ("fla_main", _FLA_NSA),
            ("xunhao", "phi=linear, rope=block, window_plus=1, kv=shared"),
            ("flash_nsa", "phi=mean, window_plus=1, kv=shared"),
        ),
    ),
    MethodInfo(
        "msa",
        "Msa",
        ("block=128", "topk=16", "local=1"),
        _BOTH,
        "an index key",
        "MiniMax-M3, as in transformers 5.23",
        _CPU,
    ),
    MethodInfo(
        "qsa",
        "Qsa",
        ("block=4", "topk=512"),
        _BOTH,
        "an index key, and 1/block of one",
        "Qwen4-Exp, as in transformers 5.23",
        _CPU,
    ),
    MethodInfo(
        "asa",
        "Asa",
        ("block=16", "topk=16", "init=1", "local=2", "reuse=1", "form=absorbed"),
        _BOTH,
        "global layers: 1/block of the latents, and 4 topk/reuse bytes per group if reuse > 1",
        "arXiv 2511.00819",
        _CPU,
    ),
    MethodInfo(
        "mosa",
        "Mosa",
        ("mode=threshold", "capacity=1.25", "burst=32", "tau=0.0", "k=0"),
        _BOTH,
        "8 bytes per kept token and head; mode=threshold: 1 + 4/page per token and head",
        "Piekos et al. 2025, arXiv 2505.00315",
        _CPU,
    ),
)


def describe_methods() -> list[MethodInfo]:
    """Every attention method, in the order of the README's table."""
    return list(_METHODS)


def find_method(name: str) -> MethodInfo | None:
    """The method of this name, or None."""
    return next((info for info in _METHODS if info.name == name), None)


def info_of(method: object) -> MethodInfo:
    """The entry of a method's class. KeyError for one that is not registered."""
    return _by_class()[type(method)]


@cache
def method_class(info: MethodInfo) -> type:
    """The class of a method; imports torch."""
    found: type = getattr(import_module(f".{info.name}", __package__), info.kind)
    return found


@cache
def _by_class() -> dict[type, MethodInfo]:
    return {method_class(info): info for info in _METHODS}
