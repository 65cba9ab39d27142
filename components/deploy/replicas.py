"""The servers that follow a release store: who they are, what they say, and waiting until all serve a version."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rsp.serving.management import auth_headers
from rsp.shared.errors import ConfigError, ServingError, UsageError
from rsp.shared.http import connection_problem
from rsp.shared.keys import Key, read_table

# Seconds between two looks, and for the answer to one.
POLL = 1.0
# How many are asked at once.
AT_ONCE = 16
ANSWER = 5.0
# How long somebody must answer at all before anything is changed.
FIRST = 10.0
MAX_BYTES = 1 << 20

_STATUS = (
    Key("format", "count"), Key("server", "str"), Key("draining", "bool", False), Key("store", "table"),
    Key("models", "table"),
)  # fmt: skip
_STORE = (Key("address", "str", ""), Key("reachable", "bool", True), Key("reason", "str", None))
_MODEL = (
    Key("wanted", "str", None), Key("serving", "str", None), Key("state", "str"), Key("reason", "str", None),
)  # fmt: skip


class RefusedError(ServingError):
    """A replica that cannot serve what is wanted; waiting longer does not help."""


@dataclass(frozen=True)
class Replica:
    """One server at one moment.

    Attributes:
        where: Its address, as `10.1.2.3:8080`.
        server: What it calls itself; empty where it does not answer.
        draining: Whether it is about to end.
        wanted: The version that it was told to serve.
        serving: The version that it serves.
        state: What it does about that.
        reason: Why it refuses, or why it does not answer.
        store: The release store that it follows.
    """

    where: str
    server: str = ""
    draining: bool = False
    wanted: str | None = None
    serving: str | None = None
    state: str = "unreachable"
    reason: str | None = None
    store: str = ""

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.server} ({self.where})" if self.server else self.where

    def __str__(self) -> str:
        """Say what it does."""
        if not self.server:
            return f"{self.where} does not answer: {self.reason}"
        reason = f": {self.reason}" if self.reason else ""
        told = f", was told to serve {self.wanted or 'nothing'}" if self.wanted != self.serving else ""
        return f"{self.title} serves {self.serving or 'nothing'}{told}, is {self.state}{reason}"


class Replicas:
    """All servers behind some addresses.

    Args:
        urls: Of `/status`; a host name that resolves to several addresses stands for as many servers.
        name: The model that is looked at.
    """

    def __init__(self, urls: Sequence[str], name: str) -> None:
        for url in urls:
            parts = urlsplit(url)
            try:
                good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            except ValueError:
                good = False
            if not good:
                raise UsageError(f"--status takes URLs such as http://127.0.0.1:8080/status, got {url!r}")
        self.urls, self.name = tuple(urls), name

    def look(self) -> list[Replica]:
        """Ask each server once; those that drain are left out, since they go and no request reaches them."""
        found = {address: url for url in self.urls for address in _addresses(url)}
        if not found:
            return []
        with ThreadPoolExecutor(min(len(found), AT_ONCE)) as pool:
            replicas = list(pool.map(lambda address: _ask(found[address], address, self.name), found))
        return [replica for replica in replicas if not replica.draining]

    def check(self) -> None:
        """Return when some server answers.

        Raises:
            ServingError: nobody does; with the reasons.
        """
        deadline = time.monotonic() + FIRST
        while True:
            found = self.look()
            if any(replica.server for replica in found):
                return
            if time.monotonic() > deadline:
                raise ServingError(
                    f"nobody answers at {', '.join(self.urls)} ({_listed(found)}): is `rsp serve` running there? "
                    "Without --status the pointer is moved, and nobody is waited for"
                )
            time.sleep(POLL)

    def wait(self, version: str, timeout: float, watch: Callable[[], None]) -> list[Replica]:
        """Return when every server that there is serves a version.

        Servers that appear meanwhile have to serve it too; those that vanish are forgotten.

        Args:
            version: The version.
            timeout: Seconds.
            watch: Called between two looks; may raise.

        Raises:
            RefusedError: one cannot serve it; says which and why.
            ServingError: not all do in time; says which.
        """
        deadline, said = time.monotonic() + timeout, ""
        while True:
            found = self.look()
            for replica in found:
                if (replica.state, replica.wanted) == ("refused", version):
                    raise RefusedError(f"{replica.title} refuses it: {replica.reason or 'it does not say why'}")
            missing = [replica for replica in found if replica.serving != version]
            if found and not missing:
                return found
            if time.monotonic() > deadline:
                raise ServingError(f"after {timeout:g} s not every replica serves it: {_listed(missing)}")
            if said != (said := _listed(missing)):
                print(f"deploy: waiting: {said}", file=sys.stderr, flush=True)
            watch()
            time.sleep(POLL)


def _ask(url: str, address: tuple[str, int], name: str) -> Replica:
    host, port = address
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        status, body = _get(url, address)
    except (OSError, http.client.HTTPException) as error:
        return Replica(where, reason=connection_problem(error))
    if status != 200:
        return Replica(where, reason=f"{url} answered {status}; is it the address of a status?")
    try:
        return _replica(where, body, name)
    except (ValueError, RecursionError, ConfigError) as error:
        return Replica(where, reason=f"{url} is no status of a server of ours: {error}")


def _listed(replicas: Sequence[Replica]) -> str:
    return "; ".join(map(str, replicas)) or "there is none"


def _addresses(url: str) -> list[tuple[str, int]]:
    """Return all addresses that the host of a URL resolves to; its name where it resolves to none."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return [(host, port)]
    addresses = sorted({(str(address[0]), port) for *_, address in found})
    # A machine may have two addresses for one server, which may listen on either.
    return [each for each in addresses if ":" not in each[0]] or addresses


def _get(url: str, address: tuple[str, int]) -> tuple[int, bytes]:
    """Ask one of the addresses of a URL; a proxy of the environment would ask any."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(*address, timeout=ANSWER)
    try:
        connection.sock = socket.create_connection(address, timeout=ANSWER)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=parts.hostname)
        path = f"{parts.path or '/status'}{'?' if parts.query else ''}{parts.query}"
        host = parts.netloc.rpartition("@")[2]
        connection.request("GET", path, headers={"Host": host, "Accept": "application/json", **auth_headers()})
        answer = connection.getresponse()
        return answer.status, answer.read(MAX_BYTES)
    finally:
        connection.close()


def _replica(where: str, body: bytes, name: str) -> Replica:
    data: Any = json.loads(body)
    status = read_table(data, _STATUS, "status", others=True)
    store = read_table(status["store"], _STORE, "status: store", others=True)
    model: dict[str, Any] = {"wanted": None, "serving": None, "state": "waiting", "reason": None}
    if name in status["models"]:
        model = read_table(status["models"][name], _MODEL, f"status: {name}", others=True)
    elif not store["reachable"]:
        model["reason"] = f"it cannot reach {store['address']}: {store['reason']}"
    return Replica(where, status["server"] or where, status["draining"], store=store["address"], **model)
