"""Work that is awaited for a limited time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from saccade.engine.bounded_work import BoundedWork

# A schema that takes a second or two, of which a tenth is waited. Then the script ends, and its
# interpreter takes longer about it than the schema does.
ABANDONED = """
import sys
import time
from pathlib import Path
from saccade.engine.errors import RequestError
from saccade.engine.grammar import GrammarCompiler
from saccade.engine.structure import Structure
from saccade.engine.tokenizer import Tokenizer
from saccade.engine.tokenizer_files import read_tokenizer_files

tokenizer = Tokenizer(read_tokenizer_files(Path(sys.argv[1])))
class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(4)

slow = Slow()
fields = {f"name{number}": {"type": "string"} for number in range(3000)}
compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, [0], seconds=0.1)
try:
    compiler.compile(Structure.json_schema({"type": "object", "properties": fields}))
except RequestError as error:
    print(error)
"""


@pytest.fixture
def work() -> BoundedWork[int]:
    return BoundedWork("test-work", 1, 1 << 20)


def test_what_it_returns_and_raises(work: BoundedWork[int]) -> None:
    usual = threading.stack_size()
    assert work.run(lambda: 3, 10) == 3
    with pytest.raises(ZeroDivisionError):
        work.run(lambda: 1 // 0, 10)
    assert work.run(lambda: 4, 10) == 4
    assert threading.stack_size() == usual


def test_it_is_not_awaited_for_longer_and_keeps_its_place(work: BoundedWork[int]) -> None:
    go = threading.Event()
    for _ in range(2):  # the second waits for the place of the first
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            work.run(lambda: go.wait(20), 0.1)
        assert time.monotonic() - began >= 0.1
    go.set()
    assert work.run(lambda: 5, 10) == 5


def test_a_system_without_threads(work: BoundedWork[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            work.run(lambda: 3, 10)
    assert work.run(lambda: 3, 10) == 3


def test_a_script_ends_well_while_a_structure_is_compiled_for_nobody() -> None:
    import saccade.engine

    demo = f"{saccade.engine.__path__[0]}/demo"
    command = [sys.executable, "-c", ABANDONED, demo]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "longer than 0.1 seconds" in done.stdout
