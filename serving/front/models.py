"""The models of the servers behind: which there are, which version answers, and what each takes."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import requests

from rsp.serving.client import TileClient
from rsp.serving.front.errors import RefusedError
from rsp.serving.management import is_loopback
from rsp.shared.errors import ModelError, ServingError, TileError
from rsp.shared.http import connection_problem
from rsp.shared.learning.card import ModelCard

logger = logging.getLogger(__name__)

# Seconds between two looks at /status, and for one look.
POLL, LOOK = 2.0, 5.0
# An answer of /status has a few hundred bytes a model.
MAX_STATUS = 4 << 20
# Cards that are kept: of each model the versions that clients hold on to.
CARDS = 64
# A person waits: tried again for some seconds while no worker is there, and then said so.
ATTEMPTS, TIMEOUT = 4, 60.0

NAME = VERSION = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


@dataclass(frozen=True)
class Model:
    """One version of a model, as it answers now."""

    name: str
    version: str
    card: ModelCard


@dataclass(frozen=True)
class Look:
    """What /status of the servers said."""

    code: int
    content: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]] | None = field(default=None)


class Models:
    """Watches the servers behind an endpoint.

    Args:
        endpoint: Their URL.
        names: Models to offer where the servers do not say which they have.
        timeout: Seconds that one prediction may take.
        attempts: How often a prediction is tried in all while the servers are busy.
    """

    def __init__(
        self, endpoint: str, names: Sequence[str] = (), *, timeout: float = TIMEOUT, attempts: int = ATTEMPTS
    ) -> None:
        TileClient(endpoint, "x").close()  # raises where it is no URL
        self.endpoint = endpoint.rstrip("/").partition("/predictions/")[0]
        self._names, self._timeout, self._attempts = tuple(names), timeout, attempts
        self._session = requests.Session()
        self._session.trust_env = not is_loopback(endpoint)
        self._pool = ThreadPoolExecutor(4, "models")
        self._lock = threading.Lock()
        self._clients: dict[str, TileClient] = {}
        self._cards: OrderedDict[tuple[str, str], ModelCard] = OrderedDict()
        self._versions: dict[str, str] = {}
        self.told: Callable[[Sequence[str]], None] = lambda names: None  # of the names, at each look
        self._looked = float("-inf")
        self._asking: dict[tuple[str, str], asyncio.Future[Model]] = {}
        self.look = Look(503, {"error": "Service Unavailable", "detail": "the servers were not asked yet"})

    # --- what there is

    def names(self) -> list[str]:
        """Return the models that there are."""
        return sorted(self.look.models if self.look.models is not None else self._names)

    def about(self, name: str) -> Mapping[str, Any]:
        """Return what /status says of a model; empty where it says nothing."""
        return (self.look.models or {}).get(name, {})

    def version(self, name: str) -> str | None:
        """Return the version that answers now, as far as it is known."""
        return self._versions.get(name)

    def seen(self, name: str, version: str) -> None:
        """Note which version answered a request that asked for none."""
        if version and self._versions.get(name) != version:
            self._versions[name] = version

    def client(self, name: str) -> TileClient:
        """Return the client of a model."""
        with self._lock:
            if name not in self._clients:
                self._clients[name] = TileClient(self.endpoint, name, self._timeout, attempts=self._attempts)
            return self._clients[name]

    def check(self, name: str) -> None:
        """Raise `RefusedError` where there is no such model, or none of its versions answers."""
        if name not in self.names():
            known = ", ".join(self.names()) or "none"
            if self.look.models is None and not self._names:
                raise RefusedError(503, "the servers behind do not say (yet) which models they have")
            raise RefusedError(404, f"no model {name!r} is served here; there is {known}")
        about = self.about(name)
        if about and not about.get("serving"):
            reason = f": {about['reason']}" if about.get("reason") else ""
            raise RefusedError(
                503, f"no release of {name!r} answers (yet): {about.get('state', 'unknown')}{reason}"
            )

    async def get(self, name: str, version: str | None = None) -> Model:
        """Return a model as it answers now, or one of its versions.

        Raises:
            RefusedError: there is none (404), or the servers cannot be asked (503).
        """
        self.check(name)
        wanted = version or self._versions.get(name, "")
        card = self._cards.get((name, wanted))
        if wanted and card is not None:
            return Model(name, wanted, card)
        return await self.ask(name, version)

    async def ask(self, name: str, version: str | None = None) -> Model:
        """Ask the servers for a model as it answers now, whatever was known of it; raises as `get` does."""
        self.check(name)
        # Whoever comes meanwhile waits for the same answer.
        key = (name, version or "")
        if key not in self._asking:
            loop = asyncio.get_running_loop()
            asked = self._asking[key] = loop.run_in_executor(self._pool, self._describe, name, version)
            asked.add_done_callback(
                lambda done: (self._asking.pop(key, None), done.cancelled() or done.exception())
            )
        return await asyncio.shield(self._asking[key])

    async def card(self, name: str, version: str) -> ModelCard:
        """Return the card of a version that has answered; where it is forgotten, of the one that answers now."""
        return self._cards.get((name, version)) or (await self.get(name)).card

    def _describe(self, name: str, version: str | None) -> Model:
        try:
            answer = self.client(name).ask(None, version=version)
            card = ModelCard.from_json(answer.text)
        except ModelError as error:
            raise RefusedError(502, f"the server's description of {name!r} cannot be read: {error}") from None
        except (ServingError, TileError) as error:
            raise refused(error, name, version) from None
        found = answer.headers.get("X-Model-Version", "") or version or "unknown"
        with self._lock:
            self._cards[name, found] = card
            while len(self._cards) > CARDS:
                self._cards.popitem(last=False)
        if version is None:
            self.seen(name, found)
        return Model(name, found, card)

    # --- watching

    async def watch(self) -> None:
        """Look at /status again and again, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(POLL)

    async def refresh(self, *, older: float = 0.0) -> None:
        """Look at /status once, unless the last look is less than some seconds old."""
        if time.monotonic() - self._looked < older:
            return
        self._looked = time.monotonic()
        look = await asyncio.get_running_loop().run_in_executor(self._pool, self._look)
        if look.code != self.look.code:
            logger.info("the servers at %s answer /status with %d", self.endpoint, look.code)
        if look.models is None and self.look.models is not None and look.code != 404:
            look = Look(look.code, look.content, self.look.models)  # they may be restarting: what was known stays
        self.look = look
        self.told(self.names())
        for name, about in (look.models or {}).items():
            self.seen(name, str(about.get("serving") or ""))

    def _look(self) -> Look:
        problem = "the answer is no status"
        try:
            with self._session.get(
                f"{self.endpoint}/status", timeout=LOOK, stream=True, allow_redirects=False
            ) as answer:
                raw = answer.raw.read(MAX_STATUS + 1, decode_content=True)
                code = answer.status_code
            if code == 404:
                return Look(404, {"error": "Not Found", "detail": "the servers behind have no /status"})
            content = json.loads(raw) if len(raw) <= MAX_STATUS else None
            models = content.get("models") if isinstance(content, dict) else None
            if isinstance(content, dict) and isinstance(models, dict):
                found = {name: about for name, about in models.items() if isinstance(about, dict)}
                return Look(
                    code, content, {name: about for name, about in found.items() if re.fullmatch(NAME, name)}
                )
        except requests.RequestException as error:
            problem = f"they cannot be reached: {connection_problem(error)}"
        except (ValueError, OSError):
            pass
        return Look(503, {"error": "Service Unavailable", "detail": f"the servers behind: {problem}"})

    async def ready(self) -> bool:
        """Tell whether the servers behind answer predictions."""
        ready = await asyncio.get_running_loop().run_in_executor(self._pool, self._ready)
        if ready and not all(about.get("serving") for about in (self.look.models or {}).values()):
            # Who is told so asks for a tile next, and must not be refused because of what was seen before.
            await self.refresh()
        return ready

    def _ready(self) -> bool:
        with suppress(requests.RequestException):
            answer = self._session.get(f"{self.endpoint}/healthz", timeout=LOOK, allow_redirects=False)
            if answer.status_code != 404:
                return answer.status_code == 200
        return bool(self._names) and all(self.client(name).ready() for name in self._names)

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._session.close()
        for client in self._clients.values():
            client.close()


def refused(error: ServingError | TileError, name: str, version: str | None = None) -> RefusedError:
    """Return what a client is told of an error of the servers."""
    status, text = error.status, str(error)
    if isinstance(error, TileError):
        detail = text.partition("the server refused the tile: ")[2] or text
        return RefusedError(status if status in (400, 406, 413) else 502, detail)
    if status == 404:
        what = f"version {version} of {name!r}" if version else f"{name!r}"
        return RefusedError(404, f"{what} is not served (any more)")
    if status == 504:
        return RefusedError(504, "the servers gave no answer in time")
    if status in (400, 406, 413):
        return RefusedError(status, text)
    if status in (401, 403):
        return RefusedError(502, "the servers refuse the front's token (RSP_TORCHSERVE_TOKEN)")
    if status is not None and status not in (408, 425, 429, 502, 503, 504):
        return RefusedError(502, f"the servers answered {status}")
    return RefusedError(503, "no worker of the servers could answer; try again in some seconds")
