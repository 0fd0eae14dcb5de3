"""Compile csrc/cuda into fat binaries with nvcc and ninja, for SACCADE_CUDA=1: setup.py's helper,
which does not ship. Without them the kernels are compiled at first use.
"""

import os
import shlex
import shutil
import sysconfig
from pathlib import Path

from native_build import NativeBuildError, escape, module_of_kernels, run_ninja

CUDA_RULES = """ninja_required_version = 1.5
rule fatbin
  command = $nvcc $flags -MD -MF $out.d -fatbin $in -o $out
  depfile = $out.d
  deps = gcc
  description = nvcc $out
"""


def find_nvcc() -> str:
    """$NVCC, else nvcc on the path, of $CUDA_HOME, or of the nvidia-cuda-nvcc package."""
    named = os.environ.get("NVCC", "")
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvcc"))
    for command in [named] if named else ["nvcc", str(home), *map(str, packaged)]:
        if shutil.which(command):
            return command
    raise NativeBuildError(
        f"no nvcc was found ({named or '$NVCC, path, $CUDA_HOME, nvidia-cuda-nvcc'})"
    )


def build_cuda(root: Path) -> list[Path]:
    """Fat binaries of the CUDA kernels under build/, in folders as in the package: machine code for
    each target, and PTX, from which a driver compiles for later GPUs. Raises NativeBuildError.
    """
    sources = module_of_kernels("cuda_sources")
    folder = root / "build" / "ninja-cuda"
    targets = {**sources.TARGETS, "compute_80": "compute_80"}
    flags = [f"-gencode=arch={arch},code={code}" for code, arch in targets.items()]
    text = [
        CUDA_RULES,
        f"nvcc = {find_nvcc()}\n",
        f"flags = {shlex.join([*sources.OPTIONS, *flags])}\n",
    ]
    built = [sources.compiled(unit).relative_to(sources.PACKAGE) for unit in sources.UNITS]
    for unit, path in zip(sources.UNITS, built, strict=True):
        text.append(f"build {escape(path)}: fatbin {escape(sources.SOURCES / f'{unit}.cu')}\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text("".join(text))
    run_ninja(folder)
    return [folder / path for path in built]
