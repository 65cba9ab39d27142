"""What a tile set is: how many tiles, of which zooms, formats and sizes, and where."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsp.components.info.area import describe_area
from rsp.shared.attribution import of_readers
from rsp.shared.covers import Cover
from rsp.shared.errors import TileError
from rsp.shared.images import decode, palette_of, value_type
from rsp.shared.locations import Location
from rsp.shared.tiles import zxy
from rsp.shared.tileset import DirectoryReader, TileReader, open_reader
from rsp.shared.tileset.remote import StoredReader

# Tiles that are decoded to see how large they are, spread evenly.
LOOKED_AT = 64


def describe_tiles(path: Location | str) -> dict[str, Any]:
    """Describe a tile set; see `rsp.components.info.found.describe`.

    Raises:
        TileSetError: it cannot be read.
        StorageError: it is in a store that cannot be reached.
    """
    with open_reader(path, empty=True) as reader:
        cover = reader.cover()
        found: dict[str, Any] = {
            "kind": "tile set",
            "form": _form(reader),
            "tiles": len(cover),
            "zooms": {str(zoom): len(cover.keys(zoom)) for zoom in cover.zooms},
            "formats": sorted(reader.formats) if len(cover) else [],
        }
        found["bytes"] = _size(reader, path)
        found |= _pixels(reader, spread(cover, LOOKED_AT))
        info = reader.info
        noted = {
            name: getattr(info, name) for name in ("tile_size", "value_type", "divisor", "value_range")
            if getattr(info, name) is not None
        }  # fmt: skip
        if owners := of_readers([reader]):
            noted["attribution"] = owners
        found["noted"] = noted
        found["classes"] = [entry.title for entry in info.classes or ()]
        if len(cover):
            found |= describe_area(cover)
    return found


def spread(cover: Cover, most: int) -> Cover:
    """Return at most so many tiles, spread evenly."""
    step = max(1, -(-len(cover) // most))
    return picked(cover, np.arange(0, len(cover), step))


def picked(cover: Cover, numbers: NDArray[np.int64]) -> Cover:
    """Return the tiles of these numbers, ascending, counted in the order of the cover."""
    found, first = {}, 0
    for zoom in cover.zooms:
        keys = cover.keys(zoom)
        here = numbers[(numbers >= first) & (numbers < first + len(keys))]
        found[zoom] = keys[here - first]
        first += len(keys)
    return Cover(found)


def _form(reader: TileReader) -> str:
    if isinstance(reader, StoredReader):
        return "tiles in a store"
    return "directory" if isinstance(reader, DirectoryReader) else "PMTiles archive"


def _size(reader: TileReader, path: Location | str) -> int | None:
    """Return how many bytes a set has on this machine; None where it is elsewhere."""
    if isinstance(reader, DirectoryReader):
        return sum(reader.locate(tile).stat().st_size for tile in reader.cover())
    return path.stat().st_size if isinstance(path, Path) else None


def _pixels(reader: TileReader, tiles: Cover) -> dict[str, Any]:
    """Return sizes, bands and types of some tiles."""
    sizes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    broken: dict[str, str] = {}
    for tile in tiles:
        try:
            data = reader.read(tile)
            image = decode(data)
            # Masks and labels: one band of classes, coloured only where it is shown.
            kinds["palette" if palette_of(data) else f"{image.shape[2]} of {value_type(image)}"] += 1
        except TileError as error:
            broken[zxy(tile)] = str(error)
            continue
        sizes[f"{image.shape[1]}x{image.shape[0]}"] += 1
    return {
        "looked_at": len(tiles),
        "sizes": dict(sorted(sizes.items())),
        "bands": dict(sorted(kinds.items())),
        "unreadable": broken,
    }
