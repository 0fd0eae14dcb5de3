"""Other people's clients against a real server: litellm and LangChain."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from .running import Running

QUESTION = "add 1 and 2"
# litellm is asked in a process of its own: it changes settings of whatever imports it.
LITELLM = """
import os, sys
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices
import litellm
options = {"api_base": sys.argv[1] + "/v1", "api_key": "none", "max_tokens": 8, "temperature": 0}
messages = [{"role": "user", "content": sys.argv[2]}]
whole = litellm.completion("openai/tiny", messages, **options)
assert whole.usage.completion_tokens == 8, whole
parts = litellm.completion("openai/tiny", messages, stream=True, **options)
text = "".join(part.choices[0].delta.content or "" for part in parts)
assert text == whole.choices[0].message.content, (text, whole)
plain = litellm.text_completion(
    model="text-completion-openai/tiny", prompt="def add", **options
)
assert plain.choices[0].text and plain.choices[0].finish_reason == "length", plain
try:
    litellm.completion("openai/tiny", messages, **{**options, "temperature": -1})
except litellm.BadRequestError as error:
    assert "temperature" in str(error)
else:
    raise AssertionError("not refused")
print("fine")
"""


def test_litellm(server: Running) -> None:
    if find_spec("litellm") is None:
        pytest.skip("litellm (of the extra `dev`) is not installed")
    argv = [sys.executable, "-c", LITELLM, server.url, QUESTION]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.endswith("fine\n"), done.stderr[-3000:]


def test_langchain(server: Running) -> None:
    langchain = pytest.importorskip(
        "langchain_openai", reason="langchain-openai (of the extra `dev`) is not installed"
    )
    about: dict[str, Any] = {"base_url": f"{server.url}/v1", "api_key": "none", "max_retries": 0}
    chat = langchain.ChatOpenAI(model="tiny", temperature=0, max_tokens=8, **about)
    whole = chat.invoke(QUESTION)
    assert whole.usage_metadata["output_tokens"] == 8
    assert whole.response_metadata["finish_reason"] == "length"
    assert "".join(part.content for part in chat.stream(QUESTION)) == whole.content
    assert [each.content for each in chat.batch([QUESTION] * 3)] == [whole.content] * 3
    plain = langchain.OpenAI(model="tiny", temperature=0, max_tokens=8, **about)
    assert plain.invoke("def add") == "".join(plain.stream("def add")) != ""
    form = {"title": "answer", "type": "object", "properties": {"a": {"enum": [1, 2]}},
            "required": ["a"], "additionalProperties": False}  # fmt: skip
    roomy = langchain.ChatOpenAI(model="tiny", temperature=0, max_tokens=60, **about)
    asked = roomy.with_structured_output(form, method="json_schema")
    assert asked.invoke(QUESTION)["a"] in (1, 2)
