"""What an engine is told at its start: one frozen, validated object."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .attention.spec import describe_methods

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
PAGE_SIZES = (16, 32, 64, 128, 256)
_MOST_SECONDS = 86400  # of a step


@dataclass(frozen=True)
class EngineConfig:
    """Settings of an engine. Sizes in tokens unless said otherwise.

    model: a checkpoint folder, or "demo". device: "auto" (a GPU, where torch finds one), "cpu" or
    "cuda". dtype: of weights, activations and pages.
    attention, prefill_attention, decode_attention: specs (engine/attention/parse.py);
    None: what the checkpoint's config.json says, else dense. max_model_len: prompt plus output of
    one request; None: what the model was trained for, reduced to what fits in memory; it may be any
    length, at no cost, where every layer frees old pages (streaming(mode=evict)). max_num_seqs:
    sequences that run at once. max_num_batched_tokens: tokens of one step. kv_cache_memory: bytes
    of pages; None: a share of what is available. long_prefill_share: part of a step that long
    prompts may take while others have work. alone_step_seconds: how long a step of them should take
    while nobody else has work, so that who comes then need not wait; None: as long as its tokens
    take, which reads a prompt fastest. check_finite: refuse weights with NaN or infinity.
    allowed_attention: methods that requests may ask for, with commas between, or "own": nothing but
    the engine's own; None: any. least_chunk: the smallest chunks of `chunked` in such a request.
    calibration: a file that `saccade calibrate` made; None: calibration.json in the folder, if any.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    attention: str | None = None
    prefill_attention: str | None = None
    decode_attention: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 4096
    kv_cache_memory: int | None = None
    page_size: int = 64
    enable_prefix_caching: bool = True
    long_prefill_share: float = 0.5
    alone_step_seconds: float | None = None
    check_finite: bool = False
    calibration: str | None = None
    allowed_attention: str | None = None
    least_chunk: int = 1

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model must be a checkpoint folder or 'demo'")
        for name, allowed in (("device", DEVICES), ("dtype", DTYPES), ("page_size", PAGE_SIZES)):
            if getattr(self, name) not in allowed:
                options = ", ".join(map(str, allowed))
                raise ValueError(f"{name} must be one of {options}, not {getattr(self, name)!r}")
        for name in ("attention", "prefill_attention", "decode_attention"):
            if not isinstance(value := getattr(self, name), str | None):
                raise ValueError(f"{name} must be a spec like 'window(size=64)', not {value!r}")
        if not isinstance(self.calibration, str | None):
            raise ValueError(f"calibration must be a path, not {self.calibration!r}")
        self._check_allowed()
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory"):
            self._check_positive(name)
        self._check_positive("least_chunk")
        share = self.long_prefill_share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"long_prefill_share must be in (0, 1], not {share!r}")
        most = self.alone_step_seconds
        if isinstance(most, bool) or not (
            most is None or (isinstance(most, int | float) and 0 < most <= _MOST_SECONDS)
        ):
            raise ValueError(
                f"alone_step_seconds must be positive, and at most {_MOST_SECONDS}, not {most!r}"
            )

    def _check_allowed(self) -> None:
        if not isinstance(self.allowed_attention, str | None):
            raise ValueError(f"allowed_attention must be names, not {self.allowed_attention!r}")
        known = ["own", *(info.name for info in describe_methods())]
        for name in (self.allowed_attention or "own").split(","):
            if name.strip() not in known:
                message = f"no method {name.strip()!r}; it may hold {', '.join(known)}"
                raise ValueError(f"allowed_attention: there is {message}")

    def _check_positive(self, name: str) -> None:
        value = getattr(self, name)
        optional = next(field for field in fields(self) if field.name == name).default is None
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, not {value!r}")
