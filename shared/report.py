"""What a tool did: its result as JSON, and the tiles on which it failed as a cover."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from rsp.shared.atomic import atomic_text
from rsp.shared.errors import CoverError
from rsp.shared.locations import Address, Location, remove
from rsp.shared.tiles import Tile, read_cover, write_cover, zxy

if TYPE_CHECKING:
    from rsp.shared.tileset import TileReader


@dataclasses.dataclass(kw_only=True)
class Result:
    """What every tool returns, with fields of its own added.

    Attributes:
        failed: The tiles on which the tool failed, with the reason of each.
        absent: Tiles that do not exist where they were looked for, which is no failure.
    """

    failed: dict[Tile, str] = dataclasses.field(default_factory=dict)
    absent: list[Tile] = dataclasses.field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the result in types of JSON: paths as text, NaN as null, failed tiles as a list."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        failed, absent = fields.pop("failed"), fields.pop("absent")
        if absent:
            fields["absent"] = [[tile.x, tile.y, tile.z] for tile in sorted(absent)]
        fields["failed"] = [
            {"tile": [tile.x, tile.y, tile.z], "reason": reason} for tile, reason in sorted(failed.items())
        ]
        return plain(fields)


def plain(value: Any) -> Any:
    """Return a value in types of JSON; NaN is null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int | str | bool) or value is None:
        return value
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def write_report(path: Location, tool: str, result: Result) -> None:
    """Write the result of a tool as JSON, atomically."""
    with atomic_text(path) as file:
        json.dump({"tool": tool, **result.as_dict()}, file, indent=2)
        file.write("\n")


def failed_cover(out: Location) -> Location:
    """Return where the tiles on which a tool failed are listed: beside its output."""
    return _beside(out, ".failed.csv")


def absent_cover(out: Location) -> Location:
    """Return where the tiles are listed that do not exist: beside the output."""
    return _beside(out, ".absent.csv")


def _beside(out: Location, suffix: str) -> Location:
    if not isinstance(out, Address) and out.name in ("", ".."):
        out = out.resolve()  # `.` has a name too
    return out.parent / f"{out.name}{suffix}"


def note_absent(out: Location, absent: Collection[Tile]) -> None:
    """List tiles that do not exist in a cover beside the output; remove the list of an earlier run if all do."""
    path = absent_cover(out)
    if _listed(path, absent):
        print(f"{len(absent)} tiles do not exist there; {path} lists them", file=sys.stderr)


def read_list(path: Location) -> set[Tile]:
    """Return the tiles that a list beside an output has, `failed_cover` or `absent_cover`; none without a list.

    Raises:
        CoverError: it cannot be read.
        StorageError: the store cannot be reached.
    """
    try:
        return set(read_cover(path))
    except CoverError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return set()
        raise


def absent_of(tiles: Iterable[Tile], readers: Iterable[TileReader]) -> set[Tile]:
    """Return the tiles that a tile set lacks because they do not exist, as the list beside it says."""
    from rsp.shared.covers import Cover

    found: set[Tile] = set()
    for reader in readers:
        missing = set(Cover.of(tiles) - reader.cover())
        # Beside an archive on an HTTP server nothing is listed.
        if missing and not isinstance(reader.path, str):
            found |= missing & read_list(absent_cover(reader.path))
    return found


def _listed(path: Location, tiles: Collection[Tile]) -> bool:
    """Write a cover of tiles, or remove the one of an earlier run where there are none; tell which."""
    if tiles:
        write_cover(path, sorted(tiles))
    else:
        remove(path)
    return bool(tiles)


def note_failures(out: Location, failed: dict[Tile, str]) -> None:
    """List failed tiles in a cover beside the output, or remove the list of an earlier run if none failed."""
    path = failed_cover(out)
    if not _listed(path, failed):
        return
    for tile, reason in sorted(failed.items())[:10]:
        print(f"failed: {zxy(tile)}: {reason}", file=sys.stderr)
    if len(failed) > 10:
        print(f"failed: {len(failed) - 10} more", file=sys.stderr)
    print(f"{len(failed)} tiles failed; {path} lists them and can be fed back in", file=sys.stderr)
