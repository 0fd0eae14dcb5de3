"""The floors: server -> engine -> kernels, and never back. Reads every import of the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("kernels", "engine", "server")
# What each part may import besides itself; `server` opens `benchmarks` in one command only.
BELOW = {
    "kernels": set(),
    "engine": {"kernels"},
    "server": {"engine", "kernels"},
    "benchmarks": {"engine", "kernels"},
}
BENCH_COMMAND = Path("server/commands/bench.py")
SCHEDULER_SIDE = ("request", "pages", "prefix", "scheduler", "memory")
IMPLEMENTATIONS = {"cpu", "triton", "cuda"}


@dataclass(frozen=True)
class Import:
    """One imported module, as a dotted name; modules of the package begin with `saccade`."""

    file: Path  # from the root
    line: int
    module: str
    top_level: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def sources(*parts: str) -> list[Path]:
    """The .py files of these parts, from the root."""
    found = [path for part in parts for path in (ROOT / part).rglob("*.py")]
    return sorted(path.relative_to(ROOT) for path in found)


def resolve(file: Path, node: ast.ImportFrom) -> str:
    """The absolute name of what a `from ... import` names."""
    if not node.level:
        return node.module or ""
    package = ["saccade", *file.parts[:-1]]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *(node.module or "").split(".")]).rstrip(".")


def imports(file: Path) -> Iterator[Import]:
    """Every import of a file, those inside functions and TYPE_CHECKING blocks too."""
    tree = ast.parse((ROOT / file).read_text(), str(file))
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, top)
        elif isinstance(node, ast.ImportFrom):
            module = resolve(file, node)
            yield Import(file, node.lineno, module, top)
            for alias in node.names:
                yield Import(file, node.lineno, f"{module}.{alias.name}", top)


def every_import(*parts: str) -> list[Import]:
    """The imports of all files of these parts."""
    return [each for file in sources(*parts) for each in imports(file)]


def names(each: Import, *modules: str) -> bool:
    """Whether it imports one of `modules` or something inside."""
    return any(each.module == name or each.module.startswith(f"{name}.") for name in modules)


def modules(each: Import) -> list[Path]:
    """The files of the package that it runs, packages included; none for another distribution."""
    parts = each.module.split(".")
    if parts[0] != "saccade":
        return []
    named = [Path(*parts[1:], "__init__.py"), Path(*parts[1:-1], f"{parts[-1]}.py")]
    return [path for path in named if (ROOT / path).exists()]


def refuse(found: list[Import]) -> None:
    """Fail with one line per forbidden import."""
    assert not found, "\n" + "\n".join(map(str, found))


@pytest.mark.parametrize("floor", BELOW)
def test_imports_only_go_down(floor: str) -> None:
    forbidden = {*BELOW, "tests"} - BELOW[floor] - {floor}
    targets = [f"saccade.{name}" for name in forbidden]
    assert sources(floor), f"no modules were found in {floor}/"
    refuse([each for each in every_import(floor) if names(each, *targets)])


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_import_each_other_relatively(floor: str) -> None:
    """Absolute `saccade.*` imports are for tests and benchmarks."""
    files = sources(floor)
    absolute = [
        f"{file}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if (isinstance(node, ast.ImportFrom) and not node.level and node.module)
        and node.module.split(".")[0] in {"saccade", *BELOW}
    ]
    assert not absolute


def test_only_the_bench_command_knows_benchmarks() -> None:
    """It builds the name at run time, so that nothing is imported until it is asked for."""
    knowing = [file for file in sources("server") if "benchmarks" in (ROOT / file).read_text()]
    assert knowing == [BENCH_COMMAND]
    tree = ast.parse((ROOT / BENCH_COMMAND).read_text())
    calls = [
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module"
    ]
    assert len(calls) == 1


def test_implementations_of_an_op_do_not_know_each_other() -> None:
    found = []
    for each in every_import("kernels"):
        if each.file.stem not in IMPLEMENTATIONS or len(each.file.parts) != 3:
            continue
        home = f"saccade.kernels.{each.file.parts[1]}"
        others = [f"{home}.{name}" for name in IMPLEMENTATIONS - {each.file.stem}]
        found += [each] if names(each, *others) else []
    refuse(found)


def test_references_know_no_implementation() -> None:
    compiled = [each for each in every_import("kernels") if each.file.stem == "reference"]
    assert compiled
    refuse(
        [each for each in compiled if each.module.split(".")[-1] in IMPLEMENTATIONS | {"native"}]
    )


def test_only_native_opens_the_compiled_module() -> None:
    """`_native` and cupy have one door; a string such as "saccade._native" counts as well."""
    knowing = set()
    for file in sources(*BELOW):
        text = (ROOT / file).read_text()
        if "saccade._native" in text or any(
            names(each, "saccade._native", "cupy") for each in imports(file)
        ):
            knowing.add(file.as_posix())
    assert knowing <= {"kernels/native.py"}


def test_only_spec_knows_the_methods() -> None:
    folder = ROOT / "engine" / "attention"
    methods = {path.stem for path in folder.glob("*.py")} - {
        *("__init__", "base", "experts", "parse", "policy", "protocols", "spec", "watch"),
    }
    assert methods
    targets = [f"saccade.engine.attention.{name}" for name in methods]
    inside = {f"engine/attention/{name}.py" for name in methods}
    found = [each for each in every_import(*FLOORS) if names(each, *targets)]
    allowed = {"engine/attention/spec.py", *inside}
    refuse([each for each in found if each.file.as_posix() not in allowed])


@pytest.mark.parametrize("module", SCHEDULER_SIDE)
def test_the_scheduler_side_never_sees_a_tensor(module: str) -> None:
    """Neither itself nor anything that it imports from the package may import torch."""
    seen: set[Path] = set()
    queue = [Path("engine") / f"{module}.py"]
    assert (ROOT / queue[0]).exists()
    while queue:
        file = queue.pop()
        seen.add(file)
        found = list(imports(file))
        refuse([each for each in found if names(each, "torch", "numpy", "saccade.kernels")])
        queue += [path for each in found for path in modules(each) if path not in seen]


def test_kernels_is_a_namespace() -> None:
    """A kernels/__init__.py would shadow another distribution's `kernels` in this folder."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    missing = [
        folder
        for floor in FLOORS
        for folder in {path.parent for path in sources(floor)} - {Path("kernels")}
        if not (ROOT / folder / "__init__.py").exists()
    ]
    assert not missing


def test_product_code_has_no_assert_and_no_pickle() -> None:
    found = []
    for file in sources(*FLOORS):
        tree = ast.parse((ROOT / file).read_text())
        asserts = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        found += [f"{file}:{line}" for line in asserts if file != Path("kernels/testing.py")]
    assert not found
    pickles = ("pickle", "marshal", "shelve", "dill", "cloudpickle")
    refuse([each for each in every_import(*FLOORS) if names(each, *pickles)])


def test_import_is_light() -> None:
    """`import saccade` takes under 100 ms (the best of five) and does not import torch."""
    program = (
        "import sys, time; start = time.perf_counter(); import saccade;"
        "took = time.perf_counter() - start;"
        "heavy = {'torch', 'numpy', 'transformers', 'tokenizers', 'rich'} & set(sys.modules);"
        "print(took, *sorted(heavy))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/"
        ).stdout.split()
        for _ in range(5)
    ]
    assert all(len(run) == 1 for run in runs), runs
    assert min(float(run[0]) for run in runs) < 0.1


def test_command_line_is_light() -> None:
    """The command line is read without torch."""
    program = (
        "import sys; from saccade.server.cli import build_parser; build_parser();"
        "print(*sorted({'torch', 'numpy', 'rich', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.split() == []


def test_public_names() -> None:
    import saccade

    assert set(saccade.__all__) <= set(dir(saccade))
    for name in saccade.__all__:
        assert getattr(saccade, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = saccade.no_such_name
