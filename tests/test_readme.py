"""Every command and code block of README.md is run.

`make` targets install and build for minutes, so their recipes are read (`make -n`) and the part
that answers is run; installs by pip are run by test_packaging.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCE.findall(README)
SACCADE = [sys.executable, "-m", "saccade.server.cli"]
# Where a command that is too long for this test is run instead.
RUN_ELSEWHERE = {
    "pip install .": ("tests/test_packaging.py", "test_install_with_a_compiler"),
    "python -m build": ("tests/test_packaging.py", "test_wheel_by_way_of_the_source_distribution"),
    "saccade serve demo --port 8000 --max-model-len 4096": (
        "tests/test_readme.py",
        "test_python_example_with_a_server",
    ),
}
NEEDS_SERVER = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    """The fenced blocks in this language."""
    return [text for name, text in BLOCKS if name == language]


def commands() -> list[str]:
    """The command lines of all shell blocks, without comments."""
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in lines) if line]


def run(argv: list[str], cwd: Path = ROOT) -> str:
    """Run a command and return what it printed; a failure shows both streams."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{shlex.join(argv)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def recipe(target: str) -> list[str]:
    """The lines that `make` would run for a target."""
    return [line for line in run(["make", "-n", target]).splitlines() if line]


def test_the_blocks_are_of_a_kind_that_is_run() -> None:
    assert {name for name, _ in BLOCKS} <= {"bash", "python", "text"}
    assert blocks("python")
    assert {"make demo", "make test"} <= set(commands())


@pytest.mark.slow
@pytest.mark.parametrize("line", commands())
def test_command(line: str, tmp_path: Path) -> None:
    argv = shlex.split(line)
    if line in RUN_ELSEWHERE:
        file, test = RUN_ELSEWHERE[line]
        assert f"def {test}(" in (ROOT / file).read_text()
    elif argv[0] == "make":
        assert recipe(argv[1])
    else:
        assert argv[0] == "saccade", f"no test knows how to run {line!r}"
        assert run([*SACCADE, *argv[1:]], ROOT)


@pytest.mark.slow
def test_make_demo_answers_the_prompt() -> None:
    """The command of `make demo` finds the pass key of its prompt."""
    (line,) = [line for line in recipe("demo") if "/saccade generate" in line]
    argv = shlex.split(line)[1:]
    prompt = (ROOT / argv[argv.index("--prompt-file") + 1]).read_text()
    hidden = re.search(r"pass key is (\d+)", prompt)
    assert hidden
    assert not prompt.rstrip().endswith(hidden[1])
    assert hidden[1] in run([*SACCADE, *argv])


@pytest.mark.slow
@pytest.mark.parametrize("program", [p for p in blocks("python") if NEEDS_SERVER in p])
def test_python_example_with_a_server(program: str, tmp_path: Path) -> None:
    """The server of the README's command, at a port that is free."""
    (line,) = [line for line in commands() if line.startswith("saccade serve")]
    argv = [*SACCADE, *shlex.split(line.replace("--port 8000", "--port 0"))[1:]]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = ""
            for logged in server.stderr or ():
                if '"event":"listening"' in logged:
                    url = json.loads(logged)["url"]
                if '"event":"the engine is ready"' in logged:
                    break
            assert url and "keys_read" in run(
                [sys.executable, "-c", program.replace(NEEDS_SERVER, url)], tmp_path
            )
        finally:
            server.terminate()
            assert server.wait(20) == 0


@pytest.mark.slow
@pytest.mark.parametrize("program", [p for p in blocks("python") if NEEDS_SERVER not in p])
def test_python_example(program: str, tmp_path: Path) -> None:
    assert len(program.splitlines()) <= 10
    assert run([sys.executable, "-c", program], tmp_path)


def test_the_table_of_methods_is_honest() -> None:
    """Exactly the methods that `saccade methods` lists are marked as working."""
    from saccade.engine.attention.spec import describe_methods

    rows = re.findall(r"^\| `(\w+)` \|(.*)\|\s*([\w ]+?)\s*\|$", README, re.MULTILINE)
    works = {name for name, _, today in rows if today == "yes"}
    assert works == {method.name for method in describe_methods()}
    assert all(today in {"yes", "not yet"} for _, _, today in rows)


def test_the_files_it_names_exist() -> None:
    named = re.findall(r"`((?:engine|kernels|csrc|server|tests|benchmarks)/[\w./]*)`", README)
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_no_link_to_nowhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert not [target for target in targets if not (ROOT / target).exists()]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
