"""Servers for tests: one for the session, and as many of one's own as a test wants."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..engine.tiny import write_tiny
from .running import Running

Serve = Callable[..., Running]

TEMPLATE = """{{ bos_token }}{% for message in messages %}\
{% if message.role not in ('system', 'user', 'assistant', 'tool') %}\
{{ raise_exception('no role ' ~ message.role) }}{% endif %}\
[{{ message.role }}]{{ message.content }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
SMALL = ("--page-size", "16", "--kv-cache-memory", "8MiB", "--max-num-seqs", "16")


@pytest.fixture(scope="session", autouse=True)
def hearing() -> Iterator[None]:
    """Under nohup, or in the background of a script, these signals are ignored, and a server would
    inherit that from its test.
    """
    deaf = [each for each in (signal.SIGHUP, signal.SIGINT) if not _heard(each)]
    for each in deaf:
        signal.signal(each, signal.SIG_DFL)
    yield
    for each in deaf:
        signal.signal(each, signal.SIG_IGN)


def _heard(number: int) -> bool:
    return signal.getsignal(number) != signal.SIG_IGN


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with a tokenizer (320 tokens of bytes) and a chat template."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny(folder, "llama", tokenizer=True, max_position_embeddings=512)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that many tests share: whoever uses it leaves it as it was."""
    names = ("--served-model-name", "tiny", "alias/of-it")
    running = Running(tmp_path_factory.mktemp("logs"), tiny, *SMALL, *names)
    running.wait_ready()
    yield running
    pages = running.pages()
    assert pages["used"] == 0, pages
    assert running.stop() == 0


@pytest.fixture
def serve(tiny: Path, tmp_path: Path) -> Iterator[Serve]:
    """`serve(*options, model=...)` -> a server of one's own; it is ready unless ready=False."""
    made: list[Running] = []

    def make(*options: str, model: str | Path = tiny, ready: bool = True) -> Running:
        made.append(Running(tmp_path, model, *SMALL, *options))
        if ready:
            made[-1].wait_ready()
        return made[-1]

    yield make
    for running in made:
        running.stop()
