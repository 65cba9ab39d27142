"""Errors of the front: one form, `{"error", "detail"}`, whatever went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

# What the log says of a request whose client did not wait for the answer (as nginx calls it).
GONE = 499


class RefusedError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: Of the answer.
        detail: The reason, for people.
        headers: More headers of the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})


class NoSuchTileError(RefusedError):
    """There is no such tile (404)."""


def refusal(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the answer to a request that fails. 429 and 503 say when to come back."""
    found = dict(headers or {})
    if status in (429, 503):
        found.setdefault("Retry-After", "1")
    found.setdefault("Cache-Control", "no-store")
    return JSONResponse({"error": HTTPStatus(status).phrase, "detail": detail}, status, found)


def etag_matches(known: str, etag: str) -> bool:
    """Tell whether an If-None-Match names an ETag, which stands in quotes."""
    return known.strip() == "*" or etag in (each.strip().removeprefix("W/") for each in known.split(","))
