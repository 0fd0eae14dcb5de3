"""The memory plan: page counts by hand, refusals with their numbers, and what is available."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.engine.errors import CapacityError
from saccade.engine.kept_rule import KeptRule
from saccade.engine.memory import (
    DEFAULT_KV_SHARE,
    GroupPages,
    MemoryRequest,
    available_memory,
    plan_memory,
    show_bytes,
)
from saccade.engine.scheduler import LayerGroup, Scheduler, SchedulerLimits

KIB, MIB = 1024, 1024**2

BASE = MemoryRequest(
    groups=[GroupPages(KIB)],
    page_size=64,
    weights_bytes=10 * MIB,
    scratch_bytes=2 * MIB,
    available_bytes=64 * MIB,
    kv_cache_memory=MIB,
    max_model_len=4096,
    length_is_explicit=True,
    max_num_seqs=8,
    max_num_batched_tokens=256,
)


def test_full_groups_share_the_whole_budget() -> None:
    assert plan_memory(BASE).pages == (1024,)
    two = plan_memory(replace(BASE, groups=[GroupPages(KIB), GroupPages(3 * KIB)]))
    assert two.pages == (256, 256) and two.num_tokens == 256 * 64
    assert two.group_bytes == (256 * KIB, 768 * KIB) and two.total_bytes == 13 * MIB


def test_window_groups_get_what_their_windows_and_chunks_can_hold() -> None:
    plan = plan_memory(replace(BASE, groups=[GroupPages(KIB), GroupPages(KIB, window=128)]))
    windows = 8 * ((128 + 256) // 64 + 1)
    assert plan.pages == (1024 - windows, windows)


def test_a_window_group_never_gets_more_than_all_context() -> None:
    groups = [GroupPages(KIB), GroupPages(KIB, window=128)]
    plan = plan_memory(replace(BASE, groups=groups, max_num_seqs=500))
    assert plan.pages == (512, 512)


def test_pages_of_all_context_that_hold_nothing_follow_the_demand() -> None:
    """Of heads that keep a list of fixed length, and no others: any number of pages would fit."""
    kept = GroupPages(KIB, kept=KeptRule(4, fixed=20, appends=False))
    plan = plan_memory(replace(BASE, groups=[GroupPages(0), kept]))
    assert plan.pages == (8 * 64, 8 * (20 + 63) // 64) and plan.max_model_len == 4096


def test_windows_alone_stop_at_their_need() -> None:
    plan = plan_memory(replace(BASE, groups=[GroupPages(KIB, window=128)]))
    assert plan.pages == (56,) and plan.max_model_len == 4096
    assert plan.render()[-1] == "  8 sequences fit, each of up to 4096 tokens."


def test_windows_and_sinks_hold_sequences_of_any_length() -> None:
    """As long as the pages of one sequence fit; where they do not, its length is what fits."""
    groups = [GroupPages(KIB, window=128, sinks=70), GroupPages(KIB, window=64)]
    asked = replace(BASE, groups=groups, max_model_len=10**12)
    first, second = 2 + (128 + 256) // 64 + 1, (64 + 256) // 64 + 1
    assert plan_memory(asked).pages == (8 * first, 8 * second)
    least = replace(asked, kv_cache_memory=(first + second + 3) * KIB)
    assert plan_memory(least).max_model_len == 10**12
    assert "1 sequence fits, of up to" in plan_memory(least).render()[-1]
    with pytest.raises(CapacityError, match="One sequence of 10"):
        plan_memory(replace(asked, kv_cache_memory=(first + second - 1) * KIB))
    assert "KV pages, window of 128, 70 sinks" in plan_memory(asked).render()[3]


def test_the_default_budget_is_a_share_and_no_more_than_can_be_used() -> None:
    plan = plan_memory(replace(BASE, kv_cache_memory=None))
    assert plan.pages == (8 * 64,)
    heavy = plan_memory(replace(BASE, kv_cache_memory=None, groups=[GroupPages(MIB // 4)]))
    assert heavy.pages == (int(52 * DEFAULT_KV_SHARE * 4),)


def test_an_explicit_length_that_does_not_fit_is_refused_with_the_numbers() -> None:
    asked = replace(BASE, max_model_len=65600)
    with pytest.raises(CapacityError, match=r"65600 tokens needs 1\.0 MiB.*65536 tokens"):
        plan_memory(asked)


def test_a_length_nobody_asked_for_is_reduced_and_said() -> None:
    plan = plan_memory(replace(BASE, max_model_len=100_000, length_is_explicit=False))
    assert plan.max_model_len == 65536
    assert "reduced from 100000 to 65536" in plan.notes[0]


def test_not_even_one_page_is_refused() -> None:
    with pytest.raises(CapacityError, match="One sequence of 64 tokens"):
        plan_memory(replace(BASE, kv_cache_memory=KIB - 1, length_is_explicit=False))


@pytest.mark.parametrize("kv", [None, MIB])
def test_weights_that_do_not_fit_are_refused(kv: int | None) -> None:
    words = r"rotary angles up to max_model_len=4096 need 10\.0 MiB.*12\.0 MiB of memory"
    with pytest.raises(CapacityError, match=words):
        plan_memory(replace(BASE, available_bytes=12 * MIB, kv_cache_memory=kv))


def test_render() -> None:
    plan = plan_memory(replace(BASE, groups=[GroupPages(KIB), GroupPages(KIB, window=128)]))
    assert plan.render() == [
        "Memory plan",
        "  weights                            10.0 MiB",
        "  scratch arena                       2.0 MiB",
        "  KV pages, all context             968.0 KiB  968 pages of 64 tokens",
        "  KV pages, window of 128            56.0 KiB  56 pages of 64 tokens",
        "  total                              13.0 MiB  of 64.0 MiB",
        "  61952 tokens of context fit; one sequence may have 4096 of them.",
    ]


@given(
    st.integers(1, 5000),
    st.lists(
        st.tuples(st.integers(1, 50), st.none() | st.integers(1, 300)), min_size=1, max_size=4
    ),
)
def test_the_budget_is_kept_and_one_page_more_would_break_it(
    budget: int, groups: list[tuple[int, int | None]]
) -> None:
    request = replace(
        BASE,
        groups=[GroupPages(size, window) for size, window in groups],
        kv_cache_memory=budget,
        length_is_explicit=False,
    )
    try:
        plan = plan_memory(request)
    except CapacityError:
        assert sum(size for size, _ in groups) > budget
        return
    assert sum(plan.group_bytes) <= budget
    full = sum(size for size, window in groups if window is None)
    if full:
        grown = sum(size * (n + 1) for n, (size, _) in zip(plan.pages, groups, strict=True))
        assert grown > budget or sum(plan.group_bytes) + full > budget


@given(
    st.lists(st.none() | st.integers(1, 300), min_size=1, max_size=3),
    st.integers(1, 2000),
    st.integers(1, 5000),
    st.integers(1, 300),
    st.integers(1, 9),
)
def test_the_scheduler_takes_every_plan_as_it_is(
    windows: list[int | None], budget: int, length: int, chunk: int, seqs: int
) -> None:
    request = replace(
        BASE,
        groups=[GroupPages(2, window) for window in windows],
        kv_cache_memory=budget,
        max_model_len=length,
        length_is_explicit=False,
        max_num_seqs=seqs,
        max_num_batched_tokens=chunk,
    )
    try:
        plan = plan_memory(request)
    except CapacityError:
        return
    limits = SchedulerLimits(seqs, chunk, plan.max_model_len)
    tables = Scheduler(limits, [LayerGroup(w) for w in windows], plan.pages, 64).tables
    assert (tables.max_tokens, tables.max_chunk) == (plan.max_model_len, chunk)


MEMINFO = "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n"


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_available_memory_without_cgroups(tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", MEMINFO)
    assert available_memory(tmp_path) == 5000 * KIB


def test_available_memory_without_proc(tmp_path: Path) -> None:
    assert available_memory(tmp_path) > MIB


def test_a_cgroup_v2_limit_counts_at_every_level(tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", MEMINFO)
    put(tmp_path, "proc/self/cgroup", "0::/outer/inner\n")
    put(tmp_path, "sys/fs/cgroup/outer/inner/memory.max", "max\n")
    put(tmp_path, "sys/fs/cgroup/outer/inner/memory.current", "1\n")
    assert available_memory(tmp_path) == 5000 * KIB
    put(tmp_path, "sys/fs/cgroup/outer/memory.max", f"{1000 * KIB}\n")
    put(tmp_path, "sys/fs/cgroup/outer/memory.current", f"{300 * KIB}\n")
    put(tmp_path, "sys/fs/cgroup/outer/memory.stat", f"anon 7\ninactive_file {100 * KIB}\n")
    assert available_memory(tmp_path) == 800 * KIB


def test_a_cgroup_v1_limit_counts(tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", MEMINFO)
    put(tmp_path, "proc/self/cgroup", "5:cpu,memory:/job\n4:pids:/\n")
    base = "sys/fs/cgroup/memory/"
    put(tmp_path, base + "job/memory.limit_in_bytes", f"{400 * KIB}\n")
    put(tmp_path, base + "job/memory.usage_in_bytes", f"{500 * KIB}\n")
    put(tmp_path, base + "memory.limit_in_bytes", "9223372036854771712\n")
    put(tmp_path, base + "memory.usage_in_bytes", "0\n")
    assert available_memory(tmp_path) == 0


@pytest.mark.parametrize(
    "count, text", [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**40, "3.0 TiB")]
)
def test_show_bytes(count: int, text: str) -> None:
    assert show_bytes(count) == text
