"""What becomes of a cover beside a list of its tiles: its extent, and outlines as GeoJSON."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import shapely

from rsp.components.cover.runs import Runs, merged
from rsp.shared.atomic import atomic_path
from rsp.shared.covers import Cover, cover_text
from rsp.shared.locations import Location
from rsp.shared.tilekeys import columns

# Tiles whose outlines are made at once.
AT_ONCE = 1 << 14

# Suffixes of files with a feature a line; others hold a FeatureCollection.
LINES = (".geojsonl", ".geojsons")

STDOUT = "-"


def write_out(path: Location, cover: Cover, out_format: str, *, union: bool) -> None:
    """Write a cover in a format, atomically; to `-`, which is standard output, as it comes.

    Args:
        path: Where it goes.
        cover: The tiles.
        out_format: `cover`, `extent` or `geojson`.
        union: Of `geojson`: one outline around tiles that touch, in place of each tile's.
    """
    lines = str(path) == STDOUT or path.suffix.lower() in LINES
    if out_format == "cover":
        texts = cover_text(cover)
    elif out_format == "extent":
        texts = iter([f"{extent_text(cover)}\n".encode()])
    else:
        texts = _geojson(united(cover) if union else _outlines(cover), lines=lines)
    if str(path) == STDOUT:
        sys.stdout.flush()
        for text in texts:
            sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
        return
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for text in texts:
            file.write(text)


def extent(cover: Cover) -> tuple[float, float, float, float]:
    """Return west, south, east and north of all tiles, in degrees.

    Where less of the world is spanned over the antimeridian, west is beyond east.
    """
    zoom = cover.zooms[-1]
    side = 1 << zoom
    spans, tops, bottoms = [], [], []
    for own in cover.zooms:
        size = 1 << (zoom - own)
        keys = cover.keys(own)
        for start in range(0, len(keys), AT_ONCE):
            x, y = columns(keys[start : start + AT_ONCE])
            x = np.unique(x)
            spans.append(Runs(x * size, x * size + size - 1))
            tops.append(int(y.min()) * size)
            bottoms.append((int(y.max()) + 1) * size)
    first, last = merged(spans)
    # The widest gap is left out: the one from the last column on to the first, unless another is wider.
    gaps = np.append(first[1:] - last[:-1] - 1, side - 1 - last[-1] + first[0])
    at = len(gaps) - 1 if gaps[-1] == gaps.max() else int(gaps.argmax())
    west, east = int(first[(at + 1) % len(first)]), int(last[at]) + 1
    return (
        _longitude(west, side),
        _latitude(max(bottoms), side),
        _longitude(east, side),
        _latitude(min(tops), side),
    )


def extent_text(cover: Cover) -> str:
    """Return the extent as `west,south,east,north`, with 8 decimals of a degree.

    They are rounded inwards, by a millimetre at most, so that the box meets these tiles and no others.
    """
    west, south, east, north = (value * 1e8 for value in extent(cover))
    return ",".join(
        f"{value / 1e8:.8f}" for value in (math.ceil(west), math.ceil(south), math.floor(east), math.floor(north))
    )


def _longitude(x: float, side: int) -> float:
    return x / side * 360 - 180


def _latitude(y: float, side: int) -> float:
    return math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * y / side))))


def _degrees(points: npt.NDArray[np.float64], side: int) -> npt.NDArray[np.float64]:
    """Return longitudes and latitudes of points in units of tiles."""
    latitudes = np.degrees(np.arctan(np.sinh(np.pi * (1 - 2 * points[:, 1] / side))))
    return np.column_stack([points[:, 0] / side * 360 - 180, latitudes])


def _outlines(cover: Cover) -> Iterator[tuple[list[str], list[str]]]:
    """Yield properties and geometry of each tile, as JSON."""
    for zoom in cover.zooms:
        keys = cover.keys(zoom)
        for start in range(0, len(keys), AT_ONCE):
            x, y = columns(keys[start : start + AT_ONCE])
            west, north = _degrees(np.column_stack([x, y]), 1 << zoom).T
            east, south = _degrees(np.column_stack([x + 1, y + 1]), 1 << zoom).T
            places = zip(x.tolist(), y.tolist(), strict=True)
            properties = [f'{{"x":{column},"y":{row},"z":{zoom}}}' for column, row in places]
            yield properties, shapely.to_geojson(shapely.box(west, south, east, north)).tolist()


def united(cover: Cover) -> Iterator[tuple[list[str], list[str]]]:
    """Yield properties and geometry of each polygon that tiles amount to which have an edge in common, as JSON."""
    zoom = cover.zooms[-1]
    boxes = []
    for own in cover.zooms:
        keys = cover.keys(own)
        first, last = merged([Runs(keys, keys)])
        x, top = columns(first)
        edges = np.stack([x, top, x + 1, columns(last)[1] + 1]) << (zoom - own)
        boxes.append(shapely.box(*edges.astype(float)))
    # Exact, as all coordinates are whole numbers. A normal ring begins at a corner: no point is left on an edge.
    polygons = shapely.get_parts(shapely.simplify(shapely.normalize(shapely.union_all(np.concatenate(boxes))), 0))
    polygons = shapely.orient_polygons(shapely.transform(polygons, lambda points: _degrees(points, 1 << zoom)))
    for start in range(0, len(polygons), AT_ONCE):
        some = shapely.to_geojson(polygons[start : start + AT_ONCE]).tolist()
        yield ["{}"] * len(some), some


def _geojson(features: Iterator[tuple[list[str], list[str]]], *, lines: bool) -> Iterator[bytes]:
    """Yield the text of features, one a line; in a FeatureCollection unless only `lines` are wanted."""
    joint = "\n" if lines else ",\n"
    before = "" if lines else '{"type":"FeatureCollection","features":[\n'
    for properties, geometries in features:
        made = zip(properties, geometries, strict=True)
        text = joint.join(
            f'{{"type":"Feature","properties":{each},"geometry":{geometry}}}' for each, geometry in made
        )
        yield f"{before}{text}".encode()
        before = joint
    yield b"\n" if lines else b"\n]}\n"
