"""An S3 server within the process of the tests. It is quick, and believes whoever asks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

from minio import Minio

NAMES = count()


@dataclass
class S3:
    """A server on 127.0.0.1.

    Attributes:
        host: Its host and port.
        environ: What the environment has to say to reach it.
    """

    host: str
    environ: dict[str, str]

    def client(self) -> Minio:
        return Minio(
            self.host,
            self.environ["AWS_ACCESS_KEY_ID"],
            self.environ["AWS_SECRET_ACCESS_KEY"],
            secure=False,
            region="us-east-1",
        )

    def bucket(self) -> str:
        """Make a bucket, and return its name."""
        name = f"bucket-{next(NAMES)}"
        self.client().make_bucket(name)
        return name


@contextmanager
def moto(watch: Callable[[dict[str, Any], int | None], None] | None = None) -> Iterator[S3]:
    """Start a server.

    Args:
        watch: Called with the WSGI environment of each request: before it is worked on, with None, and with the
            number of bytes of the answer.
    """
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_write_at_a_time(environ: dict[str, Any], start_response: Any) -> Any:
        # moto compares and writes in two steps, as no real server does.
        with lock if environ["REQUEST_METHOD"] == "PUT" else nullcontext():
            return application(environ, start_response)

    def watched(environ: dict[str, Any], start_response: Any) -> Any:
        assert watch is not None
        watch(environ, None)
        answer = list(one_write_at_a_time(environ, start_response))
        watch(environ, sum(map(len, answer)))
        return answer

    answer = one_write_at_a_time if watch is None else watched
    server = make_server("127.0.0.1", 0, answer, threaded=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    host = f"127.0.0.1:{server.server_port}"
    try:
        yield S3(
            host,
            {
                "AWS_ENDPOINT_URL_S3": f"http://{host}",
                "AWS_ACCESS_KEY_ID": "tester",
                "AWS_SECRET_ACCESS_KEY": "very-secret-key",
            },
        )
    finally:
        server.shutdown()
        server.server_close()
