"""A client of the tile endpoint: one image in, one mask out.

What is ours is the contract (serving/answers.py); TorchServe's own statuses are read here and nowhere else.
"""

from __future__ import annotations

import ipaddress
import math
import random
import re
import socket
import time
from collections.abc import Mapping
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

import numpy as np
import numpy.typing as npt
import requests
from requests.adapters import HTTPAdapter

from rsp.serving.answers import GEOJSON, PNG, PROBABILITIES
from rsp.serving.management import auth_headers, is_loopback
from rsp.shared.errors import ServingError, TileError
from rsp.shared.http import TEMPORARY, Backoff, TryAgain, connection_problem, retry, retry_after
from rsp.shared.images import Array, encode_lossless
from rsp.shared.tiles import Tile, zxy

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
# What the handler answers of one tile: that it is refused, and that the model fails on it.
REFUSED, FAILED = (400, 406), (500, 507)


class _LaterError(Exception):
    """The server is full, or starts, and says when to come back."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class TileClient:
    """Asks a served model for masks. It keeps its connections, and may be shared by threads.

    Args:
        endpoint: `http://host:port`, or the whole `http://host:port/predictions/name[/version]`.
        model: Name of the model, where the endpoint does not say it.
        version: Version of the model; the default one where empty.
        timeout: Seconds that one answer may take, the wait in the server's queue included.
        attempts: How often a request is tried in all while the server is busy or cannot be reached. Where None, a
            server that says when to come back (Retry-After) is asked again then, until `timeout` has passed.

    Raises:
        ServingError: the endpoint is not a URL, or holds a password; the token is not one.

    Attributes:
        precision: What the model computed its last answer in, where the server says so.
    """

    def __init__(
        self,
        endpoint: str,
        model: str = "rsp",
        timeout: float = 60.0,
        *,
        version: str = "",
        attempts: int | None = None,
    ) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServingError(f"the endpoint must be a URL such as http://127.0.0.1:8080, got {endpoint!r}")
        if "@" in parts.netloc:
            raise ServingError(
                "the endpoint holds a user or a password, which lists of processes and messages would show; put a "
                "token into RSP_TORCHSERVE_TOKEN"
            )
        base, _, path = endpoint.rstrip("/").partition("/predictions/")
        if path:
            model, _, version = path.partition("/")
        self.endpoint, self.model, self.version = base, model, version
        self.url, self.precision = self._url(version), ""
        self.timeout, self.attempts = timeout, max(1, ATTEMPTS if attempts is None else attempts)
        self._patient, self._pinned = attempts is None, False
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_connections=4, pool_maxsize=64))
        self._session.headers.update(auth_headers())
        # Or requests would put what ~/.netrc has for the host in the place of our token.
        self._session.auth = lambda request: request
        self._session.trust_env = not is_loopback(endpoint)

    def _url(self, version: str) -> str:
        return "/".join(part for part in (self.endpoint, "predictions", self.model, version) if part)

    def encode(self, window: Array) -> bytes:
        """Encode pixels, shape (height, width, bands), without loss, as costs least on the way there."""
        return encode_lossless(window, near=self.near)

    @cached_property
    def near(self) -> bool:
        """Whether the server is on this machine or in a private network, where bytes are cheaper than CPU time."""
        parts = urlsplit(self.endpoint)
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
            return all(ipaddress.ip_address(str(place[0]).partition("%")[0]).is_private for *_, place in found)
        except (OSError, ValueError):
            return False  # a proxy may know the name

    def pin(self) -> ModelCard:
        """Hold on to the version that answers now: from here on only that one is asked. Return its card.

        So all masks of a run are of one model, whatever is deployed meanwhile. When the version has gone, requests
        raise `ServingError`.
        """
        from rsp.shared.learning.card import ModelCard

        answer = self._send("GET", b"", {"describe": "True"})
        version = answer.headers.get("X-Model-Version", "")
        if version and not self.version:
            self.version, self.url, self._pinned = version, self._url(version), True
        return ModelCard.from_json(answer.text)

    def predict(self, image: bytes, *, overlap: int = 0, accept: str = PNG, tile: Tile | None = None) -> bytes:
        """Return the mask of a tile, as a paletted PNG, or another form of the answer.

        Args:
            image: An encoded PNG, JPEG, WebP or GeoTIFF.
            overlap: Width in pixels of the border that the image carries on each side, cut from the neighbouring
                tiles. 0: it carries none.
            accept: One of `rsp.serving.answers.TYPES`.
            tile: Where the image lies; GeoJSON needs it.

        Raises:
            TileError: the server refused this tile (400, 406, 413), its model failed on it, or workers died over
                it; others are unaffected.
            ServingError: no usable answer after all attempts.
        """
        return self._predict(image, overlap, accept, tile).content

    def probabilities(self, image: bytes, *, overlap: int = 0) -> npt.NDArray[np.uint8]:
        """Return the probability of each class, shape (classes, height, width); 255 is 1. Else as `predict`."""
        answer = self._predict(image, overlap, PROBABILITIES, None)
        match = re.fullmatch(r"([0-9]{1,3}),([0-9]{1,5}),([0-9]{1,5})", answer.headers.get("X-Shape", ""))
        shape = tuple(map(int, match.groups())) if match else (0,)
        if math.prod(shape) != len(answer.content):
            raise ServingError(f"{self.url} answered with {len(answer.content)} bytes that are not of its X-Shape")
        return np.frombuffer(answer.content, np.uint8).reshape(shape)

    def features(self, image: bytes, tile: Tile, *, overlap: int = 0) -> dict[str, Any]:
        """Return the regions of the mask as a GeoJSON FeatureCollection in degrees. Else as `predict`."""
        try:
            found: dict[str, Any] = self._predict(image, overlap, GEOJSON, tile).json()
        except requests.JSONDecodeError:
            raise ServingError(f"{self.url} did not answer with GeoJSON") from None
        return found

    def _predict(self, image: bytes, overlap: int, accept: str, tile: Tile | None) -> requests.Response:
        headers = {"Accept": accept}
        if overlap:
            headers["X-Overlap"] = str(overlap)
        if tile is not None:
            headers["X-Tile"] = zxy(tile)
        answer = self.ask(image, headers)
        if answer.headers.get("Content-Type", "").partition(";")[0].strip() != accept:
            what = "a mask" if accept == PNG else accept
            raise ServingError(f"{self.url} did not answer with {what}; is this a tile endpoint?")
        if self._pinned and answer.headers.get("X-Model-Version", self.version) != self.version:
            raise self._gone(self.url)
        return answer

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
        # Without a content type TorchServe takes the body for a form, and the handler gets nothing.
        return self._send("POST", image, {"Content-Type": "application/octet-stream", **(headers or {})}, url)

    def live(self, source: str, tile: Tile, form: str = "png", *, overlap: int = 0) -> bytes:
        """Return what a live front answers for a tile of one of its sources: no pixels need to travel there.

        Args:
            source: Its name.
            tile: The tile.
            form: `png` for the mask, `tif` for the pixels that the model sees, border included.
            overlap: Width in pixels of the border, which the front cuts from the neighbouring tiles.

        Raises:
            TileError: the source has no such tile, or one that the model does not take.
            ServingError: no usable answer after all attempts.
        """
        query = f"empty=true&overlap={overlap}" + (f"&version={self.version}" if self.version else "")
        url = f"{self.endpoint}/{quote(source, safe='')}/{self.model}/{zxy(tile)}.{form}?{query}"
        try:
            return self._send("GET", b"", {}, url).content
        except ServingError as error:
            if error.status == 204:
                raise TileError(f"the source {source!r} has no such tile") from None
            if error.status == 409:
                raise TileError(str(error)) from None
            if error.status == 404 and self._pinned and f"version {self.version} of" in str(error):
                raise self._gone(url) from None
            raise

    def card(self) -> ModelCard:
        """Return the description of the model that the server's default version (or the one asked for) has."""
        from rsp.shared.learning.card import ModelCard

        return ModelCard.from_json(self._send("GET", b"", {"describe": "True"}).text)

    def served_version(self) -> str:
        """Return the version that answers now."""
        return self._send("GET", b"", {"describe": "True"}).headers.get("X-Model-Version", "")

    def ready(self) -> bool:
        """Tell whether a worker has loaded the model and can answer."""
        try:
            answer = self._session.get(
                self.url, headers={"describe": "True"}, timeout=CONNECT_TIMEOUT, allow_redirects=False
            )
        except requests.RequestException:
            return False
        return answer.status_code == 200

    def _send(self, method: str, body: bytes, headers: Mapping[str, str], url: str = "") -> requests.Response:
        """Send a request, again where that may help, and return the answer whose status is 200."""
        deaths, url, end = 0, url or self.url, time.monotonic() + self.timeout

        def once() -> requests.Response:
            nonlocal deaths
            try:
                # No redirects: they would turn POST into GET, and take the image and the token elsewhere.
                answer = self._session.request(
                    method,
                    url,
                    data=body,
                    headers=dict(headers),
                    timeout=(CONNECT_TIMEOUT, self.timeout),
                    allow_redirects=False,
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
                self.precision = answer.headers.get("X-Precision", "")
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
            if answer.status_code not in TEMPORARY or message == RAISED or _ours(answer):
                refused = self._explain(url, answer)
                refused.status = answer.status_code
                raise refused
            after = retry_after(answer.headers.get("Retry-After"))
            if after is not None and self._patient and time.monotonic() < end:
                raise _LaterError(min(max(after, BACKOFF), LONGEST))
            busy = self._gave_up(url, f"is busy, or no worker has loaded the model: {message}")
            busy.status = answer.status_code
            raise TryAgain(busy, after)

        while True:
            try:
                return retry(once, Backoff(self.attempts, BACKOFF, longest=LONGEST, jitter=0.5))
            except _LaterError as later:
                # Clients that were sent away together had better not come back together.
                time.sleep(later.seconds * random.uniform(1.0, 1.5))  # noqa: S311

    def _gone(self, url: str) -> ServingError:
        return ServingError(
            f"{url}: version {self.version!r} of {self.model!r} is not served any more, another one was deployed; "
            "what was done is kept, but masks of two models do not belong into one tile set: run the same command "
            "again, without --resume, for masks of the new version"
        )

    def _gave_up(self, url: str, reason: str) -> ServingError:
        return ServingError(f"{url} {reason} (tried {self.attempts} times)")

    def _explain(self, url: str, answer: requests.Response) -> TileError | ServingError:
        """Return the error for an answer that would be the same next time."""
        if 300 <= answer.status_code < 400:
            there = answer.headers.get("Location", "nowhere")[:200]
            return ServingError(f"{url} answered with a redirect; if {there} is right, make it the endpoint")
        if answer.status_code == 404 and self._pinned and url == self.url:
            return self._gone(url)
        if answer.status_code == 413:
            reason = _message(answer, "it is larger than the server takes")
            return TileError(f"the server refused the tile: {reason}")
        if ours := _ours(answer):
            failed = answer.status_code in FAILED
            return TileError(ours if failed else f"the server refused the tile: {ours}")
        version = f"version {self.version!r} of " if self.version else ""
        hint = {
            401: "; the token in RSP_TORCHSERVE_TOKEN is missing or wrong",
            403: "; the token in RSP_TORCHSERVE_TOKEN is missing or wrong",
            404: f"; no {version}model {self.model!r} is served there",
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


def _ours(answer: requests.Response) -> str | None:
    """Return the reason in an answer of our handler to one tile; TorchServe answers with the same statuses."""
    if answer.status_code not in (*REFUSED, *FAILED):
        return None
    try:
        content = answer.json()
    except ValueError:
        return None
    if not isinstance(content, dict) or not content.get("error"):
        return None
    return str(content.get("detail", "no reason given"))[:300]


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
