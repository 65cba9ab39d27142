"""The proxy before TorchServe: owns the public port, and passes whole, well-formed requests on over the loopback.

    python -m rsp.serving.proxy --listen 0.0.0.0:8080 --backend 18080        ends, once all is answered, on SIGTERM

TorchServe cannot stop gracefully: it accepts connections until it dies, and cuts off what it has in hand. It also
waits forever for a request that does not come, answers 413 without a word, and hangs on a negative
Content-Length. All of that is this module's, and of the standard library: a request of 150 KB costs it
a quarter of a millisecond of CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from rsp.shared.errors import RspError, ServingError

# Netty, within TorchServe, takes a request line of 4096 bytes and headers of 8192, and makes no sense of more.
MAX_TARGET, MAX_HEAD = 4000, 8000
# Seconds that a client may take for the head of its first request, for the head of the next one (it keeps its
# connection meanwhile), and for a body.
FIRST, NEXT, BODY = 10.0, 60.0, 60.0
# How long an idle connection stays open when the end has begun: its client may be sending its next request.
GRACE = 1.0
# Open connections, and bytes of requests and answers held in memory; more are answered 503.
MAX_CONNECTIONS, MAX_HELD = 1000, 512 << 20
# Connections to TorchServe that are kept.
POOL = 64

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST = re.compile(rb"([A-Z]{1,16}) ([!-~]+) HTTP/1\.([01])")
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})( [^\r\n]*)?")
# What concerns one connection only, or is written again for the next one.
_HOP = {
    b"connection", b"content-length", b"expect", b"keep-alive", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
}  # fmt: skip

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _RefusedError(Exception):
    """A request that is answered here, with an error; the connection is closed after it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


@dataclass
class _Head:
    """The first line of a request or an answer, and its headers as they were sent."""

    first: re.Match[bytes]
    headers: list[tuple[bytes, bytes]]

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]

    def get(self, name: bytes) -> bytes:
        """Return the value of a header, in lower case; empty where there is none."""
        return b",".join(self.all(name)).lower()

    def kept(self) -> bytes:
        """Return the headers that are passed on."""
        return b"".join(b"%b: %b\r\n" % pair for pair in self.headers if pair[0].lower() not in _HOP)


class Proxy:
    """A reverse proxy before one TorchServe, on a thread of its own.

    Args:
        host: Address to listen on.
        port: Port to listen on; a free one if 0.
        backend: Port on the loopback on which TorchServe answers predictions.
        max_body: Bytes that the body of a request may have.

    Raises:
        ServingError: the port is taken.
    """

    def __init__(self, host: str, port: int, backend: int, *, max_body: int) -> None:
        self.backend, self.max_body = backend, max_body
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise ServingError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port") from None
        self.port: int = self._socket.getsockname()[1]
        self._pool: list[Streams] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.StreamWriter] = set()
        self._held = 0
        self._draining = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

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
        lost = asyncio.run_coroutine_threadsafe(self._drain(seconds), self._loop).result()
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
            _drop_new_connections(self._socket)
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
        body, size, keep = b"", 0, False
        try:
            try:
                async with asyncio.timeout(patience):
                    raw = await reader.readuntil(b"\r\n\r\n")
                self._idle.discard(writer)
                request = _parse_request(raw)
                if len(self._tasks) > MAX_CONNECTIONS:
                    raise _RefusedError(503, f"more than {MAX_CONNECTIONS} connections are open")
                size = self._expected_size(request)
                self._held += size
                if self._held > MAX_HELD:
                    raise _RefusedError(503, "too many large requests at once")
                if request.get(b"expect") == b"100-continue":
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                async with asyncio.timeout(BODY):
                    chunked = bool(request.all(b"transfer-encoding"))
                    body = await (self._chunks(reader) if chunked else reader.readexactly(size))
            except asyncio.LimitOverrunError:
                raise _RefusedError(431, f"the head of a request may have {MAX_HEAD} bytes") from None
            head, body = await self._ask(request, body)
            last = request.first[3] == b"0" or b"close" in request.get(b"connection")
            keep = not (last or self._draining)
        except _RefusedError as refused:
            await self._refuse(reader, writer, refused)
            return False
        finally:
            self._held -= size
        writer.write(head + (b"\r\n" if keep else b"Connection: close\r\n\r\n") + body)
        await writer.drain()
        return keep

    def _expected_size(self, request: _Head) -> int:
        """Return the size of a body (the limit, if it comes in chunks), and refuse one that is too large."""
        lengths, coding = request.all(b"content-length"), request.all(b"transfer-encoding")
        if coding:
            # Both at once is how requests are smuggled past a proxy.
            if lengths or request.get(b"transfer-encoding") != b"chunked":
                raise _RefusedError(400, "Transfer-Encoding: expected `chunked`, without a Content-Length")
            return self.max_body
        if not lengths:
            return 0
        if len(lengths) > 1 or not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
            raise _RefusedError(400, "Content-Length: expected one whole number, 0 or more")
        if int(lengths[0]) > self.max_body:
            raise self._too_large()
        return int(lengths[0])

    def _too_large(self) -> _RefusedError:
        return _RefusedError(
            413, f"a request may have {self.max_body} bytes (max_request_size of TorchServe's config.properties)"
        )

    async def _chunks(self, reader: asyncio.StreamReader, limit: int | None = None) -> bytes:
        """Read a body that comes in chunks."""
        limit = self.max_body if limit is None else limit
        body = bytearray()
        while True:
            line = (await reader.readuntil(b"\r\n"))[:-2].partition(b";")[0].strip()
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", line):
                raise _RefusedError(400, "a chunk of the body does not begin with its size")
            size = int(line, 16)
            if len(body) + size > limit:
                raise self._too_large()
            if not size:
                break
            body += await reader.readexactly(size)
            if await reader.readexactly(2) != b"\r\n":
                raise _RefusedError(400, "a chunk of the body is longer than it says")
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass  # trailers
        return bytes(body)

    async def _refuse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refused: _RefusedError
    ) -> None:
        """Answer with an error, and close the connection such that the client can read it."""
        status = HTTPStatus(refused.status)
        body = json.dumps({"error": status.phrase, "detail": refused.detail}).encode()
        retry = b"Retry-After: 1\r\n" if status == 503 else b""
        head = b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n"
        writer.write(head % (status.value, status.phrase.encode(), len(body)) + retry + b"\r\n" + body)
        await writer.drain()
        writer.write_eof()
        self._idle.add(writer)  # it has its answer
        # Closing with unread bytes resets the connection, and most clients look for an answer only when they have
        # sent everything.
        async with asyncio.timeout(FIRST):
            for _ in range(1024):
                if not await reader.read(1 << 18):
                    break

    async def _ask(self, request: _Head, body: bytes) -> tuple[bytes, bytes]:
        """Pass a request on to TorchServe; return the head of its answer, all but its last line, and the body."""
        method, target = request.first[1], request.first[2]
        message = b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (method, target, request.kept(), len(body))
        while True:
            used = bool(self._pool)
            try:
                streams = self._pool.pop() if used else await asyncio.open_connection("127.0.0.1", self.backend)
            except OSError:
                raise _RefusedError(503, "TorchServe does not answer (yet)") from None
            try:
                streams[1].write(message + body)
                answer, content, keep = await self._answer(streams[0], method)
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                streams[1].close()
                # A connection that was kept may have been closed by the other side meanwhile; a new one was not.
                if used and isinstance(error, OSError | asyncio.IncompleteReadError):
                    continue
                raise _RefusedError(502, "TorchServe ended the connection without an answer") from None
            except _RefusedError as error:
                streams[1].close()
                raise _RefusedError(502, f"TorchServe's answer is malformed: {error}") from None
            except BaseException:
                streams[1].close()
                raise
            if keep and len(self._pool) < POOL:
                self._pool.append(streams)
            else:
                streams[1].close()
            head = b"HTTP/1.1 %b%b\r\n" % (answer.first[1], answer.first[2] or b" ")
            length = b"" if answer.first[1] in (b"204", b"304") else b"Content-Length: %d\r\n" % len(content)
            if method == b"HEAD":
                length = b"".join(b"Content-Length: %b\r\n" % value for value in answer.all(b"content-length"))
            return head + answer.kept() + length, content

    async def _answer(self, reader: asyncio.StreamReader, method: bytes) -> tuple[_Head, bytes, bool]:
        """Read an answer of TorchServe; returns head, body, and whether the connection can be used again."""
        while True:
            raw = await reader.readuntil(b"\r\n\r\n")
            head = _parse(raw, _STATUS)
            if not head.first[1].startswith(b"1"):  # an interim answer
                break
        keep = b"close" not in head.get(b"connection")
        if method == b"HEAD" or head.first[1] in (b"204", b"304"):
            return head, b"", keep
        if head.get(b"transfer-encoding") == b"chunked":
            return head, await self._chunks(reader, 1 << 40), keep
        if length := head.get(b"content-length"):
            return head, await reader.readexactly(int(length)), keep
        return head, await reader.read(-1), False


def _parse(raw: bytes, first: re.Pattern[bytes]) -> _Head:
    """Take apart a head, with its empty last line."""
    line, *lines = raw[:-4].split(b"\r\n")
    match = first.fullmatch(line)
    if match is None:
        raise _RefusedError(400, "the first line is not one of HTTP/1.1")
    headers = []
    for each in lines:
        name, colon, value = each.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or re.search(rb"[\r\n\0]", value):
            raise _RefusedError(400, "a line of the head is not a header")
        headers.append((name, value.strip(b" \t")))
    return _Head(match, headers)


def _parse_request(raw: bytes) -> _Head:
    if len(raw) > MAX_HEAD:
        raise _RefusedError(431, f"the head of a request may have {MAX_HEAD} bytes")
    request = _parse(raw, _REQUEST)
    if len(request.first[2]) > MAX_TARGET:
        raise _RefusedError(414, f"the URL may have {MAX_TARGET} bytes")
    return request


def _drop_new_connections(listening: socket.socket) -> None:
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


def main(argv: list[str] | None = None) -> int:
    """Pass requests on until SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m rsp.serving.proxy", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="default: 127.0.0.1:8080")
    parser.add_argument("--backend", type=int, required=True, metavar="PORT", help="where TorchServe answers")
    parser.add_argument(
        "--drain", type=float, default=65.0, metavar="SECONDS",
        help="for requests under way at the end (default: 65, a little more than TorchServe's responseTimeout)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    host, _, port = args.listen.rpartition(":")
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    try:
        proxy = Proxy(host.strip("[]"), int(port), args.backend, max_body=max_request_size())
        proxy.start()
        ending.wait()
        lost = proxy.stop(args.drain)
    except RspError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if lost:
        print(f"error: {lost} requests were cut off after {args.drain:g} s", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
