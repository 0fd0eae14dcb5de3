"""The playground: one page that needs nothing from elsewhere, and works in a real browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from saccade.server.playground import Page, playground

from . import browser
from .conftest import Serve
from .running import Running

VOID = {"meta", "link", "input", "br", "img"}


class Outline(HTMLParser):
    """Elements, and whether they nest."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(content)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_is_one_file_that_loads_nothing() -> None:
    content = playground().content
    assert not re.findall(r"(?:https?:)?//[a-z]|@import|url\(", content)
    elements = Outline(content).elements
    assert all("src" not in attributes and "style" not in attributes for _, attributes in elements)
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    assert "innerHTML" not in content and "eval(" not in content
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'at\("([^"]+)"\)', content)) <= set(ids)


def test_every_control_has_a_name() -> None:
    content = playground().content
    labelled = set(re.findall(r'<label for="([^"]+)"', content))
    for body in re.findall(r"<label>(.*?)</label>", content, re.DOTALL):
        labelled |= set(re.findall(r'<(?:input|select|textarea) id="([^"]+)"', body))
    controls = re.findall(r'<(?:input|select|textarea|meter) id="([^"]+)"', content)
    assert controls and set(controls) <= labelled


def test_its_headers_hold_it_to_itself(server: Running) -> None:
    reply = server.http.get("/")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/html")
    assert reply.text == playground().content
    policy = reply.headers["content-security-policy"]
    for part in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"):
        assert part in policy
    assert "unsafe" not in policy and policy.count("'sha256-") == 2
    assert reply.headers["x-content-type-options"] == "nosniff"
    docs = server.http.get("/docs").headers["content-security-policy"]
    assert "script-src 'none'" in docs and docs.count("'sha256-") == 1
    assert Page.of("<script>a</script>").headers != Page.of("<script>b</script>").headers


def test_in_a_browser(serve: Serve, tmp_path: Path) -> None:
    program = browser.found()
    if program is None:
        pytest.skip("Chromium, in which the page is tried, is not installed")
    server = serve("--api-key", "sesame")
    page = browser.Browser(program, tmp_path / "profile")
    try:
        converse(page, server, tmp_path)
    finally:
        page.close()


def converse(page: browser.Browser, server: Running, folder: Path) -> None:
    """Two answers, one of them refused and one under another policy."""
    page.call("Page.navigate", url=server.url)
    page.until("at('model').textContent.includes('API key')")
    page.evaluate("at('key').value = 'sesame'; at('key').dispatchEvent(new Event('change'))")
    page.until("at('model').textContent.includes('tiny')")
    page.errors.clear()  # the first 401 is one
    send(page, "Say <b>something</b>.", "at('max_tokens').value = 40; at('seed').value = 1")
    told = page.until("document.querySelector('article.assistant small')?.textContent")
    assert "40 tokens" in told and "of keys read in decode" in told
    assert page.evaluate("document.querySelector('article.user pre').textContent").startswith(
        "Say <"
    )
    send(page, "def add", "at('attention').value = 'nonsense'")
    page.until("document.querySelector('article.wrong small')?.textContent.includes('nonsense')")
    send(page, "def add", "at('attention').value = 'window(32)'; at('form').value = 'text'")
    page.until("document.querySelectorAll('article.assistant:not(.wrong) small').length === 2")
    page.until("at('m-pages').textContent.includes('of')")
    page.picture(folder / "playground.png")
    assert {url.split("/")[2] for url in page.requests if url.startswith("http")} == {
        server.url.removeprefix("http://")
    }
    assert [error for error in page.errors if "400" not in error] == []


THINKING = """{% for m in messages %}
[{{ m.role }}]{{ m.reasoning_content or '' }}</think>{{ m.content }}
{% endfor %}{% if add_generation_prompt %}[assistant]<think>{% endif %}"""
LONG = "at('max_tokens').value = 400; at('temperature').value = 1; at('seed').value = 1"
WRITES = "at('log').lastChild?.querySelector('pre').textContent.length > 5"
ROLES = "talk.map(each => each.role).join()"


def test_what_changes_while_an_answer_streams(serve: Serve, tmp_path: Path) -> None:
    program = browser.found()
    if program is None:
        pytest.skip("Chromium, in which the page is tried, is not installed")
    server = serve()
    page = browser.Browser(program, tmp_path / "profile")
    try:
        page.call("Page.navigate", url=server.url)
        page.until("at('model').textContent.includes('tiny')")
        send(page, "first", LONG)
        page.until(f"{WRITES} && running !== null")
        page.evaluate("at('clear').click()")  # the answer is given up, and no part of what follows
        assert page.evaluate("running === null && talk.length === 0 && !at('log').firstChild")
        send(page, "second", "at('max_tokens').value = 3")
        page.until("running === null && !!document.querySelector('article.assistant small')")
        assert page.evaluate(f"{ROLES} + talk[0].content") == "user,assistantsecond"
        page.until("at('m-running').textContent === '0'")
        for form, other, roles in (("chat", "text", "user,assistant"), ("text", "chat", "")):
            page.evaluate(f"at('clear').click(); at('form').value = '{form}'")
            send(page, "third", LONG)
            page.until(f"{WRITES} && running !== null")
            page.evaluate(f"at('form').value = '{other}'; at('stop').click()")
            page.until("running === null")
            assert page.evaluate(ROLES) == roles
        assert not page.errors
    finally:
        page.close()


def test_models_that_think_and_models_that_cannot_chat(serve: Serve, tmp_path: Path) -> None:
    program = browser.found()
    if program is None:
        pytest.skip("Chromium, in which the page is tried, is not installed")
    (tmp_path / "thinking.jinja").write_text(THINKING)
    thinking = serve("--chat-template", str(tmp_path / "thinking.jinja"))
    mute = serve(model="demo")
    page = browser.Browser(program, tmp_path / "profile")
    try:
        page.call("Page.navigate", url=thinking.url)
        page.until("at('model').textContent.includes('tiny')")
        assert page.evaluate("at('form').value") == "chat"
        send(page, "why", "at('max_tokens').value = 8")
        page.until("running === null && !!document.querySelector('article.assistant small')")
        thought = page.evaluate("document.querySelector('pre.thought').textContent")
        assert page.evaluate("talk[1].reasoning_content") == thought != ""
        assert page.evaluate("talk[1].content") == ""
        send(page, "and then", "1")
        page.until("running === null && document.querySelectorAll('article small').length === 2")
        assert page.evaluate("talk.length") == 4, page.evaluate("at('log').innerText")
        page.call("Page.navigate", url=mute.url)
        page.until("at('model').textContent.includes('demo')")
        assert page.evaluate("at('form').value") == "text"
        assert mute.http.get("/v1/models").json()["data"][0]["has_chat_template"] is False
        assert not page.errors
    finally:
        page.close()


def send(page: browser.Browser, prompt: str, settings: str) -> None:
    """Fills in and sends."""
    page.evaluate(f"{settings}; at('prompt').value = {prompt!r}; at('ask').requestSubmit()")
