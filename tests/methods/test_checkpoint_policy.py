"""The attention entry of a checkpoint's config.json, and who outranks whom."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saccade import Engine
from saccade.engine.attention.chunked import Chunked
from saccade.engine.attention.dense import Dense
from saccade.engine.attention.policy import AttentionPolicy
from saccade.engine.attention.window import Window
from saccade.engine.errors import CheckpointError

from ..engine.conftest import Checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")
Policies = Callable[..., AttentionPolicy]


@pytest.fixture
def policy_of(checkpoint: Checkpoints, tmp_path: Path) -> Policies:
    """The policy of an engine over a checkpoint with this attention entry."""

    def get(entry: Any, key: str = "attention", **options: Any) -> AttentionPolicy:
        folder = tmp_path / "model"
        shutil.copytree(checkpoint("llama"), folder, dirs_exist_ok=True)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: entry}))
        with Engine(folder, kv_cache_memory=1 << 20, **options) as engine:
            return engine.policy

    return get


def test_a_string_or_an_object(policy_of: Policies) -> None:
    window, dense = (Window(9),) * 3, (Dense(),) * 3
    assert policy_of("window(9)").prefill == policy_of("window(9)").decode == window
    assert policy_of("0:window(9); *:dense").prefill == (Window(9), Dense(), Dense())
    for key in ("attention", "saccade"):
        found = policy_of({"prefill_attention": "window(9)"}, key)
        assert (found.prefill, found.decode) == (window, dense)
    both = policy_of({"attention": "window(9)", "decode_attention": "dense"})
    assert (both.prefill, both.decode) == (window, dense)
    assert policy_of({}).prefill == policy_of(None).prefill == dense


def test_the_user_outranks_the_checkpoint_phase_by_phase(policy_of: Policies) -> None:
    entry = {"prefill_attention": "window(9)", "decode_attention": "chunked(2, 3)"}
    given = policy_of(entry, attention="dense")
    assert given.prefill == given.decode == (Dense(),) * 3
    given = policy_of(entry, decode_attention="dense")
    assert (given.prefill, given.decode) == ((Window(9),) * 3, (Dense(),) * 3)
    given = policy_of("window(9)", prefill_attention="dense")
    assert (given.prefill, given.decode) == ((Dense(),) * 3, (Window(9),) * 3)
    assert policy_of(entry).decode == (Chunked(2, 3),) * 3


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("sparse(4)", "'sparse.4.' is unknown"),
        ("window(length=3)", "window has no option for 'length=3'"),
        ("7:dense; *:dense", "layers '7'"),
        (["dense"], "string or an object"),
        (5, "string or an object"),
        ({"attention": 5}, "must be a spec, or an object of specs"),
        ({"attention": None}, "must be a spec, or an object of specs"),
        ({"method": "dense"}, "attention, prefill_attention, decode_attention; got"),
    ],
)
def test_a_bad_entry_is_the_checkpoints_fault(policy_of: Policies, entry: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json.*{words}"):
        policy_of(entry)


def test_a_bad_entry_does_not_matter_to_who_chooses_otherwise(policy_of: Policies) -> None:
    assert policy_of("sparse(4)", attention="window(9)").prefill == (Window(9),) * 3


@pytest.mark.parametrize("name", ["attention", "prefill_attention", "decode_attention"])
def test_a_bad_option_is_the_users_fault(policy_of: Policies, name: str) -> None:
    with pytest.raises(ValueError, match=r"'sparse' is unknown.*dense, window, chunked"):
        policy_of("dense", **{name: "sparse"})
