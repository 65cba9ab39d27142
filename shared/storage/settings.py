"""Where the S3 server is and who asks it: from the environment, or from a secret that is mounted as a folder.

Of each the first that is set counts:

- endpoint: `endpoint` of the secret; AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, S3_ENDPOINT; AWS itself.
- region: `region` of the secret; AWS_REGION, AWS_DEFAULT_REGION; AWS is asked for it, elsewhere it is us-east-1.
- credentials: the secret; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN); MINIO_ACCESS_KEY and
  MINIO_SECRET_KEY; ~/.aws/credentials (AWS_PROFILE, AWS_SHARED_CREDENTIALS_FILE); AWS_WEB_IDENTITY_TOKEN_FILE with
  AWS_ROLE_ARN, or the role of the machine.
- secret: RSP_S3_SECRETS names a folder with the files access_key and secret_key, and where they are needed
  session_token, endpoint and region.
- authorities: AWS_CA_BUNDLE, SSL_CERT_FILE name a file of certificates, in place of the usual ones.
"""

from __future__ import annotations

import configparser
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from minio.credentials.credentials import Credentials
from minio.credentials.providers import (
    AWSConfigProvider,
    EnvAWSProvider,
    EnvMinioProvider,
    IamAwsProvider,
    Provider,
)

from rsp.shared.errors import StorageError

AWS = "s3.amazonaws.com"
SECRETS = "RSP_S3_SECRETS"
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "S3_ENDPOINT")

_LONGEST_SECRET = 64 << 10


@dataclass(frozen=True)
class Endpoint:
    """A server: host and port, and whether it is spoken to over TLS."""

    host: str
    secure: bool
    region: str | None = field(default=None, compare=False)

    @property
    def is_aws(self) -> bool:
        return self.host.endswith((".amazonaws.com", ".amazonaws.com.cn"))

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host}"


def find_endpoint() -> Endpoint:
    """Return the server that the environment names.

    Raises:
        StorageError: what it names is no http(s) URL of a host.
    """
    region = _secret("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    text, source = _secret("endpoint"), f"the file endpoint in {SECRETS}"
    for name in () if text else ENDPOINTS:
        if text := os.environ.get(name, "").strip():
            source = name
            break
    if not text:
        return Endpoint(AWS, True, region)
    parts = urlsplit(text if "://" in text else f"https://{text}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.username or parts.password:
        raise StorageError(f"{source} holds credentials: put them into {SECRETS} or AWS_ACCESS_KEY_ID and so on")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise StorageError(
            f"{source} is {text!r}; expected the URL of an S3 server, such as https://s3.example.com"
        )
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise StorageError(
            f"{source} is {text!r}; expected scheme, host and port only: the bucket is in s3://bucket"
        )
    host = parts.netloc.lower()
    return Endpoint(
        host, parts.scheme == "https", region or (None if host.endswith("amazonaws.com") else "us-east-1")
    )


def certificates() -> str | None:
    """Return the file of certificates to trust that the environment names, or None."""
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE"):
        if path := os.environ.get(name):
            if not Path(path).is_file():
                raise StorageError(f"{name} is {path}, and that is no file of certificates")
            return path
    return None


def _secret(name: str) -> str | None:
    """Return a file of the mounted secret, None where there is none."""
    folder = os.environ.get(SECRETS)
    if not folder:
        return None
    path = Path(folder) / name
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_SECRET).decode().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error


class SecretFolder(Provider):
    """Credentials from a mounted secret, read each time: a secret that is rotated counts at once."""

    def retrieve(self) -> Credentials:
        access_key, secret_key = _secret("access_key"), _secret("secret_key")
        if not access_key or not secret_key:
            raise StorageError(
                f"{SECRETS} is {os.environ.get(SECRETS)}, and that folder has not both access_key and secret_key"
            )
        return Credentials(access_key, secret_key, _secret("session_token"))


class Chain(Provider):
    """The first source that has credentials; which it was, `source` says afterwards."""

    def __init__(self, sources: dict[str, Provider]) -> None:
        self._sources = sources
        self._known: Credentials | None = None
        self.source = ""

    def retrieve(self) -> Credentials:
        if self._known and not self._known.is_expired():
            return self._known
        failed = []
        for source, provider in self._sources.items():
            try:
                self._known = provider.retrieve()
            # What the providers say may hold tokens, so their words are not passed on.
            except (
                ValueError,
                KeyError,
                OSError,
                configparser.Error,
                SyntaxError,
                urllib3.exceptions.HTTPError,
            ) as error:
                failed.append(f"{source} ({type(error).__name__})")
                continue
            self.source = source
            return self._known
        raise StorageError(
            "no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a folder with the "
            f"files access_key and secret_key in {SECRETS}. Tried: {'; '.join(failed)}"
        )


def find_credentials(endpoint: Endpoint, pool: urllib3.PoolManager) -> Provider:
    """Return where credentials come from; nothing is read or asked before the first request.

    Args:
        endpoint: The server that they are for.
        pool: What asks the token service or the machine.
    """
    if os.environ.get(SECRETS):
        return SecretFolder()
    sources: dict[str, Provider] = {
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY": EnvAWSProvider(),
        "MINIO_ACCESS_KEY and MINIO_SECRET_KEY": EnvMinioProvider(),
        "~/.aws/credentials": AWSConfigProvider(),
    }
    environ = os.environ
    if environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        service = environ.get("AWS_ENDPOINT_URL_STS") or environ.get("AWS_ENDPOINT_URL")
        sources["AWS_WEB_IDENTITY_TOKEN_FILE"] = IamAwsProvider(custom_endpoint=service, http_client=pool)
    elif any(environ.get(f"AWS_CONTAINER_CREDENTIALS_{kind}_URI") for kind in ("RELATIVE", "FULL")):
        sources["AWS_CONTAINER_CREDENTIALS_*_URI"] = IamAwsProvider(http_client=pool)
    elif endpoint.is_aws:
        sources["the role of this machine"] = IamAwsProvider(http_client=pool)
    return Chain(sources)
