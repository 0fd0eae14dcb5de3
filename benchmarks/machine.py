"""Names the machine of a measurement by what decides its speed: CPU flags, cores, instruction set.

No host, user or vendor names: a result file must be comparable and must not say where it was made.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from .. import __version__
from ..engine.errors import RequestError
from ..kernels import native

FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
)


@dataclass(frozen=True)
class Machine:
    """One machine, as it was used in one run.

    isa: the instruction set of our kernels, or "reference" where torch served.
    cache_bytes: the largest cache of one core's path to memory, 0 when unknown.
    """

    architecture: str
    flags: tuple[str, ...]
    cores: int
    memory_bytes: int
    cache_bytes: int
    isa: str
    threads: int
    torch_threads: int

    def line(self) -> str:
        """The machine in one line of text."""
        flags = " ".join(self.flags) or "no vector flags known"
        memory = f"{self.memory_bytes / 2**30:.0f} GiB" if self.memory_bytes else "memory unknown"
        cores = f"{self.cores} core" + "s" * (self.cores != 1)
        return (
            f"{self.architecture}, {cores}, {memory}, flags: {flags}; our kernels: {self.isa}, "
            f"{self.threads} threads; torch: {self.torch_threads} threads"
        )


def describe() -> Machine:
    """This machine with the kernels and threads chosen now."""
    present = cpu_flags()
    return Machine(
        architecture=platform.machine() or "unknown",
        flags=tuple(flag for flag in FLAGS if flag in present),
        cores=usable_cores(),
        memory_bytes=memory_bytes(),
        cache_bytes=cache_bytes(),
        isa=native.chosen_isa() or "reference",
        threads=native.threads(),
        torch_threads=torch.get_num_threads(),
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """What was measured: saccade, torch, transformers ("not installed" where it is missing)."""
    found = {
        "saccade": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    try:
        found["transformers"] = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        found["transformers"] = "not installed"
    return found


def today() -> str:
    """The date, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Feature flags of the first processor; empty where the system does not list them."""
    try:
        lines = path.read_text().split("\n\n")[0].splitlines()
    except OSError:
        return frozenset()
    found = [line.split(":", 1)[1] for line in lines if line.startswith(("flags", "Features"))]
    return frozenset(" ".join(found).split())


def memory_bytes() -> int:
    """Physical memory, 0 when unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the largest cache, 0 when unknown."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    found = [0]
    for size in folder.glob("index*/size"):
        text = size.read_text().strip()
        if text[:-1].isdigit() and text[-1] in units:
            found.append(int(text[:-1]) * units[text[-1]])
    return max(found)


@contextmanager
def using(isa: str | None, threads: int | None) -> Iterator[Machine]:
    """Our kernels of this instruction set, and this many threads for us and for torch alike.

    None keeps what the process would choose (then torch gets our number of threads). Everything is
    as before afterwards. Raises RequestError when the machine cannot run `isa`.
    """
    wanted = {
        "SACCADE_ISA": isa or None,
        "SACCADE_NUM_THREADS": None if threads is None else str(threads),
    }
    forced = {name: value for name, value in wanted.items() if value is not None}
    before = {name: os.environ.get(name) for name in forced}
    torch_threads = torch.get_num_threads()
    try:
        _set_environment(forced)
        try:
            native.kernels()
            torch.set_num_threads(native.threads())
        except ValueError as error:
            raise RequestError(str(error), "isa") from error
        yield describe()
    finally:
        torch.set_num_threads(torch_threads)
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    """Sets (None: removes) variables, and makes the kernels read them again."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if values:
        native.chosen_isa.cache_clear()
        native.kernels.cache_clear()
