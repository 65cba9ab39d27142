"""uvicorn with the limits that it lacks: heads, slow clients, connections; and an end that loses no request."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import Server

from rsp.serving.host import bound_socket
from rsp.serving.proxy import BODY, FIRST, GRACE, MAX_CONNECTIONS, NEXT, drop_new_connections

# As of the proxy, which stands behind.
MAX_TARGET, MAX_HEAD = 4000, 8000
# Seconds in which a client may take nothing of an answer before it is cut off.
STALLED = 60.0
# Seconds for which what a refused client still sends is read and dropped. The kernel resets a connection that is
# closed with something unread, and the client may never see why it was refused.
LINGER = 2.0


class Protocol(HttpToolsProtocol):
    """One connection. A client that is slow with a request, or sends too long a head, is told so and let go."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._received = self._head = 0  # bytes of the head so far: as they come, and as they are understood
        self._inside = self._ending = False  # within the body of a request; the server is about to end
        self._stalled: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(FIRST, self._slow)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(503, f"more than {MAX_CONNECTIONS} connections are open")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        for timer in (self._stalled, self._lingering):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    @property
    def _over(self) -> bool:
        """Whether nothing that comes matters any more."""
        return self._lingering is not None or self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        if not self._inside:
            self._received += len(data)
            if self._timer is None:
                self._timer = self.loop.call_later(FIRST, self._slow)
        super().data_received(data)
        if not self._inside and self._received > MAX_HEAD and self._timer is not None:
            self._refuse(431, f"the head of a request may have {MAX_HEAD} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._head += len(name) + len(value) + 4

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._received, self._inside = 0, True
        if self._over:
            return
        if len(self.url) > MAX_TARGET:
            return self._refuse(414, f"the URL may have {MAX_TARGET} bytes")
        if self._head > MAX_HEAD:
            return self._refuse(431, f"the head of a request may have {MAX_HEAD} bytes")
        self._timer = self.loop.call_later(BODY, self._slow)
        super().on_headers_complete()
        if self._ending:
            self.cycle.keep_alive = False
        return None

    def on_body(self, body: bytes) -> None:
        if not self._over:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._inside = False
        if not self._over:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not a request of HTTP/1.1")

    def shutdown(self) -> None:
        """End this connection after the answer to what was sent; one that is idle may be about to send."""
        self._ending = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(GRACE, self._leave)
        else:
            self.cycle.keep_alive = False

    def _leave(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        # A client that takes nothing of its answer holds it in memory.
        self._stalled = self.loop.call_later(STALLED, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _slow(self) -> None:
        self._timer = None
        if self._inside:
            self._refuse(408, f"the body of a request must come within {BODY:g} s")
        elif self._received:
            self._refuse(408, f"the head of a request must come within {FIRST:g} s")
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, detail: str) -> None:
        """Answer without asking the application, unless it is answering already, and close."""
        self._stop_timer()
        if self._over:
            return
        under_way = self.cycle is not None and not self.cycle.response_complete
        if not (under_way and self.cycle.response_started):
            phrase = HTTPStatus(status).phrase
            body = json.dumps({"error": phrase, "detail": detail}).encode()
            head = (
                f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            )
            retry = "Retry-After: 1\r\n" if status == 503 else ""
            self.transport.write(f"{head}{retry}Connection: close\r\n\r\n".encode() + body)
        # Where there are too many connections, none is kept for politeness.
        if under_way or status == 503 or not self.transport.can_write_eof():
            self.transport.close()
        else:
            self.transport.write_eof()
            self._lingering = self.loop.call_later(LINGER, self.transport.close)


class _Uvicorn(Server):
    """uvicorn's server, with an end that answers what the kernel has accepted, and counts what it cuts off."""

    patience, lost = 0.0, 0

    async def shutdown(self, sockets: Any = None) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.patience
        state = self.server_state
        if self.patience:
            # Closing a socket resets the connections that the kernel has completed and nobody has accepted.
            for each in sockets or []:
                drop_new_connections(each)
            await asyncio.sleep(min(0.1, self.patience))
        for server in self.servers:
            server.close()
        for connection in list(state.connections):
            connection.shutdown()
        while (state.connections or state.tasks) and loop.time() < end:
            await asyncio.sleep(0.02)
        self.lost = len(state.tasks)
        for task in list(state.tasks):
            task.cancel()
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=1.0)
        await self.lifespan.shutdown()


class HttpServer:
    """An ASGI application on a port, on a thread of its own.

    Args:
        app: The application.
        host: Address to listen on.
        port: Port to listen on; a free one if 0.

    Attributes:
        url: Where it answers, as seen from this machine.

    Raises:
        ServingError: the port is taken.
    """

    def __init__(self, app: Any, host: str, port: int) -> None:
        self._socket = bound_socket(host, port)
        self.port: int = self._socket.getsockname()[1]
        here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        self.url = f"http://{here}:{self.port}"
        config = uvicorn.Config(
            app, http=Protocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
            timeout_keep_alive=int(NEXT), proxy_headers=False,
        )  # fmt: skip
        # It has a line for each malformed request, and clients have many of these; `Outer` logs our own faults.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._server = _Uvicorn(config)
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)

    def _run(self) -> None:
        self._server.run([self._socket])

    def start(self) -> None:
        """Accept connections."""
        self._socket.listen(1024)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._server.server_state.connections)

    def stop(self, seconds: float = 0.0) -> int:
        """Accept no more connections, answer the requests that were sent, and end.

        Args:
            seconds: How long that may take.

        Returns:
            How many requests were not answered in that time, and were cut off.
        """
        if not self._thread.is_alive():
            self._socket.close()
            return 0
        self._server.patience = seconds
        self._server.should_exit = True
        self._thread.join()
        return self._server.lost
