"""Thresholds measured on texts: as many tokens above them as training keeps, and what they cost."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from saccade import Engine
from saccade.engine.calibrate import Calibration, Calibrator
from saccade.engine.errors import CheckpointError, RequestError
from saccade.server.cli import main

from ..engine.conftest import Checkpoints
from ..engine.engine_probe import greedy, some_tokens
from ..engine.tiny import write_tokenizer
from ..engine.tiny_mosa import write_tiny_mosa
from .mosa_model import MosaModel

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = {"page_size": 16, "kv_cache_memory": 1 << 22}


def calibrate(folder: Path, tokens: list[int], rounds: int = 1) -> Calibration:
    return Calibrator.of(str(folder), **OPTIONS).calibrate(tokens, 80, rounds)


@pytest.mark.parametrize("family", ["mosa", "mosa_pure"])
def test_nearly_as_many_scores_are_above_as_training_keeps(
    checkpoint: Checkpoints, family: str
) -> None:
    """Without further rounds, in the first layer, where all scores of one token are equal."""
    folder = checkpoint(family, calibrated=False)
    tokens = some_tokens(160)
    found = calibrate(folder, tokens, rounds=0)
    assert (found.texts, found.held_out, found.length) == (2, 0, 80)
    model = MosaModel(folder, "whole")
    always, wanted, scores = model.mosa["include_first"], 0, []
    for text in (tokens[:80], tokens[80:]):
        model.logits(text)
        wanted += len(model.kept[0][0]) - always
        scores.append(model.scores[0][always:])
    for head, own in enumerate(torch.cat(scores).T):
        above = int((own > found.thresholds[0][head] + 1e-6).sum())
        every = [int((own > each + 1e-6).sum()) for each in own]
        assert abs(above - wanted) == min(abs(count - wanted) for count in every)


def test_the_report_is_that_of_the_independent_model(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    folder = checkpoint("mosa", calibrated=False)
    tokens = some_tokens(80 * 5 + 39)  # what is left over is too short to count
    found = calibrate(folder, tokens)
    assert (found.texts, found.held_out) == (5, 1)
    judged = tokens[320:400]
    served = tmp_path / "served"
    write_tiny_mosa(served, "mosa", max_position_embeddings=512)  # the same weights
    (served / "calibration.json").write_text(json.dumps({"thresholds": found.thresholds}))
    whole = MosaModel(served, "whole")
    whole.logits(judged)
    assert [each.attention for each in found.rules] == [
        "mosa(mode=whole)",
        "mosa(mode=threshold)",
        "mosa(mode=stream)",
    ]
    for rule, mode in zip(found.rules, ("whole", "threshold", "stream"), strict=True):
        model = MosaModel(served, mode)
        rows = model.logits(judged).log_softmax(1)[:-1]
        loss = -rows.gather(1, torch.tensor(judged[1:])[:, None]).mean()
        assert rule.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
        overlaps = []
        for own, other in zip(model.seen, whole.seen, strict=True):
            for mine, theirs in zip(own, other, strict=True):
                a, b = ({t for t, keys in enumerate(rows) if keys} for rows in (mine, theirs))
                overlaps.append(len(a & b) / len(a | b))
        assert rule.overlap == pytest.approx(sum(overlaps) / len(overlaps))
        assert rule.least == pytest.approx(min(overlaps))
    assert found.rules[0].overlap == 1.0 and found.rules[0].chosen == 0.25
    assert 0.15 < found.rules[1].chosen < 0.35 and found.rules[1].overlap > 0.5


def test_another_round_brings_the_rate_nearer(checkpoint: Checkpoints) -> None:
    """Deep layers see what the thresholds of the layers before let through."""
    folder = checkpoint("mosa", calibrated=False)
    tokens = some_tokens(80 * 3)
    rates = [calibrate(folder, tokens, rounds).rules[1].chosen for rounds in (0, 3)]
    assert abs(rates[1] - 0.25) <= abs(rates[0] - 0.25) + 0.01


def test_texts_shorter_than_a_share(checkpoint: Checkpoints) -> None:
    found = Calibrator.of(str(checkpoint("mosa", calibrated=False)), **OPTIONS).calibrate([5, 9])
    assert found.texts == 1 and found.thresholds == [[0.0] * 3] * 3  # both tokens are kept


@pytest.mark.parametrize(
    ("tokens", "length", "rounds", "message"),
    [
        ([5], None, 1, "at least two tokens"),
        (some_tokens(9), 1, 1, r"length must be in 2 \.\. 128"),
        (some_tokens(9), 600, 1, r"length must be in 2 \.\. 128"),
        (some_tokens(9), None, 17, r"rounds must be in 0 \.\. 16"),
        ([5, 128], None, 1, "prompt"),
    ],
)
def test_bad_arguments(
    checkpoint: Checkpoints, tokens: list[int], length: int | None, rounds: int, message: str
) -> None:
    calibrator = Calibrator.of(str(checkpoint("mosa", calibrated=False)), **OPTIONS)
    with pytest.raises(RequestError, match=message):
        calibrator.calibrate(tokens, length, rounds)


def test_only_heads_that_choose_are_calibrated(checkpoint: Checkpoints) -> None:
    with pytest.raises(CheckpointError, match="nothing to calibrate"):
        Calibrator.of(str(checkpoint("llama")))


# ---- the command ----


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_tiny_mosa(tmp_path / "model", calibrated=False, vocab_size=320)
    write_tokenizer(made, 320)
    return made


def test_the_command_makes_a_checkpoint_ready_to_serve(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "def second(pair):\n    return pair[1]\n\n\n" * 20
    path = folder.parent / "text.txt"
    path.write_text(text)
    assert main(["calibrate", str(folder), "--prompt-file", str(path), "--length", "64"]) == 0
    printed = capsys.readouterr().out
    assert "mosa(mode=whole)" in printed and "mosa(mode=stream)" in printed
    assert f"Written: {folder / 'calibration.json'}" in printed
    figures = json.loads((folder / "calibration.json").read_text())
    assert figures["length"] == 64 and len(figures["thresholds"]) == 3
    with Engine(folder, **OPTIONS) as engine:
        assert engine.generate(text[:50], greedy(5))[0].error is None
    assert not list(folder.glob("*.tmp"))


def test_the_command_writes_where_it_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "figures.json"
    assert main(["calibrate", str(folder), "-p", "print(1)\n" * 20, "--out", str(out)]) == 0
    assert out.exists() and not (folder / "calibration.json").exists()
    with Engine(folder, calibration=str(out), **OPTIONS) as engine:
        assert engine.generate("print", greedy(3))[0].error is None
    assert main(["calibrate", str(folder), "-p", "ab cd", "--out", "/nowhere/x.json"]) == 2
    assert "/nowhere is not a folder" in capsys.readouterr().err
