"""The playground at `/`: one page of our own, allowed to run its own script and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

_FILE = "playground.html"


@dataclass(frozen=True)
class Page:
    """A page and the headers that hold it to what is in it."""

    content: str
    headers: dict[str, str]

    @classmethod
    def of(cls, content: str) -> Page:
        """With a policy that names the page's own scripts and styles by their hashes."""
        policy = {
            "default-src": "'none'",
            "script-src": _hashes("script", content),
            "style-src": _hashes("style", content),
            "img-src": "data:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        headers = {
            "content-security-policy": "; ".join(f"{name} {of}" for name, of in policy.items()),
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "cache-control": "no-cache",
        }
        return cls(content, headers)


def playground() -> Page:
    """The page that ships with the server."""
    return Page.of((files(__package__ or "") / _FILE).read_text(encoding="utf-8"))


def _hashes(tag: str, content: str) -> str:
    """The sources that a policy allows: the bodies of these elements, by SHA-256."""
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()) for body in bodies]
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests) or "'none'"
