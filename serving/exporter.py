"""Shows the metrics of this process at /metrics, on a port of its own that clients need not reach."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from rsp.serving.host import bound_socket
from rsp.serving.metrics import Metrics

logger = logging.getLogger(__name__)

# Connections that may read the metrics at once; more are closed.
MOST = 16


class MetricsServer:
    """Answers GET /metrics on a thread.

    Args:
        metrics: What to show.
        host: Address to listen on.
        port: Port to listen on; a free one if 0.

    Raises:
        ServingError: the port is taken.
    """

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        self._server = _Server(metrics, bound_socket(host, port))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def start(self) -> None:
        """Accept connections."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, metrics: Metrics, listening: socket.socket) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.server_address = listening, listening.getsockname()
        self.server_activate()
        self.metrics = metrics
        self._free = threading.BoundedSemaphore(MOST)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that went
            logger.exception("the metrics cannot be shown")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10.0
    server_version, sys_version = "rsp", ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, explain="the metrics are at /metrics")
            return
        text = self.server.metrics.render()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: Prometheus comes by every few seconds."""
