"""Install, wheel and source distribution, with and without a compiler, from a copy of the checkout.

Each install goes into a new virtual environment that sees this one's libraries (torch is large) by
a path file; nothing is fetched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IGNORED = (".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "_native.*")
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false", "SACCADE_REQUIRE_NATIVE": "0"}
# What must not be in a wheel: the scripts beside the root __init__.py, tests and C++ sources.
NOT_SHIPPED = re.compile(r"saccade/(setup\.py|conftest\.py|tests|csrc/(?!cuda/)|build|\.)")


def command(*argv: str | Path, cwd: Path, **env: str) -> str:
    """Run a command and return its output; its output is the failure's message."""
    # The build tools (ninja) of this environment serve the new one as well.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    full = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", **env}
    full.pop("PYTHONPATH", None)
    done = subprocess.run(
        [*map(str, argv)],
        cwd=cwd,
        env=full,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{' '.join(map(str, argv))}\n{done.stdout[-4000:]}"
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the checkout without anything that was built in it."""
    copy = tmp_path / "tree"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*IGNORED))
    return copy


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of a new virtual environment that sees this one's libraries."""
    command(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    interpreter = tmp_path / "venv" / "bin" / "python"
    where = command(
        interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    )
    (Path(where.strip()) / "reuse.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def install(python: Path, what: Path, **env: str) -> str:
    """`pip install` without dependencies; the verbose output."""
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-v", "--no-deps"]
    return command(*pip, "--no-build-isolation", what, cwd=what.parent, **env)


def doctor(python: Path, cwd: Path) -> dict[str, dict[str, str]]:
    """What the installed `saccade doctor` finds, by name."""
    out = command(python.parent / "saccade", "doctor", "--json", cwd=cwd)
    return {finding["name"]: finding for finding in json.loads(out)["findings"]}


def installed_from(python: Path, cwd: Path) -> Path:
    """The folder of the `saccade` that this interpreter imports."""
    return Path(
        command(python, "-c", "import saccade; print(saccade.__path__[0])", cwd=cwd).strip()
    )


@pytest.mark.slow
def test_install_with_a_compiler(tree: Path, python: Path, tmp_path: Path) -> None:
    """Only the portable kernels, to save minutes: `make` has compiled all of them by then."""
    out = install(python, tree, SACCADE_REQUIRE_NATIVE="1", SACCADE_BUILD_ISAS="portable")
    assert "were not built" not in out
    home = installed_from(python, tmp_path)
    assert home.is_relative_to(tmp_path / "venv")
    assert list(home.glob("_native.*"))
    found = doctor(python, tmp_path)
    assert found["compiled module"]["detail"].startswith(str(home))
    assert found["portable"]["state"] == "chosen"
    assert found["avx2"]["state"] == "unusable"


@pytest.mark.slow
def test_install_without_a_compiler(tree: Path, python: Path, tmp_path: Path) -> None:
    out = install(python, tree, **NO_COMPILER)
    said = [line for line in out.splitlines() if "were not built" in line]
    assert len(said) == 1
    assert "the torch references will serve" in said[0]
    found = doctor(python, tmp_path)
    assert found["compiled module"]["state"] == "missing"
    assert found["torch references"]["state"] == "chosen"


def test_a_failed_build_is_an_error_where_it_was_required(tree: Path) -> None:
    build = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tree / "out")]
    env = {**os.environ, **NO_COMPILER, "SACCADE_REQUIRE_NATIVE": "1"}
    done = subprocess.run(build, cwd=tree, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "/bin/false does not compile C++17" in done.stderr


@pytest.mark.slow
def test_wheel_by_way_of_the_source_distribution(tree: Path, python: Path, tmp_path: Path) -> None:
    env = {**NO_COMPILER, "SACCADE_NO_NATIVE": "1"}
    command(sys.executable, "-m", "build", "--no-isolation", "-o", tmp_path / "dist", tree,
            cwd=tmp_path, **env)  # fmt: skip
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        sources = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"csrc/native_build.py", "csrc/bindings.cpp", "LICENSE", "Makefile"} <= sources
    assert not any(name.endswith((".so", ".pyc")) for name in sources)

    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    assert not [name for name in shipped if NOT_SHIPPED.match(name)]
    assert {"saccade/__init__.py", "saccade/py.typed", "saccade/kernels/ops.py"} <= shipped
    demo = {f"saccade/engine/demo/{path.name}" for path in (ROOT / "engine/demo").glob("*.*")}
    assert demo <= shipped
    # NVRTC compiles these where the build did not.
    assert {f"saccade/csrc/cuda/{name}" for name in ("decode.cu", "device.cuh")} <= shipped
    modules = {
        f"saccade/{path.relative_to(ROOT).as_posix()}"
        for floor in ("engine", "kernels", "server", "benchmarks")
        for path in (ROOT / floor).rglob("*.py")
    }
    assert modules <= shipped

    install(python, wheel)
    assert doctor(python, tmp_path)["torch references"]["state"] == "chosen"
    assert "generate" in command(python.parent / "saccade", "--help", cwd=tmp_path)


def test_everything_that_make_installs_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["build-system"]["requires"] + project["project"]["dependencies"]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    pinned = {name.lower().replace("_", "-") for name in pins}
    names = {re.split(r"[<>=\[;]", requirement)[0].strip().lower() for requirement in wanted}
    assert names <= pinned
    assert pins["torch"] == "2.13.0"


def test_no_file_names_a_package_host() -> None:
    """The files that install things must work with whatever index a machine is set up for."""
    for name in ("Makefile", ".ci/run", "pyproject.toml", "constraints.txt", "setup.py"):
        assert "://" not in (ROOT / name).read_text(), name
