"""The C++ sources of the compiled module, by a digest that is compiled into it.

It imports nothing that has to be installed: the build runs this file alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
REBUILD = "python setup.py build_ext --inplace (or: make native)"


def sources(csrc: Path) -> list[Path]:
    """The binding file, the headers and the CPU kernels."""
    found = [csrc / "bindings.cpp"]
    for folder in ("include", "cpu"):
        found += [path for path in (csrc / folder).rglob("*") if path.suffix in {".h", ".cpp"}]
    return sorted(found)


def digest(csrc: Path = CSRC) -> str | None:
    """A digest of the sources, None where they are not at hand: an installed package has none."""
    if not (csrc / "bindings.cpp").exists():
        return None
    total = hashlib.sha256()
    for path in sources(csrc):
        content = path.read_bytes()
        name = path.relative_to(csrc).as_posix()
        total.update(f"{name} {len(content)}\n".encode() + content)
    return total.hexdigest()[:32]
