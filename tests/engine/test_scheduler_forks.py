"""n > 1: children share their parent's pages and copy what they write."""

from __future__ import annotations

from .fake_model import Bench, alone


def family(bench: Bench, size: int, n: int, **more: int) -> list:  # type: ignore[type-arg]
    """A parent and n - 1 children of one prompt."""
    params = {"max_tokens": 6, "ignore_eos": True, **more}
    parent = bench.add("0", [0] * size, seed=0, **params)
    rest = [bench.add(f"{k}", [0] * size, seed=k, parent=parent, **params) for k in range(1, n)]
    return [parent, *rest]


def test_children_wait_then_share_all_but_the_last_token() -> None:
    bench = Bench(pages=16, page_size=4, budget=8)
    parent, child, other = family(bench, 10, 3)
    assert bench.step() == [("0", 0, 8)]
    assert bench.step() == [("0", 8, 2)]
    plan = bench.schedule()
    assert [(c.request.id, c.start, c.count, c.sample) for c in plan.chunks] == [
        ("0", 10, 1, True),
        ("1", 9, 1, True),
        ("2", 9, 1, True),
    ]
    # The page that is filled in part has three owners: two copy it, the last keeps it.
    assert plan.copies == [(0, 2, 3), (0, 2, 4)]
    assert (parent.pages, child.pages, other.pages) == ([[0, 1, 3]], [[0, 1, 4]], [[0, 1, 2]])
    bench.scheduler.commit(plan, bench.model.run(plan))
    bench.drain()
    assert [r.output for r in (parent, child, other)] == [alone(r) for r in (parent, child, other)]
    stats = bench.scheduler.stats()
    assert (stats.forks, stats.copies, stats.lookup_tokens) == (2, 2, 10)
    assert child.num_cached == 0  # a fork is not a cache hit


def test_a_prompt_that_ends_on_a_page_border() -> None:
    bench = Bench(pages=16, page_size=4)
    requests = family(bench, 8, 2)
    bench.step()
    plan = bench.schedule()
    # The parent writes a new page; the child rewrites the last slot of page 1 in a copy of it.
    assert plan.copies == [(0, 1, 3)] and requests[0].pages == [[0, 1, 2]]
    bench.scheduler.commit(plan, bench.model.run(plan))
    bench.drain()
    assert [r.output for r in requests] == [alone(r) for r in requests]


def test_a_prompt_of_one_token_has_nothing_to_share() -> None:
    bench = Bench(pages=16)
    requests = family(bench, 1, 3)
    bench.step()
    assert bench.schedule().copies == []
    assert [r.num_computed for r in requests] == [1, 0, 0]


def test_align_moves_the_fork_back() -> None:
    bench = Bench(pages=16, page_size=4, align=6)
    requests = family(bench, 11, 2)
    bench.step()
    plan = bench.schedule()
    assert [(c.request.id, c.start, c.count) for c in plan.chunks] == [("0", 11, 1), ("1", 6, 5)]
    assert plan.copies == [(0, 1, 3)]  # page 1 is shared from token 6 on; page 2 is the child's own
    bench.scheduler.commit(plan, bench.model.run(plan))
    bench.drain()
    assert [r.output for r in requests] == [alone(r) for r in requests]


def test_children_of_a_parent_that_has_gone_use_the_prefix_cache() -> None:
    bench = Bench(pages=16, page_size=4, seqs=1)
    requests = family(bench, 10, 3)
    bench.drain()
    assert [r.output for r in requests] == [alone(r) for r in requests]
    assert [r.num_cached for r in requests] == [0, 8, 8]
    assert bench.scheduler.stats().forks == 0


def test_children_survive_the_abort_of_a_parent_before_during_and_after_its_prompt() -> None:
    for steps in range(4):
        bench = Bench(pages=16, page_size=4, budget=8)
        parent, *children = family(bench, 14, 3)
        for _ in range(steps):
            bench.step()
        assert bench.scheduler.abort("0")
        bench.drain()
        bench.assert_empty()
        assert [r.output for r in children] == [alone(r) for r in children]
        assert parent.finish_reason == "abort"


def test_a_parent_may_fork_right_after_its_prompt_for_every_window_and_size() -> None:
    for window in range(1, 9):
        for size in range(2, 20):
            bench = Bench(pages=16, windows=(None, window, (window, 5)), page_size=4, budget=32)
            requests = family(bench, size, 2)
            bench.step()
            bench.step()
            assert bench.scheduler.stats().forks == 1, (window, size)
            bench.drain()
            assert [r.output for r in requests] == [alone(r) for r in requests]


def test_a_parent_whose_window_has_moved_on_is_not_forked() -> None:
    bench = Bench(pages=16, windows=(None, 2), page_size=2, seqs=2)
    blocker = bench.add("x", [1] * 3, max_tokens=6, ignore_eos=True, priority=-1)
    parent, child = family(bench, 8, 2, max_tokens=12)
    while not blocker.finish_reason:
        bench.step()
    assert parent.num_dropped[1] > 3  # pages around token 7 of the window group have gone
    bench.drain()
    assert child.output == alone(child) and bench.scheduler.stats().forks == 0
    assert child.num_cached == 6  # they are still cached


def test_a_child_behind_another_request_keeps_its_place() -> None:
    bench = Bench(pages=16, page_size=4, seqs=2)
    parent = bench.add("p", [0] * 5, ignore_eos=True, arrival=0.0)
    bench.add("between", [1] * 5, ignore_eos=True, arrival=1.0)
    bench.add("c", [0] * 5, ignore_eos=True, arrival=2.0, parent=parent)
    bench.step()
    assert [id for id, *_ in bench.step()] == ["p", "between"]
