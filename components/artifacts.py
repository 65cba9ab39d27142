"""What the bodies of the components share: names for artifacts, metadata, and failures. It imports no kfp.

Where what a step reads and writes is in S3, `rsp.components.reference` does the same for addresses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rsp.shared.config import parse_tables
from rsp.shared.errors import ConfigError, PartialError
from rsp.shared.locations import location, read_text
from rsp.shared.report import Result
from rsp.shared.tiles import Tile, write_cover, zxy


def named(artifact: Any, suffix: str) -> Path:
    """Give an output artifact a file name with a suffix, as `.pmtiles`, and return its path.

    Tools, browsers and the KFP UI tell by the suffix what a file is; KFP itself gives none.
    """
    artifact.path = artifact.path + suffix
    path = Path(artifact.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def describe(artifact: Any, kind: str, result: Result, max_failed: float = 0.0) -> None:
    """Note on an output artifact what it is and what its tool counted.

    Args:
        artifact: The output.
        kind: What it is, as `tiles`.
        result: What the tool returned.
        max_failed: The share of failed tiles, 0 to 1, that is still no failure of the step.

    Raises:
        PartialError: more tiles failed. A step has no exit code 3: what is incomplete must not feed the next
            step, nor KFP's cache.
    """
    artifact.metadata["rsp_kind"] = kind
    artifact.metadata.update(counts(result))
    refuse_failures(result, max_failed)


def counts(result: Result) -> dict[str, Any]:
    """Return the numbers and texts of a result, as metadata hold them."""
    found = {key: value for key, value in result.as_dict().items() if isinstance(value, int | float | str)}
    for name in ("failed", "absent"):
        if tiles := getattr(result, name, None):
            found[name] = len(tiles)
    return found


def refuse_failures(result: Result, max_failed: float = 0.0) -> None:
    """Raise `PartialError` where more than this share of the tiles failed, 0 to 1."""
    share = share_failed(result)
    if share <= float(max_failed):
        return
    tile, reason = min(result.failed.items())
    allowed = f", more than the {float(max_failed):.2%} that max_failed allows" if float(max_failed) else ""
    raise PartialError(
        f"{len(result.failed)} tiles failed ({share:.2%}{allowed}), the first is {zxy(tile)}: {reason}"
    )


def share_failed(result: Result) -> float:
    """Return which share of the tiles failed, 0 to 1, of those that were to be there."""
    done = sum(int(getattr(result, name, 0)) for name in ("tiles", "kept"))
    return len(result.failed) / (len(result.failed) + done) if result.failed else 0.0


def list_failed(artifact: Any, failed: Mapping[Tile, str]) -> None:
    """Write the tiles on which a tool failed as a cover, empty where there are none: it can be fed back in."""
    write_cover(named(artifact, ".csv"), sorted(failed))
    artifact.metadata |= {"rsp_kind": "cover", "tiles": len(failed)}
    if failed:
        artifact.metadata["first"] = min(failed.items())[1]


def read_config(config: Mapping[str, Any] | None, config_uri: str = "") -> dict[str, Any]:
    """Return the tables of the configuration that a component was given; empty where it was given none.

    Args:
        config: The tables themselves; whole numbers may be written as 3.0.
        config_uri: Where a file of TOML or JSON is, a path or s3://bucket/key; taken in place of `config`.

    Raises:
        ConfigError: the file is no configuration.
        StorageError: it cannot be read.
    """
    if not config_uri:
        return dict(config or {})
    try:
        return parse_tables(read_text(location(config_uri), encoding="utf-8-sig"), config_uri)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {config_uri}: {error}") from error


@contextmanager
def config_file(config: Mapping[str, Any] | None, config_uri: str = "") -> Iterator[Path | None]:
    """Write the configuration that a component was given to a file, for as long as the block runs.

    See `read_config`. No configuration at all is None.
    """
    tables = read_config(config, config_uri)
    if not tables:
        yield None
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(tables), "utf-8")
        yield path
