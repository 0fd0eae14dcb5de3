"""/docs: the specification as one page of HTML, without scripts or anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

Json = dict[str, Any]
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
code { font: 0.9em ui-monospace, monospace; }
details { border: 1px solid #8884; border-radius: 6px; margin: 0.5rem 0; padding: 0.5rem 1rem; }
summary { cursor: pointer; }
table { border-collapse: collapse; margin: 0.5rem 0; width: 100%; }
td, th { border-top: 1px solid #8884; padding: 0.2rem 0.8rem 0.2rem 0; text-align: left;
  vertical-align: top; }
"""


def page(document: Json) -> str:
    """The whole page."""
    info = document["info"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    return "".join(
        [
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width">',
            f"<style>{_STYLE}</style><h1>{title}</h1><p>{escape(info['description'])} ",
            'For programs: <a href="openapi.json">openapi.json</a>.</p>',
            "<h2>Addresses</h2>",
            *operations(document),
            "<h2>Shapes</h2>",
            *shapes(document),
        ]
    )


def operations(document: Json) -> Iterator[str]:
    """A fold per method and path."""
    for path, methods in document["paths"].items():
        for method, each in methods.items():
            yield f"<details><summary><code><b>{method.upper()}</b> {escape(path)}</code> "
            yield f"{escape(each['summary'])}</summary>"
            for media, content in each.get("requestBody", {}).get("content", {}).items():
                yield f"<p>Body, {escape(media)}: {kind(content['schema'])}</p>"
            yield "<table><tr><th>status<th>reply<th>"
            for status, reply in each["responses"].items():
                kinds = [
                    f"{escape(media)}: {kind(content['schema'])}"
                    for media, content in reply.get("content", {}).items()
                ]
                yield f"<tr><td>{status}<td>{'<br>'.join(kinds)}<td>{escape(reply['description'])}"
            yield "</table></details>"


def shapes(document: Json) -> Iterator[str]:
    """A fold per struct, with a row per field."""
    for name, schema in document["components"]["schemas"].items():
        yield f'<details id="{escape(name)}"><summary><code>{escape(name)}</code> '
        yield f"{escape(schema.get('description', '').splitlines()[0])}</summary><table>"
        required = schema.get("required", ())
        for field, each in schema.get("properties", {}).items():
            must = " (required)" if field in required else ""
            yield f"<tr><td><code>{escape(field)}</code>{must}<td>{kind(each)}"
        yield "</table></details>"


def kind(schema: Json) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        text = " or ".join(kind(each) for each in schema["anyOf"])
    elif "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        text = ", ".join(f"<code>{escape(str(each))}</code>" for each in values)
    elif schema.get("type") == "array":
        text = f"list of {kind(schema.get('items', {}))}"
    else:
        text = escape(str(schema.get("type", "anything")))
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    if low is not None or "maximum" in schema:
        text += f", {'above' if 'exclusiveMinimum' in schema else 'from'} {low}"
        text += f" to {schema['maximum']}" if "maximum" in schema else ""
    return text
