"""Make a tile cover, in CSV (x,y,z), from features, a bounding box or a tile set.

rsp cover --type bbox 4.8,45.7,4.83,45.73 --zoom 18 cover
rsp cover --type geojson buildings.json --zoom 18 cover
rsp cover --type dir images --splits 70,30 training/cover validation/cover
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rsp.shared.arguments import add_out, int_list, require
from rsp.shared.claims import COVER, Output, check_paths
from rsp.shared.errors import CoverError, UsageError
from rsp.shared.report import Result
from rsp.shared.tiles import MAX_ZOOM, Tile, split_cover, write_cover

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

Kind = Literal["geojson", "bbox", "dir"]

# Half the circumference of web mercator in metres: the origin of the tile grid.
HALF = 20037508.342789244

# A polygon whose edge lies on the edge of a tile does not cover the next one: tiles are tested this much
# smaller (in tiles; a micrometre at zoom 18).
MARGIN = 1e-8

# Features read before their tiles are worked out, and the side in tiles up to which they are so together.
CHUNK, SMALL = 4096, 8

# Type ids of shapely.
POLYGON, FIRST_COLLECTION = 3, 4


@dataclass(kw_only=True)
class CoverResult(Result):
    """What `cover` did.

    Attributes:
        tiles: How many tiles the cover has.
        parts: How many of them went to each output.
    """

    tiles: int
    parts: list[int]


def cover(
    source: str,
    out: list[Path],
    *,
    kind: Kind = "geojson",
    zoom: int | None = None,
    splits: list[int] | None = None,
    seed: int = 0,
    block: int = 1,
) -> CoverResult:
    """Write the tiles that cover something, sorted, each once.

    Args:
        source: A GeoJSON path or glob pattern, `west,south,east,north[,EPSG:code]` (degrees unless a code is
            given; west beyond east crosses the antimeridian), or a tile set.
        out: Where the covers go: one path, or as many as there are splits.
        kind: What `source` is.
        zoom: The zoom of the cover, needed for `geojson` and `bbox`.
        splits: Percentages that sum to 100, one for each output.
        seed: Seed of the shuffle before a split.
        block: Side in tiles of the squares that a split keeps together.

    Raises:
        UsageError: the arguments do not fit together.
        CoverError: nothing is covered.
    """
    if splits is None and len(out) != 1:
        raise UsageError(f"one output path without --splits, got {len(out)}")
    if splits is not None and len(splits) != len(out):
        raise UsageError(f"--splits has {len(splits)} parts for {len(out)} output paths")
    if kind != "dir" and zoom is None:
        raise UsageError(f"--zoom is needed to cover a {kind}")
    if zoom is not None and not 0 <= zoom <= MAX_ZOOM:
        raise UsageError(f"--zoom must be from 0 to {MAX_ZOOM}, got {zoom}")
    check_paths([Output(path, COVER) for path in out], [source] if kind != "bbox" else [])
    if kind == "geojson":
        assert zoom is not None
        tiles = _cover_features(source, zoom)
    elif kind == "bbox":
        assert zoom is not None
        tiles = _cover_bbox(source, zoom)
    else:
        tiles = _cover_tileset(source, zoom)
    if not tiles:
        raise CoverError(f"{source} covers no tile")
    parts = split_cover(list(tiles), splits, seed=seed, block=block) if splits else [sorted(tiles)]
    for path, part in zip(out, parts, strict=True):
        if not part:
            raise CoverError(f"{len(tiles)} tiles are too few to split: {path} would be empty")
    for path, part in zip(out, parts, strict=True):
        write_cover(path, part)
    return CoverResult(tiles=len(tiles), parts=[len(part) for part in parts])


def _cover_tileset(source: str, zoom: int | None) -> set[Tile]:
    from rsp.shared.tileset import open_reader

    with open_reader(source) as reader:
        tiles = set(reader.tiles())
    return tiles if zoom is None else {tile for tile in tiles if tile.z == zoom}


def _cover_bbox(source: str, zoom: int) -> set[Tile]:
    import mercantile

    fields = source.split(",")
    try:
        west, south, east, north = map(float, fields[:4])
        code = fields[4].strip() if len(fields) > 4 else "EPSG:4326"
        if len(fields) > 5 or not code.upper().startswith("EPSG:"):
            raise ValueError(code)
        epsg = int(code[5:])
    except ValueError:
        raise UsageError(f"a bbox is west,south,east,north[,EPSG:code], got {source!r}") from None
    if epsg != 4326:
        from rasterio.warp import transform_bounds

        west, south, east, north = transform_bounds(f"EPSG:{epsg}", "EPSG:4326", west, south, east, north)
    if not (-90 <= south <= north <= 90 and -180 <= west <= 180 and -180 <= east <= 180):
        raise UsageError(f"the bbox {source} is not on Earth: degrees are expected, south below north")
    return set(mercantile.tiles(west, south, east, north, zoom))


def _cover_features(source: str, zoom: int) -> set[Tile]:
    from rsp.shared.features import expand, read_crs, read_features

    tiles: set[Tile] = set()
    for path in expand(source):
        epsg = read_crs(path)
        geometries = (feature.geometry for feature in read_features(path) if feature.geometry is not None)
        while chunk := list(islice(geometries, CHUNK)):
            tiles.update(_cover_geometries(chunk, epsg, zoom))
    return tiles


def _cover_geometries(geometries: list[BaseGeometry], epsg: int, zoom: int) -> Iterator[Tile]:
    """Yield the tiles that geometries meet; some of them more than once."""
    import numpy as np
    import shapely

    from rsp.shared.features import to_mercator

    side = 1 << zoom
    mercator = to_mercator(np.array(geometries, dtype=object), epsg)
    # In units of tiles, y down.
    parts = shapely.transform(mercator, lambda xy: (xy * (1, -1) + HALF) * (side / (2 * HALF)))
    while (shapely.get_type_id(parts) >= FIRST_COLLECTION).any():
        parts = shapely.get_parts(parts)
    parts = parts[~shapely.is_empty(parts)]
    first = np.floor(shapely.bounds(parts)).astype(np.int64)
    sizes = first[:, 2:] - first[:, :2] + 1
    small = sizes.max(axis=1, initial=0) <= SMALL
    cells = [_cells_of_small(parts[small], first[small, :2], sizes[small])]
    cells += [_cells(part) for part in parts[~small]]
    for x, y in np.concatenate(cells).tolist():
        if 0 <= y < side:
            yield Tile(x % side, y, zoom)


def _margins(polygon: Any) -> Any:
    """Return how far from a cell's upper left corner the square begins that a geometry is tested with.

    A polygon must enter a cell; points and lines belong to the cell whose upper left edges they lie on.
    """
    import numpy as np

    return np.where(polygon, MARGIN, 0.0)


def _cells_of_small(parts: Any, first: Any, sizes: Any) -> Any:
    """Return the unit cells, shape (n, 2), that geometries of few cells each meet: all of them tested at once."""
    import numpy as np
    import shapely

    counts = sizes.prod(axis=1)
    owner = np.repeat(np.arange(len(parts)), counts)
    nth = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    cells = first[owner] + np.column_stack([nth % sizes[owner, 0], nth // sizes[owner, 0]])
    low = _margins(shapely.get_type_id(parts) == POLYGON)[owner]
    x, y = cells[:, 0], cells[:, 1]
    met = shapely.intersects(parts[owner], shapely.box(x + low, y + low, x + 1 - MARGIN, y + 1 - MARGIN))
    # Where the bounds are one cell there is nothing to test (and an intersection could only be lost to rounding).
    return cells[met | (counts[owner] == 1)]


def _cells(geometry: BaseGeometry) -> Any:
    """Return the unit cells, shape (n, 2), that a geometry meets, by quartering the square around it.

    A square wholly inside is taken without further tests, so the work follows the outline, not the area.
    """
    import numpy as np
    import shapely

    west, north, east, south = np.floor(geometry.bounds).astype(np.int64)
    size = 1 << int(max(east - west, south - north)).bit_length()
    polygon = geometry.geom_type == "Polygon"
    low = _margins(polygon)
    shapely.prepare(geometry)
    squares = np.array([[west, north]])
    found: list[Any] = []
    while True:
        x, y = squares[:, 0], squares[:, 1]
        boxes = shapely.box(x + low, y + low, x + size - MARGIN, y + size - MARGIN)
        met = shapely.intersects(geometry, boxes)
        squares, boxes = squares[met], boxes[met]
        if size == 1:
            return np.concatenate([*found, squares])
        if polygon:
            inside = shapely.contains_properly(geometry, boxes)
            grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1).reshape(-1, 2)
            found.append((squares[inside][:, np.newaxis, :] + grid).reshape(-1, 2))
            squares = squares[~inside]
        size //= 2
        corners = np.array([[0, 0], [size, 0], [0, size], [size, size]])
        squares = (squares[:, np.newaxis, :] + corners).reshape(-1, 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp cover`."""
    parser.add_argument(
        "source", nargs="?", default=argparse.SUPPRESS, metavar="input",
        help="GeoJSON file (or glob pattern), bounding box, or tile set, as --type says",
    )  # fmt: skip
    add_out(parser, "where to write the cover; one path for each of the splits", several=True)
    parser.add_argument(
        "--type", dest="kind", choices=("geojson", "bbox", "dir"), default="geojson",
        help="what the input is (default: geojson)",
    )  # fmt: skip
    for kind, metavar in (("geojson", "FILE"), ("bbox", "W,S,E,N"), ("dir", "TILES")):
        parser.add_argument(f"--{kind}", metavar=metavar, help=f"the input, and `--type {kind}`")
    parser.add_argument("--zoom", type=int, help="zoom of the cover; needed for geojson and bbox")
    parser.add_argument(
        "--splits", type=int_list, metavar="A,B", help="percentages that add up to 100: 70,30 or 70/30"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    parser.add_argument(
        "--block", type=int, default=1, metavar="N",
        help="split by blocks of N x N tiles, since neighbouring tiles look alike (default: 1)",
    )  # fmt: skip


def resolve(args: argparse.Namespace) -> None:
    """Bring `--bbox B out`, `--bbox B --out out` and `--type bbox B out` to one form."""
    source = getattr(args, "source", None)
    for kind in ("geojson", "bbox", "dir"):
        value = getattr(args, kind)
        if value is None:
            continue
        # The first positional is an output then.
        positionals = [Path(source)] if source is not None else []
        args.kind, source, args.out = kind, value, [*positionals, *(args.out or [])] or None
    args.source = source.strip() if source else None
    if args.source is None:
        raise UsageError("the input is missing; give it as an argument, or as --geojson, --bbox or --dir")
    require(args, "out")
