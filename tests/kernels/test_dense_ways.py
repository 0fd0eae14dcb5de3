"""Dense attention by other libraries: who is chosen and why, and what they are asked. Without a GPU
stand-ins with the libraries' own signatures check every argument and compute the definition.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from saccade.kernels import gpu
from saccade.kernels.attend import ATTEND, cudnn, dense_probe, dense_ways, flash, gpu_scratch_bytes
from saccade.kernels.attend import dense_rules as rules
from saccade.kernels.store import PageLayout, RowLayout

from .paged import Problem, make, oracle

CALL = rules.Call((9, 0), torch.bfloat16, 128, 128, 64, ((0, 4096),))
HALVES = pytest.mark.parametrize("dtype", rules.HALVES, ids=str)


# ---- who is chosen ----


def test_the_order_of_preference():
    """The first that is there and serves the call; each of the others has a reason."""
    there = dict.fromkeys(rules.WAYS)
    found = rules.decide(CALL, there, "auto")
    assert found["flash3"] == "chosen" and "pages of 64" in found["flash2"]
    assert found["cudnn"] == found["own"] == "one before it serves the call"
    found = rules.decide(CALL, there | {"flash3": "not installed"}, "auto")
    assert found["flash3"] == "not installed" and found["cudnn"] == "chosen"
    large = replace(CALL, page=256, capability=(8, 0))
    found = rules.decide(large, there, "auto")
    assert found["flash2"] == "chosen" and "Hopper" in found["flash3"]
    found = rules.decide(replace(CALL, capability=(10, 0)), there, "auto")
    assert found["own"] == "chosen" and "chosen" not in list(found.values())[:3]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": torch.float32}, "dtype"),
        ({"spans": None}, "not known on the host"),
        ({"spans": ((0, 5), (7, 7))}, "without rows"),
        ({"spans": ((100, 101),) * 8}, "decode"),
        ({"head_dim": 512}, "channels"),
        ({"head_dim": 100, "v_dim": 100}, "channels"),
        ({"head_dim": 192}, "keys of 192"),
        ({"rest": "a window"}, "a window"),
    ],
)
def test_what_is_left_to_our_kernel(changes, reason):
    call = replace(CALL, **changes)
    refused = {way: rules.refusal(way, call, "auto") for way in rules.WAYS}
    if changes == {"head_dim": 192}:  # generation 3 has a kernel for it
        assert refused.pop("flash3") is None
    if "head_dim" not in changes or changes["head_dim"] != 192:
        assert all(reason in str(each) for each in refused.values()), refused
    assert all(refused.values())


def test_rows_and_softcaps():
    mixed = replace(CALL, spans=((0, 4000), (9, 10)))
    assert rules.refusal("flash3", mixed, "auto") is None
    assert "a sequence of 1 rows" in str(rules.refusal("cudnn", mixed, "auto"))
    capped = replace(CALL, softcap=True)
    assert rules.refusal("flash3", capped, "auto") is None
    assert rules.refusal("cudnn", capped, "auto") == "a softcap"


def test_the_setting(monkeypatch):
    monkeypatch.setenv(rules.SETTING, "cudnn")
    assert rules.refusal("flash3", CALL) == "SACCADE_DENSE=cudnn"
    assert rules.refusal("cudnn", CALL) is None
    assert rules.decide(CALL, dict.fromkeys(rules.WAYS), "own")["own"] == "chosen"
    with pytest.raises(ValueError, match="SACCADE_DENSE must be auto"):
        rules.refusal("cudnn", CALL, "fastest")


def test_pieces_cover_the_keys_in_few_lengths():
    sizes = set()
    for start in range(0, 200 * 64, 64):
        found = rules.pieces(start, 64)
        assert [a for a, _ in found] == [0, *(b for _, b in found)][: len(found)]
        assert not found or found[-1][1] == start
        sizes |= {b - a for a, b in found}
    assert sizes == {64 << i for i in range(8)}
    assert rules.pieces(100_000 // 64 * 64, 64)[:3] == [(0, 32768), (32768, 65536), (65536, 98304)]


def test_without_a_gpu(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert set(dense_ways().values()) == {gpu.gpu_missing()}
    problem = paged([300], [300], torch.bfloat16)
    refused = ATTEND.refusals(problem.call())
    assert refused["flash3"] == refused["flash2"] == refused["cudnn"] == "tensor on cpu"
    monkeypatch.setenv(gpu.INTERPRETED, "1")
    assert dense_ways()["own"] == "chosen"
    assert dense_ways()["cudnn"] == "the GPU is interpreted"


# ---- what the libraries are asked ----


def paged(lengths, chunks, dtype, page=64, **options) -> Problem:
    problem = make(
        lengths, chunks, layout_of=RowLayout, dtype=dtype, page=page, shuffle=3, **options
    )
    spans = tuple((n - c, n) for n, c in zip(lengths, chunks, strict=True))
    return problem.seeing(spans=spans)


def close(found, problem: Problem) -> None:
    """As near to the definition as one rounding of inputs, weights and result allows."""
    truth, truth_lse = oracle(problem, exact=True)
    bound = 2e-2 if problem.q.dtype == torch.bfloat16 else 3e-3
    assert found[0].dtype == problem.q.dtype and found[1].dtype == torch.float32
    assert found[1].is_contiguous()
    torch.testing.assert_close(found[0].double(), truth, atol=bound, rtol=0)
    torch.testing.assert_close(found[1].double(), truth_lse, atol=1e-4, rtol=0)


def bottom_right(q, k, v, scale, softcap, causal=True):
    """out and lse [H, n] of one sequence; q [n, H, d], k, v [L, Hkv, d]: flash-attn's mask."""
    group = q.shape[1] // k.shape[1]
    k, v = (each.float().repeat_interleave(group, 1) for each in (k, v))
    scores = torch.einsum("nhd,lhd->hnl", q.float(), k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        late = torch.ones(scores.shape[1:], dtype=torch.bool).triu(k.shape[0] - q.shape[0] + 1)
        scores = scores.masked_fill(late, -math.inf)
    out = torch.einsum("hnl,lhd->nhd", scores.softmax(-1), v)
    return out.to(q.dtype), scores.logsumexp(-1)


def check_paged(q, k_cache, v_cache, table, cu, longest, page_multiple):
    """What both generations ask of their arguments."""
    assert q.ndim == 3 and q.stride(-1) == 1 and q.dtype in rules.HALVES
    assert k_cache.ndim == v_cache.ndim == 4 and k_cache.shape[:3] == v_cache.shape[:3]
    assert k_cache.shape[1] % page_multiple == 0 and k_cache.stride(-1) == v_cache.stride(-1) == 1
    assert q.shape[1] % k_cache.shape[2] == 0 and k_cache.shape[3] == q.shape[2]
    assert k_cache.dtype == v_cache.dtype == q.dtype
    for each in (table, cu):
        assert each.dtype == torch.int32 and each.is_contiguous()
    assert table.shape == (cu.shape[0] - 1, table.shape[1])
    assert int(table.min()) >= 0 and int(table.max()) < k_cache.shape[0]
    assert type(longest) is int and longest == int(cu.diff().max())


def over_pages(q, k_cache, v_cache, table, cu, lengths, scale, softcap):
    """Each sequence by its pages; nothing behind its end is read."""
    outs, lses = [], []
    for s, length in enumerate(lengths.tolist()):
        k, v = (each[table[s].long()].flatten(0, 1)[:length] for each in (k_cache, v_cache))
        rows = slice(int(cu[s]), int(cu[s + 1]))
        out, lse = bottom_right(q[rows], k, v, scale, softcap)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses, 1)


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None,
    cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, page_table=None,
    cu_seqlens_q=None, cu_seqlens_k_new=None, max_seqlen_q=None, rotary_seqlens=None,
    q_descale=None, k_descale=None, v_descale=None, softmax_scale=None, causal=False,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
    scheduler_metadata=None, num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False,
):  # fmt: skip
    """Generation 3's signature."""
    check_paged(q, k_cache, v_cache, page_table, cu_seqlens_q, max_seqlen_q, 1)
    assert cache_seqlens.dtype == torch.int32 and cache_seqlens.shape == (page_table.shape[0],)
    assert causal and num_splits == 1 and return_softmax_lse and softmax_scale > 0
    out, lse = over_pages(
        q, k_cache, v_cache, page_table, cu_seqlens_q, cache_seqlens, softmax_scale, softcap
    )
    return out, lse, torch.zeros(0), torch.zeros(0)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
    softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    deterministic=False, return_attn_probs=False, block_table=None,
):  # fmt: skip
    """Generation 2's signature."""
    check_paged(q, k, v, block_table, cu_seqlens_q, max_seqlen_q, 256)
    assert cu_seqlens_k.dtype == torch.int32 and cu_seqlens_k.is_contiguous()
    assert cu_seqlens_k.shape == cu_seqlens_q.shape and int(cu_seqlens_k[0]) == 0
    assert max_seqlen_k == int(cu_seqlens_k.diff().max())
    assert causal and return_attn_probs and dropout_p == 0.0
    out, lse = over_pages(
        q, k, v, block_table, cu_seqlens_q, cu_seqlens_k.diff(), softmax_scale, softcap
    )
    return out, lse, None


def cudnn_attention(
    query, key, value, attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False,
    return_debug_mask=False, *, scale=None,
):  # fmt: skip
    """The operator's signature; its mask begins with the first row and the first key."""
    assert attn_bias is None and compute_log_sumexp and dropout_p == 0.0 and not return_debug_mask
    assert query.ndim == key.ndim == value.ndim == 4 and query.shape[0] == key.shape[0] == 1
    assert key.shape == value.shape and query.shape[1] % key.shape[1] == 0
    assert query.shape[2] % rules.FILL == 0
    for each in (query, key, value):
        assert each.dtype == query.dtype and each.stride(-1) == 1
        assert not each.isnan().any()
    if is_causal:
        assert query.shape[2] == key.shape[2]
    rows = (each[0].transpose(0, 1) for each in (query, key, value))
    out, lse = bottom_right(*rows, scale, None, is_causal)
    return (out.transpose(0, 1)[None], lse[None, ..., None], *[None] * 7)


@pytest.fixture
def libraries(monkeypatch):
    """Both generations and cuDNN are there, and take tensors in host memory."""
    fakes = {"flash3": flash_attn_with_kvcache, "flash2": flash_attn_varlen_func}
    monkeypatch.setattr(gpu, "library_refusal", lambda tensor: None)
    monkeypatch.setattr(flash, "function", fakes.__getitem__)
    monkeypatch.setattr(flash, "missing", lambda way: None)
    monkeypatch.setattr(cudnn, "missing", lambda: None)
    monkeypatch.setattr(cudnn, "operator", lambda: cudnn_attention)


@pytest.fixture
def unasked():
    """What libraries answered to the small question is forgotten, before and afterwards."""
    dense_probe._asked.cache_clear()
    yield
    dense_probe._asked.cache_clear()


@HALVES
@pytest.mark.parametrize(("way", "page"), [("flash3", 64), ("flash3", 16), ("flash2", 256)])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_flash_attn(libraries, dtype, way, page, softcap):
    """A prompt, a chunk of another, a single row; also with a softcap."""
    problem = paged([40, 150, 20], [40, 70, 1], dtype, page).having(softcap=softcap)
    call = problem.call()
    assert ATTEND.refusals(call)[way] is None
    close(flash.attend(way, call), problem)


@HALVES
@pytest.mark.parametrize("page", [16, 64, 256])
@pytest.mark.parametrize(
    ("lengths", "chunks"), [([256], [256]), ([400], [150]), ([300, 150], [129, 150])]
)
def test_cudnn(libraries, dtype, page, lengths, chunks):
    """Whole prompts and chunks, which begin inside a page; NaN lies behind the last keys."""
    problem = paged(lengths, chunks, dtype, page)
    call = problem.call()
    assert ATTEND.refusals(call)["cudnn"] is None
    close(cudnn.attend(call), problem)


def test_the_op_takes_the_first(libraries, monkeypatch):
    """attend() itself: generation 3, else cuDNN, else ours."""
    problem = paged([300], [200], torch.float16)
    taken: list[str] = []

    def noted(name, run, call):
        taken.append(name)
        return run(call)

    noting = [
        replace(each, run=partial(noted, each.name, each.run)) for each in ATTEND.implementations
    ]
    op = replace(ATTEND, implementations=noting)
    close(op(problem.call()), problem)
    monkeypatch.setattr(flash, "missing", lambda way: "not installed")
    close(op(problem.call()), problem)
    assert taken == ["flash3", "cudnn"]
    refused = op.refusals(problem.seeing(spans=None).call())
    assert refused["cudnn"] == "lengths are not known on the host"
    windowed = op.refusals(problem.seeing(window=9).call())
    assert "a window" in str(windowed["flash3"])
    panels = make([300], [200], dtype=torch.float16).seeing(spans=((100, 300),))
    assert isinstance(panels.layout, PageLayout)
    assert "CPU's layout" in str(op.refusals(panels.call())["flash3"])


@pytest.mark.parametrize("fault", ["numbers", "shapes", "raises"])
def test_a_library_that_answers_wrongly_is_not_taken(libraries, unasked, monkeypatch, fault):
    """It is asked once; the reason says what was wrong."""

    def wrong(*args, **options):
        if fault == "raises":
            raise RuntimeError("no kernel image is available\nmore")
        out, lse, *rest = flash_attn_with_kvcache(*args, **options)
        return (out * 1.1, lse, *rest) if fault == "numbers" else (out, lse[:1], *rest)

    monkeypatch.setattr(flash, "function", lambda way: wrong)
    reason = str(ATTEND.refusals(paged([300], [200], torch.bfloat16).call())["flash3"])
    expected = {"numbers": "wrong by", "shapes": "its answer to a test is", "raises": "no kernel"}
    assert expected[fault] in reason


def test_installed_or_not(monkeypatch):
    """Reasons by the import, by a missing function, by an old version."""
    flash.function.cache_clear()
    assert flash.function("flash3") == "flash_attn_interface is not installed"

    class Module:
        __version__ = "2.3.6"
        flash_attn_varlen_func = staticmethod(flash_attn_varlen_func)

    monkeypatch.setattr(flash, "import_module", lambda name: Module)
    assert "older than 2.6" in str(flash.function("flash2"))
    flash.function.cache_clear()
    assert flash.function("flash3") == "flash_attn_interface has no flash_attn_with_kvcache"
    Module.__version__ = "2.8.3"
    assert flash.function("flash2") is flash_attn_varlen_func

    def broken(name):
        raise ImportError("undefined symbol")

    monkeypatch.setattr(flash, "import_module", broken)
    flash.function.cache_clear()
    assert flash.function("flash2") == "flash_attn does not load: undefined symbol"
    flash.function.cache_clear()


def test_scratch_is_counted():
    """Both copies of a piece, and the partial results of the filled rows."""
    assert rules.scratch_bytes(2048, 32, 8, 128) >= 2 * 32768 * 8 * 128 * 2
    assert rules.scratch_bytes(100_000, 32, 8, 128) > 2 * 100_000 * 8 * 128 * 2
    whole = gpu_scratch_bytes(2048, 64, 32, 8, 128, 128, 131072)
    assert whole >= rules.scratch_bytes(2048, 32, 8, 128)
    assert whole >= 64 * 128 * 32 * 130 * 4  # decode of 64 sequences in parts of 1024 keys
