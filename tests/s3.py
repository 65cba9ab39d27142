"""An S3 server within the process of the tests. It is quick, and believes whoever asks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

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
def moto() -> Iterator[S3]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield S3(
            f"{host}:{port}",
            {
                "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
                "AWS_ACCESS_KEY_ID": "tester",
                "AWS_SECRET_ACCESS_KEY": "very-secret-key",
            },
        )
    finally:
        server.stop()
