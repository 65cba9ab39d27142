"""What lies below a `data_root`, where the steps of pipelines keep their results, and for how long.

A result is `{data_root}/{tool}/{key}` with what stands behind the key: `.pmtiles`, `.json`, `.csv`, `.part`. Its
key is 24 hexadecimal digits. Who uses a result again says so with `touch`: what is in use does not grow old.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from rsp.shared.errors import UsageError
from rsp.shared.locations import Address, Location, location
from rsp.shared.report import Result
from rsp.shared.storage import Stat, Storage

# The folders whose results may go. Everything else below a data root is left alone.
TOOLS = (
    "blocks", "compare", "download", "extract", "predict", "rasterize", "subset", "tile", "train", "vectorize",
)  # fmt: skip

# A result, or the journal of one that is being written.
_RESULT = re.compile(r"\.?(?P<key>[0-9a-f]{24})\.[^/]+(/[^/]+)?")

# Behind the key: an object whose age says when the result was last used.
USED = ".used"


@dataclass(kw_only=True)
class PruneResult(Result):
    """What `prune` did.

    Attributes:
        results: How many results were removed.
        objects: How many objects they were.
        bytes: How large they were together.
        kept: How many results are left.
    """

    results: int = 0
    objects: int = 0
    bytes: int = 0
    kept: int = 0


def root_of(data_root: str) -> Address:
    """Return the data root that a text names; raise `UsageError` where it is no address in S3."""
    root = location(data_root) if data_root else None
    if not isinstance(root, Address):
        raise UsageError(f"data_root is {data_root!r}; expected s3://bucket/prefix")
    return root


def result_key(what: str | bytes) -> str:
    """Return the key of a result: 24 hexadecimal digits that change with what decides it."""
    return hashlib.sha256(what.encode() if isinstance(what, str) else what).hexdigest()[:24]


def touch(where: Location) -> None:
    """Note that a result is used now; nothing happens on this machine, where nothing is pruned.

    Args:
        where: Any of its objects, or its name without a suffix.
    """
    if isinstance(where, Address):
        storage, key = where.open()
        storage.write(key.partition(".")[0] + USED, b"")


def used_since(results: Iterable[Address]) -> datetime | None:
    """Return when the first of some results was last used; None where nobody knows, or there is none.

    Args:
        results: Any object of each, or its name without a suffix.
    """
    times = []
    for where in results:
        storage, key = where.open()
        # Only a list says when an object was written.
        found = storage.list(key.partition(".")[0] + USED)
        times += [each.modified for each in found if each.modified is not None]
    return min(times, default=None)


def prune(
    data_root: Address, keep_days: float, *, since: datetime | None = None, now: datetime | None = None
) -> PruneResult:
    """Remove results that nobody has made or used for some days.

    A result is as old as the youngest of its objects, and goes as a whole; first what says that it is finished, so
    that no step takes half of it for the whole. Only names that steps give are touched.

    Args:
        data_root: The data root.
        keep_days: How old results may be, in days. Longer than the longest run, and than what the cache of
            Kubeflow is trusted for: a step from the cache does not look whether its result is still there.
        since: What was used from this time on stays, however few days are to be kept.
        now: The time; None for that of the clock.

    Raises:
        UsageError: less than one day.
        StorageError: the store cannot be read, or refuses to remove something.
    """
    if keep_days < 1:
        raise UsageError(f"results are kept for at least 1 day, got {keep_days}; a run may still use younger ones")
    before = (now or datetime.now(UTC)) - timedelta(days=keep_days)
    if since is not None:
        before = min(before, since)
    done = PruneResult()
    for tool in TOOLS:
        storage = (data_root / tool).storage()
        results: dict[str, list[Stat]] = {}
        for found in storage.list():
            if match := _RESULT.fullmatch(found.key):
                results.setdefault(match["key"], []).append(found)
        for key, objects in results.items():
            # Looked at once more: a long list may have been a while ago.
            if not _is_old(objects, before) or not _is_old(current := _objects(storage, key), before):
                done.kept += 1
                continue
            storage.delete(*(each.key for each in current if each.key.endswith((".json", USED))))
            storage.delete(*(each.key for each in current))
            done.results += 1
            done.objects += len(current)
            done.bytes += sum(each.size for each in current)
    return done


def _objects(storage: Storage, key: str) -> list[Stat]:
    """Return the objects of a result."""
    found = [*storage.list(f"{key}."), *storage.list(f".{key}.")]
    return [each for each in found if _RESULT.fullmatch(each.key)]


def _is_old(objects: Iterable[Stat], before: datetime) -> bool:
    """Tell whether all objects were written before a time; one of unknown age was not."""
    return all(each.modified is not None and each.modified < before for each in objects)
