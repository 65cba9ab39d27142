"""A TCP relay: what a Service is to pods, and a cable that can be pulled."""

from __future__ import annotations

import contextlib
import socket
import threading
from itertools import count


class Relay:
    """Passes each connection on to the next of some ports of this machine, as kube-proxy does.

    A connection that cannot be passed on is closed without an answer.
    """

    def __init__(self, *targets: int) -> None:
        self.targets = list(targets)
        self._turn, self._lock = count(), threading.Lock()
        self._open: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listening.getsockname()[1]
        self.plugged = True
        threading.Thread(target=self._accept, daemon=True).start()

    def unplug(self) -> None:
        """Cut all connections, and close new ones at once."""
        self.plugged = False
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def plug(self) -> None:
        self.plugged = True

    def close(self) -> None:
        self.unplug()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            target = self.targets[next(self._turn) % len(self.targets)] if self.plugged and self.targets else None
            threading.Thread(target=self._pass, args=(client, target), daemon=True).start()

    def _pass(self, client: socket.socket, target: int | None) -> None:
        with client:
            if target is None:
                return
            try:
                server = socket.create_connection(("127.0.0.1", target), timeout=60)
            except OSError:
                return
            server.settimeout(None)
            with server:
                with self._lock:
                    self._open |= {client, server}
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join()
                with self._lock:
                    self._open -= {client, server}


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
