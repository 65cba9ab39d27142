"""What the bodies of the components share: names for artifacts, metadata, and failures. It imports no kfp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rsp.shared.errors import PartialError
from rsp.shared.report import Result
from rsp.shared.tiles import zxy


def named(artifact: Any, suffix: str) -> Path:
    """Give an output artifact a file name with a suffix, as `.pmtiles`, and return its path.

    Tools, browsers and the KFP UI tell by the suffix what a file is; KFP itself gives none.
    """
    artifact.path = artifact.path + suffix
    path = Path(artifact.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def describe(artifact: Any, kind: str, result: Result) -> None:
    """Note on an output artifact what it is and what its tool counted.

    Raises:
        PartialError: some tiles failed. A step has no exit code 3: what is incomplete must not feed the next
            step, nor KFP's cache.
    """
    artifact.metadata["rsp_kind"] = kind
    for key, value in result.as_dict().items():
        if isinstance(value, int | float | str):
            artifact.metadata[key] = value
    if result.failed:
        tile, reason = min(result.failed.items())
        raise PartialError(f"{len(result.failed)} tiles failed, the first is {zxy(tile)}: {reason}")


@contextmanager
def config_file(text: str) -> Iterator[Path | None]:
    """Write the configuration that a component was given as text to a file, for as long as the block runs.

    An empty text stands for no configuration: None.
    """
    if not text:
        yield None
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(text, "utf-8")
        yield path
