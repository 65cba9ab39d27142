"""TorchServe's management API, as far as a deployment and a probe need it.

Standard library only: probes run it every few seconds, and a container's health should not cost an import of
requests each time.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode, urlsplit

from rsp.shared.errors import ServingError
from rsp.shared.http import connection_problem

# A gateway, or TorchServe's own token check, may want one; never an argument, as those show in process lists.
TOKEN_VARIABLE = "RSP_TORCHSERVE_TOKEN"  # noqa: S105 (the variable's name)
# Seconds between two looks at a worker that starts.
POLL = 0.2
# What a DELETE may take: TorchServe answers when the workers have gone.
SLOWEST = 150.0


def auth_headers() -> dict[str, str]:
    """Return the header that carries the token of the environment, if there is one.

    Raises:
        ServingError: it cannot be sent.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        # Said here: a library's message would print the header.
        raise ServingError(f"{TOKEN_VARIABLE} holds a space, a line break or a letter that no token has")
    return {"Authorization": f"Bearer {token}"} if token else {}


def is_loopback(url: str) -> bool:
    """Tell whether a URL is on this machine, which a proxy of the environment cannot reach."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


class NotReadyError(ServingError):
    """Workers that died or took too long; whether the model is the reason is not known."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows none: whoever answers with one is not TorchServe."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Management:
    """The management API of one TorchServe, for one model.

    Args:
        url: Its address, as `http://127.0.0.1:8081`.
        name: The model.
        timeout: Seconds until workers must be READY, and until queues must be empty.
    """

    def __init__(self, url: str, name: str, timeout: float = 120.0) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ServingError(f"the management URL must look like http://127.0.0.1:8081, got {url!r}")
        self.url, self.name, self.timeout = url.rstrip("/"), name, timeout
        proxies = urllib.request.ProxyHandler({} if is_loopback(url) else None)
        self._opener = urllib.request.build_opener(proxies, _NoRedirects)

    def describe(self, version: str = "", *, wait: float = 30.0) -> list[dict[str, Any]]:
        """Return the descriptions of a version: of the default one where empty, of each for `all`.

        Empty where the model or the version is not registered.

        Raises:
            ServingError: no answer within `wait` seconds, or not one of TorchServe's.
        """
        path = f"/models/{self.name}/{version}".rstrip("/")
        found = self._ask("GET", path, unknown=[], wait=wait)
        if not isinstance(found, list):
            raise ServingError(f"GET {path} did not answer with a list; is there a TorchServe at {self.url}?")
        return found

    def versions(self) -> dict[str, dict[str, Any]]:
        """Return the description of each registered version."""
        return {str(found["modelVersion"]): found for found in self.describe("all")}

    def ready_workers(self, version: str = "", *, wait: float = 5.0) -> int:
        """Return how many workers of a version have loaded the model."""
        return sum(_ready(worker) for found in self.describe(version, wait=wait) for worker in found["workers"])

    def register(self, archive: str, workers: int | None) -> None:
        """Register an archive of the model store, and let its workers start (None: as the server is set).

        Returns at once; `wait_ready` waits. TorchServe can wait, too (`synchronous=true`), but it does so on one
        of the event loops that answer predictions: half of the open connections stand still for as long.

        The version becomes the default one only if it is the first.
        """
        query: dict[str, Any] = {"url": archive, "model_name": self.name, "synchronous": "false"}
        if workers is not None:
            query["initial_workers"] = workers
        self._ask("POST", "/models", query)

    def scale(self, version: str, workers: int) -> None:
        """Give a registered version this many workers; returns at once, as `register` does."""
        query = {"min_worker": workers, "max_worker": workers, "synchronous": "false"}
        self._ask("PUT", f"/models/{self.name}/{version}", query)

    def wait_ready(
        self,
        version: str,
        failure: Callable[[], str | None] = lambda: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until every worker of a version has loaded the model.

        Args:
            version: The version.
            failure: Returns why a worker could not load the model, where somebody has noted that.
            check: Called at each look; may raise, to end the wait.

        Raises:
            ServingError: a worker died before it was READY (TorchServe would start another, and another), or not
                all are READY in time.
        """
        deadline = time.monotonic() + self.timeout
        first: dict[str, int] = {}  # the first process of each worker
        while True:
            check()
            found = self.describe(version)
            if not found:
                raise ServingError(f"version {version} has vanished from {self.url}; does somebody else deploy?")
            workers = found[0]["workers"]
            if workers and sum(map(_ready, workers)) >= max(1, int(found[0].get("minWorkers", 1))):
                return
            # TorchServe calls a worker UNLOADING before it is READY, while it loads, and when it has failed. What
            # tells a failure is another process in the place of the first.
            died = False
            for worker in workers:
                pid = int(worker.get("pid", -1))
                died |= pid > 0 and first.setdefault(str(worker["id"]), pid) != pid
            if reason := failure():
                raise ServingError(f"a worker cannot load the model: {reason}")
            if died:
                raise NotReadyError("a worker died while it loaded the model; TorchServe's log has the reason")
            if time.monotonic() > deadline:
                raise NotReadyError(f"the workers of version {version} are not READY after {self.timeout:g} s")
            time.sleep(POLL)

    def set_default(self, version: str) -> None:
        """Let a version answer where none is asked for."""
        self._ask("PUT", f"/models/{self.name}/{version}/set-default")

    def unregister(self, version: str) -> None:
        """Remove a version and its workers; requests that they have in hand are lost."""
        self._ask("DELETE", f"/models/{self.name}/{version}")

    def _ask(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        *,
        unknown: Any = None,
        wait: float = SLOWEST,
    ) -> Any:
        """Send a request and return the JSON of its answer, or `unknown`, where that is given, for a 404."""
        url = self.url + path + (f"?{urlencode(query)}" if query else "")
        request = urllib.request.Request(url, method=method, headers=auth_headers())  # noqa: S310 (http, see above)
        try:
            with self._opener.open(request, timeout=wait) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                status, body = refused.code, refused.read()
        except TimeoutError:
            raise ServingError(f"the management API {self.url} gave no answer within {wait:g} s") from None
        except OSError as error:
            reason = connection_problem(getattr(error, "reason", error))
            raise ServingError(
                f"the management API {self.url} cannot be reached ({reason}); is TorchServe running there?"
            ) from error
        try:
            content = json.loads(body)
        except ValueError:
            content = None
        if status in (200, 202):
            return content
        if status == 404 and unknown is not None:
            return unknown
        message = content.get("message") if isinstance(content, dict) else body.decode("utf-8", "replace").strip()
        hint = "; TorchServe's log has the reason" if status >= 500 else ""
        raise ServingError(f"{method} {path} answered {status}: {str(message)[:300]}{hint}")


def _ready(worker: dict[str, Any]) -> bool:
    return worker.get("status") == "READY"
