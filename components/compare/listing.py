"""The tiles of a list of `compare`, as a cover to work on."""

from __future__ import annotations

import json
from pathlib import Path

from rsp.shared.tiles import Tile, write_cover


def cover_of(listing: Path, cover: Path) -> int:
    """Write the tiles of a GeoJSON of `compare --mode list` as a cover, and return how many there are."""
    features = json.loads(listing.read_text("utf-8"))["features"]
    found = (each["properties"] for each in features)
    return write_cover(cover, (Tile(each["x"], each["y"], each["z"]) for each in found))
