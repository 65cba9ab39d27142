"""What every request of the front goes through: its id, tokens, CORS, headers of security, logs and counts."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rsp.serving.front.errors import GONE, refusal
from rsp.serving.logs import log_request, request_id
from rsp.serving.tokens import BEARER_OR_BASIC, Tokens

if TYPE_CHECKING:
    from rsp.serving.metrics import Metrics

logger = logging.getLogger(__name__)

# Whether the server lives, and what it serves, is no secret to whoever reaches it: probes carry no token.
OPEN = frozenset({"/healthz", "/livez", "/status"})
# A page of ours asks nothing of any other host, and runs nothing that is not a file of ours.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
NO_POLICY = "default-src 'none'; frame-ancestors 'none'"
EXPOSED = "ETag, Retry-After, X-Model-Version, X-Precision, X-Request-Id, X-Shape, Server-Timing"


class Outer:
    """Wraps the application of the front.

    Args:
        app: The application.
        tokens: Who may ask; None for everybody.
        origins: What other origins may read answers in a browser; `*` for all.
        metrics: Where to count the tiles of models.
        heads: The application answers HEAD itself; else it is asked as for GET.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Tokens | None,
        origins: Sequence[str],
        metrics: Metrics | None,
        heads: bool = False,
    ) -> None:
        self._app, self._tokens, self._origins, self._metrics = app, tokens, frozenset(origins), metrics
        self._heads = heads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"]}  # noqa: C416 (the last of each name)
        identity = request_id(headers.get(b"x-request-id"))
        scope["state"] = {**scope.get("state", {}), "request_id": identity}
        origin = self._allowed(headers.get(b"origin"))
        began, status, facts = time.monotonic(), 0, scope["state"]

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                found["X-Request-Id"] = identity
                found["X-Content-Type-Options"] = "nosniff"
                found["Referrer-Policy"] = "no-referrer"
                found.setdefault("Content-Security-Policy", NO_POLICY)
                if self._origins:
                    found.add_vary_header("Origin")
                if origin:
                    found["Access-Control-Allow-Origin"] = origin
                    found["Access-Control-Expose-Headers"] = EXPOSED
                else:
                    found["Cross-Origin-Resource-Policy"] = "same-origin"
            elif scope["method"] == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        inner: ASGIApp = self._app
        if scope["method"] == "OPTIONS" and origin and b"access-control-request-method" in headers:
            inner = _preflight()
        elif scope["path"] not in OPEN and not self._known(headers.get(b"authorization")):
            inner = refusal(
                401,
                "send a token: `Authorization: Bearer <token>`, or as the password of HTTP Basic",
                {"WWW-Authenticate": BEARER_OR_BASIC},
            )
        inside = {**scope, "method": "GET"} if scope["method"] == "HEAD" and not self._heads else scope
        try:
            await inner(inside, receive, answer)
        except Exception:  # a boundary: whatever it is, the client gets an answer, and the log the reason
            logger.exception("a fault of the front", extra={"request_id": identity, "path": scope["path"]})
            if not status:
                await refusal(500, "a fault of the server; its log has more")(scope, receive, answer)
        finally:
            status, seconds = status or GONE, time.monotonic() - began
            # People pan on, and probes find a server that is not ready every few seconds: neither is a fault.
            if status != GONE and not (status == 503 and scope["path"] in OPEN):
                log_request(
                    status, request_id=identity, method=scope["method"], path=scope["path"],
                    model=facts.get("model"), version=facts.get("version"), source=facts.get("source"),
                    seconds=seconds, detail=facts.get("detail", ""),
                )  # fmt: skip
            if self._metrics is not None and facts.get("source") and facts.get("model"):
                self._metrics.live(facts["source"], facts["model"], status, seconds)

    def _known(self, authorization: bytes | None) -> bool:
        return self._tokens is None or self._tokens.who(authorization) is not None

    def _allowed(self, origin: bytes | None) -> str:
        """Return what Access-Control-Allow-Origin says to a browser of this origin; empty for nothing."""
        if origin is None or not self._origins:
            return ""
        if "*" in self._origins:
            return "*"
        text = origin.decode("latin-1")
        return text if text in self._origins else ""


def _preflight() -> Response:
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": "GET, HEAD, POST",
            "Access-Control-Allow-Headers": "Accept, Authorization, Content-Type, If-None-Match, X-Overlap, "
            "X-Request-Id, X-Tile",
            "Access-Control-Max-Age": "600",
        },
    )


def note(scope: Any, **facts: str | None) -> None:
    """Note what the log and the metrics should say of a request: source, model, version, detail."""
    scope["state"].update(facts)
