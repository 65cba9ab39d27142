"""The web page beside a tile set: a map of it, or a viewer to compare and select tiles.

A page is one HTML file that holds its style, its scripts and the outline of its tiles: it asks nothing of any
other host, and works from `file://` as from a server.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import chain
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np

from rsp.shared.atomic import atomic_text
from rsp.shared.attribution import of_tiles, to_html
from rsp.shared.covers import Cover, unique
from rsp.shared.errors import TileSetError, UsageError
from rsp.shared.locations import Location, location, read_text
from rsp.shared.tilekeys import columns
from rsp.shared.tiles import Tile, bounds_lonlat, zxy
from rsp.shared.tileset import FORMATS, is_archive

Page = Literal["leaflet", "compare"]
Notes = Mapping[Tile, Mapping[str, float]]

# Runs of tiles that a page holds itself; what has more shows its extent until it has read tiles.json.
MAX_RUNS = 20_000
MAX_NOTES = 5_000

# What templates embed, the licence whose text stands above it, and what is left out of it: source maps, and
# pictures of controls that no page has.
_ASSETS = {
    "common": "common.html",
    "leaflet_css": "vendor/leaflet.css",
    "leaflet_js": "vendor/leaflet.js",
    "fitted_js": "fitted.js",
    "pmtiles_js": "vendor/pmtiles.js",
}
_LICENCES = {
    "leaflet_css": "vendor/leaflet.LICENSE",
    "leaflet_js": "vendor/leaflet.LICENSE",
    "pmtiles_js": "vendor/pmtiles.LICENSE",
}
_REFERENCE = re.compile(r"(?m)^//# sourceMappingURL=.*$|background-image: url\(images/[^)]*\);")
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


class Extent(NamedTuple):
    """Where tiles lie, in degrees; east is beyond 180 where they cross the antimeridian."""

    west: float
    south: float
    east: float
    north: float

    @property
    def center(self) -> tuple[float, float]:
        """The middle, as longitude and latitude."""
        return (self.west + self.east) / 2, (self.south + self.north) / 2


def write_webmap(
    out: Location,
    tiles: Collection[Tile],
    tile_format: str,
    *,
    base_url: str = "./",
    template: Location | None = None,
    page: Page = "leaflet",
    notes: Notes | None = None,
    legend: Sequence[tuple[str, str]] = (),
) -> Location:
    """Write the web page of a tile set: `index.html` and `tiles.json` in a directory, or `x.pmtiles.html`.

    Args:
        out: The tile set.
        tiles: The tiles that the page shows.
        tile_format: Their format.
        base_url: Where the page finds the tiles.
        template: A template of the user's own, with the placeholders `{{base_url}}`, `{{ext}}`, `{{zoom}}`,
            `{{center}}` (latitude and longitude), `{{tiles}}` and `{{attribution}}` (HTML: text and links).
        page: Which of our templates, where there is none of the user's.
        notes: Numbers of tiles, shown beside them; `qod` or `iou` also ranks them. In their order
            `tiles.json` lists the tiles, then those without.
        legend: Colours, as `#RRGGBB`, and what each means.

    Returns:
        Where the page is.

    Raises:
        UsageError: the template cannot be read, or the base URL is not a URL.
        TileSetError: there is no tile.
        StorageError: the page cannot be written.
    """
    out = location(out).expanduser()
    archive = is_archive(out)
    cover = Cover.of(tiles)
    if not cover:
        raise TileSetError(f"{out} has no tile that a web page could show")
    data = page_data(cover, tile_format, title=out.name)
    data["base"] = _url(base_url)
    if notes and len(notes) <= MAX_NOTES:
        data["notes"] = {zxy(tile): dict(values) for tile, values in sorted(notes.items())}
    if legend:
        data["legend"] = [list(entry) for entry in legend]
    if archive:
        data["archive"] = quote(out.name)
    data["attribution"] = to_html(of_tiles(out))
    text = render(_template(page, template), data)
    target = out.parent / f"{out.name}.html" if archive else out / "index.html"
    with atomic_text(target) as file:
        file.write(text)
    if not archive:
        with atomic_text(out / "tiles.json") as file:
            noted = notes or {}
            file.writelines(footprints(chain(noted.items(), ((tile, {}) for tile in cover if tile not in noted))))
    return target


def tileset_page(
    tiles: Collection[Tile], tile_format: str, *, title: str, archive: str = "", attribution: str | None = None
) -> str:
    """Return the map of a tile set that lies beside it, as text.

    Args:
        tiles: Its tiles.
        tile_format: Their format.
        title: The heading of the page.
        archive: Name of the PMTiles file, where the set is one.
        attribution: Whose the tiles are.

    Raises:
        TileSetError: there is no tile.
    """
    if not tiles:
        raise TileSetError(f"{title} has no tile that a web page could show")
    data = page_data(Cover.of(tiles), tile_format, title=title)
    data |= {"base": "./", "alone": True, "attribution": to_html(attribution)}
    if archive:
        data["archive"] = quote(archive)
    return render(_template("leaflet", None), data)


def embed_webmap(
    images: Mapping[Tile, tuple[str, bytes]],
    *,
    title: str,
    notes: Notes | None = None,
    total: int | None = None,
    legend: Sequence[tuple[str, str]] = (),
    underlay: tuple[Extent, bytes] | None = None,
    attribution: str | None = None,
) -> str:
    """Return a map that holds its images itself, for where a page is shown alone (the KFP UI shows it in a frame).

    Args:
        images: The media type and the data of the image of each tile; their sum is what the page weighs.
        title: The heading of the page.
        notes: Numbers of tiles, shown under the pointer; `qod` or `iou` also ranks them.
        total: How many tiles there are in all, where `images` is a part of them.
        legend: Colours, as `#RRGGBB`, and what each means.
        underlay: A PNG below the images, and where it lies, in web mercator's projection; the map shows all of it.
        attribution: Whose the images are.
    """
    tiles = sorted(images)
    if not tiles:
        raise TileSetError("a map needs at least one tile")
    data = page_data(Cover.of(tiles), "", title=title)
    data |= {"base": "", "attribution": to_html(attribution)}
    data["legend"] = [list(entry) for entry in legend]
    data["total"] = total or len(tiles)
    data["images"] = {
        zxy(tile): f"data:{kind};base64,{b64encode(content).decode()}"
        for tile, (kind, content) in sorted(images.items())
    }
    data["notes"] = {zxy(tile): dict(values) for tile, values in sorted((notes or {}).items())}
    if underlay:
        box, picture = underlay
        data["bounds"] = [round(value, 6) for value in box]
        data["center"] = [round(value, 6) for value in reversed(box.center)]
        data["underlay"] = f"data:image/png;base64,{b64encode(picture).decode()}"
    return render(_template("leaflet", None), data)


def page_data(cover: Cover, tile_format: str, *, title: str) -> dict[str, Any]:
    """Return what a page knows of its tiles, at least one."""
    box = extent(cover)
    return {
        "title": title,
        "ext": FORMATS.get(tile_format, tile_format),
        "count": len(cover),
        "zooms": [cover.zooms[0], cover.zooms[-1]],
        "bounds": [round(value, 6) for value in box],
        "center": [round(value, 6) for value in reversed(box.center)],
        "runs": tile_runs(cover, MAX_RUNS),
    }


def extent(tiles: Iterable[Tile]) -> Extent:
    """Return where tiles lie, the shorter way around the Earth."""
    cover = Cover.of(tiles)
    found: set[tuple[float, float]] = set()
    south, north = 90.0, -90.0
    for zoom in cover.zooms:
        x, y = columns(cover.keys(zoom))
        top, bottom = Tile(0, int(y.min()), zoom), Tile(0, int(y.max()), zoom)
        south, north = min(south, bounds_lonlat(bottom)[1]), max(north, bounds_lonlat(top)[3])
        bounds = (bounds_lonlat(Tile(column, 0, zoom)) for column in unique(x).tolist())
        found.update((west, east) for west, _, east, _ in bounds)
    spans = sorted(found)
    # The widest gap between columns is outside: the extent begins to the east of it.
    begin, widest, reached = 0, spans[0][0] + 360 - max(east for _, east in spans), spans[0][1]
    for index, (west, east) in enumerate(spans):
        if west - reached > widest:
            begin, widest = index, west - reached
        reached = max(reached, east)
    west = spans[begin][0]
    return Extent(west, south, west + 360 - widest, north)


def footprints(tiles: Iterable[tuple[Tile, Mapping[str, float]]]) -> Iterator[str]:
    """Yield, in pieces, a FeatureCollection of the outlines of tiles; x, y, z and notes are properties."""
    yield '{"type":"FeatureCollection","features":['
    before = "\n"
    for tile, notes in tiles:
        west, south, east, north = (f"{value:.6f}" for value in bounds_lonlat(tile))
        ring = f"[{west},{south}],[{east},{south}],[{east},{north}],[{west},{north}],[{west},{south}]"
        properties = json.dumps({"x": tile.x, "y": tile.y, "z": tile.z, **notes}, separators=(",", ":"))
        yield (
            f'{before}{{"type":"Feature","properties":{properties},'
            f'"geometry":{{"type":"Polygon","coordinates":[[{ring}]]}}}}'
        )
        before = ",\n"
    yield "\n]}\n"


def tile_runs(cover: Cover, most: int = MAX_RUNS) -> list[list[int]] | None:
    """Return tiles as runs down a column, `[z, x, y, count]`; None where there are more than `most`."""
    runs: list[list[int]] = []
    for zoom in cover.zooms:
        keys = cover.keys(zoom)
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1] + 1))
        if len(runs) + len(starts) > most:
            return None
        x, y = columns(keys[starts])
        counts = np.diff(np.append(starts, len(keys)))
        runs += [[zoom, *run] for run in zip(x.tolist(), y.tolist(), counts.tolist(), strict=True)]
    return runs


def render(template: str, data: Mapping[str, Any]) -> str:
    """Fill a template, each placeholder once, with values that mean nothing to HTML and JavaScript but themselves.

    Placeholders that are not ours stay as they are.
    """
    values = {
        "base_url": str(data.get("base", "./")),
        "ext": str(data["ext"]),
        "zoom": str(data["zooms"][1]),
        "center": json.dumps(data["center"]),
        "tiles": "tiles.json",
        "title": escape(str(data["title"])),
        "attribution": str(data.get("attribution", "")),
        "data": script_json(data),
    }

    if "archive" not in data:
        values["pmtiles_js"] = ""

    def value(name: str) -> str | None:
        if name not in values and name in _ASSETS:
            values[name] = asset(name)
        return values.get(name)

    return fill(template, value)


def fill(template: str, value: Callable[[str], str | None]) -> str:
    """Fill a template, each placeholder once; those that have no value stay as they are."""

    def filled(match: re.Match[str]) -> str:
        found = value(match[1])
        return match[0] if found is None else found

    return _PLACEHOLDER.sub(filled, template)


def script_json(value: Any) -> str:
    """Return a value as JSON that can stand in a script, whatever texts it holds.

    No `<` is left that could close it, and the line separators of JSON end no JavaScript string.
    """
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")


def asset(name: str) -> str:
    """Return a script or style that templates embed, by name, without references to files that are not there.

    Each licence asks that its text go with the copies, and every page is one.
    """
    text = _REFERENCE.sub("", _resource(_ASSETS[name]))
    if name not in _LICENCES:
        return text
    notice = _resource(_LICENCES[name]).strip()
    assert "*/" not in notice and "</" not in notice
    return f"/*\n{notice}\n*/\n{text}"


def _resource(name: str) -> str:
    return files("rsp.shared.webmap").joinpath(name).read_text("utf-8")


def _template(page: Page, own: Location | None) -> str:
    return _resource(f"{page}.html") if own is None else own_template(own)


def own_template(own: Location) -> str:
    """Return a template of the user's own.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return read_text(location(own))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the web UI template {own}: {error}") from error


def _url(base: str) -> str:
    """Return a URL that ends in a slash, with whatever quotes or brackets it has percent-encoded.

    So it stands for itself in an attribute as in a string of a script, which is how templates use it.
    """
    base = base.strip() or "./"
    try:
        scheme = urlsplit(base).scheme
    except ValueError as error:
        raise UsageError(f"--web_ui_base_url {base!r} is not a URL: {error}") from None
    if scheme not in ("", "http", "https", "file"):
        raise UsageError(f"--web_ui_base_url must be relative, http, https or file, got {base!r}")
    # Everything that URLs are made of, without the quote; & separates nothing inside a path.
    return quote(base, safe=":/?#[]@!$()*+,;=%~").rstrip("/") + "/"
