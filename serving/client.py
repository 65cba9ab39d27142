"""A client of the tile endpoint: one image in, one mask out.

What is ours is the contract (image bytes in, PNG out, 400 for a bad tile, `X-Overlap`, `X-Model-Version`);
TorchServe's own statuses are read here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from rsp.serving.management import auth_headers, is_loopback, ready_workers
from rsp.shared.errors import ServingError, TileError
from rsp.shared.http import TEMPORARY, Backoff, TryAgain, connection_problem, retry, retry_after

if TYPE_CHECKING:
    from rsp.shared.learning.card import ModelCard

# TorchServe says 503 for a full queue, for a model without a worker, and for a handler that raised; the first two
# pass, and are tried again.
RAISED = "Prediction failed"
# It says 500 or 507 where a worker died over a request; real lack of memory is a 507 with another text. A new
# worker starts at once, but a tile that kills each worker it meets must not go on killing them.
DIED = "Worker died."
DEATHS = 3
# A worker needs some seconds to start, on a busy machine more: 8 attempts cover about 20 s of trouble.
ATTEMPTS = 8
# Seconds: the first wait, and the longest. Clients that come back at once starve the workers.
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
        attempts: How often a request is tried in all while the server is busy or cannot be reached.
    """

    def __init__(
        self,
        endpoint: str,
        model: str = "rsp",
        timeout: float = 60.0,
        *,
        version: str = "",
        management: str = "",
        attempts: int | None = None,
    ) -> None:
        if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
            raise ServingError(f"the endpoint must be a URL such as http://127.0.0.1:8080, got {endpoint!r}")
        base, _, path = endpoint.rstrip("/").partition("/predictions/")
        if path:
            model, _, version = path.partition("/")
        self.endpoint, self.model, self.version, self.management = base, model, version, management.rstrip("/")
        self.url = self._url(version)
        self.timeout, self.attempts = timeout, max(1, ATTEMPTS if attempts is None else attempts)
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=64))
        self._session.headers.update(auth_headers())
        self._session.trust_env = not is_loopback(endpoint)

    def _url(self, version: str) -> str:
        return "/".join(part for part in (self.endpoint, "predictions", self.model, version) if part)

    def predict(self, image: bytes, *, overlap: int = 0) -> bytes:
        """Return the mask of a tile, as a paletted PNG.

        Args:
            image: An encoded PNG, JPEG, WebP or GeoTIFF.
            overlap: Width in pixels of the border that the image carries on each side, cut from the neighbouring
                tiles. 0: it carries none.

        Raises:
            TileError: the server refused this tile (400, 413), or workers died over it; others are unaffected.
            ServingError: no usable answer after all attempts.
        """
        # Without a content type TorchServe takes the body for a form, and the handler gets nothing.
        headers = {"Content-Type": "application/octet-stream"}
        if overlap:
            headers["X-Overlap"] = str(overlap)
        answer = self._send("POST", image, headers)
        if not answer.headers.get("content-type", "").startswith("image/png"):
            raise ServingError(f"{self.url} did not answer with a mask; is this a tile endpoint?")
        return answer.content

    def ask(
        self, image: bytes | None, headers: Mapping[str, str] | None = None, *, version: str | None = None
    ) -> requests.Response:
        """Ask with headers of one's own, and return the answer as it is, for whoever passes it on.

        Args:
            image: An encoded image; None to ask for the model card (`describe: True`).
            headers: More headers, as `Accept`.
            version: Of the model, in place of this client's.

        Raises:
            TileError, ServingError: as `predict`. An error that stands for a status of the server has it as
                `status`.
        """
        url = self.url if version is None else self._url(version)
        if image is None:
            return self._send("GET", b"", {"describe": "True", **(headers or {})}, url)
        return self._send("POST", image, {"Content-Type": "application/octet-stream", **(headers or {})}, url)

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

    def _send(self, method: str, body: bytes, headers: Mapping[str, str], url: str = "") -> requests.Response:
        """Send a request, again where that may help, and return the answer whose status is 200."""
        deaths, url = 0, url or self.url

        def once() -> requests.Response:
            nonlocal deaths
            try:
                answer = self._session.request(
                    method, url, data=body, headers=dict(headers), timeout=(CONNECT_TIMEOUT, self.timeout)
                )
            except requests.ReadTimeout:
                # Not again: the server is still working on it, and a second copy would only lengthen its queue.
                late = ServingError(f"{url} gave no answer within {self.timeout:g} s")
                late.status = 504
                raise late from None
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                raise TryAgain(self._gave_up(url, f"cannot be reached: {connection_problem(error)}")) from None
            except requests.RequestException as error:
                raise ServingError(f"cannot send a request to {url}: {error}") from error
            if answer.status_code == 200:
                return answer
            message = _message(answer)
            if answer.status_code in (500, 507) and message == DIED:
                deaths += 1
                fatal = TileError(
                    f"{deaths} workers of the server died one after the other while they predicted this tile, or "
                    "took longer than responseTimeout; its log may say why"
                )
                if method == "POST" and deaths >= DEATHS:
                    raise fatal
                raise TryAgain(fatal if method == "POST" else self._gave_up(url, message))
            if answer.status_code not in TEMPORARY or message == RAISED:
                refused = self._explain(url, answer)
                refused.status = answer.status_code
                raise refused
            after = retry_after(answer.headers.get("Retry-After"))
            busy = self._gave_up(url, f"is busy, or no worker has loaded the model: {message}")
            busy.status = answer.status_code
            raise TryAgain(busy, after)

        return retry(once, Backoff(self.attempts, BACKOFF, longest=LONGEST, jitter=0.5))

    def _gave_up(self, url: str, reason: str) -> ServingError:
        return ServingError(f"{url} {reason} (tried {self.attempts} times)")

    def _explain(self, url: str, answer: requests.Response) -> TileError | ServingError:
        """Return the error for an answer that would be the same next time."""
        if answer.status_code == 413:
            reason = _message(answer, "it is larger than the server takes")
            return TileError(f"the server refused the tile: {reason}")
        if answer.status_code == 400:
            try:
                content = answer.json()
            except ValueError:
                content = None
            # Ours has an `error`; TorchServe says 400 for a missing token, too.
            if isinstance(content, dict) and content.get("error"):
                return TileError(f"the server refused the tile: {content.get('detail', 'no reason given')}")
        hint = {
            401: "; the token in RSP_TORCHSERVE_TOKEN is missing or wrong",
            403: "; the token in RSP_TORCHSERVE_TOKEN is missing or wrong",
            404: f"; no model {self.model!r} is served there",
            503: "; the server's log has the reason",
            507: "; the server ran out of memory: give it more, or fewer workers or a smaller batchSize",
        }.get(answer.status_code, "")
        return ServingError(f"{url} answered {answer.status_code}: {_message(answer)}{hint}")

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _message(answer: requests.Response, default: str = "(no text)") -> str:
    """Return the reason in a JSON error, of TorchServe's form or of ours, or the beginning of any other text."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    if isinstance(content, dict):
        for key in ("message", "detail"):
            if content.get(key):
                return str(content[key])[:200]
    return re.sub(r"\s+", " ", answer.text).strip()[:200] or default
