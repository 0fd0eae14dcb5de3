"""Opening checkpoint files: regular local files only, and every failure named."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import CheckpointError


def find_checkpoint(model: str | Path) -> Path:
    """The folder of `model`; "demo" is the one shipped with Saccade (a local one is ./demo).

    CheckpointError when there is no such folder: nothing is ever downloaded.
    """
    if model == "demo":
        return Path(__file__).parent.parent / "demo"
    try:
        folder = Path(model).expanduser()
        found = folder.is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, no such user
        found = False
    if not found:
        raise CheckpointError(
            f"{str(model)!r:.500}: no such folder; give a local folder with config.json and "
            'model.safetensors, or "demo" (Saccade never downloads)'
        )
    return folder


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading; CheckpointError for anything else (a folder, a pipe ...).

    A link is followed, for model caches are folders of links to files kept elsewhere; what it leads
    to must be a regular file. The opened file is what is examined; opening a pipe does not block.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: file not found") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be opened: {error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path}: not a regular file")
    return os.fdopen(descriptor, "rb")


def read_small(path: Path, limit: int) -> bytes:
    """The whole content of a file of at most `limit` bytes; CheckpointError when it is larger."""
    with open_regular(path) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if len(content) > limit:
        raise CheckpointError(f"{path}: larger than the {limit} bytes allowed for this file")
    return content
