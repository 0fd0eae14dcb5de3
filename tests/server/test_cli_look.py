"""`saccade look`: a picture that can be opened, a table, and one line for what cannot be drawn."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from saccade.server import attention_plot, cli
from saccade.server.commands.look import chooser
from saccade.server.errors import UsageError

from ..engine.conftest import checkpoint, lone_kernels, one_thread

__all__ = ["checkpoint", "lone_kernels", "one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = "def add(first, second):\n    return first + second\n\n\n" * 4


@pytest.fixture
def model(checkpoint: Callable[..., Path]) -> str:
    return str(checkpoint("llama", tokenizer=True))


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_a_picture_and_a_table(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text(TEXT)
    out = tmp_path / "new folder" / "map.png"
    argv = ["look", model, "--prompt-file", str(tmp_path / "text"), "--out", str(out)]
    more = ["--attention", "moba(block=16, topk=2)", "--kv-cache-memory", "1MiB", "--layers", "0,2"]
    assert cli.main([*argv, *more, "--heads", "1-3", "--cell", "8", "--page-size", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "tokens, moba(block=16, topk=2)" in lines[0]
    assert [line.split()[:2] for line in lines[2:]] == [
        [layer, head] for layer in "02" for head in "123"
    ]
    assert all(0 < float(line.split()[2]) < 100 for line in lines[2:])
    width, height = png_size(out)
    assert width > 2 * height > 1000  # six panels by two


def test_phases_are_told_apart(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    monkeypatch.setattr("saccade.server.commands.look.draw", lambda *given: titles.append(given))
    argv = ["look", model, "--prompt", TEXT, "--out", "map.svg", "--kv-cache-memory", "1MiB"]
    assert cli.main([*argv, "--decode-attention", "quest(48, 16)", "--generated", "9"]) == 0
    ((found, title, path),) = titles
    assert title == f"{model}, dense then quest(budget=48, block=16)"
    assert found.tokens - found.prompt == 9 and path == Path("map.svg")
    assert "below the red line" in attention_plot.caption(found)
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3 * 3  # all layers, three heads


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "map.gif"], "--out must end in .png, .pdf, .svg, not 'map.gif'"),
        (["--layers", "1-"], "--layers must be like 0,3-5 or all, not '1-'"),
        (["--layers", "0,7"], "layer must be in 0 .. 2, not 7"),
        (["--heads", "4"], "head must be in 0 .. 3, not 4"),
        (["--attention", "sparse"], "'sparse' is unknown"),
        (["--attention", "moba(blok=16)"], "moba has no option for 'blok=16'"),
        (["--generated", "-1"], "generated must be in 0"),
        (["--prompt", TEXT * 40], "a map shows at most 511 of them with this model"),
        (["--kv-cache-memory", "much"], "is not a size"),
    ],
)
def test_what_cannot_be_drawn(
    model: str, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    argv = ["look", model, "--prompt", TEXT, "--out", "map.png", "--kv-cache-memory", "1MiB"]
    assert cli.main([*argv, *options]) == 2
    assert words in capsys.readouterr().err


def test_without_matplotlib(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_plot, "find_spec", lambda name: None)
    assert cli.main(["look", model, "--prompt", TEXT, "--out", "map.png"]) == 2
    assert "needs matplotlib: pip install 'saccade[bench]'" in capsys.readouterr().err


def test_lists() -> None:
    assert list(chooser("layers", None, 4)(3)) == [0, 1, 2]
    assert list(chooser("layers", None, 4)(30)) == [0, 10, 19, 29]
    assert list(chooser("layers", "all", 4)(30)) == list(range(30))
    assert list(chooser("layers", "3-5, 0", 4)(30)) == [3, 4, 5, 0]
    with pytest.raises(UsageError):
        chooser("layers", "", 4)
