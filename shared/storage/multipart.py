"""What minio's public methods do not offer, by presigned URLs: writes on condition, and uploads in parts."""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from xml.etree import ElementTree

from minio import Minio
from minio.error import MinioException, S3Error, ServerError
from urllib3.response import BaseHTTPResponse

from rsp.shared.errors import StorageError
from rsp.shared.storage.base import MiB, Readable
from rsp.shared.storage.connection import Pool

# So much is held in memory for each of those that are under way.
PART = 16 * MiB
AT_ONCE = 4
_MOST_PARTS = 10_000

_VALID = timedelta(minutes=15)


def send(
    client: Minio,
    pool: Pool,
    method: str,
    bucket: str,
    name: str,
    body: bytes = b"",
    *,
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> BaseHTTPResponse:
    """Send a request about an object through a presigned URL, which is used at once and shown to nobody.

    Raises:
        S3Error: the server refused, with its reason.
        ServerError: it refused without one.
    """
    url = client.get_presigned_url(
        method, bucket, name, expires=_VALID, extra_query_params=dict(query) if query else None
    )
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    answer = pool.urlopen(method, url, body=body, headers={"Content-MD5": digest, **(headers or {})})
    if answer.status in (200, 204):
        return answer
    raise _refusal(answer)


def _refusal(answer: BaseHTTPResponse) -> MinioException:
    with suppress(ElementTree.ParseError, ValueError):
        if answer.data:
            return S3Error.fromxml(answer)
    # A server that leaves the reason out.
    code = {404: "NoSuchKey", 409: "ConditionalRequestConflict", 412: "PreconditionFailed"}.get(answer.status)
    if code:
        return S3Error(answer, code, None, None, None, None)
    return ServerError(f"status {answer.status}", answer.status)


def _text(answer: BaseHTTPResponse, tag: str) -> str | None:
    """Return the text of the first element of this name, in whichever namespace."""
    try:
        root = ElementTree.fromstring(answer.data)  # noqa: S314
    except ElementTree.ParseError as error:
        raise StorageError("the S3 server answers with something that is not XML") from error
    return next((element.text for element in root.iter() if element.tag.rpartition("}")[2] == tag), None)


def put_parts(
    client: Minio,
    pool: Pool,
    bucket: str,
    name: str,
    source: Readable,
    size: int,
    check: Callable[[], None],
) -> str:
    """Store an object in parts, and return its ETag; whatever fails leaves no part behind.

    `check` is called when all parts are there, before they become visible.

    Raises:
        StorageError: the source ends early, or see `Pool.urlopen`.
        S3Error: the server refused.
    """
    upload = _text(send(client, pool, "POST", bucket, name, query={"uploads": ""}), "UploadId")
    if not upload:
        raise StorageError("the S3 server does not begin an upload in parts")
    part = max(PART, -(-size // _MOST_PARTS))
    try:
        etags: list[str] = []
        under_way: deque[Future[BaseHTTPResponse]] = deque()
        # Leaving the block waits for what is under way: a part that came after the upload was given up would stay.
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for number, start in enumerate(range(0, size, part), 1):
                if len(under_way) == AT_ONCE:
                    etags.append(under_way.popleft().result().headers["ETag"])
                data = source.read(min(part, size - start))
                if len(data) < min(part, size - start):
                    raise StorageError("the file became shorter while it was uploaded")
                query = {"partNumber": str(number), "uploadId": upload}
                under_way.append(threads.submit(send, client, pool, "PUT", bucket, name, data, query=query))
            etags.extend(answer.result().headers["ETag"] for answer in under_way)
        check()
        return _join(client, pool, bucket, name, upload, etags)
    except BaseException:
        with suppress(StorageError, MinioException):
            send(client, pool, "DELETE", bucket, name, query={"uploadId": upload})
        raise


def _join(client: Minio, pool: Pool, bucket: str, name: str, upload: str, etags: list[str]) -> str:
    """Make one object of the parts, and return its ETag."""
    root = ElementTree.Element("CompleteMultipartUpload")
    for number, etag in enumerate(etags, 1):
        part = ElementTree.SubElement(root, "Part")
        ElementTree.SubElement(part, "PartNumber").text = str(number)
        ElementTree.SubElement(part, "ETag").text = etag
    try:
        answer = send(client, pool, "POST", bucket, name, ElementTree.tostring(root), query={"uploadId": upload})
        # The status is sent before the parts are joined; what goes wrong then stands in the body.
        if _text(answer, "Code"):
            raise S3Error.fromxml(answer)
        return (_text(answer, "ETag") or "").strip('"')
    except S3Error as error:
        # Asked again after the answer was lost: the upload has ended because it is complete.
        if error.code != "NoSuchUpload" or not pool.in_doubt:
            raise
        found = client.stat_object(bucket, name).etag or ""
        if found != _etag_of(etags):
            raise
        return found


def _etag_of(parts: list[str]) -> str | None:
    """Return the ETag of an object of these parts, None where the server has a way of its own to make ETags."""
    try:
        digests = b"".join(bytes.fromhex(etag.strip('"')) for etag in parts)
    except ValueError:
        return None
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
