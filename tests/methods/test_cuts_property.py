"""The law of cuts over every registered method: no chunk, prefix hit, fork, preemption, neighbour,
page order or left-over in a page changes a bit; and no step writes into a page that others hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saccade.engine.errors import RequestError
from saccade.kernels import native

from ..engine.conftest import Checkpoints, Engines, check_idle
from ..engine.cuts import CROWD, TIGHT, Alone, Wish, check, engine_for, serve, wishes
from ..engine.engine_probe import some_tokens
from ..engine.hostile import Hostile
from .every_method import NAMES, small

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        native.chosen_isa() is None, reason="torch's own products round by batch size"
    ),
]
# What neighbours ask for themselves, where the pages allow it.
OTHERS = [None, None, None, "dense", "window(size=9, sinks=3)"]
options_of_engines = st.fixed_dictionaries(
    {
        "spare_pages": st.sampled_from((0, 1, 2, 30)),
        "max_num_batched_tokens": st.sampled_from((33, 64, 300)),
        "max_num_seqs": st.sampled_from((2, 8)),
        "long_prefill_share": st.sampled_from((0.25, 1.0)),
        "page_size": st.sampled_from((16, 32, 64)),
        "enable_prefix_caching": st.sampled_from((True, True, True, False)),
    }
)


@pytest.fixture(scope="module")
def alone(checkpoint: Checkpoints) -> Callable[[str, Any], Alone]:
    """By family and attention: lonely engines, which remember their answers."""
    made: dict[tuple[str, Any], Alone] = {}

    def get(family: str, spec: str) -> Alone:
        if (family, spec) not in made:
            made[family, spec] = Alone(checkpoint(family), {"attention": spec})
        return made[family, spec]

    return get


@pytest.mark.parametrize("name", NAMES)
def test_no_cut_changes_a_bit(
    checkpoint: Checkpoints, alone: Callable[[str, Any], Alone], name: str
) -> None:
    method = small(name)
    folder = checkpoint(method.family)
    seen = {"preemptions": 0, "forks": 0, "hit_tokens": 0, "copies": 0}

    prompts = some_tokens(method.before, seed=4)
    crowd = [replace(wish, prompt=(*prompts, *wish.prompt)) for wish in CROWD]
    mixed = st.builds(
        lambda wish, other: replace(wish, attention=other),
        wishes(method.before),
        st.sampled_from(OTHERS),
    )

    @example(requests=crowd, options=TIGHT, seed=1)
    @settings(max_examples=5, derandomize=True, database=None, deadline=None)
    @given(
        requests=st.lists(mixed, min_size=2, max_size=5),
        options=options_of_engines,
        seed=st.integers(0, 99),
    )
    def holds(requests: list[Wish], options: dict[str, Any], seed: int) -> None:
        engine = engine_for(folder, requests, dict(options), {"attention": method.spec})
        hostile = Hostile(engine, Random(seed))
        requests = [wish for wish in requests if serves(engine, wish.attention)]
        generations, recorder = serve(engine, requests, hostile.next_step)
        for wish, generation in zip(requests, generations, strict=True):
            check(wish, generation, recorder, alone(method.family, wish.attention or method.spec))
        check_idle(engine)
        for each in seen:
            seen[each] += getattr(engine.scheduler.stats(), each)

    holds()
    assert all(count > 0 for count in seen.values()), seen


def serves(engine: Any, attention: Any) -> bool:
    try:
        engine._policies.of(attention)
    except RequestError:
        return False
    return True


@pytest.mark.parametrize("page_size", [16, 32, 64])
@pytest.mark.parametrize("name", NAMES)
def test_continuations_share_the_prompt_and_write_apart(
    checkpoint: Checkpoints,
    make_engine: Engines,
    alone: Callable[[str, Any], Alone],
    name: str,
    page_size: int,
) -> None:
    """They part within a block and within a page, which each of them has to copy."""
    method = small(name)
    engine = make_engine(checkpoint(method.family), attention=method.spec, page_size=page_size)
    hostile = Hostile(engine, Random(page_size))
    wish = Wish(tuple(some_tokens(72)), 3, 1.0, 30, False, 0, 0)
    generations, recorder = serve(engine, [wish])
    check(wish, generations[0], recorder, alone(method.family, method.spec))
    stats = engine.scheduler.stats()
    assert stats.forks == 2 and stats.copies >= 2 and stats.preemptions == 0
    assert hostile.shared
    outputs = {tuple(each.token_ids) for each in generations[0].whole().outputs}
    assert len(outputs) == 3
