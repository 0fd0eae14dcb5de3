"""The GPU path, interpreted in host memory: GPU layout, kernels in Triton, plans sent in one copy,
and for the rest the torch references. Every method gives the tokens of the engine on the processor.
"""

from __future__ import annotations

import pytest

from saccade import Engine
from saccade.kernels import native

from ..engine.conftest import Checkpoints, Engines
from ..engine.engine_probe import greedy, some_tokens
from .every_method import NAMES, small

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value", "ignore:divide by zero", "ignore:Conversion of an array"
)
OPTIONS = {"max_model_len": 256, "max_num_batched_tokens": 34, "page_size": 16, "max_num_seqs": 4}


def answers(engine: Engine, before: int) -> list[list[int]]:
    """Tokens of two prompts that run together, the longer one in chunks."""
    prompts = [some_tokens(before + 36, seed=1), some_tokens(5, seed=2)]
    found = engine.generate(prompts, greedy(2))
    assert all(each.error is None for each in found)
    return [list(each.outputs[0].token_ids) for each in found]


# The interpreter takes some 10 ms for every tile: these run always, the others with the slow tests.
QUICK = ("dense", "window", "quest")
MARKED = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize("name", MARKED)
def test_tokens_of_the_processor(
    checkpoint: Checkpoints,
    make_engine: Engines,
    interpreted: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    method = small(name)
    options = OPTIONS | {"attention": method.spec}
    folder = checkpoint(method.family)
    expected = answers(make_engine(folder, device="cpu", **options), method.before)
    # Only what a GPU can serve: no compiled kernel, but the references.
    monkeypatch.setattr(native, "kernels", lambda: None)
    engine = make_engine(folder, device="cuda", **options)
    assert answers(engine, method.before) == expected
