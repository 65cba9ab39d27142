"""A prefix of an S3 bucket as a store, through the minio client."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import Any
from xml.etree import ElementTree

from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from rsp.shared.atomic import PREFIX, atomic_path
from rsp.shared.errors import ChangedError, NotFoundError, StorageError, UsageError
from rsp.shared.http import Backoff, TryAgain, connection_problem, retry
from rsp.shared.storage.base import (
    MiB,
    Readable,
    Stat,
    Storage,
    check_digest,
    check_key,
    check_limit,
    conflict,
    nothing,
)
from rsp.shared.storage.connection import BACKOFF, Pool, UnreachableError, explain
from rsp.shared.storage.multipart import PART, put_parts, send
from rsp.shared.storage.settings import find_credentials, find_endpoint

# Larger ones go in parts.
SINGLE = 64 * MiB

# A transfer that breaks after this much was worth it: the attempts are counted from there.
_PROGRESS = MiB

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

# What browsers have to know of an object to show it; it follows from the name.
_MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
    ".geojson": "application/geo+json",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".pmtiles": "application/vnd.pmtiles",
}

_ABSENT = ("NoSuchKey", "NoSuchObject", "NoSuchVersion")
_REFUSED = ("PreconditionFailed", "ConditionalRequestConflict", "ConditionNotMet")


class S3Storage(Storage):
    """Objects below a prefix of a bucket, on any server that speaks S3.

    Where the server is and as whom it is asked follows from the environment (`rsp.shared.storage.settings`).
    """

    def __init__(
        self, bucket: str, prefix: str = "", *, backoff: Backoff = BACKOFF, timeout: float = 60.0
    ) -> None:
        if "@" in bucket:
            raise UsageError(
                "an s3:// address holds no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or RSP_S3_SECRETS"
            )
        if not _BUCKET.fullmatch(bucket):
            raise UsageError(f"{bucket!r} is no name of a bucket; expected s3://bucket/prefix")
        self.bucket, self.prefix = bucket, f"{check_key(prefix)}/" if prefix else ""
        self.address = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self._options: dict[str, Any] = {"backoff": backoff, "timeout": timeout}
        self._backoff = backoff
        self._endpoint = find_endpoint()
        self._pool = Pool(self._endpoint, backoff, timeout)
        # Those who answer for credentials are near: they answer at once or not at all.
        self._credentials = find_credentials(
            self._endpoint, Pool(self._endpoint, Backoff(2, 0.2), min(timeout, 5.0))
        )
        try:
            self._client = Minio(
                self._endpoint.host,
                secure=self._endpoint.secure,
                region=self._endpoint.region,
                credentials=self._credentials,
                http_client=self._pool,
            )
        except ValueError as error:
            raise StorageError(f"{self._endpoint} cannot be used as an S3 server: {error}") from error
        self._bucket_is_there = False
        self._honours: bool | None = None

    def stat(self, key: str) -> Stat | None:
        name = self._name(key)
        with self._asking("read", key):
            try:
                found = self._client.stat_object(self.bucket, name)
            except MinioException as error:
                if isinstance(error, S3Error) and error.code in _ABSENT:
                    self._check_bucket()
                    return None
                # An answer to HEAD has no body that would say why.
                self._client.get_object(self.bucket, name).close()
                raise
        self._bucket_is_there = True
        return Stat(key, found.size or 0, found.etag or "")

    def read(self, key: str, *, limit: int = 64 * MiB) -> tuple[bytes, Stat]:
        data = bytearray()
        found = self._fetch(key, data.extend, limit=limit)
        return bytes(data), found

    def read_range(self, key: str, start: int, length: int, *, etag: str | None = None) -> bytes:
        if length <= 0:
            return b""
        data = bytearray()
        self._fetch(key, data.extend, start=start, length=length, etag=etag)
        return bytes(data)

    def download(self, key: str, path: Path, *, sha256: str | None = None) -> Stat:
        digest = hashlib.sha256()
        with atomic_path(path) as temporary:
            with temporary.open("wb") as output:

                def write(data: bytes) -> None:
                    digest.update(data)
                    output.write(data)

                found = self._fetch(key, write)
            check_digest(self._where(key), digest.hexdigest(), sha256)
        return found

    def upload(self, key: str, path: Path) -> Stat:
        try:
            with path.open("rb") as source:
                size = path.stat().st_size
                return self._parts(key, source, size) if size > SINGLE else self._put(key, source, size)
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error

    def upload_from(self, key: str, source: Readable, size: int, *, check: Callable[[], None] = nothing) -> Stat:
        if size > SINGLE:
            return self._parts(key, source, size, check)
        # In one piece, which can be sent again when the connection breaks.
        data = source.read(size + 1)
        if len(data) != size:
            raise StorageError(f"cannot write {self._where(key)}: {len(data)} bytes came, {size} were announced")
        check()
        return self.write(key, data)

    def write(self, key: str, data: bytes) -> Stat:
        return self._put(key, io.BytesIO(data), len(data))

    def _parts(self, key: str, source: Readable, size: int, check: Callable[[], None] = nothing) -> Stat:
        with self._asking("write", key):
            etag = put_parts(self._client, self._pool, self.bucket, self._name(key), source, size, check)
        return Stat(key, size, etag)

    def _put(self, key: str, source: io.BufferedReader | io.BytesIO, size: int) -> Stat:
        kind = _MEDIA.get(PurePosixPath(key).suffix.lower(), "application/octet-stream")
        with self._asking("write", key):
            done = self._client.put_object(
                self.bucket, self._name(key), source, size, content_type=kind, part_size=SINGLE + PART
            )
        return Stat(key, size, done.etag or "")

    def write_if(self, key: str, data: bytes, *, etag: str | None) -> Stat:
        # A server that ignores conditions overwrites: at least what is seen beforehand counts everywhere.
        before = self.stat(key)
        if (before and before.etag) != etag:
            raise conflict(self._where(key), etag, before)
        if self._honours is not False:
            with suppress(_Unconditional):
                return self._put_if(key, data, etag)
        return self.write(key, data)

    def _put_if(self, key: str, data: bytes, etag: str | None) -> Stat:
        condition = {"If-None-Match": "*"} if etag is None else {"If-Match": f'"{etag}"'}
        with self._asking("write", key):
            try:
                answer = send(
                    self._client, self._pool, "PUT", self.bucket, self._name(key), data, headers=condition
                )
                return Stat(key, len(data), _etag(answer))
            except S3Error as error:
                if error.code == "NotImplemented":
                    self._honours = False
                    raise _Unconditional from None
                if error.response.status not in (409, 412) and error.code not in (*_REFUSED, *_ABSENT):
                    raise
                in_doubt = self._pool.in_doubt
        # Asked again after the answer was lost: what refuses may be what we wrote ourselves.
        now = self.stat(key)
        if in_doubt and now and now.size == len(data) and self.read(key, limit=len(data))[0] == data:
            return now
        raise conflict(self._where(key), etag, now)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        if above := prefix.rpartition("/")[0]:
            check_key(above)
        with self._asking("list", prefix):
            for found in self._client.list_objects(self.bucket, self.prefix + prefix, recursive=True):
                key = (found.object_name or "")[len(self.prefix) :]
                # A key that ends in a slash is how some tools draw a folder.
                if key and not key.endswith("/") and f"/{PREFIX}" not in f"/{key}":
                    yield Stat(key, found.size or 0, (found.etag or "").strip('"'), found.last_modified)

    def delete(self, *keys: str) -> None:
        names = [self._name(key) for key in keys]
        with self._asking("delete", keys[0] if keys else ""):
            if len(names) == 1:
                self._client.remove_object(self.bucket, names[0])
                return
            for error in self._client.remove_objects(self.bucket, [DeleteObject(name) for name in names]):
                if error.code not in _ABSENT:
                    raise StorageError(
                        f"cannot delete s3://{self.bucket}/{error.name}: {error.code}, {error.message}"
                    )

    def honours_conditions(self) -> bool:
        if self._honours is None:
            self._honours = self._probe()
        return self._honours

    def _probe(self) -> bool:
        key = f"{PREFIX}probe-{token_hex(8)}"
        name = self.prefix + key
        refused = 0
        try:
            with self._asking("write", key):
                self._client.put_object(self.bucket, name, io.BytesIO(b"1"), 1)
            for condition in ({"If-None-Match": "*"}, {"If-Match": f'"{"0" * 32}"'}):
                with self._asking("write", key):
                    try:
                        send(self._client, self._pool, "PUT", self.bucket, name, b"2", headers=condition)
                    except S3Error as error:
                        refused += error.response.status in (409, 412)
                        # Some say so at least.
                        if error.response.status not in (409, 412, 501):
                            raise
            return refused == 2
        finally:
            with self._asking("delete", key):
                self._client.remove_object(self.bucket, name)

    def __reduce__(self) -> tuple[Callable[..., S3Storage], tuple[str, str]]:
        return partial(S3Storage, **self._options), (self.bucket, self.prefix.rstrip("/"))

    def _name(self, key: str) -> str:
        return self.prefix + check_key(key)

    def _where(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    @contextmanager
    def _asking(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except S3Error as error:
            if error.code in _ABSENT:
                raise NotFoundError(f"there is no {self._where(key)}") from None
            if error.code == "InvalidRange":
                raise _PastEnd from None
            if error.code in _REFUSED:
                raise ChangedError(f"{self._where(key)} has changed since it was opened: open it again") from None
            raise explain(
                error, f"{verb} {self._where(key)}", self.bucket, self._endpoint, self._credentials
            ) from None
        except MinioException as error:
            raise explain(
                error, f"{verb} {self._where(key)}", self.bucket, self._endpoint, self._credentials
            ) from None
        except (ElementTree.ParseError, ValueError):
            raise StorageError(
                f"cannot {verb} {self._where(key)}: {self._endpoint} answers, and not as S3 does; is it the "
                "address of an S3 server?"
            ) from None
        except UnreachableError as error:
            raise StorageError(f"cannot {verb} {self._where(key)}: {error}") from None

    def _check_bucket(self) -> None:
        if not self._bucket_is_there:
            with self._asking("list", ""):
                next(iter(self._client.list_objects(self.bucket, self.prefix)), None)
            self._bucket_is_there = True

    def _fetch(
        self,
        key: str,
        write: Callable[[bytes], object],
        *,
        start: int = 0,
        length: int | None = None,
        etag: str | None = None,
        limit: int | None = None,
    ) -> Stat:
        """Pass the bytes of an object on as they come; after a broken connection go on where it broke."""
        name, where = self._name(key), self._where(key)
        position, end, size = start, None if length is None else start + length, 0

        def more() -> bool:
            """Ask for the rest; return whether all is there."""
            nonlocal position, end, etag, size
            begun = position
            headers: dict[str, Any] = {} if etag is None else {"If-Match": f'"{etag}"'}
            if ranged := position > 0 or length is not None:
                headers["Range"] = f"bytes={position}-{'' if end is None else end - 1}"
            try:
                with self._asking("read", key):
                    answer = self._client.get_object(self.bucket, name, request_headers=headers)
            except _PastEnd:
                return True
            try:
                size = _size(answer, where, position, ranged=ranged)
                found = _etag(answer)
                if etag is not None and found != etag:
                    raise ChangedError(f"{where} has changed since it was opened: open it again")
                etag = found
                if limit is not None:
                    check_limit(where, size, limit)
                end = size if end is None else min(end, size)
                for data in _stream(answer):
                    data = data[: end - position]
                    write(data)
                    position += len(data)
                if position < end:
                    raise _Broken("the answer was cut off")
            except _Broken as broken:
                if position - begun >= _PROGRESS:
                    return False
                raise TryAgain(StorageError(f"cannot read {where}: {broken}")) from None
            finally:
                answer.close()
            return True

        while not retry(more, self._backoff):
            pass
        return Stat(key, size, etag or "")


class _PastEnd(Exception):
    """A range that begins after the last byte."""


class _Unconditional(Exception):
    """A server without conditional writes that says so."""


class _Broken(Exception):
    """The connection ended before the content did."""


def _stream(answer: BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the content of an answer as it is stored; raise `_Broken` where the connection breaks."""
    parts = answer.stream(1 << 16, decode_content=False)
    while True:
        try:
            data = next(parts, None)
        except (HTTPError, OSError) as error:
            raise _Broken(connection_problem(error)) from None
        if data is None:
            return
        yield data


def _etag(answer: BaseHTTPResponse) -> str:
    return answer.headers.get("ETag", "").removeprefix("W/").strip('"')


def _size(answer: BaseHTTPResponse, where: str, position: int, *, ranged: bool) -> int:
    """Return the size of the whole object; raise `StorageError` where the answer is not what was asked for."""
    if not ranged and answer.status == 200:
        length = answer.headers.get("Content-Length", "")
        if length.isdecimal():
            return int(length)
    elif found := _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip()):
        if answer.status == 206 and int(found[1]) == position:
            return int(found[3])
    elif answer.status == 200:
        raise StorageError(f"cannot read {where}: the server ignores byte ranges")
    raise StorageError(f"cannot read {where}: the server does not say which bytes it sends")
