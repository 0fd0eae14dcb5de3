"""csrc/native_build.py on a stand-in source tree that compiles in a second."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from saccade.kernels import native_sources

ROOT = Path(__file__).resolve().parents[1]
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")

HEADER = "inline int base() { return 40; }\n"
BINDINGS = """#include "saccade/base.h"
int portable_step();
extern "C" __attribute__((visibility("default"))) int answer() { return base() + portable_step(); }
#if SACCADE_HAVE_AVX2
extern "C" __attribute__((visibility("default"))) int has_avx2() { return 1; }
#endif
"""
KERNEL = """#define JOIN(a, b) a##_##b
#define NAME(a, b) JOIN(a, b)
int NAME(SACCADE_ISA, step)() { return 2; }
"""


@pytest.fixture
def native_build(monkeypatch: pytest.MonkeyPatch, clean_environment: None) -> ModuleType:
    """The build helper, for an x86-64 machine without compiler variables."""
    path = ROOT / "csrc" / "native_build.py"
    spec = importlib.util.spec_from_file_location("native_build_under_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("CXX", "CXXFLAGS", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    return module


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A checkout with two small sources, one of them per instruction set."""
    sources = {
        "include/saccade/base.h": HEADER,
        "bindings.cpp": BINDINGS,
        "cpu/isa/step.cpp": KERNEL,
    }
    for name, text in sources.items():
        path = tmp_path / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def fake_compiler(folder: Path, refuses: str) -> Path:
    """A compiler that fails when a flag contains `refuses`."""
    path = folder / "cxx"
    path.write_text(f'#!/bin/sh\ncase "$*" in *{refuses}*) exit 1;; esac\nexit 0\n')
    path.chmod(0o755)
    return path


def test_unknown_flags_leave_an_instruction_set_out(
    native_build: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cxx = [str(fake_compiler(tmp_path, "-mamx"))]
    found = native_build.supported_variants(cxx, tmp_path)
    assert list(found) == ["portable", "avx2", "avx512", "avx512bf16"]
    (line,) = capsys.readouterr().out.splitlines()
    assert "cannot compile for amx" in line


def test_answers_of_the_compiler_are_kept(
    native_build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    real: Callable[[list[str], list[str], str], bool] = native_build.compiles

    def counting(cxx: list[str], flags: list[str], source: str) -> bool:
        asked.append(flags)
        return real(cxx, flags, source)

    monkeypatch.setattr(native_build, "compiles", counting)
    cxx = [str(fake_compiler(tmp_path, "-mamx"))]
    first = native_build.supported_variants(cxx, tmp_path)
    probes = len(asked)
    assert native_build.supported_variants(cxx, tmp_path) == first
    assert len(asked) == probes + 1  # only whether it compiles at all


@pytest.mark.parametrize(
    ("machine", "variables", "expected"),
    [
        ("x86_64", {}, ["portable", "avx2", "avx512", "avx512bf16", "amx"]),
        ("aarch64", {"SACCADE_BUILD_AMX_EMULATION": "1"}, ["portable"]),
        ("AMD64", {"SACCADE_BUILD_ISAS": "avx512 avx2"}, ["portable", "avx2", "avx512"]),
        ("x86_64", {"SACCADE_BUILD_ISAS": "portable"}, ["portable"]),
        (
            "x86_64",
            {"SACCADE_BUILD_ISAS": "amx_emulated", "SACCADE_BUILD_AMX_EMULATION": "1"},
            ["portable", "avx512", "avx512bf16", "amx_emulated"],
        ),
    ],
)
def test_wanted_instruction_sets(
    native_build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    variables: dict[str, str],
    expected: list[str],
) -> None:
    monkeypatch.setattr(native_build.platform, "machine", lambda: machine)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert list(native_build.wanted_variants()) == expected


@needs_compiler
def test_a_second_build_compiles_only_what_changed(
    native_build: ModuleType, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACCADE_BUILD_ISAS", "portable")
    library = native_build.build(stand_in)
    assert ctypes.CDLL(str(library)).answer() == 42
    folder = library.parent

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.o")}

    before = times()
    assert set(before) == {"bindings.o", "step.o"}
    native_build.build(stand_in)
    assert times() == before
    (stand_in / "csrc/include/saccade/base.h").write_text(HEADER.replace("40", "50"))
    native_build.build(stand_in)
    after = times()
    assert after["bindings.o"] > before["bindings.o"]
    assert after["step.o"] == before["step.o"]


@needs_compiler
def test_the_sources_are_compiled_in(
    native_build: ModuleType, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest changes with any source, and no other object for its sake."""
    monkeypatch.setenv("SACCADE_BUILD_ISAS", "portable")
    path = stand_in / "csrc/cpu/common/sources.cpp"
    path.parent.mkdir()
    visible = '__attribute__((visibility("default")))'
    path.write_text(f'extern "C" {visible} const char* digest() {{ return SACCADE_SOURCES; }}')

    def built() -> tuple[str, int]:
        library = native_build.build(stand_in)
        copy = shutil.copy(library, stand_in / f"{len(list(stand_in.iterdir()))}.so")  # loaded anew
        function = ctypes.CDLL(str(copy)).digest
        function.restype = ctypes.c_char_p
        return function().decode(), (library.parent / "bindings.o").stat().st_mtime_ns

    first = built()
    assert first[0] == native_sources.digest(stand_in / "csrc")
    kernel = stand_in / "csrc/cpu/isa/step.cpp"
    kernel.write_text(kernel.read_text() + "// changed\n")
    second = built()
    assert second[0] == native_sources.digest(stand_in / "csrc") != first[0]
    assert second[1] == first[1]


@needs_compiler
def test_a_source_that_does_not_compile_says_so(
    native_build: ModuleType, stand_in: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (stand_in / "csrc/bindings.cpp").write_text("int answer() { return no_such_name; }\n")
    with pytest.raises(native_build.NativeBuildError, match="did not compile"):
        native_build.build(stand_in)
    assert "no_such_name" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SACCADE_NO_NATIVE": "1"}, "SACCADE_NO_NATIVE=1 asks for none"),
        ({"CXX": "/no/such/compiler"}, "no C[+][+] compiler was found"),
        ({"CXX": "/bin/false"}, "/bin/false does not compile C[+][+]17"),
    ],
)
def test_why_nothing_was_built(
    native_build: ModuleType,
    stand_in: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    words: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(native_build.NativeBuildError, match=words):
        native_build.build(stand_in)


def test_missing_sources_are_named(native_build: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(native_build.NativeBuildError, match=r"csrc/bindings\.cpp is missing"):
        native_build.build(tmp_path)
