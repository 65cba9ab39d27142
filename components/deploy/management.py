"""TorchServe's management API, as far as a deployment needs it."""

from __future__ import annotations

import time
from typing import Any

import requests

from rsp.serving.ready import auth_headers, is_loopback, ready_workers
from rsp.shared.errors import ServingError


class Management:
    """The management API of one TorchServe, for one model.

    Args:
        url: Its address, as `http://127.0.0.1:8081`.
        name: The model.
        timeout: Seconds until workers must be READY.
    """

    def __init__(self, url: str, name: str, timeout: float) -> None:
        self.url, self.name, self.timeout = url.rstrip("/"), name, timeout
        self._session = requests.Session()
        self._session.headers.update(auth_headers())
        self._session.trust_env = not is_loopback(url)

    def check(self) -> None:
        """Raise `ServingError` where nobody answers."""
        self._ask("GET", "/models")

    def versions(self) -> dict[str, dict[str, Any]]:
        """Return the description of each registered version."""
        return {str(found["modelVersion"]): found for found in self._describe("all")}

    def default(self) -> str:
        """Return the version that answers where none is asked for; empty where there is no such model."""
        found = self._describe()
        return str(found[0]["modelVersion"]) if found else ""

    def register(self, archive: str, workers: int | None) -> None:
        """Register an archive of the model store, and wait for its workers (None: as the server is set).

        The version does not become the default one, unless it is the first.
        """
        query = {"url": archive, "model_name": self.name, "initial_workers": workers, "synchronous": "true"}
        self._ask("POST", "/models", query)  # requests leaves out what is None

    def scale(self, version: str, workers: int) -> None:
        """Give a version that is registered at least this many workers."""
        query = {"min_worker": workers, "max_worker": workers, "synchronous": "true"}
        self._ask("PUT", f"/models/{self.name}/{version}", query)

    def wait_ready(self, version: str) -> None:
        """Wait until a worker of the version is READY."""
        deadline = time.monotonic() + self.timeout
        while not ready_workers(self.url, self.name, version):
            if time.monotonic() > deadline:
                raise ServingError(f"no worker of version {version} is READY after {self.timeout:g} s")
            time.sleep(0.1)

    def set_default(self, version: str) -> None:
        """Let a version answer where none is asked for."""
        self._ask("PUT", f"/models/{self.name}/{version}/set-default")

    def drain(self, version: str, seconds: float) -> None:
        """Wait until nobody waits in the queue of a version, and then `seconds` more.

        TorchServe does not count the requests that a worker has in hand, and cuts them when the version goes.
        """
        deadline = time.monotonic() + self.timeout
        while any(found["jobQueueStatus"]["pendingRequests"] for found in self._describe(version)):
            if time.monotonic() > deadline:
                raise ServingError(f"requests still wait for version {version} after {self.timeout:g} s")
            time.sleep(0.1)
        time.sleep(seconds)

    def unregister(self, version: str) -> None:
        """Take a version off, and its workers with it; requests that it has in hand are lost."""
        self._ask("DELETE", f"/models/{self.name}/{version}")

    def _describe(self, version: str = "") -> list[dict[str, Any]]:
        """Return the descriptions of the model's versions; none where it is unknown.

        Unlike `rsp.serving.ready.describe`, which serves probes, it does not take silence for absence.
        """
        path = f"/models/{self.name}/{version}".rstrip("/")
        found = self._ask("GET", path, unknown=[])
        if not isinstance(found, list):
            raise ServingError(f"GET {path} answered something else than a list; is {self.url} TorchServe's?")
        return found

    def _ask(self, method: str, path: str, query: dict[str, Any] | None = None, unknown: Any = None) -> Any:
        """Send a request and return the JSON of its answer, or `unknown`, where that is given, for a 404."""
        try:
            # Synchronous calls answer when the workers have started, or TorchServe has given them up.
            answer = self._session.request(
                method, self.url + path, params=query, timeout=(5, self.timeout + 30), allow_redirects=False
            )
        except requests.RequestException as error:
            raise ServingError(
                f"the management API {self.url} gives no answer ({type(error).__name__}); is TorchServe there?"
            ) from error
        try:
            content = answer.json()
        except ValueError:
            content = None
        if answer.status_code in (200, 202):
            return content
        if answer.status_code == 404 and unknown is not None:
            return unknown
        message = content.get("message") if isinstance(content, dict) else answer.text.strip()
        message = str(message)[:300]
        hint = {
            "POST 404": "; --model_store must be the folder that this TorchServe reads its archives from",
            "POST 500": "; TorchServe's log has the reason",
            "POST 405": "; start TorchServe with enable_model_api=true",
            "DELETE 405": "; start TorchServe with enable_model_api=true",
        }.get(f"{method} {answer.status_code}", "")
        raise ServingError(f"{method} {path} answered {answer.status_code}: {message}{hint}")

    def close(self) -> None:
        """Close the connections."""
        self._session.close()
