"""Tiles and covers: the XYZ grid (y down, EPSG:3857) and the CSV files that list tiles of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mercantile
from mercantile import Tile

from rsp.shared.atomic import atomic_text
from rsp.shared.errors import CoverError, UsageError
from rsp.shared.locations import Location, location, read_text
from rsp.shared.mercator import MAX_LATITUDE

__all__ = [
    "MAX_TILES",
    "MAX_ZOOM",
    "Tile",
    "bounds_lonlat",
    "bounds_mercator",
    "check_budget",
    "neighbours",
    "read_cover",
    "strange_zooms",
    "tile_block",
    "tiles_of_blocks",
    "write_cover",
    "zoom_of",
    "zxy",
]

# More than this is hardly meant: a country at zoom 18 has about as many.
MAX_TILES = 10_000_000

# Tile ids of PMTiles end at zoom 31; nothing on Earth is imaged beyond 25.
MAX_ZOOM = 30


def zxy(tile: Tile) -> str:
    """Return a tile as people and URLs write it: `z/x/y`."""
    return f"{tile.z}/{tile.x}/{tile.y}"


def check_budget(count: int, max_tiles: int, what: str, *, at_least: bool = False) -> None:
    """Raise `UsageError` where there would be more tiles than are allowed.

    Args:
        count: How many there would be.
        max_tiles: How many are allowed.
        what: What would have them, at which zoom.
        at_least: The count is only a lower bound.
    """
    if count > max_tiles:
        raise UsageError(
            f"{what} would be {'at least ' if at_least else ''}{count:,} tiles, and the limit is {max_tiles:,}; "
            "choose a lower --zoom or a smaller area, or raise --max_tiles"
        )


def check_tile(x: int, y: int, z: int) -> Tile:
    """Return the tile, or raise `CoverError` where the grid has no such tile."""
    if not 0 <= z <= MAX_ZOOM:
        raise CoverError(f"zoom {z} is outside 0..{MAX_ZOOM}")
    if not (0 <= x < 1 << z and 0 <= y < 1 << z):
        raise CoverError(f"tile x={x} y={y} does not exist at zoom {z} (0..{(1 << z) - 1})")
    return Tile(x, y, z)


def tile_of(line: str, where: str) -> Tile | None:
    """Return the tile of a line of a cover, None where it is blank.

    Args:
        line: `x,y,z`, comma or tab separated, or `[x, y, z]`; further columns are passed over.
        where: Which line it is, for the message.

    Raises:
        CoverError: it is not a tile.
    """
    if not line.strip():
        return None
    try:
        text = line.strip()
        if text.startswith("[") and text.endswith("]"):  # as mercantile writes tiles
            text = text[1:-1]
        x, y, z = (int(field) for field in text.replace("\t", ",").split(",")[:3])
        return check_tile(x, y, z)
    except ValueError as error:
        raise CoverError(f"{where}: expected `x,y,z`, got {line[:60]!r}") from error
    except CoverError as error:
        raise CoverError(f"{where}: {error}") from error


def read_cover(path: str | Location) -> list[Tile]:
    """Read a cover: one `x,y,z` a line, comma or tab separated, or `[x, y, z]`.

    Blank lines and further columns are skipped.

    Where the order of the file does not matter, `rsp.shared.covers.read_tiles` is quicker and takes less memory.

    Returns:
        The tiles in the order of the file, each once.

    Raises:
        CoverError: no such file, a line that is not a tile (named with its number), or no tile at all.
    """
    path = location(path)
    try:
        lines = read_text(path, encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CoverError(f"cannot read the cover {path}: {error}") from error
    tiles: dict[Tile, None] = {}
    for number, line in enumerate(lines, 1):
        tile = tile_of(line, f"{path}, line {number}")
        if tile is not None:
            tiles[tile] = None
    if not tiles:
        raise CoverError(f"the cover {path} lists no tile; make one with `rsp cover`")
    return list(tiles)


def write_cover(path: str | Location, tiles: Iterable[Tile]) -> int:
    """Write a cover atomically, one `x,y,z` a line, and return how many tiles it lists.

    `rsp.shared.covers.write_cover` is quicker for tiles in arrays.
    """
    count = 0
    with atomic_text(location(path)) as file:
        for tile in tiles:
            file.write(f"{tile.x},{tile.y},{tile.z}\n")
            count += 1
    return count


def zoom_of(tiles: Iterable[Tile], where: str | Location = "the cover") -> int:
    """Return the one zoom of the tiles; raise `CoverError` where there is none, or more than one."""
    return check_zooms({tile.z for tile in tiles}, where)


def check_zooms(zooms: Iterable[int], where: str | Location) -> int:
    """Return the one zoom that there is; raise `CoverError` where there is none, or more than one."""
    zooms = sorted(zooms)
    if not zooms:
        raise CoverError(f"{where} lists no tile")
    if len(zooms) > 1:
        raise CoverError(f"{where} mixes the zooms {', '.join(map(str, zooms))}; this tool needs a single one")
    return zooms[0]


def strange_zooms(training: Iterable[int], validation: Iterable[int]) -> str | None:
    """Say which zooms validation tiles have and no training tile has; None where there is none."""
    strange = sorted(set(validation).difference(training))
    if not strange:
        return None
    return (
        f"no training tile is of the zoom of validation tiles ({', '.join(map(str, strange))}): things have "
        "another size there, and the metrics say little of the tiles that the model is for"
    )


def tile_block(west: float, south: float, east: float, north: float, zoom: int) -> tuple[Tile, Tile]:
    """Return the first and the last tile of a box in degrees; an edge on that of a tile belongs to one side."""
    north, south = min(north, MAX_LATITUDE), max(south, -MAX_LATITUDE)
    epsilon = 1e-11  # in degrees, as mercantile does it
    first = mercantile.tile(west, north, zoom)
    last = mercantile.tile(east - epsilon, south + epsilon, zoom)
    return first, Tile(max(first.x, last.x), max(first.y, last.y), zoom)


def tiles_of_blocks(blocks: Sequence[tuple[Tile, Tile]], max_tiles: int, what: str) -> set[Tile]:
    """Return the tiles of blocks, each given by its first and last tile; blocks may overlap.

    Raises:
        UsageError: more than `max_tiles`, found before they are listed.
    """
    count = sum((last.x - first.x + 1) * (last.y - first.y + 1) for first, last in blocks)
    if len(blocks) > 1:
        west, north = (min(getattr(first, axis) for first, _ in blocks) for axis in "xy")
        east, south = (max(getattr(last, axis) for _, last in blocks) for axis in "xy")
        count = min(count, (east - west + 1) * (south - north + 1))
    check_budget(count, max_tiles, what)
    return {
        Tile(x, y, first.z)
        for first, last in blocks
        for y in range(first.y, last.y + 1)
        for x in range(first.x, last.x + 1)
    }


def bounds_mercator(tile: Tile) -> tuple[float, float, float, float]:
    """Return west, south, east, north of a tile in metres of EPSG:3857."""
    west, south, east, north = mercantile.xy_bounds(tile)
    return west, south, east, north


def bounds_lonlat(tile: Tile) -> tuple[float, float, float, float]:
    """Return west, south, east, north of a tile in degrees (EPSG:4326)."""
    west, south, east, north = mercantile.bounds(tile)
    return west, south, east, north


def neighbours(tile: Tile) -> dict[tuple[int, int], Tile]:
    """Return the tiles around one, by their offset (dx, dy); x wraps at the antimeridian, y ends at the poles."""
    side = 1 << tile.z
    return {
        (dx, dy): Tile((tile.x + dx) % side, tile.y + dy, tile.z)
        for dx in (-1, 0, 1)
        for dy in (-1, 0, 1)
        if (dx or dy) and 0 <= tile.y + dy < side
    }
