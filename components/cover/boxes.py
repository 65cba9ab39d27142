"""The tiles that bounding boxes meet, in every form in which boxes are written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np

from rsp.components.cover.outline import Points, bent
from rsp.components.cover.runs import Gathered, Runs, runs_of
from rsp.shared.covers import Cover
from rsp.shared.crs import parse_crs
from rsp.shared.errors import UsageError
from rsp.shared.mercator import MAX_LATITUDE
from rsp.shared.tiles import check_budget, tile_block


class Box(NamedTuple):
    """A bounding box and its EPSG code, where it says one."""

    west: float
    south: float
    east: float
    north: float
    epsg: int | None = None


# The sides of a box in the data of OpenStreetMap, and a box in an address of its API.
_SIDES = re.compile(r"\b((?:min|max)l(?:on|at))\s*[=:]\s*[\"']?([-+.\deE]+)", re.IGNORECASE)
_PARAMETER = re.compile(r"\bbbox=([^&#\s]+)", re.IGNORECASE)


def parse_box(text: str) -> Box:
    """Return the box that a text means.

    `4.8,45.7,4.83,45.73`, also with blanks in place of the commas or beside them; `[4.8, 45.7, 4.83, 45.73]`, and
    with six numbers `[west, south, low, east, north, high]`, as JSON has it; each with a CRS behind, as
    `,EPSG:2154`. Also what OpenStreetMap writes: `<bounds minlat="45.7" minlon="4.8" maxlat="45.73"
    maxlon="4.83"/>`, and the address of an export, `...?bbox=4.8,45.7,4.83,45.73`.

    Raises:
        UsageError: it means none.
    """
    named = {side.lower(): number for side, number in _SIDES.findall(text)}
    if len(named) == 4:
        text = ",".join(named[side] for side in ("minlon", "minlat", "maxlon", "maxlat"))
    elif (found := _PARAMETER.search(text)) is not None:
        text = unquote(found[1])
    fields = text.replace("[", " ").replace("]", " ").replace(",", " ").split()
    epsg = None
    try:
        if len(fields) > 4 and fields[-1].upper().startswith("EPSG:"):
            epsg = parse_crs(fields.pop())
        numbers = [float(field) for field in fields]
        if len(numbers) == 6 and "[" in text:
            numbers = [*numbers[:2], *numbers[3:5]]
        west, south, east, north = numbers
    except ValueError:
        raise UsageError(f"a bbox is west,south,east,north[,EPSG:code], got {text!r}") from None
    return Box(west, south, east, north, epsg)


def cover_boxes(sources: Iterable[str], zoom: int, crs: str | None, max_tiles: int) -> Cover:
    """Return the tiles that bounding boxes meet.

    Args:
        sources: The boxes, see `parse_box`; in degrees, west beyond east crosses the antimeridian.
        zoom: Zoom of the tiles.
        crs: The CRS of boxes that say none.
        max_tiles: How many tiles there may be.

    Raises:
        UsageError: not a bounding box, one that no tile meets, or too many tiles.
    """
    what = f"the bbox {' and '.join(sources)} at zoom {zoom}"
    gathered = Gathered(max_tiles, what)
    for source in sources:
        for runs in _runs(source, zoom, crs, max_tiles):
            gathered.add(runs)
    return Cover({zoom: gathered.keys()})


def _runs(source: str, zoom: int, crs: str | None, max_tiles: int) -> Iterable[Runs]:
    box = parse_box(source)
    west, south, east, north = box[:4]
    if box.epsg is not None and crs is not None and parse_crs(crs) != box.epsg:
        raise UsageError(f"the bbox says EPSG:{box.epsg} and --crs {crs}: leave one out")
    epsg = box.epsg or parse_crs(crs or "EPSG:4326")
    if not np.isfinite(box[:4]).all():
        raise UsageError(f"the bbox {source} is not finite")
    if south > north or (epsg != 4326 and west > east):
        raise UsageError(f"the bbox {source} is upside down: expected west,south,east,north, the lesser first")
    if epsg == 4326:
        return _of_degrees(box, source, zoom, max_tiles)

    def place(square: Points) -> Points:
        return (1 - square) * (west, south) + square * (east, north)

    def error(reason: str) -> UsageError:
        return UsageError(f"the bbox {source}, in EPSG:{epsg}, {reason}")

    polygon = bent(place, f"EPSG:{epsg}", zoom, error)
    top, bottom = polygon.bounds[1], polygon.bounds[3]
    if bottom < 0 or top > 1 << zoom:
        raise error(f"lies beyond {MAX_LATITUDE:.2f} degrees, where web mercator ends")
    if polygon.bounds[0] < -(1 << zoom) or polygon.bounds[2] > 2 << zoom:
        raise error("is not on Earth")
    return runs_of(np.array([polygon], dtype=object), zoom, max_tiles, f"the bbox {source} at zoom {zoom}")


def _of_degrees(box: Box, source: str, zoom: int, max_tiles: int) -> Iterable[Runs]:
    west, south, east, north = box[:4]
    if not (-90 <= south <= north <= 90 and -180 <= west <= 180 and -180 <= east <= 180):
        far = max(map(abs, box[:4])) > 1000
        hint = "; for metres add the CRS, as ,EPSG:2154" if far else ""
        raise UsageError(f"the bbox {source} is not on Earth: degrees are expected, south below north{hint}")
    if south > MAX_LATITUDE or north < -MAX_LATITUDE:
        raise UsageError(
            f"the bbox {source} lies beyond {MAX_LATITUDE:.2f} degrees, where web mercator ends; are latitude and "
            "longitude swapped?"
        )
    spans = [(west, east)] if west <= east else [(-180.0, east), (west, 180.0)]
    blocks = [tile_block(low, south, high, north, zoom) for low, high in spans]
    rows = blocks[0][1].y - blocks[0][0].y + 1
    count = min(sum(last.x - first.x + 1 for first, last in blocks), 1 << zoom) * rows
    check_budget(count, max_tiles, f"the bbox {source} at zoom {zoom}")
    for first, last in blocks:
        columns = np.arange(first.x, last.x + 1) << 32
        yield Runs(columns | first.y, columns | last.y)
