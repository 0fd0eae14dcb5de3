"""The gated delta rule and convolutions of keys in Triton, interpreted, against references."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saccade.kernels import native
from saccade.kernels.gated_delta import GATED_DELTA, DeltaCall, Walk, gated_delta
from saccade.kernels.key_conv import KEY_CONV
from saccade.kernels.testing import within_budget

from .paged import DTYPES
from .test_gated_delta import inputs, truth, whole
from .test_key_conv import numbers, one_shot, places

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.filterwarnings("ignore:invalid value", "ignore:Conversion of an array"),
]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _no_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "kernels", lambda: None)


def rule(*args):
    """The op's Triton implementation."""
    call = DeltaCall(*args)
    kernel = next(each for each in GATED_DELTA.implementations if each.name == "triton")
    assert kernel.supports(call) is None
    return kernel.run(call)


def convolved(*args):
    kernel = next(each for each in KEY_CONV.implementations if each.name == "triton")
    assert kernel.supports(*args) is None
    return kernel.run(*args)


@every_dtype
@pytest.mark.parametrize(
    ("key_heads", "heads", "dim", "v_dim"), [(1, 1, 8, 16), (2, 4, 12, 20), (1, 1, 128, 24)]
)
def test_the_rule_is_the_definition(dtype, key_heads, heads, dim, v_dim):
    """Two sequences whose rows lie among each other; one begins with a state, both keep some."""
    given = inputs(16, key_heads, heads, dim, v_dim, dtype)
    states = torch.full((5, heads, dim, v_dim), torch.nan)
    states[3] = torch.randn((heads, dim, v_dim))
    orders = [list(range(0, 16, 2)), list(range(15, 0, -2))]
    store = torch.full((16,), -1)
    store[7], store[10], store[15] = 0, 1, 4
    rows = torch.tensor(orders[0] + orders[1])
    walk = Walk(torch.tensor([0, 8, 16]), rows, torch.tensor([-1, 3]), store)
    ends = [torch.zeros_like(states[3]).double(), states[3].double()]
    theirs = states.clone()
    out, same = rule(*given, states, walk), GATED_DELTA.reference(DeltaCall(*given, theirs, walk))
    expected = {}
    for order, end in zip(orders, ends, strict=True):
        expected |= truth(given, order, end)
    exact = torch.stack([expected[row] for row in range(16)])
    within_budget(out, same, exact, factor=4.0)  # the interpreter cuts bf16 off
    for index, end in ((0, ends[0]), (4, ends[1])):
        within_budget(states[index], theirs[index], end, steps=8.0)
    assert states[1].isfinite().all() and states[2].isnan().all()


def test_cuts_and_neighbours_change_no_bit():
    given = inputs(7, 1, 2, 16, 24, torch.float16)
    states = torch.full((3, 2, 16, 24), torch.nan)
    once = rule(*given, states, whole(7, 3))
    last, parts = states[2].clone(), []
    for begin, end, load, store in ((0, 3, -1, 1), (3, 7, 1, 2)):
        mine = tuple(x[begin:end].contiguous() for x in given)
        walk = replace(whole(end - begin, store + 1), load=torch.tensor([load]))
        parts.append(rule(*mine, states, walk))
    assert torch.equal(torch.cat(parts), once) and torch.equal(states[2], last)
    twice = tuple(torch.cat([x, x.flip(0)]) for x in given)
    order = torch.cat([torch.arange(13, 6, -1), torch.arange(7)])
    walk = Walk(torch.tensor([0, 7, 14]), order, torch.tensor([-1, -1]), torch.full((14,), -1))
    both = rule(*twice, states, walk)
    assert torch.equal(both[:7], once) and torch.equal(both[7:].flip(0), once)


def test_states_beyond_are_left_alone():
    """On a GPU the door cannot look at numbers; shapes it knows."""
    given, states = inputs(3, 1, 2, 8, 16, torch.float32), torch.full((2, 2, 8, 16), 7.0)
    store = torch.tensor([5, -4, 2])
    walk = Walk(torch.tensor([0, 3]), torch.arange(3), torch.tensor([9]), store)
    assert torch.equal(gated_delta(*given, states, walk), rule(*given, states, whole(3)))
    assert bool((states == 7.0).all())
    with pytest.raises(ValueError, match="1 sequences need as many loads"):
        gated_delta(*given, states, replace(walk, load=torch.tensor([0, 0])))


@every_dtype
@pytest.mark.parametrize(("shape", "taps"), [((2, 8), 1), ((3, 17), 4), ((2, 300), 5)])
def test_a_convolution_of_the_whole_sequence(dtype, shape, taps):
    k, weight = numbers(30, *shape, dtype=dtype), numbers(taps, *shape, dtype=dtype)
    none = k.new_zeros((0, *shape))
    out = convolved(k, none, places(30, taps), weight)
    truth_, same = one_shot(k.double(), weight), one_shot(k.float(), weight).to(dtype)
    within_budget(out, same, truth_, factor=4.0)  # the interpreter cuts bf16 off
    alone = convolved(k, none, places(30, taps), weight, False)
    within_budget(alone, same - k, truth_ - k.double(), factor=4.0)
    assert convolved(k[:0], none, places(0, taps), weight).shape == (0, *shape)


@pytest.mark.parametrize("cut", [1, 3, 17])
def test_a_cut_of_a_convolution_changes_no_bit(cut):
    """The rows after a cut with the keys before it in history, rows apart in a wider matrix."""
    taps, k = 5, numbers(30, 2, 24, dtype=torch.float16)
    weight, none = numbers(taps, 2, 24, dtype=torch.float16), k.new_zeros((0, 2, 24))
    once = convolved(k, none, places(30, taps), weight)
    history = k[max(0, cut - taps + 1) : cut].flip(0).contiguous()
    wide = torch.full((30 - cut, 60), torch.nan).half()
    wide[:, 5:53] = k[cut:].flatten(1)
    rows = wide[:, 5:53].unflatten(1, (2, 24))
    out = convolved(rows, history, places(30 - cut, taps, history.shape[0]), weight)
    assert torch.equal(out, once[cut:])


def test_nowhere_is_zero_whatever_history_holds():
    k, weight = numbers(2, 1, 8, dtype=torch.float32), numbers(4, 1, 8, dtype=torch.float32)
    poison = torch.full((2, 1, 8), torch.nan)
    out = convolved(k, poison, torch.full((2, 3), -1), weight)
    wanted = convolved(k, poison, torch.zeros((2, 0), dtype=torch.int64), weight[:1])
    assert torch.equal(out, wanted)
    beyond = torch.tensor([[2, -4, 99], [-1, -1, -1]])
    assert torch.equal(convolved(k, poison, beyond, weight), wanted)
