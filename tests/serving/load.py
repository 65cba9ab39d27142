"""Clients that ask a server for masks one after the other, and note what they are answered."""

from __future__ import annotations

import threading
import time

import requests

from rsp.shared.images import decode_mask, encode
from tests.tilesets import BLOCK, noise


class Load:
    """Clients that ask for one mask after the other, each over a connection of its own, until they are refused.

    Each looks at the answers itself: a client that tries again would hide what it was not answered.
    """

    def __init__(self, url: str, clients: int = 4, path: str = "rsp", pause: float = 0.0, size: int = 64) -> None:
        self.url, self.faults = f"{url}/predictions/{path}", []
        self.pause = pause  # seconds between an answer and the next request
        self.versions: set[str] = set()  # that answered
        self.size, self.image = size, encode(noise(BLOCK[0], size), "png")
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.moments: list[list[tuple[float, float]]] = [[] for _ in range(clients)]
        self.threads = [threading.Thread(target=self.ask, args=(moments,)) for moments in self.moments]

    def ask(self, moments: list[tuple[float, float]]) -> None:
        with requests.Session() as session:
            while not self.stop.is_set():
                began = time.monotonic()
                try:
                    answer = session.post(
                        self.url, self.image, headers={"Content-Type": "image/png"}, timeout=(60, 120)
                    )
                except requests.ConnectionError as error:
                    if "Connection refused" not in str(error):
                        self.faults.append(error)
                    return
                if answer.status_code != 200 or decode_mask(answer.content).shape != (self.size, self.size):
                    self.faults.append((answer.status_code, answer.content[:200]))
                    return
                self.versions.add(answer.headers["X-Model-Version"])
                moments.append((began, time.monotonic()))
                self.stop.wait(self.pause)

    def wait_for(self, count: int) -> None:
        """Return when each client has this many answers."""
        while min(map(len, self.moments)) < count:
            assert not self.faults
            time.sleep(0.02)

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
