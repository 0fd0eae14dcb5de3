"""Streaming through the whole engine: limits, independent oracles, memory that does not grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from saccade import Engine
from saccade.engine import runner
from saccade.engine.attention.base import TABLE_STRIDE
from saccade.engine.batch import Batch, build_batch
from saccade.engine.checkpoint.rope_config import RopeConfig
from saccade.engine.errors import RequestError
from saccade.engine.layers.rope import RotaryEmbedding
from saccade.kernels import native

from ..engine.conftest import Checkpoints, Engines, check_idle
from ..engine.engine_probe import Recorder, bitwise, greedy, kv_bytes, some_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
compiled = pytest.mark.skipif(
    native.chosen_isa() is None, reason="the references promise tokens, not bits"
)
PROMPT = some_tokens(100)
Tokens = list[int]


def logits(
    folder: Path, spec: str, prompt: Tokens = PROMPT, count: int = 6, **options: Any
) -> tuple[torch.Tensor, Tokens]:
    """Logits of all rows of the prompt and of `count` - 1 generated tokens; all tokens."""
    options = {"page_size": 16, "kv_cache_memory": 1 << 20, **options}
    with Engine(folder, attention=spec, **options) as engine:
        recorder = Recorder(engine)
        output = engine.generate(prompt, greedy(count))[0]
        tokens = [*prompt, *output.outputs[0].token_ids]
        return recorder.matrix(f"{output.request_id}-0"), tokens


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["mask", "evict"])
@pytest.mark.parametrize("family", ["llama", "qwen3_mixed"])
def test_a_window_of_all_keys_is_dense(
    checkpoint: Checkpoints, family: str, mode: str, dtype: str
) -> None:
    folder = checkpoint(family)
    dense, _ = logits(folder, "dense", dtype=dtype)
    found, _ = logits(folder, f"streaming(sinks=3, window=105, mode={mode})", dtype=dtype)
    assert bitwise(found, dense)


@compiled
def test_the_mask_is_that_of_window(checkpoint: Checkpoints) -> None:
    for family in ("llama", "mistral"):
        folder = checkpoint(family)
        found, _ = logits(folder, "streaming(sinks=3, window=9)")
        assert bitwise(found, logits(folder, "window(size=9, sinks=3)")[0])


@compiled
def test_eviction_without_sinks_is_a_window(checkpoint: Checkpoints) -> None:
    """Distances within the window are the same, whichever place positions count from."""
    for family in ("llama", "mistral", "qwen3_mixed"):
        folder = checkpoint(family)
        found, _ = logits(folder, "streaming(sinks=0, window=9, mode=evict)")
        assert bitwise(found, logits(folder, "window(size=9, sinks=0)")[0])


@compiled
def test_a_layer_with_a_window_of_its_own_keeps_to_it(checkpoint: Checkpoints) -> None:
    folder = checkpoint("mistral")  # a window of 7 in every layer
    found, _ = logits(folder, "streaming(sinks=4, window=50, mode=evict)")
    assert bitwise(found, logits(folder, "dense")[0])


def streaming_oracle(folder: Path, tokens: Tokens, sinks: int, window: int) -> torch.Tensor:
    """float32 [T, V] of transformers' own model; a row's positions count within what is kept.

    Row by row, as the paper has it: the kept keys stand side by side, sinks first, each is given
    its place among them, and so is the query.
    """
    place = torch.arange(len(tokens))

    def at(x: torch.Tensor, place: torch.Tensor, theta: float) -> torch.Tensor:
        """x [..., n, d], turned for the positions given, turned instead by n places."""
        half = x.shape[-1] // 2
        frequency = theta ** -(torch.arange(half, dtype=torch.float64) / half)
        pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
        pairs = pairs * torch.polar(torch.ones(()).double(), place[:, None] * frequency)
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    def attention(module: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        group, theta = q.shape[1] // k.shape[1], module.config.rope_parameters["rope_theta"]
        k, v = k.repeat_interleave(group, 1)[0], v.repeat_interleave(group, 1)[0].double()
        out = torch.empty_like(q)
        for row in range(q.shape[2]):
            kept = place[: row + 1]
            kept = kept[(kept < sinks) | (row - kept < window)]
            there = torch.arange(len(kept))
            keys = at(k[:, kept], there - kept, theta)
            query = at(q[0, :, row : row + 1], there[-1:] - row, theta)
            weights = (query @ keys.mT * module.scaling).softmax(-1)
            out[0, :, row] = (weights @ v[:, kept])[:, 0].float()
        return out.transpose(1, 2), None

    transformers.AttentionInterface.register("streaming_oracle", attention)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="streaming_oracle"
    )
    with torch.inference_mode():
        return model(torch.tensor([tokens]), use_cache=False).logits[0]


@pytest.mark.parametrize(("sinks", "window"), [(4, 20), (1, 16), (17, 9), (33, 1)])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_against_an_independent_model(
    checkpoint: Checkpoints, family: str, sinks: int, window: int
) -> None:
    folder = checkpoint(family)
    found, tokens = logits(folder, f"streaming({sinks}, {window}, evict)", count=30)
    truth = streaming_oracle(folder, tokens[:-1], sinks, window)
    assert relative_error(found, truth) < 1e-4
    masked, _ = logits(folder, f"streaming({sinks}, {window}, mask)")
    assert relative_error(masked[:100], truth[:100]) > 1e-2  # there the sinks are farther away


def test_layers_without_positions(checkpoint: Checkpoints) -> None:
    """Where queries and keys do not turn, freeing pages is the mask."""
    folder = checkpoint("smollm3", no_rope_layers=[0, 0, 0])
    mask, evict = (
        logits(folder, f"streaming(sinks=3, window=20, mode={mode})")[0]
        for mode in ("mask", "evict")
    )
    assert relative_error(evict, mask) < 1e-5
    turning = checkpoint("smollm3", no_rope_layers=[1, 1, 1])
    assert relative_error(logits(turning, "streaming(3, 20, evict)")[0], mask) > 1e-2


def test_in_bfloat16_within_budget(checkpoint: Checkpoints) -> None:
    """Turning a query costs one more rounding: at most twice the error of the mask, in all."""
    folder = checkpoint("llama")
    errors = {}
    for mode in ("mask", "evict"):
        exact, tokens = logits(folder, f"streaming(4, 20, {mode})")
        found, _ = logits(folder, f"streaming(4, 20, {mode})", tokens[:100], dtype="bfloat16")
        errors[mode] = float((found[:100] - exact[:100]).square().mean())
    assert errors["evict"] <= 4 * errors["mask"]


@compiled
@pytest.mark.parametrize("at", [0, 2, 16, 60, 99])
def test_what_comes_later_changes_nothing_before(checkpoint: Checkpoints, at: int) -> None:
    edited = [*PROMPT[:at], 3 + PROMPT[at] % 100, *PROMPT[at + 1 :]]
    spec = "streaming(sinks=3, window=9, mode=evict)"
    one, other = (logits(checkpoint("llama"), spec, prompt)[0] for prompt in (PROMPT, edited))
    assert bitwise(one[:at], other[:at]) and not torch.equal(one[at], other[at])


@compiled
def test_memory_stays_constant_over_many_windows(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of 75 windows, more than twice the trained length: never more pages, and the bits of
    an engine that reads the same text as a prompt, in chunks.
    """
    folder = checkpoint("llama", max_position_embeddings=512)
    spec, length = "streaming(sinks=3, window=16, mode=evict)", 1200
    pages = 1 + (16 + 640) // 16 + 1  # sinks; window and chunk, wherever they begin in a page
    options = {"page_size": 16, "max_num_seqs": 1, "max_model_len": 10**12, "attention": spec}
    options |= {"max_num_batched_tokens": 640}
    with Engine(folder, kv_cache_memory=1 << 20, **options) as engine:
        assert engine.memory.pages == (pages,)
        options["kv_cache_memory"] = kv_bytes(engine, pages)
    with Engine(folder, **options) as engine:
        (held, _), recorder = watch(engine, monkeypatch), Recorder(engine)
        output = engine.generate(some_tokens(20), greedy(length - 19))[0]
        streamed = recorder.rows[f"{output.request_id}-0"]
        tokens = [*some_tokens(20), *output.outputs[0].token_ids]
        # A page of sinks, and the window and the token before it, wherever they begin in a page.
        assert len(tokens) == length + 1 and max(held) == 1 + 3
        check_idle(engine)
    with Engine(folder, **options) as engine:
        (held, _), recorder = watch(engine, monkeypatch), Recorder(engine)
        output = engine.generate(tokens, greedy(1))[0]
        read = recorder.rows[f"{output.request_id}-0"]
        assert max(held) <= pages
        check_idle(engine)
    assert streamed.keys() == set(range(length)) and read.keys() == set(range(length + 1))
    assert all(bitwise(row, read[position]) for position, row in streamed.items())


@compiled
def test_page_tables_stay_short_and_change_no_bit(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a step's tables leave out, which depends on how the prompt is cut."""
    found, prompt = [], some_tokens(2 * TABLE_STRIDE + 300)
    for chunk in (97, 1000):
        options = {"page_size": 16, "max_model_len": 10_000, "max_num_batched_tokens": chunk}
        options["attention"] = "streaming(sinks=20, window=100, mode=evict)"
        with Engine(checkpoint("llama"), kv_cache_memory=1 << 24, **options) as engine:
            (_, widest), recorder = watch(engine, monkeypatch), Recorder(engine)
            output = engine.generate(prompt, greedy(9))[0]
            found.append(recorder.matrix(f"{output.request_id}-0"))
            assert max(widest) <= 2 + (TABLE_STRIDE + 100 + chunk) // 16 + 1
            check_idle(engine)
    assert bitwise(*found)


@compiled
def test_a_preempted_stream_goes_on_as_if_nothing_had_been(checkpoint: Checkpoints) -> None:
    """Its pages are gone for good, and its tokens are read again from the first."""
    folder = checkpoint("llama")
    options: dict[str, Any] = {"page_size": 16, "max_num_batched_tokens": 32, "max_model_len": 2000}
    options["attention"] = "streaming(sinks=3, window=16, mode=evict)"
    prompts = [some_tokens(20 + i, seed=i) for i in range(6)]
    with Engine(folder, kv_cache_memory=1 << 20, **options) as engine:
        alone = [engine.generate(prompt, greedy(90))[0].outputs[0].token_ids for prompt in prompts]
        options["kv_cache_memory"] = kv_bytes(engine, 9)
    with Engine(folder, enable_prefix_caching=False, **options) as engine:
        together = [each.outputs[0].token_ids for each in engine.generate(prompts, greedy(90))]
        assert engine.scheduler.stats().preemptions > 0
        check_idle(engine)
    assert together == alone


def watch(engine: Engine, patch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """Pages that requests hold in each step, and columns of its page table, as it runs."""
    held, widest = list[int](), list[int]()

    def spy(*args: Any) -> Batch:
        batch = build_batch(*args)
        held.append(max(engine.scheduler.stats().used_pages))
        widest.extend(step.page_table.shape[1] for lane in batch.lanes for step in lane.steps)
        return batch

    patch.setattr(runner, "build_batch", spy)
    return held, widest


def test_angles_beyond_the_table() -> None:
    """Exact at any distance, and the same whichever rows are asked for together."""
    rope = RotaryEmbedding(RopeConfig("default", 10000.0, 64), 16, 100)
    positions = torch.tensor([0, 99, 100, 5000, 10**9, 163, 164])
    cos, sin = rope.cos_sin(positions)
    angles = positions.double()[:, None] * rope.inv_freq.double()
    torch.testing.assert_close(cos, angles.cos().float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(sin[2:], angles[2:].sin().float(), rtol=0, atol=1e-7)
    for i in range(len(positions)):
        alone = rope.cos_sin(positions[i : i + 1])
        assert bitwise(alone[0][0], cos[i]) and bitwise(alone[1][0], sin[i])
    back = rope.turn(positions, 40)
    assert torch.equal(back[0][0], torch.ones(8)) and torch.equal(back[1][0], torch.zeros(8))
    turned = torch.complex(cos, sin) * torch.complex(*back)
    there = torch.complex(*rope.cos_sin(torch.tensor([40])))
    torch.testing.assert_close(turned[1:], there.expand(6, 8), rtol=0, atol=1e-6)


def test_a_request_cannot_read_what_the_engine_frees(
    checkpoint: Checkpoints, make_engine: Engines
) -> None:
    engine = make_engine(checkpoint("llama"), attention="streaming(4, 16, evict)")
    for wish in ("dense", "window(8)", "streaming(4, 16)", "streaming(4, 20, evict)"):
        with pytest.raises(RequestError, match=r"streaming\(window=16, mode=evict\) leaves behind"):
            engine.add(PROMPT, greedy(3), attention=wish)
    assert engine.add(PROMPT, greedy(3), attention="streaming(4, 16, mode=evict)")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "streaming(window=0)"}, "window must be at least 1"),
        ({"attention": "streaming(mode=ring)"}, "mode must be one of mask, evict, not 'ring'"),
        (
            {"prefill_attention": "streaming(4, 16, evict)"},
            "layer 0: one phase frees pages that the other may read",
        ),
        (
            {
                "prefill_attention": "streaming(4, 16, evict)",
                "decode_attention": "1:streaming(4, 32, evict); *:streaming(4, 16, evict)",
            },
            "layer 1: one phase frees pages",
        ),
        ({"attention": "streaming(4, 16, evict)", "decode_attention": "streaming(4, 16)"}, "frees"),
    ],
)
def test_unusable_settings_are_refused(
    checkpoint: Checkpoints, options: dict[str, str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Engine(checkpoint("llama"), **options)  # type: ignore[arg-type]
