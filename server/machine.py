"""What `saccade doctor` looks at: the machine, the compiled kernels and the optional libraries.

Each look is guarded: a broken library becomes a finding, never a crash. Optional libraries are read
from their metadata and not imported, because some of them abort the process when their driver is
missing.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

CPU_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
OPTIONAL = {"triton": "triton", "flash-attn": "flash_attn", "cupy": "cupy"}
USES = {
    "triton": "kernels on a GPU; without it torch references serve there, slowly",
    "flash-attn": "dense attention of prompts on a GPU; without it cuDNN's on Hopper, else ours",
    "cupy": "loads the CUDA C++ kernels on a GPU",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked for.

    state: "chosen", "found" (usable and not chosen), "unusable" (here), "missing" or "broken".
    """

    group: str
    name: str
    state: str
    detail: str


def all_findings() -> list[Finding]:
    """Everything, in the order in which it is shown."""
    return [
        *system(),
        *torch_library(),
        *compiled_kernels(),
        *cuda_kernels(),
        *dense_attention(),
        *optional_libraries(),
        *gpu(),
    ]


def system() -> list[Finding]:
    """Python, the operating system, the processor and its memory."""
    cpu = cpu_info()
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    present = [flag for flag in CPU_FLAGS if flag in flags]
    absent = [flag for flag in CPU_FLAGS if flag not in flags]
    name = cpu.get("model name") or platform.processor() or platform.machine()
    rows = [
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("platform", platform.platform()),
        ("processor", f"{name}, {usable_cores()} of {os.cpu_count()} cores usable"),
        ("cpu flags", f"{' '.join(present) or 'none'}; without {' '.join(absent) or 'none'}"),
        ("memory", memory()),
    ]
    return [Finding("system", label, "found", text) for label, text in rows]


def cpu_info(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo; empty where there is none."""
    try:
        first = path.read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory(path: Path = Path("/proc/meminfo")) -> str:
    """Total and available memory in GiB, or "unknown"."""
    try:
        lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
        total, free = (int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError, IndexError):
        return "unknown"
    return f"{total / 2**20:.1f} GiB, {free / 2**20:.1f} GiB of them available"


def torch_library() -> list[Finding]:
    """torch, without which nothing runs."""
    try:
        import torch
    except Exception as error:  # noqa: BLE001 - a broken install fails in many ways
        return [Finding("libraries", "torch", "broken", first_line(error))]
    detail = f"{torch.__version__}, {torch.get_num_threads()} threads"
    return [Finding("libraries", "torch", "chosen", detail)]


def compiled_kernels() -> list[Finding]:
    """The compiled module and, for each instruction set, whether it was chosen and why."""
    try:
        from ..kernels import native

        compiled = native.module()
        rows = native.report()
    except Exception as error:  # noqa: BLE001 - e.g. no torch, or a forced set that cannot run
        return [Finding("kernels", "compiled module", "broken", first_line(error))]
    if compiled is None:
        references = Finding("kernels", "torch references", "chosen", "no compiled module")
        return [missing_module(), references]
    where = str(getattr(compiled, "__file__", "loaded"))
    found = [Finding("kernels", "compiled module", "found", where)]
    for row in rows:
        state = "unusable" if native.refusal(row.name) else "found"
        found.append(Finding("kernels", row.name, "chosen" if row.chosen else state, row.reason))
    if not any(row.chosen for row in rows):
        found.append(Finding("kernels", "torch references", "chosen", "SACCADE_ISA=reference"))
    return found


def missing_module() -> Finding:
    """Why there is no compiled module: it was never built, or it does not load."""
    package = Path(__file__).resolve().parents[1]
    files = sorted(path.name for path in package.glob("_native.*"))
    if files:
        why = f"{', '.join(files)} does not load in {sys.implementation.cache_tag}"
        return Finding("kernels", "compiled module", "broken", why)
    why = "not built: the install had no working C++ compiler"
    return Finding("kernels", "compiled module", "missing", why)


def cuda_kernels() -> list[Finding]:
    """The CUDA C++ kernels: whether they can run here, and how they come to be compiled."""
    try:
        from ..kernels import cuda_native

        usable, detail = cuda_native.state()
    except Exception as error:  # noqa: BLE001 - drivers fail in many ways
        return [Finding("kernels", "CUDA C++", "broken", first_line(error))]
    return [Finding("kernels", "CUDA C++", "found" if usable else "unusable", detail)]


def dense_attention() -> list[Finding]:
    """Who computes dense attention of prompts on the GPU, and why not the others."""
    try:
        from ..kernels.attend import dense_ways
        from ..kernels.gpu import gpu_missing

        if reason := gpu_missing():
            return [Finding("kernels", "dense attention on a GPU", "unusable", reason)]
        ways = dense_ways()
    except Exception as error:  # noqa: BLE001 - drivers and libraries fail in many ways
        return [Finding("kernels", "dense attention on a GPU", "broken", first_line(error))]
    return [
        Finding(
            "kernels",
            f"dense attention: {way}",
            "chosen" if reason == "chosen" else "unusable",
            "bf16, 128 channels, pages of 64" if reason == "chosen" else reason,
        )
        for way, reason in ways.items()
    ]


def optional_libraries() -> list[Finding]:
    """Libraries that other backends use, by their metadata."""
    return [optional_library(name, module) for name, module in OPTIONAL.items()]


def optional_library(name: str, module: str) -> Finding:
    """One optional library, and what it would be used for on a GPU."""
    use = USES.get(name, "not used")
    if find_spec(module) is None:
        return Finding("libraries", name, "missing", f"not installed (optional): {use}")
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = "unknown version"
    return Finding("libraries", name, "found", f"{version}: {use}")


def gpu() -> list[Finding]:
    """CUDA GPUs that torch can see, and whether `device="auto"` takes one."""
    try:
        import torch

        from ..kernels.gpu import gpu_missing

        reason = gpu_missing()
        names = [] if reason else [torch.cuda.get_device_name(0)]
    except Exception as error:  # noqa: BLE001 - drivers fail in many ways
        return [Finding("devices", "CUDA GPU", "broken", first_line(error))]
    if reason:
        cpu = Finding("devices", "CPU", "chosen", "there is no GPU")
        return [cpu, Finding("devices", "CUDA GPU", "missing", reason)]
    cpu = Finding("devices", "CPU", "found", "device='cpu' computes here")
    seen = f"{names[0]}: device='auto' computes here"
    return [cpu, Finding("devices", "CUDA GPU", "chosen", seen)]


def first_line(error: Exception) -> str:
    """An exception's type and first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
