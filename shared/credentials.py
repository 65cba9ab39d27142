"""What a tile server wants to see and nobody else may: the key in its URL, and headers, from the environment.

`{key}` in the URL of a tile server stands for `$RSP_HTTP_KEY`. No other variable can be named: a URL may
come from the parameters of a pipeline, and must not be able to ask for the credentials of an object store.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote

from rsp.shared.errors import UsageError

KEY, HEADERS = "RSP_HTTP_KEY", "RSP_HTTP_HEADERS"

_SECRET = re.compile(r"([?&][^=&#\s]*(?:key|token|secret|passw|pwd|sig|auth|cred)[^=&#\s]*=)[^&#\s\"'<>)]+", re.I)
_USERINFO = re.compile(r"(https?://)[^/@\s]+@", re.I)


def masked(text: str) -> str:
    """Return a text with the credentials in its URLs made unreadable, and `$RSP_HTTP_KEY` wherever it stands."""
    text = _SECRET.sub(r"\1***", _USERINFO.sub(r"\1***@", text))
    if key := os.environ.get(KEY, "").strip():
        for form in (key, quote(key, safe="")):
            text = text.replace(form, "***")
    return text


def environment_key() -> str:
    """Return what `{key}` stands for in a URL, escaped as a part of one.

    Raises:
        UsageError: the environment has no key.
    """
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise UsageError(f"the URL has {{key}}: put the key into the environment variable {KEY}")
    return quote(key, safe="")


def environment_headers() -> dict[str, str]:
    """Return the HTTP headers of `$RSP_HTTP_HEADERS`, one `Name: value` a line.

    Raises:
        UsageError: a line that is not a header.
    """
    headers = {}
    for line in os.environ.get(HEADERS, "").splitlines():
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name.strip()):
            raise UsageError(f"{HEADERS} has a line that is not `Name: value`")
        headers[name.strip()] = value.strip()
    return headers
