"""Checks of the GPU path: errors of the attention kernels against fp64, and the engine's tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from ..kernels import gpu
from ..kernels.attend import ATTEND, AttendCall, BlockLists, Keys
from ..kernels.store import RowLayout, write_pages
from ..kernels.testing import error

NOT_MEASURED = "not measured"
PAGE = 64
# Errors relative to the largest output that rounding of inputs' dtype explains.
BOUNDS = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def dtypes() -> dict[torch.dtype, float]:
    """Bounds by dtype; a dry run takes one: the interpreter has its own tests for all."""
    one = {torch.float16: BOUNDS[torch.float16]}
    return one if gpu.interpreted() else BOUNDS


@dataclass(frozen=True)
class Row:
    """One line of the result. milliseconds: median, of what was timed. flops, read: how many
    operations that takes, and how many bytes it must move; 0: not stated.
    """

    section: str
    case: str
    result: str
    note: str = ""
    milliseconds: float | None = None
    failed: bool = False
    flops: float = 0.0
    read: float = 0.0

    @property
    def tflops(self) -> float | None:
        """TFLOP/s; None where it was not timed, or has no operations."""
        return self.flops / self.milliseconds / 1e9 if self.flops and self.milliseconds else None

    @property
    def gbps(self) -> float | None:
        """GB/s; None where it was not timed, or has no bytes."""
        return self.read / self.milliseconds / 1e6 if self.read and self.milliseconds else None

    def line(self) -> str:
        """For the terminal."""
        mark = "FAILED " if self.failed else ""
        return f"{self.section:22} {self.case:34} {mark}{self.result}  {self.note}".rstrip()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def reason_of(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]:.140}"


def attempted(section: str, case: str, make: Callable[[], Row]) -> Row:
    """The row; what it raises is a failure of this row alone."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - kernels and compilers fail in many ways
        return Row(section, case, NOT_MEASURED, reason_of(error), failed=True)


@dataclass(frozen=True)
class Pages:
    """Sequences in shuffled pages on the device; each has its last rows as queries."""

    layout: RowLayout
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    keys: Keys
    spans: tuple[tuple[int, int], ...]
    value_dim: int | None = None

    @property
    def call(self) -> AttendCall:
        """All causal keys, without options."""
        q, scale = self.q, self.q.shape[2] ** -0.5
        given = (self.layout, q, self.k, self.v, self.keys, scale, q.dtype)
        return AttendCall(*given, value_dim=self.value_dim)


def pages(
    lengths: list[int],
    rows: list[int],
    heads: tuple[int, int],
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
    value_dim: int | None = None,
) -> Pages:
    """Random K, V and q. Whatever no sequence owns holds NaN. value_dim: the values are the first
    of the keys' channels, and no V is kept.
    """
    layout, counts = RowLayout(PAGE), [-(-length // PAGE) for length in lengths]
    own = dim if value_dim is None else 0
    k, v = layout.allocate(sum(counts) + 1, heads[1], dim, own, dtype, device)
    k.fill_(torch.nan)
    v.fill_(torch.nan)
    order = torch.randperm(sum(counts) + 1).int()
    table = torch.full((len(lengths), max(counts)), -1, dtype=torch.int32)
    used = 0
    for s, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[s, :count] = order[used : used + count]
        used += count
        at = torch.arange(length)
        slots = (table[s].long()[at // PAGE] * PAGE + at % PAGE).to(device)
        new = torch.randn((2, length, heads[1], dim), dtype=torch.float32, device=device).to(dtype)
        write_pages(layout, k, v, new[0], new[1, ..., :own], slots)
    positions = torch.cat(
        [torch.arange(end - count, end) for end, count in zip(lengths, rows, strict=True)]
    )
    cu = torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()], dtype=torch.int32)
    q = torch.randn((sum(rows), heads[0], dim), device=device).to(dtype)
    spans = tuple((end - count, end) for end, count in zip(lengths, rows, strict=True))
    keys = Keys(cu.to(device), positions.to(device), table.to(device), spans=spans)
    return Pages(layout, q, k, v, keys, spans, value_dim)


def correctness(interpret: bool) -> Iterator[Row]:
    """Every GPU implementation of attend, in every dtype, under every mask, against fp64 on the
    host.
    """
    device = gpu.device()
    lengths, rows = ([70, 20], [3, 1]) if interpret else ([2048, 700, 1], [512, 1, 1])
    decode, one = ([70, 20], [1, 1]) if interpret else ([3000, 700, 1], [1, 1, 1])
    for dtype, bound in dtypes().items():
        problem = pages(lengths, rows, (2, 1) if interpret else (16, 4), 64, dtype, device)
        yield from _every_mask("", problem, bound)
        size = ((5, 1), 48, dtype, device, 32) if interpret else ((64, 1), 576, dtype, device, 512)
        yield from _every_mask("latents ", pages(decode, one, *size), bound)


def _every_mask(what: str, problem: Pages, bound: float) -> Iterator[Row]:
    """Every implementation, mask by mask."""
    for name, keys, (softcap, sinks) in _masks(problem):
        call = problem.call._replace(keys=keys, softcap=softcap, sink_logits=sinks)
        exact = _exact(call)
        for implementation in ATTEND.implementations[1:]:  # the first is the processor's
            case = f"{implementation.name} {what}{name} {str(call.q.dtype)[6:]}"
            if reason := implementation.supports(call):
                yield Row("correctness", case, NOT_MEASURED, reason)
                continue
            compare = partial(_compared, case, implementation.run, call, exact, bound)
            yield attempted("correctness", case, compare)


def _compared(
    case: str,
    run: Callable[[AttendCall], tuple[torch.Tensor, torch.Tensor]],
    call: AttendCall,
    exact: tuple[torch.Tensor, torch.Tensor],
    bound: float,
) -> Row:
    """The error of an answer, relative to its largest number, and of its logarithms."""
    out, lse = run(call)
    wrong = error(out.cpu(), exact[0]) / max(float(exact[0].abs().max()), 1e-30)
    wrong = max(wrong, error(lse.cpu(), exact[1]) / 10)
    result = f"error {wrong:.1e} of {bound:.0e}"
    return Row("correctness", case, result, failed=not wrong <= bound)


def _masks(problem: Pages) -> Iterator[tuple[str, Keys, tuple[Any, Any]]]:
    """(name, keys, (softcap, sink logits))."""
    keys, rows, device = problem.keys, problem.q.shape[0], problem.q.device
    heads, plain = problem.q.shape[1], (None, None)
    yield "dense", keys, plain
    yield "window", replace(keys, window=40, sinks=3), plain
    lo = (keys.positions - 60).clamp(min=0).int()
    yield "bounds", replace(keys, lo=lo, hi=(keys.positions + 1).int()), plain
    yield "softcap", keys, (30.0, torch.randn(heads, device=device))
    for owners in (problem.k.shape[1], heads):
        own = (keys.positions // 64).int()[:, None, None].expand(rows, owners, 1)
        ids = torch.cat([(own - 1).clamp(min=-1), own], -1)
        ids = torch.where(ids < 0, own, ids)
        ids[..., 1] = torch.where(ids[..., 0] == ids[..., 1], -1, ids[..., 1])
        yield f"lists of {owners}", replace(keys, blocks=BlockLists(ids, None, 64)), plain


def _exact(call: AttendCall) -> tuple[torch.Tensor, torch.Tensor]:
    """In fp64, on the host."""
    keys, tensors = call.keys, ("cu_rows", "positions", "page_table", "lo", "hi")
    here = {name: _host(getattr(keys, name)) for name in tensors}
    blocks = keys.blocks and replace(keys.blocks, ids=keys.blocks.ids.cpu())
    q, k, v = (each.cpu().double() for each in (call.q, call.k_pages, call.v_pages))
    on_host = call._replace(
        q=q,
        k_pages=k,
        v_pages=v,
        keys=replace(keys, **here, blocks=blocks),
        out_dtype=torch.float64,
        sink_logits=_host(call.sink_logits),
    )
    out: tuple[torch.Tensor, torch.Tensor] = ATTEND.reference(on_host)
    return out


def _host(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.cpu()


SPECS = (
    "dense",
    "window(size=64, sinks=4)",
    "moba(64, 3)",
    "streaming(sinks=4, window=128)",
    "delta(window=64, sinks=4, gamma=16)",
    "quest(budget=256, block=16)",
    "chunked(q_chunk=64, k_chunk=128)",
    "infllm(32, 16, 64, 4, 0, 64, 0)",
)


def tokens(interpret: bool) -> Iterator[Row]:
    """The shipped demo model on either device, greedily, in fp32: the same tokens, and how many of
    the steps were replayed as graphs.
    """
    for spec in SPECS[:1] if interpret else SPECS:
        yield attempted("engine", f"demo, {spec}", partial(_same_tokens, spec, interpret))


def _same_tokens(spec: str, interpret: bool) -> Row:
    """One method on both devices."""
    from ..engine.engine import Engine
    from ..engine.params import SamplingParams

    prompt = [3 + i * 7 % 200 for i in range(24 if interpret else 600)]
    wanted = SamplingParams(max_tokens=2 if interpret else 32, temperature=0.0, ignore_eos=True)
    found, replays, refusals = [], 0, []
    for device in ("cpu", "cuda"):
        options = {"dtype": "float32", "max_model_len": 1024, "attention": spec}
        engine = Engine("demo", device=device, kv_cache_memory=64 << 20, **options)
        (answer,) = engine.generate([prompt], wanted)
        made = engine._runner.graphs
        replays, refusals = (made.replays, made.refusals) if made else (0, [])
        engine.close()
        if answer.error is not None:
            raise RuntimeError(f"{device}: {answer.error}")
        found.append(list(answer.outputs[0].token_ids))
    equal = found[0] == found[1]
    note = "; ".join([f"{replays} replays", *refusals])
    if not equal:
        note = f"cpu {found[0][:8]}, cuda {found[1][:8]}"
    result = f"{len(found[0])} tokens {'equal' if equal else 'differ'}"
    return Row("engine", f"demo, {spec}", result, note, failed=not equal)
