"""The safetensors reader: agreement with the format's own library, and refusal of broken files."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.engine.checkpoint.safetensors import SafetensorsFile
from saccade.engine.errors import CheckpointError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "empty": torch.zeros(0, 4),
    "half": torch.tensor([1.5, -2.0, 3.0]).half(),
    "scalar": torch.tensor(2.5),
}


def write(path: Path, header: Any, data: bytes, pad: bool = False) -> Path:
    """A file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if pad:
        text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    size = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": size, "data_offsets": [begin, end]}


def test_agrees_with_the_library(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(TENSORS, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert set(file.entries) == set(TENSORS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, expected in TENSORS.items():
            view = file.view(name)
            assert view.dtype == expected.dtype and view.shape == expected.shape
            assert torch.equal(view, expected)


def test_views_do_not_copy_and_outlive_the_reader(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors")
    file = SafetensorsFile(tmp_path / "model.safetensors")
    first, second = file.view("a"), file.view("a")
    assert first.data_ptr() == second.data_ptr()
    del file, second
    assert torch.equal(first, TENSORS["a"])


@pytest.mark.parametrize("shift", range(8))
def test_any_alignment_of_the_data(tmp_path: Path, shift: int) -> None:
    data = torch.tensor([1.0, 2.0]).numpy().tobytes()
    header = {"__metadata__": {"": "x" * shift}, "t": entry(0, 8)}
    file = SafetensorsFile(write(tmp_path / "t.safetensors", header, data))
    assert file.view("t").tolist() == [1.0, 2.0]


BROKEN: list[tuple[str, Any, int, str]] = [
    ("no tensors, stray bytes", {}, 4, "belong to no tensor"),
    ("stray bytes at the end", {"t": entry(0, 8)}, 12, "last 4 bytes belong to no tensor"),
    ("truncated", {"t": entry(0, 8)}, 7, "'t': truncated"),
    ("truncated second", {"s": entry(0, 4), "t": entry(4, 8)}, 6, "'t': truncated"),
    ("gap", {"s": entry(0, 4), "t": entry(8, 12)}, 12, "'t': leaves a gap"),
    ("gap at the start", {"t": entry(4, 8)}, 8, "'t': leaves a gap"),
    ("overlap", {"s": entry(0, 8), "t": entry(4, 12)}, 12, "'t': overlaps"),
    ("same bytes twice", {"s": entry(0, 8), "t": entry(0, 8)}, 8, "'t': overlaps"),
    ("offsets reversed", {"t": entry(8, 0, [0])}, 8, "'t': data_offsets"),
    ("offsets negative", {"t": entry(-8, 0)}, 8, "'t': data_offsets"),
    ("offsets of one", {"t": {**entry(0, 8), "data_offsets": [8]}}, 8, "'t': data_offsets"),
    ("offsets not whole", {"t": {**entry(0, 8), "data_offsets": [0.0, 8]}}, 8, "data_offsets"),
    ("offsets boolean", {"t": entry(False, 8)}, 8, "'t': data_offsets"),
    ("offsets huge", {"t": entry(0, 2**70, [2**68])}, 8, "'t': shape"),
    ("size and shape differ", {"t": entry(0, 8, [3])}, 8, "'t': F32 of shape .* takes 12"),
    ("shape product huge", {"t": entry(0, 8, [2**62] * 8)}, 8, "'t': F32 of shape"),
    ("shape negative", {"t": entry(0, 8, [-1, -2])}, 8, "'t': shape"),
    ("shape boolean", {"t": entry(0, 8, [True, 2])}, 8, "'t': shape"),
    ("shape not a list", {"t": entry(0, 8, "2")}, 8, "'t': shape"),
    ("shape of high rank", {"t": entry(0, 8, [1] * 9)}, 8, "'t': shape"),
    ("unknown dtype", {"t": entry(0, 8, [2], "F33")}, 8, "'t': unknown dtype 'F33'"),
    ("dtype not text", {"t": entry(0, 8, [2], ["F32"])}, 8, "'t': unknown dtype"),
    ("extra key", {"t": {**entry(0, 8), "stride": [1]}}, 8, "'t': expected exactly"),
    ("missing key", {"t": {"dtype": "F32", "shape": [2]}}, 8, "'t': expected exactly"),
    ("entry not an object", {"t": [0, 8]}, 8, "'t': expected exactly"),
    ("metadata not text", {"__metadata__": {"a": 1}, "t": entry(0, 8)}, 8, "__metadata__"),
    ("metadata not an object", {"__metadata__": "a", "t": entry(0, 8)}, 8, "__metadata__"),
    ("header a list", [], 0, "expected a JSON object"),
    ("header not JSON", b'{"t": ', 0, "not valid JSON"),
    ("header not UTF-8", b'{"\xff": 1}', 0, "not valid JSON"),
    ("a tensor twice", b'{"t": {}, "t": {}}', 0, "'t' appears twice"),
]


@pytest.mark.parametrize(("case", "header", "size", "message"), BROKEN, ids=lambda x: str(x)[:24])
def test_broken_files_are_refused_by_name(
    tmp_path: Path, case: str, header: Any, size: int, message: str
) -> None:
    path = write(tmp_path / "w.safetensors", header, bytes(size))
    with pytest.raises(CheckpointError, match=rf"w\.safetensors: .*{message}"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x02",
        b"\x02" + bytes(7),
        (1 << 63).to_bytes(8, "little") + b"{}",
        (200_000_000).to_bytes(8, "little") + b"{}",
        (0).to_bytes(8, "little"),
        (3).to_bytes(8, "little") + b"{}",
    ],
)
def test_impossible_header_lengths(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: not a complete safetensors file"):
        SafetensorsFile(path)


def test_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in (
        ("pipe", "not a regular file"),
        ("loop", "cannot be opened"),
        ("none", "file not found"),
        ("", "not a regular file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            SafetensorsFile(tmp_path / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        SafetensorsFile(Path("/dev/zero"))


def test_a_type_that_is_not_a_float_opens_but_gives_no_view(tmp_path: Path) -> None:
    header = {"q": entry(0, 8, [8], "F8_E4M3"), "i": entry(8, 16, [1], "I64")}
    file = SafetensorsFile(write(tmp_path / "w.safetensors", header, bytes(16)))
    for name, kind in (("q", "F8_E4M3"), ("i", "I64")):
        with pytest.raises(CheckpointError, match=rf"w\.safetensors: {name}: stored as {kind}"):
            file.view(name)


WHOLE = safetensors.torch.save(TENSORS)


@settings(max_examples=150, deadline=None)
@given(length=st.integers(0, len(WHOLE) - 1))
def test_every_truncation_is_one_clear_error(tmp_path_factory: Any, length: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "w.safetensors"
    path.write_bytes(WHOLE[:length])
    with pytest.raises(CheckpointError, match=r"w\.safetensors: "):
        SafetensorsFile(path)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1))
def test_flipped_bytes_are_refused_or_read(
    tmp_path_factory: Any, flips: list[tuple[int, int]]
) -> None:
    content = bytearray(WHOLE)
    for position, value in flips:
        content[position] = value
    path = tmp_path_factory.mktemp("flip") / "w.safetensors"
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
        for name in file.entries:
            file.view(name).double().sum()
    except CheckpointError as error:
        assert str(path) in str(error)
