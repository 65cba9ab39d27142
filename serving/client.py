"""A client of the tile endpoint: one image in, one mask out.

What is ours is the contract (image bytes in, PNG out, 400 for a bad tile, `X-Overlap`, `X-Model-Version`);
TorchServe's own statuses are read here and nowhere else.
"""

from __future__ import annotations

import random
import re
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from rsp.serving.ready import auth_headers, is_loopback, ready_workers
from rsp.shared.errors import ServingError, TileError

if TYPE_CHECKING:
    from rsp.shared.learning.card import ModelCard

# TorchServe says 503 for a full queue, for a model without a worker, and for a handler that raised. The first
# two pass by themselves, and are tried again a bounded number of times. 502 and 504 are a gateway's.
RETRIED = {429, 502, 503, 504}
RAISED = "Prediction failed"
ATTEMPTS = 6
# Seconds: the first wait, doubled each time, and its limit. Clients that come back at once starve the workers.
BACKOFF, LONGEST = 0.2, 5.0
CONNECT_TIMEOUT = 5.0


class TileClient:
    """Asks a served model for masks. It keeps its connections, and may be shared by threads.

    Args:
        endpoint: `http://host:port`, or the whole `http://host:port/predictions/name[/version]`.
        model: Name of the model, where the endpoint does not say it.
        version: Version of the model; the default one where empty.
        timeout: Seconds that one answer may take, the wait in the server's queue included.
        management: URL of the management API, for `ready`, where this client may reach it.
        attempts: How often a request is tried in all where the server is busy or gone.
    """

    def __init__(
        self,
        endpoint: str,
        model: str = "rsp",
        timeout: float = 60.0,
        *,
        version: str = "",
        management: str = "",
        attempts: int = ATTEMPTS,
    ) -> None:
        if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
            raise ServingError(f"the endpoint must be an URL as http://127.0.0.1:8080, got {endpoint!r}")
        base, _, path = endpoint.rstrip("/").partition("/predictions/")
        if path:
            model, _, version = path.partition("/")
        self.endpoint, self.model, self.version, self.management = base, model, version, management.rstrip("/")
        self.url = "/".join(part for part in (base, "predictions", model, version) if part)
        self.timeout, self.attempts = timeout, max(1, attempts)
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=64))
        self._session.headers.update(auth_headers())
        self._session.trust_env = not is_loopback(endpoint)

    def predict(self, image: bytes, *, overlap: int = 0) -> bytes:
        """Return the mask of a tile, as a paletted PNG.

        Args:
            image: An encoded PNG, JPEG, WebP or GeoTIFF.
            overlap: Width in pixels of the border that the image carries on each side, cut from the neighbouring
                tiles. 0: it carries none.

        Raises:
            TileError: the server refused this tile (400, 413); others are not concerned.
            ServingError: no answer, or none that makes sense, after all attempts.
        """
        # Without a content type TorchServe takes the body for a form, and the handler gets nothing.
        headers = {"Content-Type": "application/octet-stream"}
        if overlap:
            headers["X-Overlap"] = str(overlap)
        answer = self._send("POST", image, headers)
        if not answer.headers.get("content-type", "").startswith("image/png"):
            raise ServingError(f"{self.url} answers with something that is no mask; is this a tile endpoint?")
        return answer.content

    def card(self) -> ModelCard:
        """Return the description of the model that the server's default version (or the one asked for) has."""
        from rsp.shared.learning.card import ModelCard

        return ModelCard.from_json(self._send("GET", b"", {"describe": "True"}).text)

    def served_version(self) -> str:
        """Return the version that answers now."""
        return self._send("GET", b"", {"describe": "True"}).headers.get("X-Model-Version", "")

    def ready(self) -> bool:
        """Tell whether a worker has loaded the model and can answer.

        By the management API where this client was given its URL, else by asking a worker for the model card.
        """
        if self.management:
            return ready_workers(self.management, self.model, self.version) > 0
        try:
            answer = self._session.get(self.url, headers={"describe": "True"}, timeout=CONNECT_TIMEOUT)
        except requests.RequestException:
            return False
        return answer.status_code == 200

    def _send(self, method: str, body: bytes, headers: dict[str, str]) -> requests.Response:
        """Send a request, again and again where that makes sense, and return the answer of a 200."""
        wait = BACKOFF
        for attempt in range(1, self.attempts + 1):
            after = 0.0
            try:
                answer = self._session.request(
                    method, self.url, data=body, headers=headers, timeout=(CONNECT_TIMEOUT, self.timeout)
                )
            except requests.ReadTimeout:
                # Not again: the server is still at it, and a second copy would only lengthen its queue.
                raise ServingError(f"{self.url} gave no answer within {self.timeout:g} s") from None
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                reason = f"cannot be reached: {_cause(error)}"
            except requests.RequestException as error:
                raise ServingError(f"cannot ask {self.url}: {error}") from error
            else:
                if answer.status_code == 200:
                    return answer
                if answer.status_code not in RETRIED or _message(answer) == RAISED:
                    raise self._explain(answer)
                reason = f"is busy or has no worker for the model: {_message(answer)}"
                after = _seconds(answer.headers.get("Retry-After", ""))
            if attempt < self.attempts:
                # Jitter, so that clients that were refused together do not come back together.
                time.sleep(min(LONGEST, max(after, wait * random.uniform(0.5, 1.5))))  # noqa: S311
                wait *= 2
        raise ServingError(f"{self.url} {reason} (tried {self.attempts} times)")

    def _explain(self, answer: requests.Response) -> TileError | ServingError:
        """Return the error for an answer that will be the same next time."""
        if answer.status_code == 413:
            return TileError("the image is larger than the server takes (max_request_size)")
        if answer.status_code == 400:
            try:
                content = answer.json()
            except ValueError:
                content = None
            # Ours has an `error`; TorchServe says 400 for a missing token, too.
            if isinstance(content, dict) and content.get("error"):
                return TileError(f"the server refused the tile: {content.get('detail', 'no reason given')}")
        hint = {
            400: "",
            401: "; a token is missing or wrong (RSP_TORCHSERVE_TOKEN)",
            403: "; a token is missing or wrong (RSP_TORCHSERVE_TOKEN)",
            404: f"; no model {self.model!r} is served there",
            500: "; the worker died over this request, or took longer than responseTimeout",
            503: "; the server's log has the reason",
            507: "; the model does not fit into the memory",
        }.get(answer.status_code, "")
        return ServingError(f"{self.url} answered {answer.status_code}: {_message(answer)}{hint}")

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _message(answer: requests.Response) -> str:
    """Return the message of TorchServe's JSON errors, or the beginning of whatever came instead."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    if isinstance(content, dict) and content.get("message"):
        return str(content["message"])[:200]
    return re.sub(r"\s+", " ", answer.text).strip()[:200] or "(no text)"


def _seconds(text: str) -> float:
    return float(text) if text.isdecimal() else 0.0


def _cause(error: BaseException) -> str:
    """Return the innermost reason of a connection error: the outer ones are requests' and urllib3's own words."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or type(error).__name__
