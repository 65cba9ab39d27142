"""Files at http:// and https:// addresses as files on this machine, for as long as the process lasts.

What a server answers is a stranger's and may be without end: it is written to a temporary file, in `$TMPDIR`, up
to the size that the cache may have (`$RSP_CACHE_SIZE`), and no slower than `SLOWEST`.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from rsp.shared.atomic import temporary_prefix
from rsp.shared.credentials import environment_key, masked
from rsp.shared.errors import FeatureError
from rsp.shared.locations import Location, fetched

# Seconds to wait for a connection and for each part of an answer: a WFS may take long to begin.
TIMEOUT = 60.0
# Bytes that have to come in each of the minutes that tileserver.PATIENCE grants.
SLOWEST = 64 << 10

_URL = re.compile(r"https?://", re.IGNORECASE)

_held: dict[str, Path] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class WebFile:
    """A file at a URL; its text is the URL without credentials.

    Attributes:
        url: As the user gave it; `{key}` in it stands for `$RSP_HTTP_KEY`.
    """

    url: str

    def __str__(self) -> str:
        return masked(self.url)


FileAt = Location | WebFile


def is_url(text: object) -> bool:
    """Tell whether a text is an http:// or https:// address."""
    return isinstance(text, str) and _URL.match(text) is not None


def local_file(where: FileAt) -> Path:
    """Return a file on this machine: what `rsp.shared.locations.fetched` returns, or what a server sent.

    A URL is asked for once in a process.

    Raises:
        FeatureError: the server cannot be reached, refuses, or sends too much or a page that tells of an error.
        UsageError: `{key}` in the URL, and the environment has none.
        NotFoundError, ChangedError, StorageError: as `fetched`.
    """
    if not isinstance(where, WebFile):
        return fetched(where)
    with _lock:
        path = _held.get(where.url)
        if path is None or not path.exists():
            path = _held[where.url] = _download(where, _folder() / str(len(_held)))
        return path


def _folder() -> Path:
    """Return a new folder that goes when the process ends."""
    path = Path(tempfile.mkdtemp(prefix=temporary_prefix("web")))
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # what was forked must not take it away
            shutil.rmtree(path, ignore_errors=True)

    atexit.register(remove)
    return path


def _download(where: WebFile, path: Path) -> Path:
    """Write what a URL holds to a path, and return the path, with the suffix of the URL."""
    from rsp.shared.filecache import limit
    from rsp.shared.tileserver import Client, FetchError, complaint

    url = where.url.replace("{key}", environment_key()) if "{key}" in where.url else where.url
    with Client(rate=10, timeout=TIMEOUT, workers=1) as client:
        try:
            answer = client.save(url, path, limit=limit(), slowest=SLOWEST)
        except FetchError as error:
            more = "; RSP_CACHE_SIZE raises that" if error.too_large else ""
            raise FeatureError(f"cannot read {where}: {error}{more}") from None
    if (said := complaint(answer)) is not None:
        raise FeatureError(f"{where} holds no features: {said}")
    # GDAL tells most formats by what is in them; of the others the suffix says what they are.
    suffix = PurePosixPath(unquote(urlsplit(url).path)).suffix.lower()
    if answer.body[68:72] == b"GPKG":  # of other suffixes GDAL warns
        suffix = ".gpkg"
    return path.rename(path.with_suffix(suffix)) if re.fullmatch(r"\.\w{1,10}", suffix) else path
