"""What GDAL has to be told to read rasters in S3 by ranges: the same server and credentials as all else here.

rasterio would ask boto3 for credentials, which need not be installed, and knows neither a mounted secret nor our
names of the endpoint. So they come from `rsp.shared.storage.settings`, and are passed to GDAL alone: they stand in
no address, no environment of another process, and no message.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rsp.shared.errors import RasterError
from rsp.shared.http import Backoff
from rsp.shared.locations import is_address, parse_address, stat_of

if TYPE_CHECKING:
    from minio.credentials.credentials import Credentials


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Let a module that is not imported yet seem not to be installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


# rasterio imports boto3 where that is installed, which takes as long as to make ten tiles.
with _without("boto3"):
    import rasterio
    from rasterio.env import getenv, hasenv
    from rasterio.session import Session

# GDAL asks again where a server says "not now". It does not look for what may lie beside a raster (.ovr, .aux.xml,
# world files): that would list a prefix that may hold millions of objects, and rasterio would stop every other
# thread of this process meanwhile.
OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_HTTP_MAX_RETRY": "5",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    # Whoever opens a raster again sees what it is now.
    "CPL_VSIL_CURL_NON_CACHED": "/vsis3/",
}


class _Signed(Session):  # type: ignore[misc]
    """Credentials that the environment names, as rasterio hands them to GDAL."""

    def __init__(self, credentials: Credentials | None) -> None:
        self._credentials = credentials

    @classmethod
    def hascreds(cls, config: dict[str, Any]) -> bool:
        return {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(config)

    def get_credential_options(self) -> dict[str, str]:
        found = self._credentials
        if found is None:
            return {}
        # An empty token, too, is said: the environment may hold that of other credentials.
        return {
            "AWS_ACCESS_KEY_ID": found.access_key,
            "AWS_SECRET_ACCESS_KEY": found.secret_key,
            "AWS_SESSION_TOKEN": found.session_token or "",
        }


class RasterEnv:
    """GDAL's settings while rasters are opened and read, of which some may be in S3. A context.

    Args:
        rasters: Paths and addresses; those that are not `s3://...` need nothing.
        options: More options of GDAL; they win.

    Raises:
        StorageError: the environment does not say how to reach the S3 server, or has no credentials for it.
    """

    def __init__(self, rasters: Iterable[str], **options: Any) -> None:
        self._credentials: Credentials | None = None
        told: dict[str, Any] = {}
        if any(map(is_address, rasters)):
            # Not for who reads files: the client takes long to import.
            from rsp.shared.storage.connection import Pool
            from rsp.shared.storage.settings import AWS, certificates, find_credentials, find_endpoint

            endpoint = find_endpoint()
            provider = find_credentials(endpoint, Pool(endpoint, Backoff(2, 0.2), 5.0))
            self._credentials = provider.retrieve()
            # What is said already, as by the live map that waits for nobody, stays.
            known = getenv() if hasenv() else {}
            told = {
                **{name: value for name, value in OPTIONS.items() if name not in known},
                "AWS_S3_ENDPOINT": endpoint.host,
                "AWS_HTTPS": "YES" if endpoint.secure else "NO",
                "AWS_VIRTUAL_HOSTING": "TRUE" if endpoint.is_aws else "FALSE",
                "AWS_REGION": endpoint.region or "us-east-1",
            }
            if endpoint.host == AWS:
                del told["AWS_S3_ENDPOINT"]  # GDAL makes the name of the region's server itself
            if bundle := certificates():
                told["CURL_CA_BUNDLE"] = bundle
        self._env = rasterio.Env(session=_Signed(self._credentials), **{**told, **options})

    @property
    def expired(self) -> bool:
        """Whether the credentials are of no use any more: then open the rasters in a new environment."""
        return self._credentials is not None and self._credentials.is_expired()

    def __enter__(self) -> RasterEnv:
        self._env.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._env.__exit__()


def connection_broke(error: Exception) -> bool:
    """Tell whether opening failed since no answer came. GDAL asks again for bytes, not for the size."""
    return "CURL error" in str(error)


def patience() -> Backoff:
    """Return how often and when GDAL is to ask again here, as it is told itself."""
    told = getenv() if hasenv() else {}
    return Backoff(
        1 + int(told.get("GDAL_HTTP_MAX_RETRY", 0)), float(told.get("GDAL_HTTP_RETRY_DELAY", 0.5)), jitter=0.3
    )


def gdal_name(raster: str) -> str:
    """Return what GDAL calls a raster: `/vsis3/bucket/key` for an address, anything else as it is."""
    if not is_address(raster):
        return raster
    address = parse_address(raster)
    return f"/vsis3/{address.bucket}/{address.key}"


def check_object(raster: str) -> None:
    """Find out whether an object can be read, before GDAL does, whose messages say little of why not.

    Raises:
        RasterError: there is none.
        ChangedError: its ETag is another than that of the address.
        StorageError: the server cannot be reached, or refuses.
    """
    if is_address(raster) and stat_of(address := parse_address(raster)) is None:
        raise RasterError(f"cannot read the raster {raster}: there is no {address.plain}")
