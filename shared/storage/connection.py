"""The HTTP below S3: timeouts, retries, and answers of bounded size; and what errors of S3 mean."""

from __future__ import annotations

import logging
import re
import threading
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import certifi
import urllib3
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError, LocationValueError, SSLError
from urllib3.response import BaseHTTPResponse, HTTPResponse

from rsp.shared.errors import StorageError
from rsp.shared.http import TEMPORARY, Backoff, TryAgain, connection_problem, retry, retry_after
from rsp.shared.storage.settings import SECRETS, Chain, Endpoint, certificates

# Lists of 1,000 long keys are below 4 MB; everything larger is the content of an object, which is streamed.
LARGEST_ANSWER = 16 << 20

_PERMIT = re.compile(r"(X-Amz-Signature|X-Amz-Security-Token)=[^&\s]+")

BACKOFF = Backoff(attempts=6, first=0.2, longest=20.0, jitter=0.3)


class _Masked(logging.Filter):
    """A presigned URL is a permit for some minutes: urllib3's debug log shall not hold it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                _PERMIT.sub(r"\1=...", argument) if isinstance(argument, str) else argument
                for argument in record.args
            )
        return True


logging.getLogger("urllib3.connectionpool").addFilter(_Masked())


class UnreachableError(StorageError):
    """No answer came."""


class Pool(urllib3.PoolManager):
    """Connections that ask again where the server says "not now" or the connection breaks.

    The one place for retries: minio asks through it, and so do we. The content of an object, where it is streamed,
    is the caller's to resume.
    """

    def __init__(self, endpoint: Endpoint, backoff: Backoff = BACKOFF, timeout: float = 60.0) -> None:
        super().__init__(
            maxsize=16,
            timeout=urllib3.Timeout(connect=min(timeout, 10.0), read=timeout),
            cert_reqs="CERT_REQUIRED",
            ca_certs=certificates() or certifi.where(),
            retries=False,
        )
        self._endpoint, self._backoff = endpoint, backoff
        self._thread = threading.local()

    @property
    def in_doubt(self) -> bool:
        """Whether the server may have done what this thread's last request asked for before it was asked again."""
        return getattr(self._thread, "in_doubt", False)

    def urlopen(self, method: str, url: str, redirect: bool = False, **options: Any) -> BaseHTTPResponse:  # type: ignore[override]
        """Send a request, again where that may help, and return the last answer.

        Raises:
            UnreachableError: no answer came.
        """
        preload = options.pop("preload_content", True)
        self._thread.in_doubt = False

        def attempt() -> BaseHTTPResponse:
            try:
                answer = super(Pool, self).urlopen(method, url, redirect=False, preload_content=False, **options)
                if preload or answer.status not in (200, 206):
                    answer = _whole(answer, method)
            except LocationValueError as error:
                raise UnreachableError(f"{self._endpoint} is not the address of a server") from error
            except (HTTPError, OSError) as error:
                self._thread.in_doubt = True
                raise _unreachable(self._endpoint, error) from None
            if answer.status in TEMPORARY:
                self._thread.in_doubt = True
                raise _Temporary(answer)
            return answer

        try:
            return retry(attempt, self._backoff)
        except _Refused as refused:
            return refused.answer


def _unreachable(endpoint: Endpoint, error: Exception) -> Exception:
    """Return what to raise where no answer came."""
    if isinstance(error, SSLError):
        reason = connection_problem(error)
        if "certificate" in reason:
            reason += "; name the certificates of your authority in AWS_CA_BUNDLE (a .pem file)"
        elif "WRONG_VERSION_NUMBER" in str(error) or "record layer" in str(error):
            reason = "it does not speak TLS; is it http:// in AWS_ENDPOINT_URL_S3?"
        else:
            reason = f"no TLS with it ({getattr(error.args[0], 'reason', None) or type(error).__name__})"
        # That does not change from one moment to the next.
        return UnreachableError(f"cannot reach the S3 server {endpoint}: {reason}")
    return TryAgain(UnreachableError(f"cannot reach the S3 server {endpoint}: {connection_problem(error)}"))


class _Refused(Exception):
    """A temporary refusal that was the last: minio reads from it what was wrong."""

    def __init__(self, answer: BaseHTTPResponse) -> None:
        self.answer = answer


class _Temporary(TryAgain):
    def __init__(self, answer: BaseHTTPResponse) -> None:
        super().__init__(_Refused(answer), retry_after(answer.headers.get("Retry-After")))


def _whole(answer: BaseHTTPResponse, method: str) -> BaseHTTPResponse:
    """Return an answer with its body read, no more than is sensible of it."""
    if method == "HEAD":
        answer.drain_conn()
        return answer
    parts, size = [], 0
    for part in answer.stream(1 << 16, decode_content=False):
        parts.append(part)
        size += len(part)
        if size > LARGEST_ANSWER:
            answer.close()
            raise StorageError(
                f"the S3 server answers with more than {LARGEST_ANSWER} bytes where a few were expected"
            )
    answer.release_conn()
    return HTTPResponse(b"".join(parts), headers=answer.headers, status=answer.status, preload_content=True)


def explain(error: MinioException, what: str, bucket: str, endpoint: Endpoint, credentials: Any) -> StorageError:
    """Return what an error of S3 means, and what to do about it.

    Args:
        error: Of the minio client.
        what: What was to be done, such as "read s3://bucket/key".
        bucket: Its name.
        endpoint: The server that was asked.
        credentials: Where they came from.
    """
    if isinstance(error, (ServerError, InvalidResponseError)):
        status = error.status_code if isinstance(error, ServerError) else error._code
        if status in TEMPORARY:
            return StorageError(f"cannot {what}: {endpoint} answered {status} again and again; try later")
        return StorageError(
            f"cannot {what}: {endpoint} answered {status}, and not as S3 does; is it the address of an S3 server?"
        )
    if not isinstance(error, S3Error):
        return StorageError(f"cannot {what}: {type(error).__name__}")
    code, said = error.code or "", _plain(error.message)
    source = credentials.source if isinstance(credentials, Chain) else f"the folder in {SECRETS}"
    match code:
        case "NoSuchBucket":
            reason = f"there is no bucket {bucket} at {endpoint}: make it, or correct the address"
        case (
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "InvalidToken"
            | "InvalidSecurity"
            | "TokenRefreshRequired"
        ):
            reason = f"{endpoint} does not accept the credentials from {source} ({code}): check both keys"
        case "ExpiredToken" | "RequestExpired":
            reason = f"the credentials from {source} have expired ({code}): renew them"
        case "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "NotSignedUp" | "UnauthorizedAccess":
            reason = (
                f"{endpoint} denies it to the credentials from {source}: they need s3:ListBucket on the bucket, "
                "and s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on its objects"
            )
            if endpoint.is_aws and not endpoint.region:
                reason += "; or they may not ask for the bucket's region: set AWS_REGION"
        case "RequestTimeTooSkewed":
            reason = (
                f"the clock of this machine is wrong{_skew(error.response)}: set it (NTP), signatures depend on it"
            )
        case (
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException"
        ):
            reason = f"the bucket is in another region ({said}): set AWS_REGION"
        case "EntityTooLarge" | "EntityTooSmall" | "QuotaExceeded" | "XMinioStorageFull":
            reason = f"{endpoint} does not take an object of this size ({code})"
        case "SlowDown" | "ServiceUnavailable" | "InternalError" | "RequestTimeout":
            reason = f"{endpoint} is overloaded ({code}), again and again: try later"
        case _:
            reason = f"{endpoint} says {code}: {said}"
    return StorageError(f"cannot {what}: {reason}")


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())[:300]


def _skew(answer: BaseHTTPResponse) -> str:
    try:
        theirs = parsedate_to_datetime(answer.headers["Date"])
    except (KeyError, TypeError, ValueError):
        return ""
    seconds = round((datetime.now(UTC) - theirs.astimezone(UTC)).total_seconds())
    return f" by {abs(seconds)} s: it is {'ahead' if seconds > 0 else 'behind'}"
