"""The build: this folder *is* the package, and ninja compiles csrc/ into `saccade._native`.

SACCADE_NO_NATIVE=1 skips the compiled module, SACCADE_REQUIRE_NATIVE=1 makes its failure an error
(else it costs one printed line), SACCADE_BUILD_ISAS="avx2 avx512" builds only these instruction
sets and the portable one, SACCADE_BUILD_AMX_EMULATION=1 adds an emulated AMX build for tests.
SACCADE_CUDA=1 compiles the CUDA kernels with nvcc (else NVRTC does when they are first used).
Everything else is in pyproject.toml.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NOT_BUILT = "saccade: the compiled kernels were not built"
FLOORS = ("engine", "kernels", "server", "benchmarks")

sys.path.insert(0, str(ROOT / "csrc"))
import cuda_build  # noqa: E402
import native_build  # noqa: E402

sys.path.pop(0)


def packages() -> list[str]:
    """`saccade`, its floors (`kernels` has no __init__.py on purpose) and the packages below."""
    found = ["saccade"]
    for floor in FLOORS:
        below = {init.parent.relative_to(ROOT) for init in (ROOT / floor).rglob("__init__.py")}
        found += sorted(".".join(["saccade", *folder.parts]) for folder in below | {Path(floor)})
    return found


class BuildPy(build_py):
    """Copies the modules: no scripts from beside the root `__init__.py`, nothing from before."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "saccade", ignore_errors=True)
        super().run()

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [entry for entry in modules if package != "saccade" or entry[1] == "__init__"]


class BuildNative(build_ext):
    """Builds the extension with ninja; a machine that cannot compile gets the torch references."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        if os.environ.get("SACCADE_CUDA") == "1":
            self.build_cuda(target.parent)
        try:
            built = native_build.build(ROOT, warn=bool(self.inplace))
        except native_build.NativeBuildError as error:
            if os.environ.get("SACCADE_REQUIRE_NATIVE") == "1":
                raise SystemExit(f"{NOT_BUILT}: {error}") from error
            print(f"{NOT_BUILT}: {error}; the torch references will serve", file=sys.stderr)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(".new")
        shutil.copy2(built, fresh)
        fresh.replace(target)  # in one move: a process that has the old module mapped keeps it

    def build_cuda(self, package: Path) -> None:
        """Fat binaries of the CUDA kernels into the package; who asks for them needs them."""
        try:
            built = cuda_build.build_cuda(ROOT)
        except native_build.NativeBuildError as error:
            raise SystemExit(f"saccade: SACCADE_CUDA=1, but {error}") from error
        folder = package / built[0].relative_to(ROOT / "build" / "ninja-cuda").parent
        shutil.rmtree(folder, ignore_errors=True)  # what older sources left
        folder.mkdir(parents=True)
        for each in built:
            shutil.copy2(each, folder / each.name)

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]


setup(
    packages=packages(),
    package_dir={"saccade": "."},
    # NVRTC compiles the CUDA sources where the build did not.
    package_data={
        "saccade": ["py.typed", "csrc/cuda/*.cu", "csrc/cuda/*.cuh"],
        "saccade.engine": ["demo/*"],
        "saccade.server": ["*.html"],
    },
    ext_modules=[Extension("saccade._native", sources=[], optional=True)],
    cmdclass={"build_py": BuildPy, "build_ext": BuildNative},
)
