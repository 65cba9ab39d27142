"""The proxy before TorchServe: owns the public port, and passes whole, well-formed predictions over the loopback.

TorchServe cannot stop gracefully: it accepts connections until it dies, and cuts off what it has in hand. It also
waits forever for a request that does not come, answers 413 without a word, hangs on a negative Content-Length, and
says that it is healthy without a single model. All of that is this module's: a request of 150 KB costs it a
quarter of a millisecond of CPU. What is not a prediction never reaches TorchServe.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsp.serving.host import bound_socket
from rsp.serving.http1 import (
    MAX_HEAD,
    Head,
    RefusedError,
    body_size,
    parse_answer,
    parse_request,
    read_chunks,
)
from rsp.serving.logs import log_request, request_id
from rsp.serving.manifest import NAME
from rsp.serving.routes import NoRouteError, Routes
from rsp.serving.tokens import BEARER

if TYPE_CHECKING:
    from rsp.serving.metrics import Metrics

# Seconds that a client may take for the head of its first request, for the head of the next one (it keeps its
# connection meanwhile), and for a body.
FIRST, NEXT, BODY = 10.0, 60.0, 60.0
# How long an idle connection stays open when the end has begun: its client may be sending its next request.
GRACE = 1.0
# Open connections, and bytes of requests and answers held in memory; more are answered 503.
MAX_CONNECTIONS, MAX_HELD = 1000, 512 << 20
# Connections to TorchServe that are kept.
POOL = 64
# GET asks for the model card, PUT is what `curl -T` sends.
METHODS = (b"POST", b"GET", b"PUT")

_NAME = NAME.pattern.encode()
_PREDICTIONS = re.compile(rb"/predictions/(%b)(?:/(%b))?" % (_NAME, _NAME))
# TorchServe says 503 where a handler raised, and nobody should come back for that.
_RAISED = "Prediction failed"

RETRY = {"Retry-After": "1"}
# Headers that end here: the token is for this door, and the identity is written again.
OURS = (b"authorization", b"x-request-id")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Local = Callable[[], tuple[int, Mapping[str, Any]]]


class _Request:
    """A request that is being answered, and what is noted of it."""

    def __init__(self, head: Head, loop: asyncio.AbstractEventLoop) -> None:
        self.head = head
        self.method, target = head.first[1], head.first[2]
        self.path = target.partition(b"?")[0]
        self.id = request_id(next(iter(head.all(b"x-request-id")), None))
        self.began = loop.time()
        self.model: str | None = None
        self.version: str | None = None
        self.route: tuple[str, str] | None = None


class Proxy:
    """A reverse proxy before one TorchServe, on a thread of its own.

    Args:
        host: Address to listen on.
        port: Port to listen on; a free one if 0.
        backend: Port on the loopback on which TorchServe answers predictions.
        max_body: Bytes that the body of a request may have.
        routes: Which version answers; None passes each prediction on as it is.
        local: What is answered here, by the path: functions that return a status and an object for JSON, at once.
        may: Tells whether the Authorization header of a prediction (None without one) is good; None if all may.
        metrics: Counts what is answered.

    Raises:
        ServingError: the port is taken.
    """

    def __init__(
        self,
        host: str,
        port: int,
        backend: int,
        *,
        max_body: int,
        routes: Routes | None = None,
        local: Mapping[str, Local] | None = None,
        may: Callable[[str | None], bool] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.backend, self.max_body, self.routes, self.metrics = backend, max_body, routes, metrics
        self._local = {path.encode(): answer for path, answer in (local or {}).items()}
        self._may = may
        self._socket = bound_socket(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._pool: list[Streams] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.StreamWriter] = set()
        self._held = 0
        self._draining = False
        self._ending: Future[int] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._tasks)

    def start(self) -> None:
        """Accept connections."""
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

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
        if self._ending is not None:
            self._ending.cancel()  # a second signal came while the first was being followed
        self._ending = asyncio.run_coroutine_threadsafe(self._drain(seconds), self._loop)
        lost = self._ending.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        return lost

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, sock=self._socket, backlog=1024, limit=1 << 18)

    async def _drain(self, seconds: float) -> int:
        end = self._loop.time() + seconds
        self._draining = True
        if seconds:
            # Closing a socket resets the connections that the kernel has completed and nobody has accepted. So let
            # it complete no new ones, take those that there are, and close it then.
            drop_new_connections(self._socket)
            await asyncio.sleep(min(0.1, seconds))
        self._server.close()
        await self._finished(min(GRACE, end - self._loop.time()))
        for writer in self._idle:
            writer.close()
        await self._finished(end - self._loop.time())
        lost = len(self._tasks) - len(self._idle)
        for task in self._tasks:
            task.cancel()
        await self._finished(1.0)
        for _, writer in self._pool:
            writer.close()
        await asyncio.sleep(0)
        return lost

    async def _finished(self, seconds: float) -> None:
        """Wait until all connections are closed, up to some seconds."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, seconds))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        patience = FIRST
        try:
            while await self._exchange(reader, writer, patience):
                patience = NEXT
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client has gone, or is too slow: there is nobody to tell
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            self._idle.discard(writer)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience: float) -> bool:
        """Answer one request; return whether another may follow."""
        self._idle.add(writer)
        request: _Request | None = None
        try:
            try:
                async with asyncio.timeout(patience):
                    raw = await reader.readuntil(b"\r\n\r\n")
            except asyncio.LimitOverrunError:
                raise RefusedError(431, f"the head of a request may have {MAX_HEAD} bytes") from None
            except asyncio.IncompleteReadError as error:
                if not error.partial:
                    return False  # the client has closed a connection that it does not need any more
                raise RefusedError(400, "the head of the request ended before it was whole") from None
            self._idle.discard(writer)
            request = _Request(parse_request(raw), self._loop)
            head, body = await self._answer(request, reader, writer)
        except RefusedError as refused:
            await self._refuse(reader, writer, request, refused)
            return False
        last = request.head.first[3] == b"0" or b"close" in request.head.get(b"connection")
        keep = not (last or self._draining)
        writer.write(head + (b"\r\n" if keep else b"Connection: close\r\n\r\n") + body)
        await writer.drain()
        return keep

    async def _answer(
        self, request: _Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[bytes, bytes]:
        """Return the head of an answer, all but its last line, and its body."""
        local = self._local.get(request.path)
        if local is not None:
            # Before all limits: a server that is full is not one that has died.
            if request.method not in (b"GET", b"HEAD") or body_size(request.head, self.max_body):
                raise RefusedError(405, "expected GET, without a body", {"Allow": "GET, HEAD"})
            status, content = local()
            head, body = _json_answer(status, content, request.id)
            return head, b"" if request.method == b"HEAD" else body
        if len(self._tasks) > MAX_CONNECTIONS:
            raise RefusedError(503, f"more than {MAX_CONNECTIONS} connections are open", RETRY)
        target = self._admit(request)
        size = 0
        try:
            size = body_size(request.head, self.max_body)
            self._held += size
            if self._held > MAX_HELD:
                raise RefusedError(503, "too many large requests at once", RETRY)
            if request.head.get(b"expect") == b"100-continue":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            try:
                async with asyncio.timeout(BODY):
                    chunked = bool(request.head.all(b"transfer-encoding"))
                    body = await (read_chunks(reader, self.max_body) if chunked else reader.readexactly(size))
            except asyncio.IncompleteReadError:
                raise RefusedError(400, "the body ended before it was whole") from None
            request.began = self._loop.time()
            return await self._ask(request, target, body)
        finally:
            self._held -= size
            if self.routes is not None and request.route is not None:
                self.routes.leave(*request.route)

    def _admit(self, request: _Request) -> bytes:
        """Return the path that TorchServe is asked for, and count the request as under way."""
        found = _PREDICTIONS.fullmatch(request.path)
        if found is None:
            raise RefusedError(404, "there is /predictions/NAME[/VERSION], " + b", ".join(self._local).decode())
        if request.method not in METHODS:
            raise RefusedError(405, "expected POST, with an image", {"Allow": b", ".join(METHODS).decode()})
        request.model = found[1].decode()
        request.version = found[2].decode() if found[2] else None
        if self._may is not None:
            given = [value.decode("latin-1") for value in request.head.all(b"authorization")]
            if len(given) > 1 or not self._may(given[0] if given else None):
                reason = "this token is not known here" if given else "a token is needed"
                raise RefusedError(
                    401, f"{reason}: send `Authorization: Bearer <token>`", {"WWW-Authenticate": BEARER}
                )
        if self.routes is None:
            return request.path
        try:
            request.version = self.routes.enter(request.model, request.version)
        except NoRouteError as error:
            retry = RETRY if error.status == HTTPStatus.SERVICE_UNAVAILABLE else {}
            raise RefusedError(error.status, str(error), retry) from None
        request.route = request.model, request.version
        return f"/predictions/{request.model}/{request.version}".encode()

    async def _refuse(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        request: _Request | None,
        refused: RefusedError,
    ) -> None:
        """Answer with an error, and close the connection such that the client can read it."""
        name = request.id if request else request_id()
        self._note(request, name, refused.status, refused.detail)
        error = {"error": _phrase(refused.status), "detail": refused.detail}
        head, body = _json_answer(refused.status, error, name, refused.headers)
        only_head = request is not None and request.method == b"HEAD"
        writer.write(head + b"Connection: close\r\n\r\n" + (b"" if only_head else body))
        await writer.drain()
        writer.write_eof()
        self._idle.add(writer)  # it has its answer
        # Closing with unread bytes resets the connection, and most clients look for an answer only when they have
        # sent everything.
        async with asyncio.timeout(FIRST):
            for _ in range(1024):
                if not await reader.read(1 << 18):
                    break

    def _note(
        self, request: _Request | None, name: str, status: int, detail: str = "", timing: bytes | None = None
    ) -> None:
        """Count an answer, and write a line about one that is an error."""
        seconds = self._loop.time() - request.began if request else None
        model, version = (request.model, request.version) if request else (None, None)
        if self.metrics is not None:
            self.metrics.observe(model, version, status, seconds or 0.0, timing)
        log_request(
            status, request_id=name, model=model, version=version, seconds=seconds, detail=detail,
            method=request.method.decode() if request else "", path=request.path.decode() if request else "",
        )  # fmt: skip

    async def _ask(self, request: _Request, target: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Pass a request on to TorchServe; return the head of its answer, all but its last line, and the body."""
        message = b"%b %b HTTP/1.1\r\n%bX-Request-Id: %b\r\nContent-Length: %d\r\n\r\n" % (
            request.method, target, request.head.kept(OURS), request.id.encode(), len(body),
        )  # fmt: skip
        while True:
            used = bool(self._pool)
            try:
                streams = self._pool.pop() if used else await asyncio.open_connection("127.0.0.1", self.backend)
            except OSError:
                raise RefusedError(503, "TorchServe does not answer (yet)", RETRY) from None
            try:
                streams[1].write(message + body)
                answer, content, keep = await _read_answer(streams[0])
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                streams[1].close()
                # A connection that was kept may have been closed by the other side meanwhile; a new one was not.
                if used and isinstance(error, OSError | asyncio.IncompleteReadError):
                    continue
                raise RefusedError(502, "TorchServe ended the connection without an answer", RETRY) from None
            except RefusedError as error:
                streams[1].close()
                raise RefusedError(502, f"TorchServe's answer is malformed: {error}") from None
            except BaseException:
                streams[1].close()
                raise
            if keep and len(self._pool) < POOL:
                self._pool.append(streams)
            else:
                streams[1].close()
            return self._pass_back(request, answer, content)

    def _pass_back(self, request: _Request, answer: Head, content: bytes) -> tuple[bytes, bytes]:
        """Return TorchServe's answer as the client gets it."""
        status = int(answer.first[1])
        served = answer.all(b"x-model-version")
        if served:
            request.version = served[0].decode("latin-1")
        problem = _problem(content) if status >= 400 else None
        detail = problem[1] if problem else ""
        if status == 503 and detail == _RAISED:
            status = 500
        self._note(request, request.id, status, detail, b",".join(answer.all(b"server-timing")))
        if problem and problem[0]:
            # Its own errors have another form than those of the handler and of this proxy.
            error = {"error": _phrase(status), "detail": detail}
            return _json_answer(status, error, request.id, RETRY if status == 503 else {})
        head = b"HTTP/1.1 %b%b\r\n%bX-Request-Id: %b\r\n" % (
            answer.first[1], answer.first[2] or b" ", answer.kept(OURS), request.id.encode(),
        )  # fmt: skip
        return head + (b"" if status == 204 else b"Content-Length: %d\r\n" % len(content)), content


async def _read_answer(reader: asyncio.StreamReader) -> tuple[Head, bytes, bool]:
    """Read an answer of TorchServe; returns head, body, and whether the connection can be used again."""
    while True:
        head = parse_answer(await reader.readuntil(b"\r\n\r\n"))
        if not head.first[1].startswith(b"1"):  # an interim answer
            break
    keep = b"close" not in head.get(b"connection")
    if head.first[1] in (b"204", b"304"):
        return head, b"", keep
    if head.get(b"transfer-encoding") == b"chunked":
        return head, await read_chunks(reader, 1 << 40), keep
    if length := head.get(b"content-length"):
        return head, await reader.readexactly(int(length)), keep
    return head, await reader.read(-1), False


def _problem(content: bytes) -> tuple[bool, str] | None:
    """Return whether an error has TorchServe's own form, and what it says; None where it is not JSON."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    own = "message" in found
    return own, str(found.get("message" if own else "detail", ""))[:500]


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in set(HTTPStatus) else "Error"


def _json_answer(
    status: int, content: Mapping[str, Any], name: str, headers: Mapping[str, str] | None = None
) -> tuple[bytes, bytes]:
    """Return the head of an answer, all but its last line, and its body."""
    body = json.dumps(content).encode() + b"\n"
    lines = {
        "Content-Type": "application/json", "Content-Length": len(body), "Cache-Control": "no-store",
        "X-Request-Id": name, **(headers or {}),
    }  # fmt: skip
    head = f"HTTP/1.1 {status} {_phrase(status)}\r\n" + "".join(
        f"{key}: {value}\r\n" for key, value in lines.items()
    )
    return head.encode("latin-1"), body


def drop_new_connections(listening: socket.socket) -> None:
    """Let the kernel pass over whatever would open another connection; the handshakes under way go on.

    Clients send such a packet again a second later, and find the port closed by then. Where the kernel has no
    socket filters, nothing happens.
    """
    # Of the TCP header: load the byte with the flags; of SYN and ACK, if SYN alone is set, drop, else take it all.
    program = [(0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    attach_filter = 26  # SO_ATTACH_FILTER of asm-generic/socket.h
    with contextlib.suppress(OSError):
        listening.setsockopt(
            socket.SOL_SOCKET, attach_filter, struct.pack("HL", len(program), ctypes.addressof(code))
        )


def max_request_size() -> int:
    """Return the bytes that TorchServe lets a request have, as set for this container or in the file."""
    text = (Path(__file__).parent / "config.properties").read_text("utf-8")
    found = re.search(r"^max_request_size=(\d+)$", text, re.M)
    assert found is not None
    return int(os.environ.get("TS_MAX_REQUEST_SIZE") or found[1])
