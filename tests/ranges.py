"""An HTTP server on this machine that serves a folder by byte ranges, as object stores and web servers do."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeServer:
    """Serves files while its context lasts.

    Attributes:
        asked: The first and the last byte of each range that was asked for.
        sent: Bytes of all answers.
        etags: Whether answers carry an ETag.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[int, int]] = []
        self.sent, self.etags = 0, True
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                path = folder / self.path.partition("?")[0].lstrip("/")
                if not path.is_file():
                    return self.reply(404)
                status = path.stat()
                size, etag = status.st_size, f'"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"'
                if self.headers.get("If-Match", etag) != etag:
                    return self.reply(412)
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                headers = {"ETag": etag} if server.etags else {}
                if not wanted:
                    return self.reply(200, path.read_bytes(), headers)
                first, last = int(wanted[1]), min(int(wanted[2]), size - 1)
                server.asked.append((first, last))
                if first >= size:
                    return self.reply(416, b"", {"Content-Range": f"bytes */{size}"})
                headers["Content-Range"] = f"bytes {first}-{last}/{size}"
                with path.open("rb") as file:
                    file.seek(first)
                    return self.reply(206, file.read(last + 1 - first), headers)

            def reply(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None) -> None:
                server.sent += len(data)
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.host = f"127.0.0.1:{self._http.server_port}"
        self.url = f"http://{self.host}"

    def serve(self, path: Path) -> str:
        """Take up a file, and return its URL."""
        if not (self.folder / path.name).exists():
            (self.folder / path.name).hardlink_to(path)
        return f"{self.url}/{path.name}"

    def __enter__(self) -> RangeServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
