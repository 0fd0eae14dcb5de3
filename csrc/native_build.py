"""Compile csrc/ into the extension module with ninja: setup.py's helper, which does not ship.

`csrc/bindings.cpp` and the .cpp files of `csrc/cpu` are compiled once with baseline flags; they
see -DSACCADE_HAVE_<NAME>=1 for every instruction set that was compiled. Those of `csrc/cpu/isa`
are compiled once per instruction set of `VARIANTS`, with -DSACCADE_ISA=<name>; of a set in `NEWER`
only the files in which it gains, with -DSACCADE_OLDER=<the set that it takes the rest from>.
Everything is written under `build/ninja-<abi>`, so a second build compiles only what changed.
"""

import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

COMMON = [
    *[
        "-O3",
        "-std=c++17",
        "-fPIC",
        "-fvisibility=hidden",
        "-pthread",
    ],
    # The same memory holds elements and vectors of them, scores and then rounded probabilities.
    *["-ffp-contract=off", "-fno-math-errno", "-fno-strict-aliasing"],
]
# For those who change the sources: looking for what to warn of is 7 % of a compilation.
WARNINGS = ["-Wall", "-Wextra", "-Wno-maybe-uninitialized"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]
VARIANTS = {  # from the oldest machine to the newest; the link order depends on it
    # -O1 takes 20 s of a CPU less than -O3, and its attention is no slower (benchmarks/NOTES.md).
    "portable": ["-O1"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512bf16": [*AVX512, "-mavx512bf16"],
    "amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}
# AMX with its tile instructions emulated, to test it on machines that stop at AVX-512-BF16.
EMULATED = {"amx_emulated": [*AVX512, "-mavx512bf16", "-DSACCADE_AMX_EMULATE=1"]}
# What adds products of bf16 alone: the set it takes all else from, and the files it gains in.
TILES = ("attend", "blocks", "compressed", "linear", "results", "select_keys", "turns", "units")
DOTS = (*TILES, "bounds", "pooled")
NEWER = {
    "avx512bf16": ("avx512", DOTS),
    "amx": ("avx512bf16", TILES),
    "amx_emulated": ("avx512bf16", TILES),
}

RULES = """ninja_required_version = 1.5
rule compile
  command = $cxx $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $out
rule precompile
  command = $cxx $flags -MMD -MF $out.d -x c++-header $in -o $out
  depfile = $out.d
  deps = gcc
  description = precompile $out
rule link
  command = $cxx $flags @$out.rsp -o $out
  rspfile = $out.rsp
  rspfile_content = $in
  description = link $out
"""


class NativeBuildError(Exception):
    """The compiled module could not be built; the message is one line that says why."""


def find_compiler() -> list[str]:
    """The C++ compiler's command line: $CXX, else the first of c++, g++, clang++ on the path."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise NativeBuildError(
        f"no C++ compiler was found ({'$CXX' if named else 'c++, g++, clang++'})"
    )


def compiles(cxx: list[str], flags: list[str], source: str) -> bool:
    """Whether the compiler takes `source` with `flags`."""
    command = [*cxx, *flags, "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    return subprocess.run(command, input=source, text=True, capture_output=True).returncode == 0


def wanted_variants() -> dict[str, list[str]]:
    """The instruction sets worth asking this machine's compiler for; `portable` always."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return {"portable": []}
    emulated = os.environ.get("SACCADE_BUILD_AMX_EMULATION") == "1"
    known = VARIANTS | (EMULATED if emulated else {})
    named = set(os.environ.get("SACCADE_BUILD_ISAS", "").split() or known) | {"portable"}
    for name in reversed(known):
        if name in named and name in NEWER:
            named.add(NEWER[name][0])
    return {name: flags for name, flags in known.items() if name in named}


def supported_variants(cxx: list[str], folder: Path) -> dict[str, list[str]]:
    """The wanted instruction sets that the compiler knows; one printed line names each other one.

    The compiler's answers are kept in `folder`. Raises NativeBuildError for a compiler that does
    not compile C++17 at all.
    """
    version = subprocess.run([*cxx, "--version"], capture_output=True, text=True).stdout
    if not compiles(cxx, [], "#include <vector>\n"):
        raise NativeBuildError(f"{shlex.join(cxx)} does not compile C++17")
    memo = folder / "probes.json"
    known = json.loads(memo.read_text()) if memo.exists() else {}
    found = {}
    for name, flags in wanted_variants().items():
        key = json.dumps([cxx, version, flags])
        if key not in known:
            known[key] = not flags or compiles(cxx, flags, "#include <immintrin.h>\n")
        if known[key] and (name not in NEWER or NEWER[name][0] in found):
            found[name] = flags
        else:
            print(f"saccade: {shlex.join(cxx)} cannot compile for {name}: it is left out")
    memo.write_text(json.dumps(known))
    return found


def module_of_kernels(name: str) -> ModuleType:
    """A module of kernels/, without the package around it, which needs torch."""
    path = Path(__file__).resolve().parents[1] / "kernels" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def escape(path: Path | str) -> str:
    """A path as ninja writes it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def link_flags() -> list[str]:
    """How this system links an extension module."""
    if sys.platform == "darwin":
        return ["-bundle", "-undefined", "dynamic_lookup"]
    return ["-shared", "-pthread"]


def units(csrc: Path, variants: dict[str, list[str]]) -> list[tuple[Path, str, list[str]]]:
    """Every (source, object name, flags), baseline files first and old instruction sets before new.

    Where several objects hold the same inline function the linker keeps the first one, which must
    be one that every machine with the later instruction sets can run: hence the order.
    """
    import pybind11

    have = [f"-DSACCADE_HAVE_{name.upper()}=1" for name in variants]
    python = ["-isystem", sysconfig.get_path("include"), "-isystem", pybind11.get_include()]
    digest = [f'-DSACCADE_SOURCES="{module_of_kernels("native_sources").digest(csrc)}"']
    isa = csrc / "cpu" / "isa"
    # The bindings are all templates and no arithmetic: -O1 halves the longest compile of all.
    found = [(csrc / "bindings.cpp", "bindings.o", [*have, *python, "-O1"])]
    for source in sorted((csrc / "cpu").rglob("*.cpp")):
        if isa not in source.parents:
            flags = digest if source.name == "sources.cpp" else have
            found.append((source, f"{source.relative_to(csrc).with_suffix('')}.o", flags))
    for name, flags in variants.items():
        for source in sorted(isa.glob("*.cpp")):
            if name not in NEWER or source.stem in (*NEWER[name][1], "table"):
                found.append((source, f"{name}/{source.stem}.o", isa_flags(name, flags)))
    return found


def isa_flags(name: str, flags: list[str]) -> list[str]:
    """The flags of an instruction set's objects, beyond those of every object."""
    older = [f"-DSACCADE_OLDER={NEWER[name][0]}"] if name in NEWER else []
    return [*flags, f"-DSACCADE_ISA={name}", *older]


def write_prefix(csrc: Path, folder: Path) -> Path | None:
    """A header in `folder` that stands for `simd.h`, to be compiled once for all who include it.

    Half of a small file's compilation is reading the compiler's header of intrinsics. A compiler
    that cannot use the result reads the header itself.
    """
    header, prefix = csrc / "cpu" / "isa" / "simd.h", folder / "simd.h"
    if not header.exists():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    text = f'#include "{header}"\n'
    if not prefix.exists() or prefix.read_text() != text:
        prefix.write_text(text)
    return prefix


def write_ninja(root: Path, folder: Path, cxx: list[str], target: str, warn: bool) -> None:
    """Write build.ninja into `folder`."""
    csrc = root / "csrc"
    base = [
        *COMMON,
        *(WARNINGS if warn else []),
        f"-I{csrc / 'include'}",
        *shlex.split(os.environ.get("CXXFLAGS", "")),
    ]
    text, objects, prefixes = [RULES, f"cxx = {shlex.join(cxx)}\n"], [], {}
    variants = supported_variants(cxx, folder)
    for isa, own in variants.items():
        prefix = write_prefix(csrc, folder / isa)
        if prefix is not None:
            prefixes[isa] = prefix
            text.append(
                f"build {escape(f'{isa}/{prefix.name}.gch')}: precompile {escape(prefix)}\n"
            )
            text.append(f"  flags = {shlex.join([*base, *isa_flags(isa, own)])}\n")
    for source, name, flags in units(csrc, variants):
        objects.append(escape(name))
        prefix = prefixes.get(name.partition("/")[0])
        needs = f" | {escape(f'{prefix.parent.name}/{prefix.name}.gch')}" if prefix else ""
        include = ["-include", str(prefix)] if prefix else []
        text.append(f"build {escape(name)}: compile {escape(source)}{needs}\n")
        text.append(f"  flags = {shlex.join([*base, *flags, *include])}\n")
    text.append(f"build {escape(target)}: link {' '.join(objects)}\n")
    text.append(f"  flags = {shlex.join(link_flags())}\n")
    text.append(f"default {escape(target)}\n")
    (folder / "build.ninja").write_text("".join(text))


def run_ninja(folder: Path) -> None:
    """Run ninja in `folder`; the end of its output is shown when it fails."""
    try:
        from ninja import BIN_DIR
    except ImportError:
        BIN_DIR = ""
    program = shutil.which("ninja", path=BIN_DIR or None)
    if program is None:
        raise NativeBuildError("ninja was not found")
    command = [
        program,
        "-C",
        str(folder),
        "-j",
        os.environ.get("MAX_JOBS", str(os.cpu_count() or 1)),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout[-8000:], file=sys.stderr)
        raise NativeBuildError(
            "a file of csrc/ did not compile (the compiler's messages are above)"
        )
    warnings = [line for line in done.stdout.splitlines() if "warning:" in line]
    print("\n".join(warnings[:40]) or done.stdout.strip().splitlines()[-1])


def build(root: Path, warn: bool = False) -> Path:
    """Build the extension module of the checkout `root` and return its path under build/.

    warn: the compiler's warnings are shown. Raises NativeBuildError.
    """
    if os.environ.get("SACCADE_NO_NATIVE") == "1":
        raise NativeBuildError("SACCADE_NO_NATIVE=1 asks for none")
    if not (root / "csrc" / "bindings.cpp").exists():
        raise NativeBuildError("csrc/bindings.cpp is missing")
    cxx = find_compiler()
    folder = root / "build" / f"ninja-{sysconfig.get_config_var('SOABI') or 'python'}"
    folder.mkdir(parents=True, exist_ok=True)
    target = f"_native{sysconfig.get_config_var('EXT_SUFFIX') or '.so'}"
    write_ninja(root, folder, cxx, target, warn)
    run_ninja(folder)
    return folder / target
